"""One step: sums, clipping, statistics, scaling, weight decay.

A step is taken by groups. A group holds variables of one tensor index, shape and
dtype, whose short vectors are stacked, and their gradients. It is traced or run as it
is (`Group`), holds the gathered rows of one embedding (`SparseGroup`), or calls a
compiled program (`xla.CompiledGroup`).

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
from extreme_tensoring_tf.preconditioner import Preconditioner
from extreme_tensoring_tf.preconditioner import squared_sums
from extreme_tensoring_tf.slots import GroupSlots
from extreme_tensoring_tf.slots import where
from extreme_tensoring_tf.variables import IS_TENSORFLOW
from extreme_tensoring_tf.variables import assign
from extreme_tensoring_tf.variables import assign_sub
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import tensor

if IS_TENSORFLOW:  # the others have no sparse gradients
    from extreme_tensoring_tf import sparse


@dataclasses.dataclass(frozen=True)
class Settings:
    """The numbers that a step depends on: checked arguments of `ExtremeTensoring`."""

    preconditioner: Preconditioner
    beta_1: float
    beta_2: float | None
    skip_nonfinite: bool
    clipnorm: float  # 0 clips nothing, as in Keras; and so for the global norm
    global_clipnorm: float
    weight_decay: float

    @property
    def clips_by_norm(self) -> bool:
        """Returns whether a step needs the norms before anything is updated."""
        return bool(self.clipnorm or self.global_clipnorm)


class Taken(typing.NamedTuple):
    """The outcome of a group's step; two arrays of shape (k,)."""

    squared_norms: typing.Any  # of the gradients as they were given
    finite: typing.Any  # whether they were; None without `skip_nonfinite`


def take_step(groups, settings: Settings, learning_rate) -> list[Taken]:
    """Takes one step of Algorithm 1 for the variables of all groups.

    Args:
        groups: list of groups, of any kind.
        settings: a `Settings`.
        learning_rate: scalar tensor.

    Returns:
        The `Taken` of every group.
    """
    if not settings.clips_by_norm:
        return [group.step(learning_rate) for group in groups]
    sums = [group.squared_sums() for group in groups]
    return [
        group.step(learning_rate, own_sums, factor)
        for group, own_sums, factor in zip(groups, sums, clip_factors(settings, sums))
    ]


def clip_factors(settings: Settings, sums) -> list:
    """Returns the factors of `clipnorm` or `global_clipnorm`, (k,) for each group.

    A gradient that is not finite makes its factor nan, as in Keras: with the global
    norm no variable is updated.

    Args:
        settings: a `Settings`, with one of the two.
        sums: `Group.squared_sums()` of every group.
    """
    squares = [ops.sum(of_group[0], axis=1) for of_group in sums]
    if not settings.clipnorm:
        total = ops.sum(ops.stack([ops.sum(s) for s in squares]))
        squares = [ops.broadcast_to(ops.cast(total, s.dtype), s.shape) for s in squares]
    bound = settings.clipnorm or settings.global_clipnorm
    factors = []
    for norm in map(ops.sqrt, squares):
        factor = bound / ops.maximum(norm, bound)
        factors.append(ops.where(ops.isfinite(norm), factor, math.nan))
    return factors


@dataclasses.dataclass(frozen=True)
class Member:
    """A variable that takes part in a step."""

    position: int  # in the optimizer
    variable: typing.Any
    gradient: typing.Any
    decays: bool  # whether weight decay applies
    watched: bool  # whether AdaGrad's sums are kept beside its statistics


def alike(members, indices, most: int, large: float) -> list[list[Member]]:
    """Returns lists of members that are updated together.

    They share tensor index, shape and dtype, and whether they are decayed or watched.

    Args:
        members: list of `Member`.
        indices: the tensor indices of all variables, by position.
        most: members of a list, at most.
        large: entries from which a variable is by itself: stacking saves nothing
            there, and its gradient would wait for those of the others.
    """
    groups = {}
    for member in members:
        shape = tuple(member.variable.shape)
        alone = is_sparse(member.gradient) or math.prod(shape) >= large
        key = (
            indices[member.position],
            shape,
            dtype_of(member.variable),
            member.decays,
            member.watched,
            member.position if alone else None,
        )
        groups.setdefault(key, []).append(member)
    return [
        group[start : start + most]
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


class Group:
    """k variables of one tensor index that are updated together, and their gradients.

    Args:
        settings: a `Settings`.
        slots: a `slots.GroupSlots`.
        variables: k variables of one shape and dtype.
        gradients: k dense gradients.
        decays: whether these variables decay.
    """

    row_ids = None  # a sparse gradient's rows of the view

    def __init__(self, settings, slots, variables, gradients, decays):
        self.settings = settings
        self.slots = slots
        self.variables = variables
        self.shape = tuple(variables[0].shape)
        self.decays = decays
        self.matrices = self._matrices(gradients)

    def _matrices(self, gradients):
        """Returns the gradients as matrices of the shape of the index's view."""
        if is_sparse(gradients[0]):
            gradients = [sparse.dense(g, self.shape) for g in gradients]
        view = self.slots.index.view
        return [ops.reshape(ops.convert_to_tensor(g), view) for g in gradients]

    def squared_sums(self):
        """Returns the sums of squares over slices, one array (k, dim) per dim."""
        return squared_sums(
            self.matrices, self.slots.index, self.row_ids, self.slots.dtype
        )

    def step(self, learning_rate, sums=None, factor=None):
        """Updates statistics and variables.

        Args:
            learning_rate: scalar tensor.
            sums: `squared_sums()`, if they are known.
            factor: None, or (k,): the gradients are multiplied by it.

        Returns:
            A `Taken`.
        """
        settings, slots = self.settings, self.slots
        sums = self.squared_sums() if sums is None else sums
        squared_norms = ops.sum(sums[0], axis=1)  # every S_i adds up to it
        if factor is not None:
            squared = ops.expand_dims(ops.square(factor), 1)
            sums = [s * squared for s in sums]
        finite = None
        if settings.skip_nonfinite:
            finite = ops.isfinite(ops.sum(sums[0], axis=1))
        t = slots.updates()
        statistics = slots.accumulate(sums, settings.beta_2, finite, t)
        factors = settings.preconditioner.factors(statistics, slots.index, self.row_ids)
        rate = ops.cast(learning_rate, slots.dtype)
        for i, gradient in enumerate(self.matrices):
            is_finite = None if finite is None else finite[i]
            multiplier = None if factor is None else factor[i]
            if settings.beta_1 or slots.diagonals[i] is not None:
                gradient = ops.cast(gradient, slots.dtype)
                if multiplier is not None:
                    gradient, multiplier = gradient * multiplier, None
                slots.accumulate_diagonal(i, gradient, is_finite)
            if settings.beta_1:
                gradient = slots.average_gradients(
                    i, gradient, settings.beta_1, is_finite, t[i]
                )
            step = factors[i].scale(gradient, rate, multiplier)
            self._subtract(self.variables[i], step, rate, is_finite)
        return Taken(squared_norms, finite)

    def _subtract(self, variable, step, rate, is_finite):
        """Writes the step, and weight decay with it, into a variable."""
        dtype = self.slots.dtype
        step = ops.reshape(step, self.shape)
        if self.decays:
            value = ops.cast(tensor(variable), dtype)
            step = step + value * (self.settings.weight_decay * rate)
        step = where(is_finite, step, 0.0)
        if dtype_of(variable) == dtype:
            assign_sub(variable, step)
        else:  # subtract before rounding to the variable's shorter dtype
            assign(variable, ops.cast(tensor(variable), dtype) - step)


class SparseGroup(Group):
    """The rows of one variable that a sparse gradient touches.

    The other rows have a gradient of zero: statistics see it, and nothing moves.
    """

    def _matrices(self, gradients):
        self.slice_ids, self.row_ids, matrix = sparse.touched_rows(
            gradients[0], self.slots.index, self.shape, self.slots.dtype
        )
        return [matrix]

    def _subtract(self, variable, step, rate, is_finite):
        step = where(is_finite, step, 0.0)
        assign_sub(variable, sparse.slices(step, self.slice_ids, self.shape))


def make_group(settings, slots: GroupSlots, variables, gradients, decays) -> Group:
    """Returns a `SparseGroup` where some rows alone must be touched, else a `Group`."""
    (first, *_), (variable, *_) = gradients, variables
    if is_sparse(first):
        every_row = (
            decays
            or settings.beta_1
            or slots.diagonals[0] is not None
            or dtype_of(variable) != slots.dtype  # rounded once, with the subtraction
        )
        if not every_row and sparse.fits(slots.index, tuple(variable.shape)):
            return SparseGroup(settings, slots, variables, gradients, decays)
    return Group(settings, slots, variables, gradients, decays)
