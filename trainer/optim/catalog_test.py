import dataclasses

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring
from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.optim import catalog
from trainer.optim import optimizer_state

NAMED = [("embeddings", (300, 40)), ("kernel", (40, 40))]


def variables():
    return [
        keras.Variable(np.zeros(shape, "float32"), name=name) for name, shape in NAMED
    ]


def test_the_default_is_the_recommended_form():
    """Every argument that makes the form is as documented."""
    documented = {
        "level": "inf",
        "preconditioner": "rank_one",
        "beta_2": 0.9,
        "clip_threshold": 1.0,
        "orthogonalize": True,
        "ns_steps": 4,
        "damping": 0.01,
        "rms_rate": 0.35,
        "beta_1": 0.9,
        "momentum": 0.8,
        "momentum_dtype": "packed",
        "epsilon": 1e-12,
    }
    optimizer = catalog.create(HParams(), [])
    config = optimizer.get_config()
    assert {name: config[name] for name in documented} == documented
    embeddings, kernel = optimizer.tensor_indices(NAMED)
    assert embeddings.dims == (15, 20)
    assert not kernel.dims
    optimizer.build(variables()[1:])  # without an embedding, and without a warning


def test_the_recommended_form_is_that_of_the_optimizer():
    """What the results are of is what `ExtremeTensoring.orthogonal` returns."""
    found = catalog.create(HParams(), []).get_config()
    expected = ExtremeTensoring.orthogonal().get_config()
    different = {"name", "learning_rate"}
    assert {k for k in found if found[k] != expected[k]} <= different


def test_without_momentum_it_is_the_form_that_was_measured():
    hparams = HParams(optimizer="et2_orthogonal")
    found = catalog.create(hparams, [])
    ours = ExtremeTensoring.orthogonal(beta_1=0.0, momentum=0.0, rms_rate=1.0)
    different = {"packs_momentum": True}  # of which there is none
    expected = dataclasses.replace(found.settings(), **different)
    assert ours.settings() == expected
    assert ours.tensor_indices(NAMED) == found.tensor_indices(NAMED)


def test_the_short_form_is_the_default_of_the_optimizer():
    found = catalog.create(HParams(optimizer="et2_rank1_short"), []).get_config()
    default = ExtremeTensoring().get_config()
    different = {"name", "learning_rate"}
    assert {k for k in found if found[k] != default[k]} <= different


def test_algorithm_1_is_given_to_the_letter():
    config = catalog.create(HParams(optimizer="et2_sum"), []).get_config()
    for name, value in catalog.ALGORITHM_1.items():
        assert config[name] == value


def test_a_budget_is_kept():
    wide, narrow = (
        catalog.create(
            HParams().override(f"optimizer={name},optimizer_state_budget={budget}"),
            variables(),
        )
        for name, budget in (("et2_rank1_rows", "1.5KB"), ("et2", "100"))
    )
    for name in ("et2_orthogonal", "et2_orthogonal_momentum"):
        orthogonal = catalog.create(
            HParams(optimizer=name, optimizer_state_budget=100), variables()
        )
        orthogonal.build(variables())
        kept = [bool(index.dims) for index in orthogonal.tensor_indices(NAMED)]
        assert kept == [True, False]
        assert 50 < 4 * orthogonal.state_size <= 100
    for optimizer, most in ((wide, 1500), (narrow, 100)):
        optimizer.build(variables())
        assert most / 2 < 4 * optimizer.state_size <= most
    assert wide.name == "et2_rank1_rows" and narrow.name == "et2"


@pytest.mark.parametrize(
    "text, message",
    [
        ("optimizer=adam,optimizer_state_budget=1KB", "is for ET optimizers .*; adam"),
        (
            "optimizer=et2,optimizer_state_budget=4",
            "hparam optimizer_state_budget: a budget of 4 ",
        ),
        ("optimizer_state_budget=9", "2 scales of momentum: give at least 12 bytes"),
        ("optimizer=et9", "unknown optimizer 'et9'"),
        ("learning_rate_schedule=linear", "unknown schedule 'linear'"),
    ],
)
def test_wrong_hparams(text, message):
    with pytest.raises(UsageError, match=message):
        catalog.create(HParams().override(text), variables())


def test_an_optimizer_that_does_not_accumulate_is_refused(monkeypatch):
    """A user's entry may leave it out: its schedule would count what it does not do."""

    def made(learning_rate, hparams):
        return keras.optimizers.SGD(learning_rate)

    monkeypatch.setattr(registry.optimizers, "get", lambda name: made)
    assert catalog.create(HParams(), []).gradient_accumulation_steps is None
    with pytest.raises(UsageError, match="does not take it from the hparams"):
        catalog.create(HParams(gradient_accumulation_steps=2), [])


def test_the_constant_is_that_of_the_entry_or_of_the_hparams():
    schedule = "learning_rate_schedule=constant"
    own = registry.optimizers.learning_rate_constant(HParams().optimizer)
    for text, rate in (
        (schedule, own / 4),  # the width is 512
        (f"{schedule},hidden_size=128", own),
        (f"{schedule},hidden_size=64", own),
        (f"{schedule},learning_rate_constant=0.25", 0.25),
    ):
        made = catalog.create(HParams().override(text), [])
        assert float(made.learning_rate) == pytest.approx(rate)
    assert isinstance(catalog.create(HParams(), []), ExtremeTensoring)


@pytest.mark.parametrize("name", registry.optimizers.names())
def test_every_optimizer_takes_a_step(name):
    hparams = dataclasses.replace(
        HParams(), optimizer=name, learning_rate_warmup_steps=4
    )
    optimizer = catalog.create(hparams, [])
    assert optimizer.name == name
    optimizer.jit_compile = False  # one step is not worth compiling
    variable = keras.Variable(np.ones((4, 6)), dtype="float32", name="embedding")
    optimizer.apply([keras.ops.ones((4, 6))], [variable])
    assert (keras.ops.convert_to_numpy(variable) < 1).all()


@pytest.mark.parametrize("name", registry.schedules.names())
def test_every_schedule_takes_steps(name):
    """At rates that are finite, and more than 0 once it has begun."""
    hparams = dataclasses.replace(
        HParams(hidden_size=128),
        learning_rate_schedule=name,
        optimizer="et2_rank1",
    )
    optimizer = catalog.create(hparams, [])
    optimizer.jit_compile = False
    variable = keras.Variable(np.ones((4, 6)), dtype="float32", name="kernel")
    for _ in range(2):
        optimizer.apply([keras.ops.ones((4, 6))], [variable])
        assert np.isfinite(keras.ops.convert_to_numpy(variable)).all()
    assert (keras.ops.convert_to_numpy(variable) < 1).all()
    assert 0 < float(optimizer.learning_rate) < np.inf


@pytest.mark.parametrize("name, of_a_parameter", [("sgd", 0), ("momentum", 1)])
def test_averages_and_accumulated_gradients_are_no_state(name, of_a_parameter):
    """Of Keras' optimizers as of ours, so that a column of state compares them."""
    text = f"optimizer={name},ema_momentum=0.9,gradient_accumulation_steps=2"
    weights = variables()
    optimizer = catalog.create(HParams().override(text), weights)
    optimizer.build(weights)
    entries = sum(int(np.prod(v.shape)) for v in weights)
    assert optimizer_state.state_scalars(optimizer) == of_a_parameter * entries
