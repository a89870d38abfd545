"""The mathematics of extreme tensoring on backend tensors (Algorithm 1).

A gradient is looked at as a matrix `g` of shape (m, n), a row-major view of the
variable. A tensor index folds the m rows and the n columns into short axes:

    variable (2000, 512), level 2: rows 2000 -> (40, 50), columns 512 -> (16, 32)
    state:                         S_1 .. S_4 of lengths 40, 50, 16, 32

Every S_i is a sum of squares over slices of the variable. A slice is a set of
whole rows or of whole columns, so the row sums and the column sums of g**2 hold
all of them. Likewise the preconditioner is the outer product of a row vector and
a column vector. So a step reads the gradient twice, and every root, power and
sum of p logarithms is taken on short vectors. An operation on a short vector costs
what starting it costs, and what compiling it costs: those of the p dims are held side
by side, and those of k variables alike are stacked, (k, d_1 + ... + d_p).

With `row_ids`, and k = 1, the matrix holds some rows of the view only, the others
being zero (sparse gradients). Then everything costs what those rows cost.
"""

import dataclasses
import functools
import math

import numpy as np
from keras import ops

from extreme_tensoring_tf import folding
from extreme_tensoring_tf.factors import Factors
from extreme_tensoring_tf.marginals import row_and_col_sums
from extreme_tensoring_tf.tensor_index import TensorIndex


def squared_sums(stacks, index: TensorIndex, row_ids=None, dtype=None):
    """Returns the sums of squares over slices, those of all dims one after the other.

    S_i[j] = sum over I with I_i = j of g[I]**2 (Algorithm 1, line 5).

    Args:
        stacks: list of gradients of shape (k_i, *index.view); or one of shape
            (1, rows, index.view[1]) with the rows `row_ids`.
        index: a `tensor_index.TensorIndex`.
        row_ids: None, or int vector: the rows of the view that the stack holds.
        dtype: of the sums; None is that of the stacks.

    Returns:
        An array of shape (k, index.state_size), k being the sum of the k_i.
    """
    scalar = not (index.rows.dims or index.cols.dims)
    wanted = {"rows": scalar or bool(index.rows.dims), "cols": bool(index.cols.dims)}
    rows, cols = zip(*(row_and_col_sums(s, **wanted, dtype=dtype) for s in stacks))
    if scalar:
        return joined([ops.sum(r, axis=1, keepdims=True) for r in rows])
    sums = []
    if index.rows.dims and row_ids is not None:
        at = folding.slice_sums_at(rows[0][0], row_ids, index.rows)
        sums += [ops.expand_dims(s, 0) for s in at]
    elif index.rows.dims:
        sums += folding.slice_sums(joined(rows), index.rows)
    if index.cols.dims:
        sums += folding.slice_sums(joined(cols), index.cols)
    return joined(sums, axis=1)


def squared_norms(sums, index):
    """Returns the sums (k,) over all entries: the slices of any dim add up to them.

    Args:
        sums: what `squared_sums` returns; or (k, 1), the sums themselves.
        index: a `TensorIndex`; or a `MatrixView`, which has no dims.
    """
    return ops.sum(sums[:, : index.dims[0]] if index.dims else sums, axis=1)


def joined(arrays, axis=0):
    """Returns arrays put together along an axis."""
    return arrays[0] if len(arrays) == 1 else ops.concatenate(arrays, axis=axis)


@functools.cache
def slice_counts(index: TensorIndex) -> np.ndarray:
    """Returns the entries of the variable in each slice, of shape (index.state_size,).

    Padding is not counted. The array is float64 NumPy: it is a constant, counted
    once and not at every uncompiled step.
    """
    m, n = index.view
    if not (index.rows.dims or index.cols.dims):
        return np.array([float(m * n)])
    rows = folding.slice_sums(np.full(m, float(n)), index.rows)
    cols = folding.slice_sums(np.full(n, float(m)), index.cols)
    return np.concatenate(rows + cols)


def geometric_mean_logs(statistics, scale, epsilon: float, p: int):
    """Returns the logarithms of the factors of Algorithm 1.

    delta[I] = prod_i (epsilon + S_i[I_i]) ** (-1 / (2 p))
             = scale ** (-1/2) * exp(sum_i logs_i[I_i])

    where
        S_i: the statistics, (k, dim) per dim, given and returned side by side,
        p: the number of dims,
        epsilon: in the units of g**2, whatever p is,
        scale: any positive numbers (k, 1) in those units; some near the S_i keep the
            logarithms small, and so exact.

    A float32 product of p sums would over- or underflow; a sum of p logarithms
    does not. Source: arXiv 1902.04620, Algorithm 1, line 6.
    """
    return _log_ratio(statistics, epsilon, scale) * (-0.5 / p)


def rank_one_logs(means, scale, epsilon: float, p: int):
    """Returns the logarithms of the factors of the product closest to g**2.

    delta[I] = v[I] ** (-1/2),  v[I] = prod_i (M_i[I_i] + e) / (M + e) ** (p - 1)
             = scale ** (-1/2) * exp(sum_i logs_i[I_i])

    where
        M_i: mean of g**2 over the slices of dim i, accumulated,
        M: its mean over the whole variable,
        e: epsilon, p: the number of dims, scale: M + e.

    It is the rank-one tensor closest to the true second moment in KL divergence,
    Adafactor's estimate for p = 2. Source: beyond the paper.
    """
    return _log_ratio(means, epsilon, scale) * -0.5


def literal_geometric_mean(row, col, p, epsilon):
    """Returns the full-size preconditioner of Algorithm 1 to the letter.

    delta[I] = (epsilon + prod_i S_i[I_i]) ** (-1 / (2 p))

    Exact and slow: it is no outer product, so it is taken per entry, in log
    space. Source: arXiv 1902.04620, Algorithm 1, line 6.

    Args:
        row, col: (k, m) and (k, n), whose outer sum is sum_i log S_i[I_i]; None for 0.
        p: the number of dims.
        epsilon: above 0, in the units of g**(2 p).

    Returns:
        A tensor that broadcasts to (k, m, n).
    """
    terms = [] if row is None else [ops.expand_dims(row, 2)]
    terms += [] if col is None else [ops.expand_dims(col, 1)]
    log_product = sum(terms[1:], terms[0])
    log_epsilon = ops.convert_to_tensor(np.log(epsilon), dtype=log_product.dtype)
    # log(epsilon + product). Only the product can be 0, its logarithm -inf.
    log_sum = ops.maximum(log_product, log_epsilon) + ops.log1p(
        ops.exp(-ops.abs(log_product - log_epsilon))
    )
    return ops.exp(log_sum * (-0.5 / p))


def _log_ratio(statistic, epsilon, scale):
    """Returns log((statistic + epsilon) / scale), `_NEVER` at 0: the factor is then 0.

    All gradients of such a slice have been 0, so any finite factor will do; the
    product of several powers of a small epsilon might not be finite.
    """
    seen = statistic > 0
    ratio = ops.where(seen, (statistic + epsilon) / scale, 1)
    return ops.where(seen, ops.log(ratio), _NEVER)


def _row_and_col(logs, index, row_ids=None):
    """Returns row and column vectors that add up the logarithms of the factors."""
    if not (index.rows.dims or index.cols.dims):
        return None, logs  # shape (k, 1): broadcasts over the columns
    ends = np.cumsum(index.dims[:-1]).tolist()
    logs = iter(ops.split(logs, ends, axis=1) if ends else [logs])
    if row_ids is None:
        row = folding.outer_sum(logs, index.rows)
    else:
        at = folding.outer_sum_at((log[0] for log in logs), row_ids, index.rows)
        row = None if at is None else ops.expand_dims(at, 0)
    return row, folding.outer_sum(logs, index.cols)


def inverse_trace(statistics, index, epsilon) -> float:
    """Returns the sum over all entries of 1 / delta, for Algorithm 1's statistics.

    sum over I of prod_i (epsilon + S_i[I_i]) ** (1 / (2 p))

    It factors into a sum over rows times a sum over columns.
    """
    logs = [np.log(s.astype(np.float64) + epsilon) for s in statistics]
    if not (index.rows.dims or index.cols.dims):
        return float(np.exp(0.5 * logs[0][0]) * math.prod(index.view))
    logs = iter([log * (0.5 / len(statistics)) for log in logs])
    total = 1.0
    for fold in (index.rows, index.cols):
        terms = folding.outer_sum(logs, fold)
        total *= fold.size if terms is None else float(np.exp(terms).sum())
    return total


@dataclasses.dataclass(frozen=True)
class Preconditioner:
    """The checked settings by which statistics become a preconditioned direction.

    The fields are arguments of `ExtremeTensoring`, where they are explained.
    """

    form: str
    epsilon: float
    epsilon_placement: str
    statistic: str
    clip_threshold: float | None

    def __post_init__(self):
        for name, value, choices in (
            ("preconditioner", self.form, tuple(_LOGS)),
            ("epsilon_placement", self.epsilon_placement, ("axis", "product")),
            ("statistic", self.statistic, ("sum", "mean")),
        ):
            if value not in choices:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(repr, choices))}. "
                    f"Received: {name}={value!r}"
                )
        if not self.epsilon >= 0:
            raise ValueError(
                f"`epsilon` must be at least 0. Received: epsilon={self.epsilon!r}"
            )
        if self.clip_threshold is not None and not self.clip_threshold > 0:
            raise ValueError(
                "`clip_threshold` must be None or positive. "
                f"Received: clip_threshold={self.clip_threshold!r}"
            )
        if self.epsilon_placement == "product" and self.form == "rank_one":
            raise ValueError(
                '`epsilon_placement="product"` belongs to '
                '`preconditioner="geometric_mean"`. Use "axis" with "rank_one".'
            )

    def factors(self, sums, index: TensorIndex, row_ids=None) -> Factors:
        """Returns the preconditioners of k variables, as short vectors.

        Args:
            sums: the statistics S_i side by side, bias-corrected: (k, state_size).
            index: a `tensor_index.TensorIndex`.
            row_ids: as in `squared_sums`.
        """
        p = len(index.dims)
        statistics, scale = self._statistics(sums, index)
        if self.epsilon_placement == "product" and self.epsilon > 0:
            row, col = _row_and_col(ops.log(statistics), index, row_ids)
            literal = functools.partial(
                literal_geometric_mean, p=p, epsilon=self.epsilon
            )
            root = ops.ones_like(scale)
        else:
            logs = _LOGS[self.form](statistics, scale, self.epsilon, p)
            row, col = _row_and_col(logs, index, row_ids)
            if self.form == "rank_one":  # Algorithm 1 takes roots p times as high
                row, col = (
                    None if x is None else ops.minimum(x, _LARGEST_LOG)
                    for x in (row, col)
                )
            # The exponential comes last on the short vectors: XLA does not fuse
            # it, nor what is before it, into the loop over the matrix.
            row = None if row is None else ops.exp(row)
            col = None if col is None else ops.exp(col)
            literal = None
            root = ops.rsqrt(scale)  # of the scale, which the logarithms leave out
        size = math.prod(index.view)
        root = ops.squeeze(root, 1)
        return Factors(row, col, root, size, self.clip_threshold, literal)

    def _statistics(self, sums, index):
        """Returns S_i or M_i, and the like of the whole variable with epsilon added."""
        total = ops.expand_dims(squared_norms(sums, index), 1)
        if self.statistic == "mean" or self.form == "rank_one":
            counts = slice_counts(index)[None]
            sums = sums / ops.cast(counts, sums.dtype)
            total = total / math.prod(index.view)
        return sums, ops.where(total > 0, total + self.epsilon, 1)


# The logarithm of what has always been 0. No infinity: TensorFlow's check_numerics
# finds one in a constant, too, and takes it for that of a gradient.
_NEVER = 1e30
# Of a factor: its square is within float32, where 0 times infinity would be nan. What
# has less than 1e-36 of its variable's mean square is as good as 0.
_LARGEST_LOG = 41.0
_LOGS = {"geometric_mean": geometric_mean_logs, "rank_one": rank_one_logs}
