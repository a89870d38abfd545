"""Every form at every level against Algorithm 1 in float64."""

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import preconditioner
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.tensor_index import index_from_level
from extreme_tensoring_tf.tensor_rules import index_from_dims
from extreme_tensoring_tf.testing.naive_reference import NaiveExtremeTensoring
from extreme_tensoring_tf.testing.naive_reference import coordinates

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
# Those that are compiled too: XLA has a program for each.
COMPILED = [(), (19,), (1, 12), (36, 47), (3, 3, 4, 19)]
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


# Every form at every level in float64; compiled, forms of other operations and levels.
CELLS = [(level, form, "float64", False) for level in LEVELS for form in FORMS]
CELLS += [
    pytest.param(
        2,
        form,
        "float32",
        True,
        marks=[] if form in ("sum", "product", "everything") else pytest.mark.slow,
    )
    for form in FORMS
]
CELLS += [(level, "everything", "float32", True) for level in (1, 3, "inf")]


@pytest.mark.parametrize("level, form, dtype, jit_compile", CELLS)
def test_agrees_with_algorithm_1(level, form, dtype, jit_compile):
    shapes = COMPILED if jit_compile else SHAPES
    values = initial_values(shapes)
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
    for batch in gradients(shapes, steps=4):
        tensors = [ops.convert_to_tensor(g, dtype) for g in batch]
        optimizer.apply(tensors, variables)
        for judge, g in zip(judges, batch):
            judge.step(np.asarray(g, dtype))
    # There Keras takes Python's numbers, on NumPy all variables too, as float32.
    exact = {"torch": 1e-6, "numpy": 1e-5}.get(keras.backend.backend(), 1e-9)
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


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", [(7,), (19, 12), (36, 47), (3, 5, 16)])
def test_slices_and_trace_are_those_of_the_entries(shape, level):
    """Counted and added up entry by entry."""
    index = index_from_level(shape, level)
    rng = np.random.default_rng(0)
    places = coordinates(shape, level)
    counts = [np.bincount(where, minlength=n) for where, n in places]
    np.testing.assert_array_equal(
        preconditioner.slice_counts(index), np.concatenate(counts)
    )
    statistics = [rng.gamma(0.5, size=n) for _, n in places]
    product = np.ones(np.prod(shape))
    for (where, _), s in zip(places, statistics):
        product *= (s[where] + 0.1) ** (0.5 / len(places))
    trace = preconditioner.inverse_trace(statistics, index, 0.1)
    assert trace == pytest.approx(product.sum(), rel=1e-12)


@pytest.mark.parametrize("dims", ["inf", 1, 2, 3, (1, 12), (19, 1), ((5, 4), 12)])
def test_some_rows_are_a_matrix_that_is_zero_elsewhere(dims):
    """Sums, factors and the direction of sparse gradients."""
    index = index_from_dims((19, 12), dims)
    ids = np.array([3, 0, 18])
    rows = np.random.default_rng(0).normal(size=(1, 3, 12)).astype("float32")
    whole = np.zeros((1, 19, 12), "float32")
    whole[:, ids] = rows
    row_ids = ops.convert_to_tensor(ids, "int32")
    sums = preconditioner.squared_sums([ops.convert_to_tensor(rows)], index, row_ids)
    expected = preconditioner.squared_sums([ops.convert_to_tensor(whole)], index)
    np.testing.assert_allclose(value(sums), value(expected), rtol=1e-6)
    norms = preconditioner.squared_norms(sums, index)
    np.testing.assert_allclose(value(norms), [np.sum(rows**2)], rtol=1e-6)
    for form, placement in (
        ("geometric_mean", "axis"),
        ("geometric_mean", "product"),  # row and column are logarithms then
        ("rank_one", "axis"),
    ):
        settings = preconditioner.Preconditioner(form, 1e-3, placement, "sum", None)
        some = settings.factors(sums + 1.0, index, row_ids)
        all_of_them = settings.factors(sums + 1.0, index)
        np.testing.assert_allclose(
            np.broadcast_to(entries(some), (1, 3, 12)),
            np.broadcast_to(entries(all_of_them), whole.shape)[:, ids],
            rtol=1e-5,
        )


@pytest.mark.parametrize("dims", ["inf", 1, 2, (1, 12), (19, 1)])
def test_sums_of_a_stack_are_those_of_its_variables(dims):
    """Two variables and one, summed in float32 where they are halves."""
    index = index_from_dims((19, 12), dims)
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(3, 19, 12)).astype("float16")
    stacks = [ops.convert_to_tensor(part) for part in (whole[:2], whole[2:])]
    sums = value(preconditioner.squared_sums(stacks, index, dtype="float32"))
    assert sums.dtype == "float32" and sums.shape == (3, index.state_size)
    for found, g in zip(sums, whole.astype("float32")):
        alone = [ops.convert_to_tensor(g[None])]
        expected = value(preconditioner.squared_sums(alone, index))[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        total = preconditioner.squared_norms(ops.convert_to_tensor(found[None]), index)
        np.testing.assert_allclose(value(total), [np.sum(g**2)], rtol=1e-5)


def test_squared_norms_of_matrices_without_statistics():
    view = MatrixView((4, 6))
    sums = ops.convert_to_tensor(np.array([[3.0], [5.0]], "float32"))
    np.testing.assert_array_equal(
        value(preconditioner.squared_norms(sums, view)), [3.0, 5.0]
    )


def test_rank_one_with_an_epsilon_as_large_as_the_means():
    """v = (M_1 + e) (M_2 + e) / (M + e): the scale is no matter of rounding alone."""
    squares = np.array([[1.0, 4.0, 0.25], [9.0, 1.0, 2.25]])
    sums = np.concatenate([squares.sum(1), squares.sum(0)])[None].astype("float32")
    settings = preconditioner.Preconditioner("rank_one", 2.0, "axis", "sum", None)
    factors = settings.factors(
        ops.convert_to_tensor(sums), index_from_level((2, 3), level=1)
    )
    rows, cols = squares.mean(1, keepdims=True), squares.mean(0, keepdims=True)
    v = (rows + 2) * (cols + 2) / (squares.mean() + 2)
    found = entries(factors)[0] * value(factors.root)[0]
    np.testing.assert_allclose(found, v**-0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "form, placement",
    [("geometric_mean", "axis"), ("geometric_mean", "product"), ("rank_one", "axis")],
)
def test_what_has_only_been_zero_is_not_moved_without_an_epsilon(form, placement):
    settings = preconditioner.Preconditioner(form, 0.0, placement, "sum", None)
    sums = ops.convert_to_tensor(np.zeros((1, 5), "float32"))
    factors = settings.factors(sums, index_from_level((2, 3), level=1))
    moved = entries(factors)[0] * value(factors.root)[0]
    np.testing.assert_array_equal(moved, np.zeros((2, 3)))


@pytest.mark.parametrize("form", ["geometric_mean_logs", "rank_one_logs"])
def test_slices_that_have_been_zero_have_a_factor_of_zero(form):
    statistics = ops.convert_to_tensor(np.array([[0.0, 4.0]], "float32"))
    logs = getattr(preconditioner, form)(statistics, 1.0, 1e-30, 4)
    factors = value(ops.exp(logs))[0]
    assert factors[0] == 0
    power = -0.5 / (4 if form == "geometric_mean_logs" else 1)
    np.testing.assert_allclose(factors[1], 4.0**power, rtol=1e-6)


def test_factors_of_slices_that_are_next_to_nothing():
    """Rank-one factors end where their squares would; Algorithm 1's are roots."""
    index = index_from_level((4,), 1)
    sums = ops.convert_to_tensor([[1e-17, 1e20, 1e20, 2e20]], "float32")
    for form, largest in (("rank_one", np.exp(41.0)), ("geometric_mean", 1e-17**-0.5)):
        made = preconditioner.Preconditioner(form, 0.0, "axis", "sum", None)
        factors = made.factors(sums, index)
        found = value(factors.col if factors.row is None else factors.row).max()
        scale = float(value(factors.root)[0]) if form == "geometric_mean" else 1.0
        np.testing.assert_allclose(found * scale, largest, rtol=1e-2)


@pytest.mark.parametrize(
    "argument, wrong, message",
    [
        ("form", "diagonal", "`preconditioner` must be one of 'geometric_mean', 'ra"),
        ("epsilon_placement", "root", "`epsilon_placement` must be one of 'axis', 'p"),
        ("statistic", "max", "`statistic` must be one of 'sum', 'mean'"),
        ("epsilon", -1.0, "`epsilon` must be at least 0"),
        ("clip_threshold", 0.0, "`clip_threshold` must be None or positive"),
        ("epsilon_placement", "product", 'belongs to `preconditioner="geometric_mean'),
    ],
)
def test_a_wrong_setting_is_named(argument, wrong, message):
    right = {
        "form": "rank_one",
        "epsilon": 1e-8,
        "epsilon_placement": "axis",
        "statistic": "mean",
        "clip_threshold": 1.0,
    }
    preconditioner.Preconditioner(**right)
    with pytest.raises(ValueError, match=message):
        preconditioner.Preconditioner(**right | {argument: wrong})


def value(x):
    return ops.convert_to_numpy(x)


def entries(factors):
    """The product of a row and a column vector, where they are there."""
    row = 1 if factors.row is None else value(factors.row)[:, :, None]
    return row * (1 if factors.col is None else value(factors.col)[:, None, :])
