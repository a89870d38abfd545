"""What an optimizer keeps: its state, and perhaps moving averages of the weights."""

import contextlib
import math

import numpy as np
from keras import ops


def inner(optimizer):
    """The optimizer itself, inside those that scale the loss or watch."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def state_scalars(optimizer):
    """Scalars of state: without counters, the rate, and averages of weights.

    What is not 4 bytes an entry is counted by its bytes, four a scalar.
    """
    optimizer = inner(optimizer)
    if hasattr(optimizer, "state_size"):
        return optimizer.state_size
    counters = {"iteration", "learning_rate", "seed_generator_state"}
    kept = [v for v in optimizer.variables if v.name not in counters]
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in kept) // 4


@contextlib.contextmanager
def averaged_weights(model):
    """Within, the model has the moving averages of its weights, if it keeps any."""
    optimizer = inner(model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    raw = [ops.convert_to_numpy(v) for v in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average):
        # A copy: on JAX two variables of one array would both be given away.
        variable.assign(ops.convert_to_numpy(average))
    try:
        yield
    finally:
        for variable, value in zip(variables, raw):
            variable.assign(value)


def use_averaged_weights(model):
    """Gives a model its moving averages, if it keeps any, for good."""
    optimizer = inner(model.optimizer)
    if optimizer.use_ema:
        set_averaged_weights(model, optimizer._model_variables_moving_average)


def set_averaged_weights(model, values):
    """Gives a model weights that are to be used, not trained further."""
    optimizer = inner(model.optimizer)
    kept = optimizer._model_variables_moving_average if optimizer.use_ema else []
    for variables in (model.trainable_variables, kept):
        for variable, value in zip(variables, values):
            # A copy: on JAX two variables of one array would both be given away.
            variable.assign(ops.convert_to_numpy(value))
