"""The preconditioner of one variable as short vectors, applied to a gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from extreme_tensoring_tf.marginals import row_and_col_sums


@dataclasses.dataclass(frozen=True)
class Factors:
    """The preconditioner delta of one variable, held as short vectors.

    delta = root * (row outer col), a factor of None being 1; or, with `literal`,
    what that function makes of `row` and `col`.
    """

    row: Any
    col: Any
    root: Any
    size: int  # entries of the whole variable
    clip_threshold: float | None
    literal: Callable | None = None

    def scale(self, direction, learning_rate, multiplier=None):
        """Returns learning_rate * delta * direction, clipped to `clip_threshold`.

        Args:
            direction: matrix of shape `index.view`, or the rows `row_ids` of it.
            learning_rate: scalar tensor, of the dtype of the result.
            multiplier: None, or a scalar; the direction is multiplied by it first.

        Returns:
            A matrix of the shape of `direction`.
        """
        row, col = self.row, self.col
        root = self.root if multiplier is None else self.root * multiplier
        if self.literal:
            direction = ops.cast(direction, root.dtype) * self.literal(row, col)
            row = col = None
        rate = learning_rate * root
        if self.clip_threshold is not None:
            rms = root * root_mean_square(direction, row, col, self.size, root.dtype)
            rate = rate / ops.maximum(1.0, rms / self.clip_threshold)
        direction = ops.cast(direction, root.dtype)
        # The rate goes with a short vector: no further pass over the matrix.
        direction = direction * (rate if col is None else col * rate)
        return direction if row is None else direction * ops.expand_dims(row, 1)


def root_mean_square(matrix, row, col, size, dtype):
    """Returns the RMS of matrix * (row outer col), a bilinear form of short vectors.

    sum_ij g_ij**2 row_i**2 col_j**2 / size = row**2 . (g**2 col**2) / size

    One more read of the gradient; nothing of its size is written. None stands
    for a factor of 1. `size` is the number of entries of the whole variable.
    """
    weights = None
    if col is not None:
        weights = ops.broadcast_to(ops.square(col), matrix.shape[1:])
    rows, _ = row_and_col_sums(matrix, cols=False, weights=weights, dtype=dtype)
    if row is not None:
        rows = rows * ops.square(row)
    return ops.sqrt(ops.sum(rows) / size)
