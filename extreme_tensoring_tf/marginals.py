"""The one pass over the gradient sums the squares of matrices by rows and by columns.

How a sum is written decides its speed, and the best form differs per backend and
device. That choice is kept here; the figures behind it are in
`docs/benchmarks.md`.
"""

import contextlib
import contextvars
import math

import keras
import numpy as np
from keras import ops

from extreme_tensoring_tf.variables import has_accelerator

# Bytes of a block, whose squares stay in a core's cache. XLA's older and newer CPU
# backends differ in what starting a loop's operations costs.
_BLOCK_BYTES = {"tensorflow": 2**16, "jax": 2**20}
# A row longer than this is summed in parts: one float32 that adds up a long row
# entry by entry, as XLA's loops do, would lose the small ones.
_LONGEST_ROW = 16384
_in_blocks = contextvars.ContextVar("in_blocks", default=False)


def _on_cpu(backend):
    """Returns whether Keras runs on this backend, and that on the CPU alone."""
    return keras.backend.backend() == backend and not has_accelerator()


@contextlib.contextmanager
def sums_in_blocks():
    """Has TensorFlow on the CPU sum in a loop over blocks of rows, within the context.

    For what XLA compiles. Its row sums write all squares to memory and its column
    sums run at a quarter of the memory's speed; a block that stays in cache costs
    neither. Uncompiled, a loop would be slow.
    """
    token = _in_blocks.set(_on_cpu("tensorflow"))
    try:
        yield
    finally:
        _in_blocks.reset(token)


def row_and_col_sums(stack, rows=True, cols=True, weights=None, dtype=None):
    """Returns the sums of `stack**2` over the rows and the columns of each matrix.

    Args:
        stack: tensor of shape (k, m, n). On TensorFlow m may be unknown when traced.
        rows, cols: which of the two are wanted.
        weights: None, or (k, n), by which the row sums weigh columns.
        dtype: of the sums. A loop casts block by block. None is the stack's own.

    Returns:
        Arrays of shapes (k, m) and (k, n); None where not wanted.
    """
    k, m, n = stack.shape
    backend = keras.backend.backend()
    dtype = keras.backend.standardize_dtype(dtype or stack.dtype)
    jax_on_cpu = _on_cpu("jax")
    may_loop = _in_blocks.get() or (jax_on_cpu and weights is not None)
    if may_loop and k == 1 and m is not None and min(m, n) > 1:
        block = max(8, _BLOCK_BYTES[backend] // (n * np.dtype(dtype).itemsize))
        if m >= 2 * block:
            return _loop(stack, rows, cols, weights, dtype, block)
    if jax_on_cpu:
        return _apart(stack, rows, cols, weights, dtype)
    return _plain(stack, rows, cols, weights, dtype)


def _plain(stack, rows, cols, weights, dtype):
    """Returns what `row_and_col_sums` does, from all squares at once."""
    k, m, n = stack.shape
    squares = ops.square(ops.cast(stack, dtype))
    row_sums = col_sums = None
    if rows:
        matrix = squares
        if weights is not None and (k > 1 or n > _LONGEST_ROW):
            matrix, weights = squares * ops.expand_dims(weights, 1), None
        row_sums = _row_sums(ops.reshape(matrix, (-1, n)), weights)
        row_sums = ops.reshape(row_sums, (k, -1))
    if cols:
        col_sums = ops.reshape(squares, (k, n)) if m == 1 else ops.sum(squares, axis=1)
    return row_sums, col_sums


def _row_sums(matrix, weights):
    """Returns the sums over rows, each entry times the weight (1, n) of its column."""
    n = matrix.shape[1]
    if n == 1 and weights is None:
        return ops.reshape(matrix, (-1,))
    if n > _LONGEST_ROW:
        length = math.isqrt(n)
        count = n // length
        parts = ops.reshape(matrix[:, : count * length], (-1, length))
        sums = _row_sums(ops.reshape(_row_sums(parts, None), (-1, count)), None)
        rest = matrix[:, count * length :]
        return sums + _row_sums(rest, None) if rest.shape[1] else sums
    if _on_cpu("tensorflow"):
        # XLA sums rows 2.5 times faster as a dot. Not on a GPU, where TensorFlow
        # may round the factors of a dot to TensorFloat-32.
        ones = ops.ones((n,), dtype=matrix.dtype)
        return ops.matmul(matrix, ones if weights is None else weights[0])
    return ops.sum(matrix if weights is None else matrix * weights, axis=1)


def _apart(stack, rows, cols, weights, dtype):
    """Returns what `_plain` does, each sum fused with nothing else.

    JAX on the CPU has fast kernels for a sum of squares by itself. Fused with the
    other sum or the scaling it writes all squares to memory first: 3 times slower.
    """
    from jax import lax

    row_sums = col_sums = None
    if rows:
        stack = lax.optimization_barrier(stack)
        row_sums, _ = _plain(stack, True, False, weights, dtype)
        stack, row_sums = lax.optimization_barrier((stack, row_sums))
    if cols:
        stack = lax.optimization_barrier(stack)
        _, col_sums = _plain(stack, False, True, None, dtype)
        col_sums = lax.optimization_barrier(col_sums)
    return row_sums, col_sums


def _loop(stack, rows, cols, weights, dtype, block):
    """Returns what `_plain` does for one matrix: blocks of rows, and what is left."""
    _, m, n = stack.shape
    count = m // block

    def add(part, start, row_sums, col_sums):
        r, c = _plain(part, rows, cols, weights, dtype)
        if rows:
            row_sums = ops.slice_update(row_sums, [0, start], r)
        return row_sums, col_sums + c if cols else col_sums

    def body(i, sums):
        part = ops.slice(stack, [0, i * block, 0], [1, block, n])
        return add(part, i * block, *sums)

    shapes = (1, m if rows else 1), (1, n if cols else 1)
    sums = tuple(ops.zeros(shape, dtype) for shape in shapes)
    sums = ops.fori_loop(0, count, body, sums)
    if m > count * block:
        sums = add(stack[:, count * block :], count * block, *sums)
    return sums[0] if rows else None, sums[1] if cols else None
