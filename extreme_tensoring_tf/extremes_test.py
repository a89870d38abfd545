"""Numbers at the ends of float32, and counters far out, in every form.

Stated here: a variable whose squares leave float32 is left out of the step and counted;
an orthogonal one moves all the same, for its factor is not taken by squares. Gradients
whose squares vanish move nothing by themselves, and no step gives nan.
"""

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring

RATE = 0.125
FORMS = {
    "algorithm_1": (ExtremeTensoring.algorithm_1, {}),
    "inf": (ExtremeTensoring.algorithm_1, {"level": "inf"}),
    "product": (ExtremeTensoring.algorithm_1, {"epsilon_placement": "product"}),
    "means": (
        ExtremeTensoring,
        {"preconditioner": "geometric_mean", "statistic": "mean"},
    ),
    "rank_one": (ExtremeTensoring, {}),
    "momentum": (ExtremeTensoring, {"beta_1": 0.9}),
    "orthogonal": (ExtremeTensoring, {"orthogonalize": ["kernel"]}),
    "orthogonal_momentum": (
        ExtremeTensoring,
        {"orthogonalize": ["kernel"], "beta_1": 0.9},
    ),
    "orthogonal_half": (
        ExtremeTensoring,
        {"orthogonalize": ["kernel"], "ns_dtype": "float16"},
    ),
    "blocks": (ExtremeTensoring, {"orthogonalize": ["kernel"], "block_size": 4}),
}


class Steps:
    """A kernel and a bias with their optimizer, stepped by gradients of a size."""

    def __init__(self, form):
        make, arguments = FORMS[form]
        self.optimizer = make(RATE, **arguments)
        self.variables = [
            keras.Variable(np.ones((6, 8), "f4"), name="kernel"),
            keras.Variable(np.ones(7, "f4"), name="bias"),
        ]
        self.optimizer.build(self.variables)
        self._draw = np.random.default_rng(0)

    def __call__(self, size):
        """Returns how far each variable has moved, at most: a finite number."""
        before = self._values(self.variables)
        gradients = [
            keras.ops.convert_to_tensor(
                (self._draw.uniform(0.5, 1, v.shape) * size).astype("f4")
            )
            for v in self.variables
        ]
        self.optimizer.apply(gradients, self.variables)
        for value in self._values(self.optimizer.variables):
            assert np.isfinite(value).all()
        after = self._values(self.variables)
        return [float(np.abs(b - a).max()) for a, b in zip(before, after)]

    def _values(self, variables):
        return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]

    def set(self, name, value):
        """Gives all of the optimizer's variables of a name a value."""
        found = [v for v in self.optimizer.variables if name in v.name]
        for v in found:
            v.assign(np.full(v.shape, value))
        return found


@pytest.fixture(params=FORMS)
def steps(request):
    return Steps(request.param)


def test_squares_beyond_float32(steps):
    """The next step is as if nothing had been."""
    kernel, bias = steps(1e25)
    skipped = list(steps.optimizer.skipped_updates.values())
    if steps.optimizer.orthogonalize:
        assert 0 < kernel < 4 * RATE and skipped == [0, 1]
    else:
        assert kernel == 0 and skipped == [1, 1]
    assert bias == 0
    assert all(0 < moved < 4 * RATE for moved in steps(1.0))


def test_sums_of_squares_beyond_float32(steps):
    """Every square is within float32, and their sum over the kernel is not."""
    kernel, bias = steps(1.8e19)
    assert 0 <= kernel < 4 * RATE and 0 <= bias < 4 * RATE
    assert all(0 < moved < 4 * RATE for moved in steps(1.0))


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("cold", [0.0, 1e-6])
@pytest.mark.parametrize("shape", [(4, 6), (4, 4, 4, 4)])
def test_slices_far_below_the_others(shape, level, cold):
    """Where the factor of a row is as large as float32 goes, 0 times it is 0."""
    variable = keras.Variable(np.ones(shape, "f4"), name="kernel")
    gradient = np.full(shape, cold, "f4")
    gradient[-1] = 1e7
    for epsilon in (1e-8, 1e-30):
        optimizer = ExtremeTensoring(RATE, level=level, epsilon=epsilon)
        before = keras.ops.convert_to_numpy(variable)
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        moved = np.abs(keras.ops.convert_to_numpy(variable) - before)
        assert moved.max() <= RATE * np.sqrt(gradient.size)  # of an RMS of 1
        assert not sum(optimizer.skipped_updates.values())


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e-20])
def test_gradients_that_vanish(steps, size):
    kernel, bias = steps(size)
    assert kernel < 4 * RATE and bias < 1e-6
    # XLA takes subnormal numbers for 0, and the factor of nothing is nothing.
    if size == 0 or (size < 1e-38 and keras.backend.backend() != "torch"):
        assert kernel < 1e-6
    assert list(steps.optimizer.skipped_updates.values()) == [0, 0]
    assert all(0 < moved < 4 * RATE for moved in steps(1.0))


def test_statistics_at_their_largest(steps):
    """Sums of squares end within float32; all steps are finite, later ones small."""
    for size in (1.0, *[6e17] * 8, 1e18):
        assert max(steps(size)) < 4 * RATE
    if steps.optimizer.beta_2 is None:  # sums, which never fall: skipped at their end
        assert max(steps.optimizer.skipped_updates.values()) > 0
    kernel, bias = steps(1.0)
    assert kernel < 4 * RATE and bias < 4 * RATE
    if not steps.optimizer.beta_1:  # else the average of gradients is large, too
        assert bias < 1e-6
        assert steps.optimizer.orthogonalize or kernel < 1e-6


def test_after_a_thousand_million_steps(steps):
    """Counters count on, and the bias correction of averages is none."""
    steps(1.0)
    steps.optimizer.iterations.assign(10**9)
    (counters,) = steps.set("counters", 10**9)
    assert all(0 < moved < 4 * RATE for moved in steps(1.0))
    assert int(steps.optimizer.iterations) == 10**9 + 1
    assert np.asarray(keras.ops.convert_to_numpy(counters))[:, 0].tolist() == [
        10**9 + 1
    ] * len(steps.variables)
