"""Momentum in the lowest byte of a variable: what is kept of both, and `fit`."""

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report
from extreme_tensoring_tf import packing

ENTRIES = 100_000


def normal(seed, scale=1.0):
    numbers = np.random.default_rng(seed).normal(size=ENTRIES)
    return (scale * numbers).astype("float32")


def packed(values, momentum, scale=None, step=1):
    """Returns values and momentum after a packing, as arrays."""
    scale = np.float32(np.abs(momentum).max() if scale is None else scale)
    arguments = values, momentum, scale, np.int32(step)
    variable = packing.pack(*map(ops.convert_to_tensor, arguments))
    return [ops.convert_to_numpy(x) for x in packing.unpack(variable, scale)]


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_values_keep_sixteen_bits_and_their_mean(scale):
    values = normal(0, scale)
    found, _ = packed(values, normal(1))
    errors = (found / values - 1).astype("float64")
    assert (
        np.abs(errors).max() < 2.0**-15
    )  # a step between numbers, at random up or down
    assert abs(errors.mean()) < 2.0**-15 / ENTRIES**0.5 * 3


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_momentum_keeps_its_mean_and_nearly_its_value(scale):
    momentum = normal(0, scale)
    _, found = packed(normal(1), momentum)
    size = np.sqrt(np.mean((momentum / scale) ** 2))
    errors = (found - momentum) / scale
    assert np.sqrt(np.mean(errors**2)) < 0.03 * size
    assert abs(np.mean(errors)) < 0.03 * size / ENTRIES**0.5 * 3


@pytest.mark.parametrize("share", [1e-3, 1e-5, 1e-7, 1e-9])
def test_momentum_far_below_the_scale_is_kept_in_the_mean(share):
    momentum = share * (1 + 1e-3 * normal(0))
    _, found = packed(normal(1), momentum, 1.0)
    assert np.mean(found) == pytest.approx(share, rel=0.05)


def test_a_step_below_the_last_bit_adds_up():
    """100 steps of 1e-7, where numbers near 0.05 are 1e-6 apart."""
    start = normal(0, 0.05)
    values, momentum = start, normal(1)
    for seed in range(100):
        values, momentum = packed(values - np.float32(1e-7), 0.9 * momentum)
        momentum = momentum + 0.1 * np.float32(np.roll(start, seed))
    assert np.mean(values - start) == pytest.approx(-1e-5, rel=0.1)


def test_a_step_that_is_always_the_same_adds_up():
    """As weight decay does where there is no gradient: equal bits, new chances."""
    start = normal(0)
    values, decay = start, np.float32(1e-6)
    for step in range(100):
        values, momentum = packed(values - decay * values, 0 * start, 0.0, step)
    assert not momentum.any()
    assert np.sum(values * start) / np.sum(start**2) - 1 == pytest.approx(
        -1e-4, rel=0.1
    )


def test_zeros_keep_their_momentum():
    values, momentum = packed(
        np.array([0.0, -0.0, 0.0, 0.0], "float32"),
        np.array([1.0, -1.0, 0.5, 0.0], "float32"),
    )
    assert np.abs(values).max() < 1e-42
    np.testing.assert_allclose(momentum, [1, -1, 0.5, 0], rtol=0.04)


@pytest.mark.parametrize("value", [0.0, 1.5, -(2.0**-130)])
def test_a_byte_of_zeros_is_no_momentum(value):
    """As of weights that a mask has set to 0, or that come from bfloat16."""
    _, momentum = packing.unpack(ops.full((3,), value), 1.0)
    assert not ops.convert_to_numpy(momentum).any()


def test_without_a_scale_there_is_no_momentum_whatever_the_bits():
    _, momentum = packing.unpack(ops.convert_to_tensor(normal(0)), 0.0)
    assert not ops.convert_to_numpy(momentum).any()


def test_equal_numbers_are_rounded_alike():
    first, again, later = (packed(normal(0), normal(1), step=n) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, later)


FORMS = {
    "rank_one": {},
    "algorithm_1": {"preconditioner": "geometric_mean", "clip_threshold": None},
    "orthogonal": {"orthogonalize": True, "rms_rate": 0.35, "momentum": 0.8},
    "of_keras": {
        "weight_decay": 0.1,
        "global_clipnorm": 0.1,
        "gradient_accumulation_steps": 2,
    },
}


def data():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (128, 6)).astype("int32")
    return ids, np.sin(ids[:, :4]).astype("float32")


def text_model(optimizer, dtype="float32", constraint=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,), dtype="int32"),
            keras.layers.Embedding(40, 16, dtype=dtype),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu", kernel_constraint=constraint),
            keras.layers.Dense(4),
        ]
    )
    model.compile(optimizer, "mse")
    return model


def fitted(epochs=8, **arguments):
    """Returns a model after epochs of four batches."""
    model = text_model(ExtremeTensoring(0.003, **{"beta_1": 0.9} | arguments))
    model.fit(*data(), batch_size=32, shuffle=False, epochs=epochs, verbose=0)
    return model


def weights(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


@pytest.mark.parametrize("form", FORMS)
def test_fit_goes_as_with_momentum_of_its_own(form):
    found = weights(fitted(momentum_dtype="packed", **FORMS[form]))
    # What is compared with needs no program of its own.
    arguments = {"jit_compile": False, **FORMS[form]}
    expected = weights(fitted(**arguments))
    start = weights(text_model("sgd"))
    without = weights(fitted(**arguments | {"beta_1": 0.0, "momentum": None}))
    error = np.linalg.norm(found - expected)
    assert error < 0.1 * np.linalg.norm(expected - start)
    assert error < 0.25 * np.linalg.norm(expected - without)


def test_state_is_one_scalar_a_variable():
    model, plain = (fitted(1, momentum_dtype="packed"), text_model(ExtremeTensoring()))
    plain.optimizer.build(plain.trainable_variables)
    extra = len(model.trainable_variables)
    assert model.optimizer.state_size == plain.optimizer.state_size + extra
    (total,) = memory_report(model.optimizer, [model.optimizer]).totals.values()
    assert total["scalars"] == model.optimizer.state_size
    assert total["bytes"] == 4 * total["scalars"]


def test_training_goes_on_from_a_file_as_if_it_had_not_stopped(tmp_path):
    path = tmp_path / "model.keras"
    model = fitted(2, momentum_dtype="packed")
    model.save(path)
    loaded = keras.models.load_model(path)
    for one in (model, loaded):
        one.fit(*data(), batch_size=32, shuffle=False, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_that_is_not_finite_changes_no_bit():
    model = fitted(1, momentum_dtype="packed")
    before = model.get_weights()
    gradients = [np.full(v.shape, np.nan, "float32") for v in model.trainable_variables]
    model.optimizer.apply(list(map(ops.convert_to_tensor, gradients)))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a.view("int32"), b.view("int32"))


def test_averages_of_weights_hold_no_momentum():
    """The step after Keras has overwritten weights is that of its gradient alone."""
    rng = np.random.default_rng(0)
    gradients = [ops.convert_to_tensor(rng.normal(size=8).astype("f4")) for _ in "123"]
    moved = []
    for arguments in (
        {"beta_1": 0.9, "momentum_dtype": "packed"},
        {"beta_1": 0.9},
        {},
    ):
        variable = keras.Variable(np.ones(8, "float32"), name="bias")
        optimizer = ExtremeTensoring(
            0.5,
            use_ema=True,
            ema_momentum=0.5,
            ema_overwrite_frequency=2,
            jit_compile=False,
            **arguments,
        )
        for gradient in gradients:
            before = ops.convert_to_numpy(variable)
            optimizer.apply([gradient], [variable])
        moved.append(ops.convert_to_numpy(variable) - before)
    found, averaged, alone = moved
    np.testing.assert_allclose(found, alone, atol=2e-4)
    assert np.abs(averaged - alone).max() > 0.1


def test_averages_at_the_end_of_fit_hold_no_momentum():
    """Their lowest bytes are anything, and must not be taken for a momentum."""
    model = fitted(1, momentum_dtype="packed", use_ema=True)
    (scales,) = (v for v in model.optimizer.variables if "momentum_scales" in v.path)
    assert scales.shape == (5,)
    assert not ops.convert_to_numpy(scales.value).any()


@pytest.mark.parametrize(
    "arguments", [{"dtype": "bfloat16"}, {"constraint": "non_neg"}]
)
def test_a_variable_that_cannot_hold_momentum_is_refused(arguments):
    optimizer = ExtremeTensoring(beta_1=0.9, momentum_dtype="packed")
    model = text_model(optimizer, **arguments)
    with pytest.raises(ValueError, match="momentum cannot be packed into it"):
        optimizer.build(model.trainable_variables)
