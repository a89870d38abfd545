"""Members of a population against runs of their own. JAX only."""

import dataclasses

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer.errors import UsageError
from trainer.hparams import HParams

if keras.backend.backend() != "jax":
    pytest.skip("a population is one program of JAX", allow_module_level=True)

from trainer.data import dataset
from trainer.training import loop
from trainer.training.population import Member
from trainer.training.population import Population
from trainer.training.run import Run

_SMALL = HParams(
    num_hidden_layers=1,
    hidden_size=32,
    filter_size=64,
    num_heads=2,
    layer_prepostprocess_dropout=0.0,
    attention_dropout=0.0,
    relu_dropout=0.0,
    batch_size=256,
)


def _run(data_dir, hparams, **settings):
    return Run(
        problem=PROBLEM,
        data_dir=str(data_dir),
        train_steps=5,
        local_eval_frequency=2,
        hparams=hparams,
        **settings,
    )


@pytest.mark.parametrize(
    "changes",
    [
        "optimizer=et2_orthogonal",
        "optimizer=et2_orthogonal_momentum",
        "optimizer=adam,ema_momentum=0.5",
        "optimizer=muon,learning_rate_schedule=cosine,learning_rate_decay_steps=5",
    ],
)
def test_a_member_is_a_run(data_dir, changes):
    hparams = _SMALL.override(changes)
    members = [Member(0.01, 2, 0), Member(0.02, 3, 0), Member(0.02, 2, 1)]
    population = Population(_run(data_dir, hparams), members)
    population.compile()
    curves = []
    population.train(lambda step, nats: curves.append((step, *nats)))
    for number, member in enumerate(members):
        own = hparams.override(
            f"learning_rate_constant={member.learning_rate_constant},"
            f"learning_rate_warmup_steps={member.learning_rate_warmup_steps}"
        )
        run = _run(data_dir, own, random_seed=member.random_seed)
        result = loop.train(run)
        found = [(step, e.nats_per_token) for step, e in result.evaluations]
        expected = [(curve[0], curve[1 + number]) for curve in curves]
        # Packed momentum is rounded by bits of which the last may differ.
        rounding = 50 if "momentum" in hparams.optimizer else 1
        np.testing.assert_allclose(found, expected, rtol=2e-5 * rounding)
        assert population.state_scalars == result.state_scalars
        word = result.evaluations[-1][1].perplexity_per_word
        np.testing.assert_allclose(
            population.perplexity_per_word(expected[-1][1]), word, rtol=1e-3 * rounding
        )


@pytest.mark.parametrize(
    "changes, settings, message",
    [
        ("relu_dropout=0.1", {}, "no dropout"),
        ("gradient_accumulation_steps=2", {}, "steps of one batch"),
        ("", {"dtype": "mixed_float16"}, "float32 or mixed_bfloat16"),
    ],
)
def test_refuses_what_the_members_cannot_share(data_dir, changes, settings, message):
    run = _run(data_dir, _SMALL.override(changes), **settings)
    with pytest.raises(UsageError, match=message):
        Population(run, [Member(0.01, 2, 0)])


def test_refuses_rows_that_differ_in_length(data_dir, monkeypatch):
    description = dataset.load_description(data_dir, PROBLEM)
    unpacked = dataclasses.replace(description, packed=False)
    monkeypatch.setattr(dataset, "load_description", lambda *_: unpacked)
    with pytest.raises(UsageError, match="choose a packed problem"):
        Population(_run(data_dir, _SMALL), [Member(0.01, 2, 0)])
