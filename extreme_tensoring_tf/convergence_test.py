"""Regret on a convex problem, against AdaGrad's: the paper's guarantee."""

import functools

import keras
import numpy as np
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.preconditioner import inverse_trace

SHAPE = (16, 24)
STEPS = 80
EPSILON = 1e-10


def problem():
    """f(x) = 1/2 sum_I h_I (x_I - 1)**2, condition number 1e4."""
    rng = np.random.default_rng(0)
    h = 10.0 ** -(rng.uniform(0, 2, (16, 1)) + rng.uniform(0, 2, (1, 24)))
    return ops.convert_to_tensor(h, "float32"), h


def regret(optimizer, x, rate):
    """Returns the sum of f(x_t) over steps from the start; f is 0 at its minimum."""
    h, exact = problem()
    for variable in (x, *optimizer.variables):
        variable.assign(ops.zeros(variable.shape, variable.dtype))
    optimizer.learning_rate = rate
    total = 0.0
    for _ in range(STEPS):
        distance = ops.convert_to_numpy(x).astype(np.float64) - 1.0
        total += 0.5 * float((exact * distance**2).sum())
        if not total < 1e6:  # diverged
            return np.inf
        optimizer.apply([h * (x - 1.0)], [x])
    return total


def best_regret(make):
    """Returns the regret at the best of rates a factor of 3 apart, and the optimizer.

    Regret bounds tune the rate. The optimizer is as it was after the best run.
    """
    x = keras.Variable(np.zeros(SHAPE), dtype="float32")
    optimizer = make(1.0)
    optimizer.build([x])
    rates = [3.0**k for k in range(-3, 5)]
    best = min(rates, key=lambda rate: regret(optimizer, x, rate))
    return regret(optimizer, x, best), optimizer


def test_regret_is_within_the_papers_factor_of_adagrads():
    adagrads, adagrad = best_regret(
        functools.partial(
            keras.optimizers.Adagrad,
            initial_accumulator_value=0.0,
            epsilon=EPSILON,
        )
    )
    sums = ops.convert_to_numpy(ops.convert_to_tensor(adagrad._accumulators[0]))
    adagrad_trace = np.sqrt(sums.astype(np.float64) + EPSILON).sum()
    descent, _ = best_regret(keras.optimizers.SGD)
    for level in (1, 2, 3):
        make = functools.partial(
            ExtremeTensoring.algorithm_1, level=level, epsilon=EPSILON
        )
        ours, optimizer = best_regret(make)
        slots = optimizer._slots
        statistics = [ops.convert_to_numpy(s) for s in slots.statistics[0]]
        trace = inverse_trace(statistics, slots.indices[0], EPSILON)
        assert ours <= np.sqrt(trace / adagrad_trace) * adagrads
        # And it does adapt: plain gradient descent at its best is behind.
        assert ours < descent
