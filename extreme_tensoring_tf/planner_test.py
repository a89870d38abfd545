import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring
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


def test_orthogonalized_variables_take_nothing_of_the_budget():
    named = [("embeddings", (64, 48)), ("kernel", (64, 48)), ("bias", (48,))]
    rules = plan(named, 400, orthogonalize=True)
    assert list(rules) == ["^embeddings$", "^bias$"]
    assert rules == plan([named[0], named[2]], 400)
    variables = [keras.Variable(np.ones(s, "float32"), name=n) for n, s in named]
    optimizer = ExtremeTensoring.for_budget(variables, 400, orthogonalize=True)
    optimizer.build(variables)
    assert 60 < optimizer.state_size <= 100
    with pytest.raises(ValueError, match="of the 2 variables: give at least 8 bytes"):
        ExtremeTensoring.for_budget(variables, 7, orthogonalize=True)


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
