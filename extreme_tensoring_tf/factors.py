"""Preconditioners of variables alike as short vectors, applied to their gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras import ops

from extreme_tensoring_tf.marginals import row_and_col_sums


@dataclasses.dataclass(frozen=True)
class Factors:
    """The preconditioners delta of k variables, held as short vectors.

    delta = root * (row outer col), a factor of None being 1; or, with `literal`,
    what that function makes of `row` and `col`.
    """

    row: Any  # (k, m), or None
    col: Any  # (k, n) or (k, 1), or None
    root: Any  # (k,)
    size: int  # entries of a whole variable
    clip_threshold: float | None
    literal: Callable | None = None

    def __getitem__(self, part: slice) -> "Factors":
        """Returns the factors of some of the variables."""
        if part == slice(0, self.root.shape[0]):
            return self
        row, col = (None if x is None else x[part] for x in (self.row, self.col))
        return dataclasses.replace(self, row=row, col=col, root=self.root[part])

    def scale(self, direction, learning_rate, multiplier=None):
        """Returns learning_rate * delta * direction, clipped to `clip_threshold`.

        Args:
            direction: (k, *index.view), or, with k = 1, the rows `row_ids` of it.
            learning_rate: scalar tensor, of the dtype of the result.
            multiplier: None, or (k,); the direction is multiplied by it first.

        Returns:
            An array of the shape of `direction`.
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
        # The rate goes with a short vector: no further pass over the matrix.
        rate = ops.expand_dims(rate, 1)
        rate = ops.expand_dims(rate if col is None else col * rate, 1)
        direction = ops.cast(direction, root.dtype) * rate
        return direction if row is None else direction * ops.expand_dims(row, 2)


def root_mean_square(stack, row, col, size, dtype):
    """Returns the RMS (k,) of stack * (row outer col), a bilinear form of vectors.

    sum_ij g_ij**2 row_i**2 col_j**2 / size = row**2 . (g**2 col**2) / size

    One more read of the gradient; nothing of its size is written. None stands
    for a factor of 1. `size` is the number of entries of a whole variable.
    """
    weights = None
    if col is not None:
        weights = ops.broadcast_to(ops.square(col), (stack.shape[0], stack.shape[2]))
    rows, _ = row_and_col_sums(stack, cols=False, weights=weights, dtype=dtype)
    if row is not None:
        rows = rows * ops.square(row)
    return ops.sqrt(ops.sum(rows, axis=1) / size)
