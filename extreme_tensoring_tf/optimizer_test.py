"""Arguments, saving and skipping of ExtremeTensoring, and the habits of Keras."""

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import InverseSqrtSchedule
from extreme_tensoring_tf.preconditioner_test import FORMS
from extreme_tensoring_tf.preconditioner_test import gradients
from extreme_tensoring_tf.preconditioner_test import initial_values
from extreme_tensoring_tf.testing.naive_reference import NaiveExtremeTensoring


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_nonfinite_gradient_is_skipped(bad):
    """Only the variable it hits stands still, and its update count with it."""
    shapes = [(4, 6), (8,)]
    values = initial_values(shapes)
    kwargs = {"beta_1": 0.9, "beta_2": 0.9}
    judges = [NaiveExtremeTensoring(v, **kwargs) for v in values]
    variables = [keras.Variable(v, dtype="float32") for v in values]
    optimizer = ExtremeTensoring.algorithm_1(0.1, **kwargs)
    for step, batch in enumerate(gradients(shapes, steps=4)):
        judges[1].step(batch[1])
        if step == 1:
            batch[0][2, 3] = bad
        else:
            judges[0].step(batch[0])
        optimizer.apply([ops.cast(g, "float32") for g in batch], variables)
    for judge, variable in zip(judges, variables):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable), judge.x, rtol=1e-5, atol=1e-5
        )
    assert list(optimizer.skipped_updates.values()) == [1, 0]


def test_nonfinite_gradient_is_not_skipped_on_request():
    variable = keras.Variable(np.ones(3), dtype="float32")
    optimizer = ExtremeTensoring(0.1, skip_nonfinite=False)
    optimizer.apply([ops.cast([1.0, np.nan, 1.0], "float32")], [variable])
    assert np.isnan(ops.convert_to_numpy(variable)[1])


@pytest.mark.parametrize(
    "clipping, clip",
    [
        ({"clipvalue": 0.5}, lambda g: np.clip(g, -0.5, 0.5)),
        ({"clipnorm": 1.0}, lambda g: g / max(1.0, np.linalg.norm(g))),
        ({"global_clipnorm": 1.0}, lambda g: g / max(1.0, np.linalg.norm(g))),
    ],
)
def test_clipping_and_weight_decay_are_keras_own(clipping, clip):
    (value,) = initial_values([(6, 8)])
    judge = NaiveExtremeTensoring(value)
    variable = keras.Variable(value, dtype="float32")
    optimizer = ExtremeTensoring.algorithm_1(0.1, weight_decay=0.01, **clipping)
    for (g,) in gradients([(6, 8)], steps=3):
        optimizer.apply([ops.cast(g, "float32")], [variable])
        judge.x -= 0.1 * 0.01 * judge.x
        judge.step(clip(g))
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), judge.x, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_dtypes_keep_float32_statistics(dtype):
    """The update is rounded once, when it is subtracted from the variable."""
    (value,) = initial_values([(16, 12)])
    variable = keras.Variable(value, dtype=dtype)
    start = ops.convert_to_numpy(ops.cast(variable, "float32"))
    optimizer = ExtremeTensoring.algorithm_1(0.1)
    ((g,),) = gradients([(16, 12)], steps=1)
    g = ops.cast(g, dtype)
    optimizer.apply([g], [variable])
    judge = NaiveExtremeTensoring(start)
    judge.step(ops.convert_to_numpy(ops.cast(g, "float32")))
    expected = ops.convert_to_numpy(ops.cast(ops.cast(judge.x, dtype), "float32"))
    actual = ops.convert_to_numpy(ops.cast(variable, "float32"))
    step = {"bfloat16": 2**-7, "float16": 2**-10}[dtype]
    np.testing.assert_allclose(actual, expected, rtol=step, atol=1e-6)
    assert {v.dtype for v in optimizer._slots.statistics[0]} == {"float32"}


def small_model(**kwargs):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(19, activation="relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    model.compile(
        optimizer=ExtremeTensoring.algorithm_1(**{"learning_rate": 0.001} | kwargs),
        loss="mse",
    )
    return model


def small_data():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(96, 12)).astype("float32")
    return x, x[:, :3] * x[:, 3:6]


def fit(model, epochs=3):
    x, y = small_data()
    history = model.fit(x, y, epochs=epochs, batch_size=32, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize("form", ["mean", "moving_average", "everything"])
def test_model_compile_learns(form):
    kwargs = {"statistic": "mean"} | FORMS[form]
    losses = fit(small_model(learning_rate=0.03, **kwargs), epochs=20)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("form", ["sum", "everything", "orthogonal"])
def test_saved_model_continues_bit_for_bit(form, tmp_path):
    rules = {"tensor_dims": {"hidden/kernel": [12, 19]}}
    kwargs = FORMS[form] | rules if form in FORMS else {"orthogonalize": True}
    model = small_model(**kwargs)
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.optimizer, ExtremeTensoring)
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert fit(model) == fit(loaded)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), err_msg=a.path
        )


def test_config_round_trip():
    optimizer = ExtremeTensoring(
        InverseSqrtSchedule(2.0, 1e-3),
        level="inf",
        beta_1=0.5,
        beta_2=0.99,
        preconditioner="rank_one",
        clip_threshold=2.0,
        epsilon=1e-6,
        statistic="mean",
        tensor_dims={"a": 1, "b": ["et2", 1]},
        orthogonalize=["kernel", "table"],
        ns_steps=5,
        damping=0.25,
        rms_rate=0.5,
        block_size=8,
        ns_dtype="float16",
        momentum=0.25,
        momentum_dtype="bfloat16",
        skip_nonfinite=False,
        jit_compile=False,
        weight_decay=0.1,
        clipnorm=1.0,
    )
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert restored.get_config() == optimizer.get_config()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"level": 0}, "`level` must be"),
        ({"beta_1": 1.0}, r"`beta_1` must be in \[0, 1\)"),
        ({"momentum": 1.0}, r"`momentum` must be None or in \[0, 1\)"),
        ({"momentum": 0.9}, "Received: momentum=0.9: give it as `beta_1`"),
        ({"beta_2": 1.0}, "`beta_2` must be None or in"),
        ({"preconditioner": "full"}, "`preconditioner` must be one of"),
        ({"clip_threshold": 0.0}, "`clip_threshold` must be None or positive"),
        ({"epsilon": -1.0}, "`epsilon` must be at least 0"),
        ({"momentum_dtype": "float16"}, "range of float16 ends at 65,504"),
        ({"epsilon_placement": "row"}, "`epsilon_placement` must be one of"),
        ({"statistic": "median"}, "`statistic` must be one of"),
        ({"orthogonalize": 3}, "`orthogonalize` must be None, True, or a list"),
        ({"orthogonalize": [3]}, r"Received: orthogonalize=\[3\]"),
        ({"tensor_dims": 2}, "`tensor_dims` must be None, a dict .*=2"),
        ({"tensor_dims": "kernel"}, "`tensor_dims` must be None, a dict .*'kernel'"),
        ({"ns_steps": 0}, "`ns_steps` must be a whole number"),
        (
            {"preconditioner": "rank_one", "epsilon_placement": "product"},
            'Use "axis" with "rank_one"',
        ),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ExtremeTensoring(**kwargs)


def test_assigned_numbers_are_those_of_the_next_step_and_of_the_file():
    """As `epsilon` of Keras' optimizers is."""
    optimizer = ExtremeTensoring(0.1)
    optimizer.epsilon, optimizer.damping, optimizer.clip_threshold = 1.0, 0.5, None
    again = ExtremeTensoring.from_config(optimizer.get_config())
    for settings in (optimizer.settings(), again.settings()):
        assert settings.preconditioner.epsilon == 1.0
        assert settings.preconditioner.clip_threshold is None
        assert settings.orthogonalizer.damping == 0.5


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_momentum_holds_every_gradient_that_there_is(dtype):
    variable = keras.Variable(np.ones((3, 4)), dtype=dtype, name="bias")
    optimizer = ExtremeTensoring(0.1, beta_1=0.9, jit_compile=False)
    for _ in range(3):
        optimizer.apply([ops.full((3, 4), 6e4, dtype=dtype)], [variable])
    assert (np.abs(ops.convert_to_numpy(variable) - 0.7) < 0.05).all()


def test_a_variable_that_is_given_twice_is_refused():
    variable = keras.Variable(np.ones(3, "float32"), name="shared")
    optimizer = ExtremeTensoring(0.1)
    optimizer.build([variable])
    with pytest.raises(ValueError, match="'shared' was given twice.*sum of its grad"):
        optimizer.apply([ops.ones(3)] * 2, [variable] * 2)


def test_state_size_needs_variables():
    with pytest.raises(ValueError, match="optimizer.build"):
        _ = ExtremeTensoring().state_size


def test_slots_say_whose_they_are():
    model = small_model()
    model.optimizer.build(model.trainable_variables)
    names = [v.name for v in model.optimizer.variables]
    prefix = model.layers[0].kernel.path.replace("/", "_")
    # The kernel is (12, 19): 12 -> 3 x 4, and the prime 19 -> 4 x 5, padded.
    for label in ("axis0_part0", "axis0_part1", "axis1_part0", "axis1_part1"):
        assert f"{prefix}_statistic_{label}" in names


def test_custom_loop_with_changing_rate():
    """A mutable rate, one compilation."""
    variable = keras.Variable(np.ones((4, 4)), dtype="float32")
    judge = NaiveExtremeTensoring(np.ones((4, 4)))
    optimizer = ExtremeTensoring.algorithm_1(0.1)
    for rate, (g,) in zip((0.1, 0.05, 0.2), gradients([(4, 4)], steps=3)):
        optimizer.learning_rate = judge.lr = rate
        optimizer.apply([ops.cast(g, "float32")], [variable])
        judge.step(g)
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), judge.x, rtol=1e-5, atol=1e-6
    )
    if keras.backend.backend() == "tensorflow":
        assert len(optimizer._programs) == 1


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_small_gradients_take_steps_as_large(scale):
    """Down to a root mean square of sqrt(epsilon), 1e-6, as with Adam."""
    variable = keras.Variable(np.zeros((8, 16), "float32"))
    ExtremeTensoring(0.1).apply([scale * ops.ones((8, 16))], [variable])
    np.testing.assert_allclose(ops.convert_to_numpy(variable), -0.1, rtol=0.02)


def test_gradients_may_be_numbers():
    """Lists of them, too: as with Keras' own optimizers."""
    vector, scalar = keras.Variable([1.0, 1.0]), keras.Variable(1.0)
    ExtremeTensoring(0.1).apply([[1.0, 1.0], 2.0], [vector, scalar])
    np.testing.assert_allclose(ops.convert_to_numpy(vector), 0.9, rtol=1e-5)
    np.testing.assert_allclose(ops.convert_to_numpy(scalar), 0.9, rtol=1e-5)
