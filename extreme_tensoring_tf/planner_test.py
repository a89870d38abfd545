import itertools

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report
from extreme_tensoring_tf import planner
from extreme_tensoring_tf import tensor_index
from extreme_tensoring_tf.planner import plan
from extreme_tensoring_tf.tensor_rules import resolve

VARIABLES = [
    ("embedding/table", (50257, 64)),
    ("dense/kernel", (64, 256)),
    ("dense/bias", (256,)),
    ("scale", ()),
]


def state(rules, variables=VARIABLES):
    return sum(i.state_size for i in resolve(variables, "inf", rules))


@pytest.mark.parametrize("budget", [16, 100, 1_000, 10_000, 300_000, 10**7])
def test_spends_the_budget_and_no_more(budget):
    size = state(plan(VARIABLES, budget))
    assert 4 * size <= budget
    finest = state({".": 1})
    # What is left is less than the next refinement of some axis.
    assert 4 * size >= min(budget / 4, 4 * finest)


def test_more_memory_is_never_coarser():
    sizes = [state(plan(VARIABLES, 2**k)) for k in range(4, 20)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 4 and sizes[-1] == state({".": 1})


def test_gradients_say_which_axis_matters():
    """Rows of very uneven scale, columns all alike: the rows get the memory."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.uniform(-3, 0, size=(64, 1))
    gradient = rng.choice([-1.0, 1.0], size=(64, 48)) * scales
    rules = plan([("kernel", (64, 48))], 4 * 70, [gradient])
    assert rules == {"^kernel$": [64, 1]}
    # As columns of another variable, the same.
    rules = plan([("kernel", (48, 64))], 4 * 70, [[gradient.T, gradient.T]])
    assert rules == {"^kernel$": [1, 64]}


def test_gain_is_the_fall_in_divergence():
    """By brute force over the products that the rules describe."""
    rng = np.random.default_rng(1)
    squares = rng.gamma(0.3, size=(12, 10)) * rng.gamma(0.3, size=(12, 1))

    def divergence(rules):
        (index,) = resolve([("kernel", (12, 10))], "inf", rules)
        p = squares / squares.sum()
        i, j = np.indices((12, 10))
        q = np.ones_like(p)
        for axis, coordinate, n in ((index.rows, i, 12), (index.cols, j, 10)):
            q *= share_product(axis, coordinate, n, p)
        return float(np.sum(p * np.log(p / q)))

    def share_product(fold, coordinate, n, p):
        if not fold.dims:
            return 1 / n
        if not fold.parts:
            marginal = np.bincount(coordinate.ravel(), p.ravel(), minlength=n)
            return marginal[coordinate]
        result, stride = 1.0, fold.cells
        for part in fold.parts:
            stride //= part.size
            digit = coordinate // stride % part.size
            marginal = np.bincount(digit.ravel(), p.ravel(), minlength=part.size)
            result = result * marginal[digit]
        return result

    found = [
        divergence(plan([("kernel", (12, 10))], 4 * scalars, [np.sqrt(squares)]))
        for scalars in range(1, 24)
    ]
    assert all(a >= b - 1e-12 for a, b in zip(found, found[1:]))
    assert found[-1] < 0.7 * found[0]


PLANNED = [("a", (12, 15)), ("b", (30,)), ("c", (1, 20)), ("d", (2, 9))]


def uneven_gradients(planned):
    """Heavy-tailed, each with slices that are zero."""
    rng = np.random.default_rng(3)
    gradients = []
    for _, shape in planned:
        g = rng.normal(size=shape) * rng.gamma(0.2, size=shape[:-1] + (1,))
        g = g * rng.gamma(0.2, size=shape[-1:])
        g[..., 3] = 0
        gradients.append(g)
    return gradients


def explained(p, dims):
    """ln(n) + sum_j p_j ln(q_j), by the coordinates of every index."""
    if not dims:
        return 0.0
    places = np.unravel_index(np.arange(len(p)), dims)
    q = np.ones(len(p))
    for place, n in zip(places, dims):
        q *= np.bincount(place, p, minlength=n)[place]
    return np.log(len(p)) + np.sum(p[p > 0] * np.log(q[p > 0]))


def products(*sizes):
    """Gradients of vectors, each nearly a product over the factors at level 2."""
    rng = np.random.default_rng(2)
    gradients = []
    for n in sizes:
        factors = [rng.gamma(0.3, size=d) for d in tensor_index((n,), 2)]
        grid = factors[0] if len(factors) == 1 else np.outer(*factors).ravel()
        gradients.append(grid * rng.normal(size=n))
    return gradients


def options(planned, gradients):
    """Per axis of every variable its (scalars, gain, dims), the coarsest first."""
    found = []
    for v, (_, shape) in enumerate(planned):
        for axis, n in enumerate(shape):
            dims = {}  # by their sum, the coarser first
            for level in range(1, 5) if n > 1 else ():
                dims.setdefault(sum(d := tensor_index((n,), level)), d)
            own = [(0, 0.0, ())]
            for _, d in sorted(dims.items()):
                if gradients is None:
                    gain = np.log(1 + sum(d))
                else:
                    squares = gradients[v] ** 2
                    others = tuple(a for a in range(len(shape)) if a != axis)
                    gain = explained(squares.sum(axis=others) / squares.sum(), d)
                own.append((sum(d), np.prod(shape) * gain, d))
            found.append((v, own))
    return found


def hull_of_the_best(found):
    """The choices of one option an axis that are at vertices of the upper hull of
    gain over scalars, among all choices there are."""
    best = {}
    for choice in itertools.product(*(own for _, own in found)):
        scalars, gain = sum(c[0] for c in choice), sum(c[1] for c in choice)
        if scalars not in best or gain > best[scalars][0] + 1e-9:
            best[scalars] = gain, choice
    hull = []
    for scalars, (gain, choice) in sorted(best.items()):
        while len(hull) > 1 and (gain - hull[-1][1]) * (hull[-1][0] - hull[-2][0]) > (
            hull[-1][1] - hull[-2][1]
        ) * (scalars - hull[-1][0]):
            hull.pop()
        if not hull or gain > hull[-1][1] + 1e-9:
            hull.append((scalars, gain, choice))
    return [choice for _, _, choice in hull]


@pytest.mark.parametrize(
    "planned, gradients",
    [
        (PLANNED, uneven_gradients(PLANNED)),
        (PLANNED, None),
        ([("a", (8,)), ("b", (13,))], None),
        ([("a", (3600,))], None),  # four refinements, each worth less than the last
        ([("a", (36,)), ("b", (36,)), ("c", (6,))], products(36, 36, 6)),
    ],
)
def test_is_the_best_of_all_choices(planned, gradients):
    """By trying them all, at every budget that the best choice spends to the end."""
    found = options(planned, gradients)
    choices = hull_of_the_best(found)
    assert len(choices) > len(planned)
    for choice in choices:
        expected = {path: [] for path, _ in planned}
        for (v, _), (_, _, dims) in zip(found, choice):
            entry = list(dims) if len(dims) > 1 else (dims or (1,))[0]
            expected[planned[v][0]].append(entry)
        rules = {f"^{path}$": dims for path, dims in expected.items()}
        budget = 4 * state(rules, planned)
        assert plan(planned, budget, gradients) == rules
        assert plan(planned, budget + 3, gradients) == rules


def test_refinements_that_are_nearly_worth_the_same_are_all_offered(monkeypatch):
    """Each gains a little less per scalar than the last: none is left out."""
    slopes = [2.0, 1.5, 1.0, 0.999]
    sizes = sorted(sum(tensor_index((3600,), level)) for level in range(1, 5))
    gains = np.cumsum(np.diff([0, *sizes]) * slopes).tolist()
    of = dict(zip(sizes, gains))
    monkeypatch.setattr(planner, "_explained", lambda n, dims, share: of[sum(dims)])
    found = planner._ladder(3600, 1, None)
    assert [step.scalars for step in found] == np.diff([0, *sizes]).tolist()
    np.testing.assert_allclose(np.cumsum([step.gain for step in found]), gains)


def test_a_small_gain_is_bought_where_there_is_room():
    gradient = np.linspace(1.0, 1.2, 8)  # explains 0.04 nats in all
    assert plan([("b", (8,))], 4 * 8, [gradient]) == {"^b$": [8]}


def test_batches_count_alike_and_in_float64():
    rng = np.random.default_rng(5)
    batches = [rng.normal(size=(16, 24)) * s for s in (1.0, 7.0)]
    batches[0][:4] *= 50
    whole = np.sqrt(sum(b**2 for b in batches))
    for budget in (40, 80, 160):
        expected = plan([("k", (16, 24))], budget, [whole])
        assert plan([("k", (16, 24))], budget, [batches]) == expected
        assert plan([("k", (16, 24))], budget, [batches[::-1]]) == expected
    half = (whole / whole.max() * 60_000).astype("float16")  # its square is no float16
    same = plan([("k", (16, 24))], 80, [half.astype("float64")])
    assert plan([("k", (16, 24))], 80, [half]) == same


@pytest.mark.parametrize("order", [1, -1])
def test_every_batch_counts(order):
    """Rows of the first are uneven, columns of the second, which is far smaller."""
    scales = 10.0 ** np.random.default_rng(0).uniform(-3, 0, size=(64, 1))
    batches = [np.tile(scales, (1, 48)), 1e-3 * np.tile(scales[:48].T, (64, 1))]
    rules = plan([("k", (64, 48))], 4 * 70, [batches[::order]])
    assert rules == {"^k$": [64, 1]}


def test_what_has_no_gradient_keeps_one_scalar():
    rules = plan([("k", (16, 24)), ("b", (8,))], 4000, [np.zeros((16, 24)), np.ones(8)])
    assert rules == {"^k$": [1, 1], "^b$": [1]}


def test_an_axis_that_is_padded_inside_is_not_offered():
    """Flat dims of 307 at level 3, (17, 4, 5), do not say that 19 of 20 are used."""
    found = [plan([("b", (307,))], 4 * n)["^b$"] for n in (1, 26, 35, 36, 306, 307)]
    assert found == [[1]] * 3 + [[[17, 19]]] * 2 + [[307]]


def test_orthogonalized_variables_take_nothing_of_the_budget():
    named = [("embeddings", (64, 48)), ("kernel", (64, 48)), ("bias", (48,))]
    rules = plan(named, 400, orthogonalize=True)
    assert list(rules) == ["^embeddings$", "^bias$"]
    assert rules == plan([named[0], named[2]], 400)
    variables = [keras.Variable(np.ones(s, "float32"), name=n) for n, s in named]
    optimizer = ExtremeTensoring.for_budget(variables, 400, orthogonalize=True)
    optimizer.build(variables)
    assert 60 < optimizer.state_size <= 100
    with pytest.raises(ValueError, match="statistics: give at least 8 bytes"):
        ExtremeTensoring.for_budget(variables, 7, orthogonalize=True)


def test_a_budget_holds_the_scales_of_packed_momentum():
    named = [("embeddings", (64, 48)), ("kernel", (64, 48)), ("bias", (48,))]
    variables = [keras.Variable(np.ones(s, "float32"), name=n) for n, s in named]
    for form in (
        {"orthogonalize": True, "beta_1": 0.9, "momentum": 0.8},
        {"orthogonalize": True, "beta_1": 0.0, "momentum": 0.8},
        {"beta_1": 0.9},
    ):
        form["momentum_dtype"] = "packed"
        optimizer = ExtremeTensoring.for_budget(variables, 400, **form)
        optimizer.build(variables)
        assert 60 < optimizer.state_size <= 100
    message = (
        "a budget of 15 bytes .* 3 variables that .* 3 scales .* at least 24 bytes"
    )
    with pytest.raises(ValueError, match=message):
        ExtremeTensoring.for_budget(variables, 15, **form)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="no float64 by default")
def test_a_budget_is_in_bytes_whatever_a_scalar_takes():
    variables = [keras.Variable(np.ones((64, 48)), dtype="float64", name="kernel")]
    optimizer = ExtremeTensoring.for_budget(variables, 400)
    (total,) = memory_report(variables, [optimizer]).totals.values()
    assert 200 < total["bytes"] <= 400


def test_a_plan_keeps_its_budget_under_other_names():
    """A model that is made anew, as in each fold of a loop, has other paths."""
    variables = [
        [
            keras.Variable(np.ones((64, 48), "float32"), name=f"{m}_{i}")
            for i in range(3)
        ]
        for m in ("first", "second")
    ]
    planned = ExtremeTensoring.for_budget(variables[0], 300)
    again = ExtremeTensoring.from_config(planned.get_config())
    with pytest.warns(UserWarning, match="matches no trainable variable"):
        again.build(variables[1])
    assert again.state_size == 3


def test_a_model_without_variables_has_no_budget():
    model = keras.Sequential([keras.layers.Dense(512)])
    with pytest.raises(ValueError, match="no variable. Build the model first"):
        ExtremeTensoring.for_budget(model.trainable_variables, 64)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="no sparse ones")
def test_gradients_may_be_sparse():
    import tensorflow as tf

    table = keras.Variable(np.ones((8, 6), "float32"), name="embeddings")
    dense = np.zeros((8, 6), "float32")
    dense[[2, 5]] = np.random.default_rng(0).normal(size=(2, 6))
    sparse = tf.IndexedSlices(tf.constant(dense[[2, 5]]), tf.constant([2, 5]), (8, 6))
    rules = [
        ExtremeTensoring.for_budget([table], 40, gradients=[g]).tensor_dims
        for g in (dense, sparse, [tf.constant(dense), sparse])
    ]
    assert rules[0] == rules[1] == rules[2]


def test_for_budget_trains_and_saves():
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(30)])
    optimizer = ExtremeTensoring.for_budget(
        model.trainable_variables, 200, learning_rate=0.1, statistic="mean"
    )
    optimizer.build(model.trainable_variables)
    assert 4 * optimizer.state_size <= 200
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    restored.build(model.trainable_variables)
    assert restored.state_size == optimizer.state_size
    model.compile(optimizer=optimizer, loss="mse")
    x = np.ones((8, 12))
    losses = model.fit(x, np.ones((8, 30)), epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="give at least 16 bytes"):
        plan(VARIABLES, 15)
    with pytest.raises(ValueError, match="1 gradients were given for 4"):
        plan(VARIABLES, 100, [np.ones(3)])
    with pytest.raises(ValueError, match="'kernel' has shape"):
        plan([("kernel", (3, 4))], 100, [np.ones((4, 3))])
    with pytest.raises(ValueError, match="not finite"):
        plan([("kernel", (3,))], 100, [np.array([1, np.nan, 1])])
