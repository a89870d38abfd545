"""The gradients that are given: whether they are sparse, and of the right shape."""

from keras import ops

from extreme_tensoring_tf.variables import IS_TENSORFLOW
from extreme_tensoring_tf.variables import path_of

if IS_TENSORFLOW:  # the others have no sparse gradients
    from extreme_tensoring_tf import sparse


def is_sparse(gradient) -> bool:
    """Returns whether a gradient is `tf.IndexedSlices`."""
    return IS_TENSORFLOW and sparse.is_sparse(gradient)


def dense_array(gradient):
    """Returns a gradient, a tensor of the backend or an array, as a NumPy array."""
    return ops.convert_to_numpy(ops.convert_to_tensor(gradient))


def check_gradient(gradient, variable):
    """Returns a gradient, or None, that has the shape of its variable.

    On TensorFlow a dimension, or even the rank, may be unknown when a step is traced:
    then the shape is checked when the step runs.

    Raises:
        ValueError: the shapes differ.
    """
    if gradient is None:
        return None
    if not (is_sparse(gradient) or hasattr(gradient, "shape")):  # a number, or a list
        gradient = ops.convert_to_tensor(gradient, variable.dtype)
    expected = tuple(variable.shape)
    shape = (gradient.values if is_sparse(gradient) else gradient).shape
    shape = (None,) * len(expected) if _hides_rank(shape) else tuple(shape)
    if is_sparse(gradient):  # the number of gathered rows is free
        shape = (*expected[:1], *shape[1:])
    fits = len(shape) == len(expected) and all(
        n is None or n == m for n, m in zip(shape, expected)
    )
    if not fits:
        raise ValueError(
            f"the gradient of variable {path_of(variable)!r} has shape {shape}, the "
            f"variable {expected}. A gradient must have the shape of its variable: "
            "check custom gradients for a missing transpose or reshape"
        )
    if IS_TENSORFLOW and None in shape:
        return sparse.ensure_shape(gradient, expected)
    return gradient


def _hides_rank(shape) -> bool:
    """Returns whether not even the rank of a `tf.TensorShape` is known."""
    return getattr(shape, "rank", 0) is None
