"""Every registered optimizer and schedule takes steps; a budget of state binds."""

import dataclasses

import keras
import numpy as np
import pytest

from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.optim import catalog

HPARAMS = HParams()


@pytest.mark.parametrize("name", registry.optimizers.names())
def test_every_optimizer_takes_a_step(name):
    hparams = dataclasses.replace(HPARAMS, optimizer=name, learning_rate_warmup_steps=4)
    optimizer = catalog.create(hparams, [])
    assert optimizer.name == name
    optimizer.jit_compile = False  # one step is not worth compiling
    variable = keras.Variable(np.ones((4, 6)), dtype="float32", name="embedding")
    optimizer.apply([keras.ops.ones((4, 6))], [variable])
    assert (keras.ops.convert_to_numpy(variable) < 1).all()


def test_budget_of_state():
    """A budget binds, is refused to others, and must cover a scalar a variable."""
    hparams = dataclasses.replace(
        HPARAMS, optimizer="et2_rank1", optimizer_state_budget=100.0
    )
    variables = [keras.Variable(np.ones((40, 60)), dtype="float32", name="kernel")]
    optimizer = catalog.create(hparams, variables)
    optimizer.build(variables)
    assert 10 < optimizer.state_size <= 25
    assert optimizer.beta_2 == 0.99
    with pytest.raises(UsageError, match="is for ET optimizers"):
        catalog.create(dataclasses.replace(hparams, optimizer="adam"), variables)
    with pytest.raises(UsageError, match="less than one scalar"):
        small = dataclasses.replace(hparams, optimizer_state_budget=3.0)
        catalog.create(small, variables)


def test_unknown_optimizer():
    with pytest.raises(UsageError, match="unknown optimizer 'et9'. Known: adafactor"):
        catalog.create(dataclasses.replace(HPARAMS, optimizer="et9"), [])


@pytest.mark.parametrize("name", registry.schedules.names())
def test_every_schedule_takes_steps(name):
    """At rates that are finite, and more than 0 once it has begun."""
    hparams = dataclasses.replace(
        HPARAMS, learning_rate_schedule=name, optimizer="et2_rank1"
    )
    optimizer = catalog.create(hparams, [])
    optimizer.jit_compile = False
    variable = keras.Variable(np.ones((4, 6)), dtype="float32", name="kernel")
    for _ in range(2):
        optimizer.apply([keras.ops.ones((4, 6))], [variable])
        assert np.isfinite(keras.ops.convert_to_numpy(variable)).all()
    assert (keras.ops.convert_to_numpy(variable) < 1).all()
    assert 0 < float(optimizer.learning_rate) < np.inf
