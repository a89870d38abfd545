"""ExtremeTensoring against Algorithm 1 in float64, and the habits of Keras."""

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import InverseSqrtSchedule
from extreme_tensoring_tf.testing.naive_reference import NaiveExtremeTensoring

# Ranks 0 to 4; unit axes, primes, and axes that are padded (19, 47, 1009).
SHAPES = [
    (),
    (1,),
    (7,),
    (19,),
    (64,),
    (4, 6),
    (1, 12),
    (12, 1),
    (19, 12),
    (36, 47),
    (1009, 3),
    (3, 5, 16),
    (3, 3, 4, 19),
]
LEVELS = [1, 2, 3, "inf"]
FORMS = {
    "sum": {},
    "mean": {"statistic": "mean"},
    "product": {"epsilon_placement": "product", "epsilon": 1e-4},
    "product_mean": {"epsilon_placement": "product", "statistic": "mean"},
    "moving_average": {"beta_2": 0.9},
    "momentum": {"beta_1": 0.9, "beta_2": 0.9999},
    "clipped": {"clip_threshold": 0.3},
    "rank_one": {"preconditioner": "rank_one"},
    "rank_one_average": {
        "preconditioner": "rank_one",
        "beta_2": 0.99,
        "clip_threshold": 1.0,
    },
    "everything": {
        "preconditioner": "rank_one",
        "beta_1": 0.8,
        "beta_2": 0.9,
        "clip_threshold": 0.5,
        "epsilon": 1e-6,
    },
}


def gradients(shapes, steps, seed=0):
    """Gradients of uneven scale; some rows are always zero, one step is zero."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(s[:1] or ()) < 0.7 for s in shapes]
    for step in range(steps):
        batch = []
        for shape, mask in zip(shapes, masks):
            g = rng.normal(size=shape) * 10.0 ** rng.uniform(-2, 1, size=shape)
            mask = np.reshape(mask, mask.shape + (1,) * (len(shape) - mask.ndim))
            batch.append(np.where(mask, g, 0.0) * (step != 2))
        yield batch


def initial_values(shapes, seed=1):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


# Every form at every level in float64, and compiled where levels or forms differ.
CELLS = [(level, form, "float64", False) for level in LEVELS for form in FORMS]
CELLS += [(2, form, "float32", True) for form in FORMS]
CELLS += [(level, "everything", "float32", True) for level in (1, 3, "inf")]


@pytest.mark.parametrize("level, form, dtype, jit_compile", CELLS)
def test_agrees_with_algorithm_1(level, form, dtype, jit_compile):
    values = initial_values(SHAPES)
    if dtype == "float64" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 by default")
    rate = float(np.float32(0.1))  # as Keras keeps it
    judges = [
        NaiveExtremeTensoring(v, level=level, learning_rate=rate, **FORMS[form])
        for v in values
    ]
    variables = [keras.Variable(v, dtype=dtype) for v in values]
    optimizer = ExtremeTensoring.algorithm_1(
        0.1, level=level, jit_compile=jit_compile, **FORMS[form]
    )
    for batch in gradients(SHAPES, steps=4):
        tensors = [ops.convert_to_tensor(g, dtype) for g in batch]
        optimizer.apply(tensors, variables)
        for judge, g in zip(judges, batch):
            judge.step(np.asarray(g, dtype))
    # On torch, Keras takes Python's numbers as float32 in some operations.
    exact = 1e-7 if keras.backend.backend() == "torch" else 1e-9
    tolerance = 1e-5 if dtype == "float32" else exact
    for judge, variable in zip(judges, variables):
        value = ops.convert_to_numpy(variable)
        np.testing.assert_allclose(
            value, judge.x, rtol=tolerance, atol=tolerance, err_msg=variable.path
        )
    assert optimizer.state_size == sum(
        len(s) for judge in judges for s in judge.sums
    ) + (sum(v.size for v in values) if "beta_1" in FORMS[form] else 0)


@pytest.mark.parametrize("level", LEVELS)
def test_scale_does_not_matter(level):
    """A product of 8 sums of 1e-20 or 1e12 leaves float32; a root does not."""
    for scale in (1e-8, 1e-2, 1e6):
        for form in ("geometric_mean", "rank_one"):
            value = np.ones((64, 64))
            kwargs = {"preconditioner": form, "epsilon": 0.0, "level": level}
            judge = NaiveExtremeTensoring(value, **kwargs)
            variable = keras.Variable(value, dtype="float32")
            optimizer = ExtremeTensoring.algorithm_1(
                0.1, jit_compile=level == 3, **kwargs
            )
            for (g,) in gradients([(64, 64)], steps=2, seed=3):
                g = np.abs(g) * scale + scale
                optimizer.apply([ops.cast(g, "float32")], [variable])
                judge.step(g)
            np.testing.assert_allclose(
                ops.convert_to_numpy(variable), judge.x, rtol=1e-5, atol=1e-6
            )


def test_any_index_agrees():
    """Flat dims that cross the axes, nested padded dims, a dropped axis."""
    size = np.arange(60)
    i, j = np.unravel_index(size, (6, 10))
    cases = [
        ((4, 15), [(size // 15, 4), (size % 15, 15)]),
        (((2, 3), 10), [(i // 3, 2), (i % 3, 3), (j, 10)]),
        ((6, (3, 4)), [(i, 6), (j // 4, 3), (j % 4, 4)]),
        ((1, 10), [(j, 10)]),
        ((1, 1), [(size * 0, 1)]),
    ]
    for dims, index in cases:
        for form in ("geometric_mean", "rank_one"):
            (value,) = initial_values([(6, 10)])
            judge = NaiveExtremeTensoring(value, index=index, preconditioner=form)
            variable = keras.Variable(value, dtype="float32", name="kernel")
            optimizer = ExtremeTensoring.algorithm_1(
                0.1, tensor_dims={"kernel": dims}, preconditioner=form
            )
            for batch in gradients([(6, 10)], steps=3):
                optimizer.apply([ops.cast(g, "float32") for g in batch], [variable])
                judge.step(*batch)
            np.testing.assert_allclose(
                ops.convert_to_numpy(variable), judge.x, rtol=1e-5, atol=1e-5
            )


def test_level_1_of_a_vector_is_adagrad():
    (value,) = initial_values([(50,)])
    ours = keras.Variable(value, dtype="float32")
    theirs = keras.Variable(value, dtype="float32")
    tensored = ExtremeTensoring.algorithm_1(0.1, level=1, epsilon=1e-8)
    adagrad = keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.0, epsilon=1e-8)
    for batch in gradients([(50,)], steps=4):
        batch = [ops.cast(g, "float32") for g in batch]
        tensored.apply(batch, [ours])
        adagrad.apply(batch, [theirs])
    np.testing.assert_allclose(
        ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs), rtol=1e-5
    )


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


@pytest.mark.parametrize("form", ["sum", "everything"])
def test_saved_model_continues_bit_for_bit(form, tmp_path):
    kwargs = FORMS[form] | {"tensor_dims": {"hidden/kernel": [12, 19]}}
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
        tensor_dims={"a": 1},
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
        ({"beta_2": 1.0}, "`beta_2` must be None or in"),
        ({"preconditioner": "full"}, "`preconditioner` must be one of"),
        ({"clip_threshold": 0.0}, "`clip_threshold` must be None or positive"),
        ({"epsilon": -1.0}, "`epsilon` must be at least 0"),
        ({"epsilon_placement": "row"}, "`epsilon_placement` must be one of"),
        ({"statistic": "median"}, "`statistic` must be one of"),
        (
            {"preconditioner": "rank_one", "epsilon_placement": "product"},
            'Use "axis" with "rank_one"',
        ),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ExtremeTensoring(**kwargs)


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
