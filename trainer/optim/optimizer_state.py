"""Reads what an optimizer keeps: state, and perhaps moving averages of weights."""

import contextlib
import math
from collections.abc import Iterator
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from extreme_tensoring_tf.memory import inner


def state_scalars(optimizer) -> int:
    """Returns the scalars of an optimizer's state.

    Counters, the rate, averages of weights and accumulated gradients do not count.
    State of another dtype than float32 counts by its bytes, four a scalar.
    """
    optimizer = inner(optimizer)
    if hasattr(optimizer, "state_size"):
        return optimizer.state_size
    counters = {"iteration", "learning_rate", "seed_generator_state"}
    # Keras' own averages of weights, and sums of the gradients of several batches.
    lists = ("_model_variables_moving_average", "_accumulated_gradients")
    others = {id(v) for name in lists for v in getattr(optimizer, name, None) or ()}
    kept = [
        v for v in optimizer.variables if v.name not in counters and id(v) not in others
    ]
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in kept) // 4


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Gives a model the averages of its weights, if it keeps any, for a block."""
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


def use_averaged_weights(model: keras.Model) -> None:
    """Gives a model the moving averages of its weights, if it keeps any, for good."""
    optimizer = inner(model.optimizer)
    if optimizer.use_ema:
        set_averaged_weights(model, optimizer._model_variables_moving_average)


def set_averaged_weights(model: keras.Model, values: Sequence) -> None:
    """Gives a model weights that are to be used, not trained further.

    Args:
        model: compiled with its optimizer, which has them as averages, too.
        values: arrays of the trainable variables, in their order.
    """
    optimizer = inner(model.optimizer)
    kept = optimizer._model_variables_moving_average if optimizer.use_ema else []
    for variables in (model.trainable_variables, kept):
        for variable, value in zip(variables, values):
            # A copy: on JAX two variables of one array would both be given away.
            variable.assign(ops.convert_to_numpy(value))
