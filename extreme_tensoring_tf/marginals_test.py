"""The loop over blocks of rows against NumPy: whole blocks, a rest, weights."""

import keras
import numpy as np
import pytest

from extreme_tensoring_tf.marginals import row_and_col_sums
from extreme_tensoring_tf.marginals import sums_in_blocks

# A block has 64 KB and 8 rows or more: no loop, whole blocks, one row left, blocks
# of 8 rows with 3 left, vectors. Rows past 16,384 entries are summed in parts.
SHAPES = [(7, 5), (64, 512), (65, 512), (19, 40_000), (1, 700_001), (70_000, 1)]
STACKS = [(1, *shape) for shape in SHAPES] + [(3, 7, 5), (2, 3, 20_000), (4, 1, 9)]


def in_a_program(function):
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return function


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", STACKS)
def test_sums(shape, weighted, wanted):
    rng = np.random.default_rng(0)
    k, m, n = shape
    stack = rng.normal(size=shape).astype("float32")
    weights = None
    if weighted:
        weights = keras.ops.convert_to_tensor(rng.random((k, n)).astype("float32"))
    rows, cols = wanted

    @in_a_program
    def sums(stack):
        with sums_in_blocks():
            return row_and_col_sums(stack, rows, cols, weights)

    row_sums, col_sums = sums(keras.ops.convert_to_tensor(stack))
    squares = stack.astype("float64") ** 2
    assert (row_sums is None) != rows and (col_sums is None) != cols
    if rows:
        expected = squares.sum(2)
        if weighted:
            weights = keras.ops.convert_to_numpy(weights)
            expected = (squares * weights[:, None]).sum(2)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(row_sums), expected, rtol=2e-6
        )
    if cols:
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(col_sums), squares.sum(1), rtol=2e-6
        )
