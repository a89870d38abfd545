"""One step: sums, clipping, statistics, scaling, weight decay.

A step is taken by groups of variables alike: see `groups.py`.

From the sums of squares follow, at no further pass over a gradient, whether it is
finite and the norms that clipping needs; weight decay goes into the same write as the
step. A group needs its own gradients alone, so that these can be freed as soon as it
is done; only clipping by the global norm must have seen all of them before.
"""

import dataclasses
import math
import typing

from keras import ops

from extreme_tensoring_tf.gradients import is_sparse
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.newton_schulz import Orthogonalizer
from extreme_tensoring_tf.preconditioner import Preconditioner
from extreme_tensoring_tf.preconditioner import squared_norms
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import has_accelerator


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers that a step depends on: checked arguments of `ExtremeTensoring`."""

    preconditioner: Preconditioner
    orthogonalizer: Orthogonalizer
    beta_1: float
    momentum: float  # beta_1 of orthogonalized matrices
    packs_momentum: bool  # into the variables themselves: see `packing.py`
    beta_2: float | None
    skip_nonfinite: bool
    clipnorm: float  # 0 clips nothing, as in Keras; and so for the global norm
    global_clipnorm: float
    weight_decay: float

    @property
    def clips_by_norm(self) -> bool:
        """Returns whether a step needs the norms before anything is updated."""
        return bool(self.clipnorm or self.global_clipnorm)

    def momentum_of(self, index) -> float:
        """Returns the factor of the average that a variable's gradients go into.

        Args:
            index: its `TensorIndex` or `MatrixView`.
        """
        return self.momentum if isinstance(index, MatrixView) else self.beta_1

    def momentum_scales(self, indices) -> int:
        """Returns how many scalars packed momentum keeps: one a variable that has it.

        Args:
            indices: the `TensorIndex` or `MatrixView` of every variable.
        """
        return sum(self.packs_momentum and self.momentum_of(i) > 0 for i in indices)


class Taken(typing.NamedTuple):
    """The outcome of a group's step; arrays of shape (k,)."""

    squared_norms: typing.Any  # of the gradients as they were given
    finite: typing.Any  # whether they were; None without `skip_nonfinite`
    momentum_scales: typing.Any = None  # the new ones, of packed momentum


def take_step(groups, settings: Settings, learning_rate) -> list[Taken]:
    """Takes one step of Algorithm 1 for the variables of all groups.

    Args:
        groups: list of groups, of any kind.
        settings: a `Settings`.
        learning_rate: scalar tensor.

    Returns:
        The `Taken` of every group.
    """
    sums = factors = [None] * len(groups)
    if settings.clips_by_norm:
        sums = [group.squared_sums() for group in groups]
        norms = [squared_norms(s, group.index) for group, s in zip(groups, sums)]
        factors = clip_factors(settings, norms)
    taken, last = [], None
    for group, own_sums, factor in zip(groups, sums, factors):
        if group.takes_turns and last is not None:
            group.wait_for(last.squared_norms[0])
        taken.append(group.step(learning_rate, own_sums, factor))
        if group.takes_turns:
            last = taken[-1]
    return taken


def clip_factors(settings: Settings, squares) -> list:
    """Returns the factors of `clipnorm` or `global_clipnorm`, (k,) for each group.

    A gradient that is not finite makes its factor nan, as in Keras: with the global
    norm no variable is updated.

    Args:
        settings: a `Settings`, with one of the two.
        squares: the squared norms (k,) of the gradients of every group.
    """
    if not settings.clipnorm:
        total = ops.sum(ops.stack([ops.sum(s) for s in squares]))
        squares = [ops.broadcast_to(ops.cast(total, s.dtype), s.shape) for s in squares]
    bound = settings.clipnorm or settings.global_clipnorm
    factors = []
    for norm in map(ops.sqrt, squares):
        factor = bound / ops.maximum(norm, bound)
        # No constant nan, which TensorFlow's check_numerics would find.
        factors.append(factor + (norm - norm))
    return factors


@dataclasses.dataclass(frozen=True)
class Member:
    """A variable that takes part in a step."""

    position: int  # in the optimizer
    variable: typing.Any
    gradient: typing.Any
    decays: bool  # whether weight decay applies
    watched: bool  # whether AdaGrad's sums are kept beside its statistics


# Variables of fewer entries are stacked, gradients and all: what an update of theirs
# costs is starting its operations.
STACKED = 2**14
# A group has at most so many entries, or one variable: a gradient waits for its group
# alone. And at most so many variables, if these are not stacked.
GROUP_ENTRIES = 2**20
GROUP_VARIABLES = 8
# Matrices that are orthogonalized together have at most so many entries, or one matrix:
# an iteration takes several times their memory.
ORTHOGONALIZED_ENTRIES = 2**16
# On a GPU or a TPU, in place of these, of a group of any kind: it is idle for most of
# an operation on small arrays, and has the memory.
ENTRIES_ON_GPU = 2**23


def alike(members, indices, entries=GROUP_ENTRIES) -> list[list[list[Member]]]:
    """Returns members that are alike, each list of these cut into groups.

    They share tensor index, shape and dtype, and whether they are decayed or watched.

    Args:
        members: list of `Member`.
        indices: the tensor indices of all variables, by position.
        entries: of a group, at most, where there is no GPU.
    """
    groups = {}
    for member in members:
        shape = tuple(member.variable.shape)
        key = (
            indices[member.position],
            shape,
            dtype_of(member.variable),
            member.decays,
            member.watched,
            member.position if is_sparse(member.gradient) else None,
        )
        groups.setdefault(key, []).append(member)
    return [
        _cut(group, _most(index, math.prod(shape), entries))
        for (index, shape, *_), group in groups.items()
    ]


def _most(index, size, entries):
    """Returns how many variables of an index and a size are updated together."""
    if has_accelerator():
        return max(1, ENTRIES_ON_GPU // size)
    if isinstance(index, MatrixView) and size >= STACKED:
        return max(1, ORTHOGONALIZED_ENTRIES // size)
    most = max(1, entries // size)
    return most if size < STACKED else min(most, GROUP_VARIABLES)


def _cut(members, most):
    """Returns as few parts as there can be, as even as they can be.

    Parts of one size share a program.
    """
    size = math.ceil(len(members) / math.ceil(len(members) / most))
    return [members[start : start + size] for start in range(0, len(members), size)]
