"""Reading and writing variables, which are Keras' own or the backend's.

The step is told once, in `update.py`, and runs in three ways: eagerly, as a part of
somebody's program, and as a program of its own, whose arguments are the backend's
variables. The functions here make these look alike.
"""

import contextlib
import functools
import re

import keras
from keras import ops

IS_JAX = keras.backend.backend() == "jax"
IS_TENSORFLOW = keras.backend.backend() == "tensorflow"


@functools.cache
def has_accelerator() -> bool:
    """Returns whether the backend computes on a GPU or a TPU."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # Not the logical ones: listing these starts the devices.
        return any(tf.config.get_visible_devices(kind) for kind in ("GPU", "TPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    return False


def raw(variable):
    """Returns the TensorFlow variable inside a Keras variable.

    Other backends have no variables of their own: there the Keras variable itself is
    returned, which a stateless scope can follow.
    """
    if IS_TENSORFLOW and isinstance(variable, keras.Variable):
        return variable.value
    return variable


def tensor(variable):
    """Returns the value of a variable as a tensor of the backend."""
    # Of a Keras variable, Keras' own conversion may return the variable itself.
    return ops.convert_to_tensor(raw(variable))


def materialized(array):
    """Returns an array that a program holds, and does not compute at each of its uses.

    XLA for GPUs would read the parts of a stack by branches, once for every use. Only
    JAX can say so.
    """
    if not IS_JAX:
        return array
    import jax

    return jax.lax.optimization_barrier(array)


def dtype_of(variable) -> str:
    """Returns the name of a variable's or a tensor's dtype."""
    return keras.backend.standardize_dtype(variable.dtype)


def itemsize(dtype: str) -> int:
    """Returns the bytes of an entry of a dtype, by its name."""
    bits = re.search(r"\d+$", dtype)
    return int(bits.group()) // 8 if bits else 1


def statistics_dtype(dtype: str) -> str:
    """Returns the dtype of the statistics of a variable of a dtype.

    Sums that are shorter than float32 lose small increments.
    """
    return dtype if dtype == "float64" else "float32"


def own_momentum_dtype(dtype: str) -> str:
    """Returns the dtype of the momentum of a variable, where no other is asked for.

    A gradient of float16 can be larger than any number of its dtype.
    """
    return "float32" if dtype == "float16" else dtype


def path_of(variable) -> str:
    """Returns the path of a Keras variable, the name of a TensorFlow variable."""
    return getattr(variable, "path", variable.name)


def layout_of(variable):
    """Returns how a variable is laid out over devices, for slots of its shape; or None.

    The attribute is private, and Keras' own slots read it, too.
    """
    return getattr(variable, "_layout", None)


def replicated_layout(axes: int):
    """Returns the layout of an array that every device holds whole, or None.

    Without it a `keras.distribution.LayoutMap` would find the slot by its name, which
    holds that of its variable, and cut a vector as it cuts the matrix.

    Args:
        axes: of the array.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    return keras.distribution.TensorLayout([None] * axes, distribution.device_mesh)


def check_dtype(variable) -> None:
    """Refuses a variable whose entries are not real floating-point numbers.

    Raises:
        ValueError: it names the variable and its dtype.
    """
    dtype = dtype_of(variable)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"variable {path_of(variable)!r} has dtype {dtype}: ExtremeTensoring "
            "updates variables of real floating-point numbers. Make it "
            "`trainable=False`, or split a complex variable into two real ones"
        )


def check_packable(variable) -> None:
    """Refuses a variable that cannot hold its momentum: see `packing.py`.

    Raises:
        ValueError: it names the variable, and its dtype or its constraint.
    """
    why = None
    if dtype_of(variable) != "float32":
        why = f"has dtype {dtype_of(variable)}, and only float32 has bits to spare"
    elif getattr(variable, "constraint", None) is not None:
        why = f"has a constraint, {variable.constraint}, which rewrites it every step"
    if why:
        raise ValueError(
            f"variable {path_of(variable)!r} {why}: momentum cannot be packed into it. "
            'Give another `momentum_dtype`, such as "bfloat16", or no momentum at all'
        )


def unique_paths(variables) -> list[str]:
    """Returns one name per variable; the second of a path P is called "P#2".

    Two models on one optimizer, or unnamed TensorFlow variables, share paths.
    """
    seen: dict[str, int] = {}
    names = []
    for path in map(path_of, variables):
        seen[path] = seen.get(path, 0) + 1
        names.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return names


def outside_of_traces() -> contextlib.AbstractContextManager:
    """Has variables made at once, though TensorFlow traces a function now.

    `fit` builds an optimizer in the trace of its first step. A variable that such a
    trace makes costs ten milliseconds, for its first value becomes a graph, and the
    whole step of the model is traced a second time.
    """
    if not IS_TENSORFLOW:
        return contextlib.nullcontext()
    import tensorflow as tf

    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return contextlib.nullcontext()
    with tf.init_scope():
        eager = tf.executing_eagerly()
    return _eager_variables() if eager else contextlib.nullcontext()


@contextlib.contextmanager
def _eager_variables():
    """Lifts the making of variables out of a trace and past its variable creators."""
    import tensorflow as tf
    from tensorflow.python.ops.resource_variable_ops import default_variable_creator_v2

    def create(next_creator, **kwargs):
        return default_variable_creator_v2(**kwargs)

    with tf.init_scope(), tf.variable_creator_scope(create):
        yield


def assign(variable, value) -> None:
    """Writes a tensor into a variable, in the dtype of the variable."""
    raw(variable).assign(ops.cast(value, variable.dtype))


def assign_sub(variable, step) -> None:
    """Subtracts a tensor from a variable, in place where the backend can.

    Args:
        variable: a variable.
        step: a tensor of the variable's shape and dtype. On TensorFlow it may be
            `tf.IndexedSlices`: then the other rows are not touched.
    """
    if not IS_TENSORFLOW:
        variable.assign(tensor(variable) - step)
        return
    import tensorflow as tf

    if isinstance(step, tf.IndexedSlices):
        raw(variable).scatter_sub(step)
    else:
        raw(variable).assign_sub(step)
