"""Row and column sums of a squared matrix: the one pass over the gradient.

How a sum is written decides its speed, and the best form differs per backend and
device. That choice is kept here; the figures behind it are in
`benchmarks/README.md`.
"""

import contextlib
import contextvars
import functools
import math

import keras
from keras import ops

# Bytes of a block: its squares stay in a core's first-level cache.
_BLOCK_BYTES = 65536
# A row longer than this is summed in parts: one float32 that adds up a long row
# entry by entry, as XLA's loops do, would lose the small ones.
_LONGEST_ROW = 16384
_in_blocks = contextvars.ContextVar("in_blocks", default=False)


@functools.cache
def _on_tensorflow_cpu():
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return not tf.config.list_physical_devices("GPU")


@contextlib.contextmanager
def sums_in_blocks():
    """Within, `row_and_col_sums` is a loop over blocks of rows on the CPU.

    For what XLA compiles. TensorFlow's XLA writes the squares to memory for the
    row sums and sums columns at a quarter of the memory's speed; a block that
    stays in cache costs neither. Uncompiled, a loop would be slow.
    """
    token = _in_blocks.set(_on_tensorflow_cpu())
    try:
        yield
    finally:
        _in_blocks.reset(token)


def row_and_col_sums(matrix, rows=True, cols=True, weights=None, dtype=None):
    """Sums of `matrix**2` over each row and over each column.

    Args:
        matrix: tensor of shape (m, n).
        rows, cols: which of the two are wanted.
        weights: None, or vector (n,) by which the row sums weigh columns.
        dtype: of the sums. A loop casts block by block. None is the matrix' own.

    Returns:
        A vector of length m and a vector of length n; None where not wanted.
    """
    m, n = matrix.shape
    dtype = keras.backend.standardize_dtype(dtype or matrix.dtype)
    if _in_blocks.get() and m and min(m, n) > 1:
        block = max(8, _BLOCK_BYTES // (n * matrix.dtype.size))
        if m >= 2 * block:
            return _loop(matrix, rows, cols, weights, dtype, block)
    return _plain(matrix, rows, cols, weights, dtype)


def _plain(matrix, rows, cols, weights, dtype):
    m, n = matrix.shape
    squares = ops.square(ops.cast(matrix, dtype))
    row_sums = col_sums = None
    if rows:
        if weights is not None and n > _LONGEST_ROW:
            row_sums = _row_sums(squares * weights, None)
        else:
            row_sums = _row_sums(squares, weights)
    if cols:
        col_sums = ops.reshape(squares, (n,)) if m == 1 else ops.sum(squares, axis=0)
    return row_sums, col_sums


def _row_sums(matrix, weights):
    m, n = matrix.shape
    if n == 1 and weights is None:
        return ops.reshape(matrix, (m,))
    if n > _LONGEST_ROW:
        length = math.isqrt(n)
        count = n // length
        parts = ops.reshape(matrix[:, : count * length], (m * count, length))
        sums = _row_sums(ops.reshape(_row_sums(parts, None), (m, count)), None)
        rest = matrix[:, count * length :]
        return sums + _row_sums(rest, None) if rest.shape[1] else sums
    if _on_tensorflow_cpu():
        # XLA sums rows 2.5 times faster as a dot. Not on a GPU, where TensorFlow
        # may round the factors of a dot to TensorFloat-32.
        ones = ops.ones((n,), dtype=matrix.dtype)
        return ops.matmul(matrix, ones if weights is None else weights)
    return ops.sum(matrix if weights is None else matrix * weights, axis=1)


def _loop(matrix, rows, cols, weights, dtype, block):
    """`_plain` over blocks of rows, and over the rows that are left."""
    import tensorflow as tf

    m, n = matrix.shape
    count = m // block

    # A TensorArray becomes one dynamic-update-slice; a scatter, four operations.
    parts = tf.TensorArray(dtype, count, element_shape=(block,))

    def body(i, parts, col_sums):
        part = tf.slice(matrix, [i * block, 0], [block, n])
        r, c = _plain(part, rows, cols, weights, dtype)
        parts = parts.write(i, r) if rows else parts
        return i + 1, parts, col_sums + c if cols else col_sums

    _, parts, col_sums = tf.while_loop(
        lambda i, *_: i < count,
        body,
        (0, parts, tf.zeros((n,) if cols else (), dtype)),
        maximum_iterations=count,
    )
    row_sums = parts.concat() if rows else None
    col_sums = col_sums if cols else None
    if m > count * block:
        r, c = _plain(matrix[count * block :], rows, cols, weights, dtype)
        row_sums = tf.concat([row_sums, r], 0) if rows else None
        col_sums = col_sums + c if cols else None
    return row_sums, col_sums
