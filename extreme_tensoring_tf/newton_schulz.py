"""The polar factor of a gradient by Newton-Schulz iteration: matrix products alone."""

import dataclasses
import functools
import math
import numbers

import numpy as np
from keras import ops

from extreme_tensoring_tf.variables import materialized


@dataclasses.dataclass(frozen=True)
class Orthogonalizer:
    """The checked settings by which a gradient becomes an orthogonal direction.

    The fields are arguments of `ExtremeTensoring`, where they are explained.
    """

    ns_steps: int
    damping: float
    rms_rate: float
    block_size: int | None = None
    ns_dtype: str | None = None

    def __post_init__(self):
        if not (isinstance(self.ns_steps, numbers.Integral) and self.ns_steps > 0):
            raise ValueError(
                "`ns_steps` must be a whole number, 1 or more. "
                f"Received: ns_steps={self.ns_steps!r}"
            )
        if not 0 <= self.damping < math.inf:
            raise ValueError(
                "`damping` must be a number, 0 or more. "
                f"Received: damping={self.damping!r}"
            )
        if not 0 < self.rms_rate < math.inf:
            raise ValueError(
                f"`rms_rate` must be above 0. Received: rms_rate={self.rms_rate!r}"
            )
        size = self.block_size
        if size is not None and not (isinstance(size, numbers.Integral) and size > 0):
            raise ValueError(
                "`block_size` must be None or a whole number, 1 or more. "
                f"Received: block_size={size!r}"
            )
        if self.ns_dtype not in (None, "float32", "float16"):
            raise ValueError(
                '`ns_dtype` must be None, "float32" or "float16". '
                f"Received: ns_dtype={self.ns_dtype!r}"
            )

    def direction(self, matrices):
        """Returns the polar factors, each scaled to a root mean square of `rms_rate`.

        Args:
            matrices: tensor (k, m, n).
        """
        _, m, n = matrices.shape
        axis, longer = (2, n) if m <= n else (1, m)
        size = min(self.block_size or longer, longer)
        if rest := longer % size:
            # The last block is shorter.
            parts = ops.split(matrices, [longer - rest], axis=axis)
            parts = [self._of_blocks(p, s, axis) for p, s in zip(parts, (size, rest))]
            return ops.concatenate(parts, axis=axis)
        return self._of_blocks(matrices, size, axis)

    def _of_blocks(self, matrices, size, axis):
        """Returns the directions of blocks of a size along an axis, put together."""
        blocks = split(matrices, size, axis)
        factors = polar_factors(blocks, self.ns_steps, self.damping, self.ns_dtype)
        mean = ops.mean(ops.square(factors), axis=(-2, -1), keepdims=True)
        factors = factors * (self.rms_rate * ops.rsqrt(ops.where(mean > 0, mean, 1)))
        return join(factors, matrices.shape, axis)


def split(matrices, size: int, axis: int):
    """Returns the blocks of matrices, one after the other: (k * blocks, rows, columns).

    Args:
        matrices: tensor (k, m, n).
        size: of a block along the axis, a divisor of its length.
        axis: 1 or 2.
    """
    k, m, n = matrices.shape
    if size == matrices.shape[axis]:
        return matrices
    if axis == 1:
        return ops.reshape(matrices, (-1, size, n))
    matrices = ops.swapaxes(ops.reshape(matrices, (k, m, n // size, size)), 1, 2)
    # One axis for all blocks: XLA transposes matrices where products have two.
    return ops.reshape(matrices, (-1, m, size))


def join(blocks, shape, axis: int):
    """Returns the matrices, of a shape (k, m, n), that `split` gave these blocks of."""
    k = shape[0]
    if axis == 2 and blocks.shape[0] > k:
        blocks = ops.reshape(blocks, (k, -1, *blocks.shape[1:]))
        blocks = ops.swapaxes(blocks, 1, 2)
    return ops.reshape(blocks, shape)


# The first polynomial of a Polar Express iteration is fitted down to this singular
# value of a matrix of Frobenius norm 1; smaller ones are raised by the same slope.
SMALLEST = 1e-3


def polar_factors(matrices, steps: int, damping: float = 0.0, dtype=None):
    """Returns (G G^T + damping * tr(G G^T) / m * I)^(-1/2) G for every matrix G.

    Without damping that is the polar factor U V^T of G = U S V^T, whatever the scale
    of G: every singular value s becomes 1. With damping it becomes

        s / sqrt(s**2 + damping * mean(S**2)),

    where m is the shorter side of G. For a tall G the root stands on the right.

    The inverse root is iterated on the m x m matrix, A <- p(A) A p(A) and Q <- p(A) Q
    from Q = I. A step costs 8 m**3 operations, and the two products with G cost
    4 m**2 n: for a long G that is less than steps on G itself, 4 m**2 n + 2 m**3 each.

    Args:
        matrices: tensor (..., m, n), finite.
        steps: iterations; see `coefficients`.
        damping: 0 or more.
        dtype: of the products and what they are made of; None is that of `matrices`.
            G has a norm of 1 there, so that float16 holds its entries.

    Returns:
        A tensor of the same shape and dtype. A matrix of zeros stays zero.

    Source: Amsel et al., "The Polar Express", arXiv 2505.16932; the damping is ours.
    """
    rows, cols = matrices.shape[-2:]
    size, own = min(rows, cols), matrices.dtype
    peak = ops.max(ops.abs(matrices), axis=(-2, -1), keepdims=True)
    matrices = matrices / ops.where(peak > 0, peak, 1)
    trace = ops.sum(ops.square(matrices), axis=(-2, -1), keepdims=True)
    trace = ops.where(trace > 0, trace, 1) * (1 + damping)
    if dtype:
        matrices = ops.cast(matrices * ops.rsqrt(trace), dtype)
        trace = ops.ones_like(trace, dtype)
    transposed = ops.swapaxes(matrices, -2, -1)
    wide = rows <= cols
    gram = ops.matmul(*((matrices, transposed) if wide else (transposed, matrices)))
    shift = damping / (size * (1 + damping))
    smallest = max(SMALLEST, math.sqrt(shift))
    # Of the rank of the matrices, for JAX may be told to refuse to raise it.
    identity = ops.eye(size, dtype=matrices.dtype)
    identity = ops.reshape(identity, (1,) * (len(matrices.shape) - 2) + (size, size))
    polynomials = coefficients(steps, smallest)
    root = inverse_root(gram / trace + shift * identity, identity, polynomials)
    directions = ops.matmul(*((root, matrices) if wide else (matrices, root)))
    return ops.cast(directions * ops.rsqrt(trace), own)


def inverse_root(gram, identity, polynomials):
    """Returns nearly A^(-1/2) for symmetric matrices A whose eigenvalues are in [0, 1].

    Args:
        gram: tensor (..., m, m), the matrices A.
        identity: of the same m and dtype.
        polynomials: (a, b, c) of each step, for singular values, roots of eigenvalues.
    """
    factor = root = _polynomial(gram, identity, *polynomials[0])
    for coefficients_of_step in polynomials[1:]:
        # What rounding leaves unsymmetric grows, unless the factors stand on both sides
        # here, and on the left of those before them in the root.
        gram = ops.matmul(ops.matmul(factor, gram), factor)
        factor = _polynomial(gram, identity, *coefficients_of_step)
        # XLA would make one product of this and the next, and copy what goes into it.
        root = ops.matmul(materialized(factor), root)
    return root


def _polynomial(gram, identity, a, b, c):
    """Returns a I + b A + c A^2."""
    return a * identity + b * gram + c * ops.matmul(gram, gram)


# Above 1 by the error of an iteration in float32, singular values still converge.
_SAFETY = 1.01
# The lower end of the interval is at least this share of the upper: without it, the
# tail of small values would make the first steps useless for all others.
_CUSHION = 0.02407327424182761


@functools.cache
def coefficients(steps: int, smallest: float = SMALLEST) -> list[tuple]:
    """Returns (a, b, c) of each step of the Polar Express: x <- a x + b x^3 + c x^5.

    Each polynomial is the odd quintic closest to 1, in the largest error, on the
    interval to which those before it brought [smallest, 1].

    Source: arXiv 2505.16932, Algorithm 1 and its Appendix.
    """
    low, high = smallest, 1.0
    found = []
    for step in range(steps):
        a, b, c = _closest_quintic(max(low, _CUSHION * high), high)
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        scale = 2 / sum(ends)  # both ends are as far from 1
        a, b, c = a * scale, b * scale, c * scale
        low = ends[0] * scale
        high = 2 - low
        if step < steps - 1:
            a, b, c = a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5
        found.append((a, b, c))
    return found


def _closest_quintic(low, high):
    """Returns the (a, b, c) whose largest distance to 1 on [low, high] is least.

    Remez' exchange: the error is the same, with changing signs, at both ends and at
    the two extremes between.
    """
    if high - low < 1e-3:  # nearly the limit: the value is 1, two derivatives are 0
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    points = np.array([low, (3 * low + high) / 4, (low + 3 * high) / 4, high])
    for _ in range(50):
        signs = np.array([1.0, -1.0, 1.0, -1.0])
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        root = math.sqrt(9 * b * b - 20 * a * c)
        points[1:3] = np.sqrt([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)])
    return float(a), float(b), float(c)
