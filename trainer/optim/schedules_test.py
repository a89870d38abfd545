"""Schedules count updates from 1, and reach the rates that their formulas say."""

import dataclasses

import keras
import numpy as np
import pytest

from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.optim import catalog

HPARAMS = HParams(
    hidden_size=128,
    optimizer="sgd",
    learning_rate_warmup_steps=4,
    learning_rate_decay_steps=12,
)


def rates(name, count, hparams=HPARAMS):
    schedule = registry.schedules.get(name)(hparams, 2.0)
    return np.array([float(schedule(step)) for step in range(count)])


def test_cosine():
    """It warms up from the first update on, and falls to 0 after the last one."""
    t = np.arange(1, 16)
    fall = 0.5 * (1 + np.cos(np.pi * np.clip((t - 4) / 9, 0, 1)))
    expected = 2.0 * 4**-0.5 * np.where(t < 4, t / 4, fall)
    np.testing.assert_allclose(rates("cosine", 15), expected, atol=1e-6)
    assert rates("cosine", 12).min() > 0 and rates("cosine", 13)[-1] == 0


def test_a_long_cosine_keeps_a_rate_to_its_end():
    """In float32 1 + cos is 0 long before."""
    long = dataclasses.replace(HPARAMS, learning_rate_decay_steps=500_000)
    schedule = registry.schedules.get("cosine")(long, 2.0)
    assert float(schedule(499_999)) > 0 == float(schedule(500_000))


def test_a_cosine_without_a_fall_is_refused():
    with pytest.raises(UsageError, match="must be more. Got 12 and 12"):
        rates("cosine", 1, dataclasses.replace(HPARAMS, learning_rate_warmup_steps=12))


@pytest.mark.parametrize("name", ["inverse_sqrt", "cosine"])
def test_of_several_batches_an_update_has_one_rate(name):
    """Rates and averages of weights are those of updates, as without accumulation."""
    hparams = dataclasses.replace(
        HPARAMS, learning_rate_schedule=name, ema_momentum=0.5
    )
    once = catalog.create(hparams, [])
    thrice = catalog.create(
        dataclasses.replace(hparams, gradient_accumulation_steps=3), []
    )
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(thrice))
    weights = []
    for optimizer, batches in ((once, 1), (thrice, 3), (restored, 3)):
        variable = keras.Variable(np.ones(3), dtype="float32", name="kernel")
        for step in range(6 * batches):
            optimizer.apply([keras.ops.ones(3) * (step // batches + 1.0)], [variable])
        weights.append(keras.ops.convert_to_numpy(variable))
        assert optimizer.ema_momentum**batches == pytest.approx(0.5)
    for other in weights[1:]:
        np.testing.assert_allclose(other, weights[0], rtol=1e-5)
