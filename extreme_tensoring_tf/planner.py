"""The finest preconditioner that a memory budget allows, axis by axis.

Every axis of every variable starts dropped: one scalar for all of it. Then the
refinement that gains most per scalar is bought, again and again, until the budget
is spent. The gain of an axis whose statistics see the share q_j of index j is

    gain = entries * (ln(n) + sum_j p_j ln(q_j))

where
    n: the length of the axis; 1/n is what a dropped axis says of every index,
    p_j: the share of index j in the second moment of the gradients,
    q_j: the product of the shares of its cells in the dims of the fold,
    entries: of the variable.

It is the fall in the KL divergence from the second moment, as a distribution over
the variable, to the product that the statistics describe, times the entries. The
axes of a variable add up, so each can be chosen by itself. Without gradients
nothing is known of p, and ln(1 + statistics) stands for the bracket.
"""

import heapq
import math
import re

import numpy as np

from extreme_tensoring_tf import folding
from extreme_tensoring_tf.tensor_index import index_from_dims
from extreme_tensoring_tf.tensor_index import tensor_index

BYTES = 4  # a float32 scalar


def plan(variables, budget_bytes, gradients=None):
    """Rules for `ExtremeTensoring(tensor_dims=...)` that fit a budget.

    Args:
        variables: list of (path, shape). Paths must differ.
        budget_bytes: bytes of float32 statistics, at most.
        gradients: None, or per variable an array of its shape, or a list of
            such arrays from several batches.

    Returns:
        A dict: one rule per variable, with one entry per axis.

    Raises:
        ValueError: the budget does not cover one scalar per variable, or
            gradients do not match.
    """
    least = BYTES * len(variables)
    if budget_bytes < least:
        raise ValueError(
            f"a budget of {budget_bytes} bytes is less than one scalar for each "
            f"of the {len(variables)} variables: give at least {least} bytes"
        )
    if gradients is not None and len(gradients) != len(variables):
        raise ValueError(
            f"{len(gradients)} gradients were given for {len(variables)} variables"
        )
    chosen = [[1] * len(shape) for _, shape in variables]
    left = budget_bytes // BYTES - len(variables)
    heap = []
    ladders = {}
    for v, (path, shape) in enumerate(variables):
        shares = _axis_shares(path, shape, gradients[v]) if gradients else None
        for axis in range(len(shape)):
            entries = math.prod(shape)
            share = shares[axis] if shares else None
            ladders[v, axis] = _ladder(shape[axis], entries, share)
            _push(heap, ladders, v, axis)
    while heap:
        _, v, axis = heapq.heappop(heap)
        _, _, dims = ladders[v, axis].pop(0)
        path, shape = variables[v]
        before = chosen[v][axis]
        size = index_from_dims(shape, tuple(chosen[v])).state_size
        chosen[v][axis] = dims
        extra = index_from_dims(shape, tuple(chosen[v])).state_size - size
        if extra <= left:
            left -= extra
            _push(heap, ladders, v, axis)
        else:
            chosen[v][axis] = before
            ladders[v, axis].clear()  # a finer one costs more
    return {
        f"^{re.escape(path)}$": [list(d) if isinstance(d, tuple) else d for d in dims]
        for (path, _), dims in zip(variables, chosen)
        if dims
    }


def _push(heap, ladders, v, axis):
    if ladders[v, axis]:
        cost, gain, _ = ladders[v, axis][0]
        heapq.heappush(heap, (-gain / cost, v, axis))


def _ladder(n, entries, share):
    """Refinements of an axis, coarse to fine: [(scalars more, gain more, dims)].

    Steps that a finer one beats per scalar are left out, so that taking the best
    next step is taking the best of all.
    """
    rungs = {}
    level = 1
    while n > 1:
        dims = tensor_index((n,), level)
        if sum(dims) in rungs:
            break
        # Flat dims say how the axis is padded only if the padding is outermost.
        if math.prod(dims) - n < math.prod(dims[1:]):
            rungs[sum(dims)] = dims
        level += 1
    hull = [(0, 0.0, None)]
    for cost, dims in sorted(rungs.items()):
        gain = entries * _explained(n, dims, share)
        while len(hull) > 1 and _slope(hull[-1], (cost, gain)) > _slope(
            hull[-2], hull[-1]
        ):
            hull.pop()
        if gain > hull[-1][1]:
            hull.append((cost, gain, dims))
    return [
        (b[0] - a[0], b[1] - a[1], b[2] if len(b[2]) > 1 else b[2][0])
        for a, b in zip(hull, hull[1:])
    ]


def _slope(a, b):
    return (b[1] - a[1]) / (b[0] - a[0])


def _explained(n, dims, share):
    """ln(n) + sum_j p_j ln(q_j): nats that the statistics explain."""
    if share is None:
        return math.log(1 + sum(dims))
    fold = index_from_dims((1, n), (1, dims)).cols
    entropy = 0.0
    for marginal in folding.slice_sums(share, fold):
        p = marginal[marginal > 0]
        entropy -= float(np.sum(p * np.log(p)))
    return math.log(n) - entropy


def _axis_shares(path, shape, gradients):
    """Share of each index of each axis in the sum of squared gradients."""
    batches = gradients if isinstance(gradients, list | tuple) else [gradients]
    total = np.zeros(shape)
    for gradient in batches:
        gradient = np.asarray(gradient, np.float64)
        if gradient.shape != tuple(shape):
            raise ValueError(
                f"variable {path!r} has shape {tuple(shape)}, its gradient "
                f"{gradient.shape}"
            )
        total += gradient**2
    mass = total.sum()
    if not np.isfinite(mass):
        raise ValueError(f"a gradient of variable {path!r} is not finite")
    if mass == 0:  # never touched: nothing to explain
        total, mass = np.ones(shape), math.prod(shape)
    axes = range(len(shape))
    return [total.sum(axis=tuple(a for a in axes if a != axis)) / mass for axis in axes]
