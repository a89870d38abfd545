"""The planner finds the finest preconditioner that a memory budget allows.

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

import dataclasses
import heapq
import math
import re

import numpy as np

from extreme_tensoring_tf import folding
from extreme_tensoring_tf.matrix_view import orthogonalized
from extreme_tensoring_tf.tensor_index import tensor_index
from extreme_tensoring_tf.tensor_rules import index_from_dims

BYTES = 4  # a float32 scalar
ROUNDING = 1e-12  # nats an entry; less explains nothing


@dataclasses.dataclass(frozen=True)
class Refinement:
    """A finer fold of one axis, and the difference that it makes."""

    scalars: int  # more than the next coarser one takes
    gain: float  # more than the next coarser one has
    dims: int | list[int]  # of the axis, as an entry of nested dims


def plan(
    variables,
    budget_bytes,
    gradients=None,
    orthogonalize=None,
    momentum_scales=0,
    scalar_bytes=BYTES,
) -> dict | list:
    """Returns rules for `ExtremeTensoring(tensor_dims=...)` that fit a budget.

    Args:
        variables: list of (path, shape).
        budget_bytes: bytes of state, at most.
        gradients: None, or per variable an array of its shape, or a list of
            such arrays from several batches.
        orthogonalize: as `matrix_view.orthogonalized` takes it. A variable that it
            names keeps no statistics, whatever the budget.
        momentum_scales: how many scalars packed momentum keeps, of the same budget.
        scalar_bytes: of a scalar of state: 8 where a variable is float64.

    Returns:
        A dict of path to nested dims, one entry per axis. Where paths are equal, a
        list of nested dims, one per variable.

    Raises:
        ValueError: the budget does not cover one scalar per variable and those of
            momentum, or gradients do not match.
    """
    matrices = orthogonalized(variables, orthogonalize)
    keeping = len(variables) - sum(matrices)
    scalars = budget_bytes // scalar_bytes - keeping - momentum_scales
    if scalars < 0:
        scales = f" and {momentum_scales} scales of momentum" * bool(momentum_scales)
        raise ValueError(
            f"a budget of {budget_bytes} bytes is less than one scalar for each "
            f"of the {keeping} variables that keep statistics{scales}: give at least "
            f"{scalar_bytes * (keeping + momentum_scales)} bytes"
        )
    if gradients is not None and len(gradients) != len(variables):
        raise ValueError(
            f"{len(gradients)} gradients were given for {len(variables)} variables"
        )
    chosen = _choose(variables, scalars, gradients, matrices)
    paths = [path for path, _ in variables]
    if len(set(paths)) < len(paths):
        return [dims or None for dims in chosen]
    return {f"^{re.escape(p)}$": dims for p, dims in zip(paths, chosen) if dims}


def _choose(variables, scalars, gradients, left_out):
    """Returns nested dims for every variable: all that `scalars` more can buy.

    They are empty for those left out.
    """
    chosen = [
        [] if out else [1] * len(shape) for (_, shape), out in zip(variables, left_out)
    ]
    ladders = {}
    offers = []  # a heap: the refinement that gains most per scalar comes first

    def offer(v, axis):
        if ladders[v, axis]:
            next_one = ladders[v, axis][0]
            heapq.heappush(offers, (-next_one.gain / next_one.scalars, v, axis))

    for v, (path, shape) in enumerate(variables):
        if 0 in shape or left_out[v]:
            continue
        shares = _axis_shares(path, shape, gradients[v]) if gradients else None
        for axis, n in enumerate(shape):
            share = shares[axis] if shares else None
            ladders[v, axis] = _ladder(n, math.prod(shape), share)
            offer(v, axis)
    while offers:
        _, v, axis = heapq.heappop(offers)
        shape = variables[v][1]
        finer = list(chosen[v])
        finer[axis] = ladders[v, axis].pop(0).dims
        extra = _state_size(shape, finer) - _state_size(shape, chosen[v])
        if extra > scalars:
            ladders[v, axis].clear()  # a finer one costs more
            continue
        scalars -= extra
        chosen[v] = finer
        offer(v, axis)
    return chosen


def _state_size(shape, dims):
    """Returns the scalars of statistics that nested dims take."""
    return index_from_dims(shape, tuple(dims)).state_size


def _ladder(n, entries, share):
    """Returns the refinements of an axis of length n, coarse to fine.

    Steps that a finer one beats per scalar are left out, so that taking the best
    next step is taking the best of all: the upper hull of gain over scalars.
    """
    rungs = {}
    level, before = 1, None
    while n > 1:
        dims = tensor_index((n,), level)
        if sum(dims) == before:  # nor does a further level take less
            break
        before = sum(dims)
        # Flat dims say how the axis is padded only if the padding is outermost.
        if math.prod(dims) - n < math.prod(dims[1:]):
            rungs[sum(dims)] = dims
        level += 1
    hull: list[tuple] = [(0, 0.0, None)]
    for scalars, dims in sorted(rungs.items()):
        point = (scalars, entries * _explained(n, dims, share), dims)
        while len(hull) > 1 and _slope(hull[-1], point) > _slope(hull[-2], hull[-1]):
            hull.pop()
        if point[1] > hull[-1][1] + entries * ROUNDING:
            hull.append(point)
    return [
        Refinement(
            scalars - coarser_scalars,
            gain - coarser_gain,
            list(dims) if len(dims) > 1 else dims[0],
        )
        for (coarser_scalars, coarser_gain, _), (scalars, gain, dims) in zip(
            hull, hull[1:]
        )
    ]


def _slope(a, b):
    """Returns the gain per scalar between two points (scalars, gain, dims)."""
    return (b[1] - a[1]) / (b[0] - a[0])


def _explained(n, dims, share):
    """Returns ln(n) + sum_j p_j ln(q_j), the nats that the statistics explain."""
    if share is None:
        return math.log(1 + sum(dims))
    fold = index_from_dims((1, n), (1, dims)).cols
    entropy = 0.0
    for marginal in folding.slice_sums(share, fold):
        p = marginal[marginal > 0]
        entropy -= float(np.sum(p * np.log(p)))
    return math.log(n) - entropy


def _axis_shares(path, shape, gradients):
    """Returns the share of each index of each axis in the sum of squared gradients."""
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
