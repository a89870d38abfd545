"""Runs over several devices: weights, figures and checkpoints of one device."""

import dataclasses

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer import distribution
from trainer import registry
from trainer.data import datagen
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.evaluation import evaluation
from trainer.hparams import HParams
from trainer.runs import checkpoints
from trainer.runs import trained_model
from trainer.training import building
from trainer.training import loop
from trainer.training.run import Run

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="there is no strategy")
ON_JAX = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution is for JAX")
ON_TENSORFLOW = pytest.mark.skipif(BACKEND != "tensorflow", reason="of towers")

HPARAMS = HParams(
    num_hidden_layers=2 if BACKEND == "jax" else 1,
    hidden_size=32,
    filter_size=64,
    num_heads=4,
    batch_size=512,
    learning_rate_warmup_steps=100,
    attention_dropout=0.0,
    relu_dropout=0.0,
    # On TensorFlow each device draws noise of its own.
    layer_prepostprocess_dropout=0.1 if BACKEND == "jax" else 0.0,
    clip_grad_norm=0.1,
    ema_momentum=0.9,
    optimizer="et2_orthogonal",
)
# That of packed momentum is rounded at random, by bits of which the last may differ.
ROUNDED = "et2_orthogonal_momentum"


@pytest.fixture
def spread():
    """Returns a function of a strategy and its devices; None is one device."""

    def begin(strategy, devices=None):
        if BACKEND == "jax":
            keras.distribution.set_distribution(None)
        distribution.spread(
            strategy or "none", "transformer_lm", HPARAMS, 2000, devices
        )

    yield begin
    begin(None)


def run(data_dir, output_dir=None, steps=6, problem=PROBLEM, **changes):
    hparams = dataclasses.replace(HPARAMS, **changes)
    return Run(problem, str(data_dir), hparams, steps, output_dir and str(output_dir))


def assert_same(found, expected, factor=1):
    for a, b in zip(found.model.weights, expected.model.weights):
        # Steps of a rare token are divided by its small gradient: rounding grows.
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=factor * 1e-4)
    pair = [r.evaluations[-1][1] for r in (found, expected)]
    assert pair[0].nats == pytest.approx(pair[1].nats, rel=factor * 1e-5)
    assert dataclasses.replace(pair[0], nats=0.0, correct=0) == dataclasses.replace(
        pair[1], nats=0.0, correct=0
    )


@pytest.mark.parametrize(
    "strategy, devices, optimizer",
    [
        # The same but for packed momentum.
        pytest.param("data", None, HPARAMS.optimizer, marks=pytest.mark.slow),
        ("data", None, ROUNDED),
        pytest.param("model", 4, HPARAMS.optimizer, marks=ON_JAX),
    ],
)
def test_a_run_in_two_topologies_is_the_run_on_one_device(
    data_dir, tmp_path, spread, strategy, devices, optimizer
):
    """The first half on all devices, the second on one, and either is evaluated."""
    whole = loop.train(run(data_dir, optimizer=optimizer))
    spread(strategy, devices)
    half = loop.train(run(data_dir, tmp_path, 3, optimizer=optimizer))
    spread(None)
    again = loop.train(run(data_dir, tmp_path, optimizer=optimizer))
    assert_same(again, whole, 10 if optimizer == ROUNDED else 1)
    path = checkpoints.folder(tmp_path) / "model-3.keras"
    loaded = trained_model.load(tmp_path, path)
    description = loaded.check_data(data_dir)
    found = evaluation.evaluate_model(loaded.model, data_dir, description, "dev", 96)
    assert found.tokens == half.evaluations[-1][1].tokens
    assert found.nats == pytest.approx(half.evaluations[-1][1].nats, rel=1e-5)


def test_rows_of_many_lengths_are_filled_up(data_dir, tmp_path, spread):
    """512 tokens are 21 rows of 24: empty ones make them 24 for 8 devices."""
    problem = registry.problems.get("languagemodel_lm1b2k")
    datagen.generate(problem, data_dir / "text", tmp_path, max_length=32)
    settings = run(tmp_path, problem=problem.name)
    whole = loop.train(settings)
    spread("data")
    assert_same(loop.train(settings), whole)


def test_a_batch_that_devices_cannot_share_is_refused(data_dir, tmp_path, spread):
    spread("data")
    least = 32 * distribution.replicas()
    with pytest.raises(
        UsageError, match=f"a batch of 15 rows .* a multiple of {least}"
    ):
        loop.train(run(data_dir, tmp_path / "run", batch_size=15 * 32))
    assert not (tmp_path / "run").exists()
    assert dataset.load_description(data_dir, PROBLEM).max_length == 32


@ON_TENSORFLOW
def test_towers_cannot_be_one_program(data_dir, spread):
    spread("data")
    settings = dataclasses.replace(run(data_dir), xla_compile="true")
    with pytest.raises(UsageError, match="--xla_compile=true is for one device"):
        loop.train(settings)


@ON_TENSORFLOW
def test_noise_of_towers_goes_on_where_it_was(data_dir, spread):
    """Each of two towers draws once a step, and a later start begins after both."""
    spread("data")
    settings = run(data_dir, steps=2, layer_prepostprocess_dropout=0.1)
    model = loop.train(settings).model
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    before = [np.asarray(v) for v in states]
    building.seed_dropout(model, settings.random_seed, 2)
    assert before and len({tuple(state) for state in before}) == len(before)
    for state, found in zip(states, before):
        np.testing.assert_array_equal(np.asarray(state), found)
