"""Vectors over an axis <-> one short vector per dim of its fold.

`tensor_index.Fold` says how an axis is folded into a grid of short axes. Two
directions are needed: sums over the slices of each dim, and the sum over the axis
of one term (a logarithm) per dim. Each comes for a whole axis and, for sparse
gradients, for some indices of it. The axis is the last one of its array: the
vectors of variables of one tensor index are stacked and treated together.
"""

from typing import Any

import numpy as np
from keras import ops

from extreme_tensoring_tf.tensor_index import Fold


def slice_sums(vector, fold: Fold) -> list:
    """Returns the sums of `vector` over the slices of each dim of `fold`.

    Args:
        vector: tensor or array of shape (..., fold.size).
        fold: a `tensor_index.Fold`.

    Returns:
        A list of arrays, one per entry of `fold.dims`, of shapes (..., dim).
    """
    if not fold.dims:
        return []
    if not fold.parts:
        return [vector]
    xp = _module_of(vector)
    lead = tuple(vector.shape[:-1])
    if fold.cells > fold.size:
        padding = [(0, 0)] * len(lead) + [(0, fold.cells - fold.size)]
        vector = xp.pad(vector, padding)
    grid = xp.reshape(vector, (*lead, *(part.size for part in fold.parts)))
    axes = range(len(lead), len(lead) + len(fold.parts))
    sums = []
    for axis, part in zip(axes, fold.parts):
        others = tuple(a for a in axes if a != axis)
        sums += slice_sums(xp.sum(grid, axis=others), part)
    return sums


def slice_sums_at(values, indices, fold: Fold) -> list:
    """Returns `slice_sums` of a vector of `values` at `indices` and 0 elsewhere."""
    return [
        ops.segment_sum(values, digits, num_segments=dim)
        for digits, dim in zip(_digits(indices, fold), fold.dims)
    ]


def outer_sum(terms, fold: Fold):
    """Returns the sum over an axis of one term per dim of its fold.

    Entry j of the result adds the entries that index j has in each term.

    Args:
        terms: iterator of arrays (..., dim), consumed in the order of `fold.dims`.
        fold: a `tensor_index.Fold`.

    Returns:
        An array of shape (..., fold.size), or None if the fold keeps no dim.
    """
    if not fold.dims:
        return None
    if not fold.parts:
        return next(terms)
    grid: Any = None
    for axis, part in enumerate(fold.parts):
        values = outer_sum(terms, part)
        if values is None:
            continue
        shape = [1] * len(fold.parts)
        shape[axis] = part.size
        xp = _module_of(values)
        lead = tuple(values.shape[:-1])
        values = xp.reshape(values, (*lead, *shape))
        grid = values if grid is None else grid + values
    whole = (*lead, *(part.size for part in fold.parts))
    if tuple(grid.shape) != whole:
        grid = xp.broadcast_to(grid, whole)
    vector = xp.reshape(grid, (*lead, fold.cells))
    return vector if fold.cells == fold.size else vector[..., : fold.size]


def outer_sum_at(terms, indices, fold: Fold):
    """Returns the entries of `outer_sum` at `indices`."""
    result = None
    for digits in _digits(indices, fold):
        values = ops.take(next(terms), digits)
        result = values if result is None else result + values
    return result


def _module_of(x):
    """Returns NumPy for constants, so that they stay constants, else `keras.ops`."""
    return np if isinstance(x, np.ndarray) else ops


def _digits(indices, fold):
    """Returns the coordinates of `indices` in each dim: digits of a mixed radix."""
    if not fold.parts:
        return [indices] if fold.kept else []
    digits = []
    stride = fold.cells
    for part in fold.parts:
        stride //= part.size
        digits += _digits((indices // stride) % part.size, part)
    return digits
