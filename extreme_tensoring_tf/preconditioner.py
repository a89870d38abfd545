"""The mathematics of extreme tensoring on backend tensors (Algorithm 1).

A gradient is looked at as a matrix `g` of shape (m, n), a row-major view of the
variable. A tensor index folds the m rows and the n columns into short axes:

    variable (2000, 512), level 2:  rows 2000 -> (40, 50), columns 512 -> (16, 32)
    state:                          S_1 .. S_4 of lengths 40, 50, 16, 32

Every S_i is a sum of squares over slices of the variable. A slice is a set of
whole rows or of whole columns, so the row sums and the column sums of g**2 hold
all of them. Likewise the preconditioner is the outer product of a row vector and
a column vector. So a step reads the gradient twice, and every root, power and
product of p factors is taken on short vectors.
"""

import numpy as np
from keras import ops

from extreme_tensoring_tf.marginals import row_and_col_sums

PRECONDITIONERS = ("geometric_mean", "rank_one")
EPSILON_PLACEMENTS = ("axis", "product")
STATISTICS = ("sum", "mean")


def slice_sums(vector, fold):
    """Sums of `vector` over the slices of each dim of `fold`.

    Args:
        vector: tensor or array of shape (fold.size,).
        fold: a `tensor_index.Fold`.

    Returns:
        A list of vectors, one per entry of `fold.dims`, of those lengths.
    """
    if not fold.dims:
        return []
    if not fold.parts:
        return [vector]
    xp = np if isinstance(vector, np.ndarray) else ops
    grid = xp.reshape(
        xp.pad(vector, [(0, fold.cells - fold.size)])
        if fold.cells > fold.size
        else vector,
        [part.size for part in fold.parts],
    )
    sums = []
    for axis, part in enumerate(fold.parts):
        others = tuple(a for a in range(len(fold.parts)) if a != axis)
        sums += slice_sums(xp.sum(grid, axis=others), part)
    return sums


def outer(factors, fold, combine=ops.multiply):
    """Spreads one vector per dim of `fold` over its axis, and combines them.

    The inverse direction of `slice_sums`: entry j of the result is the product
    (or `combine`) of the entries that index j has in each factor.

    Args:
        factors: iterator of vectors, consumed in the order of `fold.dims`.
        fold: a `tensor_index.Fold`.
        combine: binary function; `ops.add` where the factors are logarithms.

    Returns:
        A vector of length fold.size, or None if the fold keeps no dim.
    """
    if not fold.dims:
        return None
    if not fold.parts:
        return next(factors)
    rank = len(fold.parts)
    grid = None
    for axis, part in enumerate(fold.parts):
        values = outer(factors, part, combine)
        if values is None:
            continue
        shape = [1] * rank
        shape[axis] = part.size
        values = ops.reshape(values, shape)
        grid = values if grid is None else combine(grid, values)
    grid = ops.broadcast_to(grid, [part.size for part in fold.parts])
    return ops.reshape(grid, (fold.cells,))[: fold.size]


def squared_sums(matrix, index):
    """One vector per dim of `index`: the sums of matrix**2 over its slices.

    S_i[j] = sum over I with I_i = j of g[I]**2 (Algorithm 1, line 5).

    Args:
        matrix: gradient of shape `index.view`.
        index: a `tensor_index.TensorIndex`.

    Returns:
        A list of vectors of lengths `index.dims`.
    """
    if not (index.rows.dims or index.cols.dims):
        rows, _ = row_and_col_sums(matrix, cols=False)
        return [ops.reshape(ops.sum(rows), (1,))]
    rows, cols = row_and_col_sums(
        matrix, rows=bool(index.rows.dims), cols=bool(index.cols.dims)
    )
    return slice_sums(rows, index.rows) + slice_sums(cols, index.cols)


def slice_counts(index):
    """One array per dim of `index`: entries of the variable in each slice.

    Padding is not counted. Arrays are float64 NumPy: they are constants.
    """
    m, n = index.view
    if not (index.rows.dims or index.cols.dims):
        return [np.array([float(m * n)])]
    return slice_sums(np.full(m, float(n)), index.rows) + slice_sums(
        np.full(n, float(m)), index.cols
    )


def _power(statistic, base, exponent):
    """base**exponent, and 0 where the statistic is 0.

    All gradients of such a slice have been 0, so any finite factor will do; the
    product of several powers of a small epsilon might not be finite.
    """
    seen = ops.greater(statistic, 0)
    return ops.where(seen, ops.power(ops.where(seen, base, 1), exponent), 0)


def _row_and_col(factors, index, combine=ops.multiply):
    factors = iter(factors)
    if not (index.rows.dims or index.cols.dims):
        return None, next(factors)  # shape (1,): broadcasts over the columns
    return (
        outer(factors, index.rows, combine),
        outer(factors, index.cols, combine),
    )


def geometric_mean_factors(statistics, index, epsilon):
    """Row and column factors of Algorithm 1, epsilon added on each axis.

    delta[I] = prod_i (epsilon + S_i[I_i]) ** (-1 / (2 p))

    where
        S_i: the statistics, one vector per dim,
        p: the number of dims,
        epsilon: in the units of g**2, whatever p is.

    Each factor is rooted before the product: a float32 product of p sums would
    over- or underflow.

    Returns:
        (row, col) with delta = row[:, None] * col[None, :]. Either may be None,
        for a factor of 1. Source: arXiv 1902.04620, Algorithm 1.
    """
    exponent = -0.5 / len(statistics)
    return _row_and_col([_power(s, s + epsilon, exponent) for s in statistics], index)


def geometric_mean_literal(statistics, index, epsilon):
    """Full-size preconditioner of Algorithm 1 to the letter.

    delta[I] = (epsilon + prod_i S_i[I_i]) ** (-1 / (2 p))

    Exact and slow: it is not an outer product, so it is taken per entry, in log
    space. Source: arXiv 1902.04620, Algorithm 1, line 6.

    Returns:
        A tensor of shape `index.view`.
    """
    row, col = _row_and_col([ops.log(s) for s in statistics], index, ops.add)
    log_product = col if row is None else ops.expand_dims(row, 1)
    if row is not None and col is not None:
        log_product = log_product + col
    log_epsilon = ops.cast(np.log(epsilon), log_product.dtype)
    # log(epsilon + product). One of the two is finite, so the difference is too.
    log_sum = ops.maximum(log_product, log_epsilon) + ops.log1p(
        ops.exp(-ops.abs(log_product - log_epsilon))
    )
    delta = ops.exp(log_sum * (-0.5 / len(statistics)))
    return ops.broadcast_to(delta, index.view)


def rank_one_factors(means, mean, index, epsilon):
    """Row and column factors of the product distribution closest to g**2.

    delta[I] = v[I] ** (-1/2),   v[I] = prod_i (M_i[I_i] + e) / (M + e)**(p - 1)

    where
        M_i: mean of g**2 over the slices of dim i, accumulated,
        M: its mean over the whole variable (`mean`, shape (1,)),
        e: epsilon, p: the number of dims.

    It is the rank-one tensor closest to the true second moment in KL divergence,
    Adafactor's estimate for p = 2. Each factor is taken relative to M: a product
    of p bare roots would overflow float32. Source: beyond the paper.

    Returns:
        (row, col) with delta = row[:, None] * col[None, :]; None means 1.
    """
    if len(means) == 1:
        return _row_and_col([_power(means[0], means[0] + epsilon, -0.5)], index)
    relative = _power(mean, mean + epsilon, -1.0)
    root = _power(mean, mean + epsilon, -0.5)
    factors = [_power(m, (m + epsilon) * relative, -0.5) for m in means]
    return _row_and_col([factors[0] * root] + factors[1:], index)


def scale(matrix, row, col):
    """matrix * (row outer col), with None for a factor of 1."""
    if row is not None:
        matrix = matrix * ops.expand_dims(row, 1)
    return matrix if col is None else matrix * col


def root_mean_square(matrix, row, col):
    """RMS of `scale(matrix, row, col)`, as a bilinear form of short vectors.

    sum_ij g_ij**2 row_i**2 col_j**2 = row**2 . ((g**2) col**2): one more read of
    the gradient, nothing of its size written.
    """
    m, n = matrix.shape
    if col is not None:
        matrix = matrix * col
    rows, _ = row_and_col_sums(matrix, cols=False)
    if row is not None:
        rows = rows * ops.square(row)
    return ops.sqrt(ops.sum(rows) / (m * n))
