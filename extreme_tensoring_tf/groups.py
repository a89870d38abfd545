"""Groups: variables alike, and their gradients, that are updated together.

A group holds variables of one tensor index, shape and dtype, whose short vectors are
stacked. It is traced or run as it is (`Group`), holds the gathered rows of one
embedding (`SparseGroup`), takes polar factors in place of statistics
(`OrthogonalGroup`), or calls a compiled program of one of these
(`xla.CompiledGroup`).
"""

import math
import typing

from keras import ops

from extreme_tensoring_tf import packing
from extreme_tensoring_tf.gradients import is_sparse
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.preconditioner import joined
from extreme_tensoring_tf.preconditioner import squared_norms
from extreme_tensoring_tf.preconditioner import squared_sums
from extreme_tensoring_tf.slots import GroupSlots
from extreme_tensoring_tf.slots import of_each
from extreme_tensoring_tf.slots import stacked
from extreme_tensoring_tf.slots import unstacked
from extreme_tensoring_tf.slots import where
from extreme_tensoring_tf.update import STACKED
from extreme_tensoring_tf.update import Taken
from extreme_tensoring_tf.variables import IS_JAX
from extreme_tensoring_tf.variables import IS_TENSORFLOW
from extreme_tensoring_tf.variables import assign
from extreme_tensoring_tf.variables import assign_sub
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import materialized
from extreme_tensoring_tf.variables import tensor

if IS_TENSORFLOW:  # the others have no sparse gradients
    from extreme_tensoring_tf import sparse


class Packed(typing.NamedTuple):
    """Variables that hold momentum, taken apart for a step; arrays (k_i, *view)."""

    variables: typing.Any  # as they were
    values: typing.Any  # theirs
    momentum: typing.Any  # that of this step
    scales: typing.Any  # of that, (k_i,)


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
    # Whether it waits for the one before: they would run side by side, and have the
    # temporary memory of all of them at once.
    takes_turns = False

    def __init__(self, settings, slots, variables, gradients, decays):
        self.settings = settings
        self.index = slots.index
        self.slots = slots
        self.variables = variables
        self.shape = tuple(variables[0].shape)
        self.decays = decays
        self.beta_1 = settings.momentum_of(self.index)
        self.packs = settings.packs_momentum and self.beta_1 > 0
        self.stacks = self._stacks(gradients)

    def _stacks(self, gradients):
        """Returns the gradients as arrays (k_i, *view), in order.

        Small ones are stacked. A large one is an array by itself, for it would be
        copied, and so is one that is watched.
        """
        if is_sparse(gradients[0]):
            gradients = [
                sparse.dense(g, self.shape, self.slots.dtype) for g in gradients
            ]
        view = self.index.view
        gradients = [ops.convert_to_tensor(g) for g in gradients]
        if math.prod(view) < STACKED and self.slots.diagonals[0] is None:
            return [stacked(gradients, view)]
        return [stacked([g], view) for g in gradients]

    def wait_for(self, squared_norm):
        """Has the group start after another one, a squared norm of which is known.

        The gradients need it: XLA, which knows no order but of data, cannot tell that
        what is added is 0.
        """
        zero = squared_norm < 0
        self.stacks = [stack + ops.cast(zero, stack.dtype) for stack in self.stacks]

    def squared_sums(self):
        """Returns the sums of squares over slices; see `preconditioner.py`."""
        return squared_sums(self.stacks, self.index, self.row_ids, self.slots.dtype)

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
        norms = squared_norms(sums, self.index)
        if factor is not None:
            sums = sums * ops.expand_dims(ops.square(factor), 1)
        finite = None
        if settings.skip_nonfinite:
            finite = ops.isfinite(norms if factor is None else norms * factor)
        statistics, finite = slots.accumulate(sums, settings.beta_2, finite)
        factors = settings.preconditioner.factors(statistics, self.index, self.row_ids)
        rate = ops.cast(learning_rate, slots.dtype)
        start, packed = 0, []
        for stack in self.stacks:
            part = slice(start, start + stack.shape[0])
            start = part.stop
            is_finite = None if finite is None else finite[part]
            multiplier = None if factor is None else factor[part]
            taken_apart = None
            if self.beta_1 or slots.diagonals[part.start] is not None:
                stack = ops.cast(stack, slots.dtype)
                if multiplier is not None:
                    stack = stack * of_each(multiplier)
                    multiplier = None
                slots.accumulate_diagonal(part.start, stack, is_finite)
            if self.beta_1:
                stack, taken_apart = self._averaged(part, stack, is_finite)
            steps = factors[part].scale(stack, rate, multiplier)
            self._subtract(part, steps, rate, is_finite, taken_apart)
            packed.append(taken_apart)
        return self._taken(norms, finite, packed)

    def _taken(self, norms, finite, packed):
        """Returns the `Taken` of the step, of parts that were packed or were not."""
        scales = [p.scales for p in packed if p]
        return Taken(norms, finite, joined(scales) if scales else None)

    def _averaged(self, part, gradients, is_finite):
        """Returns the averages of gradients (k_i, *view), without bias.

        They are kept in slots of their own; or are to be packed, with what is returned
        beside them, into the variables: a `Packed`, or None.
        """
        packed = None
        if self.packs:
            packed = self._unpacked(part, gradients, is_finite)
            new = packed.momentum
        else:
            new = self.slots.average_gradients(part, gradients, self.beta_1, is_finite)
        return self.slots.unbiased(part, new, self.beta_1), packed

    def _unpacked(self, part, gradients, is_finite):
        """Returns a `Packed`: variables taken apart, with momentum that has moved on.

        One that starts, with a scale of 0, begins as if all gradients before had been
        this one: at the first update, after averages were written into the variable,
        and where no gradient was there before.
        """
        slots = self.slots
        variables = [tensor(v) for v in self.variables[part]]
        variables = stacked(variables, self.index.view)
        scales = slots.scales[part]
        values, old = packing.unpack(variables, of_each(scales))
        started = slots.bias_correction(self.beta_1)[part]
        share = ops.where(scales > 0, 1 - self.beta_1, started)
        new = self.beta_1 * old + of_each(share) * gradients
        # Not of what is kept, so that no pass over gradients waits for whether they are
        # finite.
        greatest = where(is_finite, ops.max(ops.abs(new), axis=(1, 2)), scales)
        return Packed(variables, values, where(is_finite, new, old), greatest)

    def _subtract(self, part, steps, rate, is_finite, packed=None):
        """Writes the steps (k_i, *view), and weight decay with them, into variables.

        Args:
            part: slice, which of the variables.
            steps, rate: tensors.
            is_finite: None, or (k_i,).
            packed: a `Packed` of the variables, if they hold momentum.
        """
        decay = self.settings.weight_decay * rate if self.decays else None
        if packed:
            self._pack(part, packed, steps, decay, is_finite)
            return
        dtype, variables = self.slots.dtype, self.variables[part]
        for i, step in enumerate(unstacked(steps, self.shape)):
            variable = variables[i]
            if decay is not None:
                step = step + ops.cast(tensor(variable), dtype) * decay
            taken = None if is_finite is None else is_finite[i]
            step = where(taken, step, 0.0)
            if dtype_of(variable) == dtype:
                assign_sub(variable, step)
            else:  # subtract before rounding to the variable's shorter dtype
                assign(variable, ops.cast(tensor(variable), dtype) - step)

    def _pack(self, part, packed, steps, decay, is_finite):
        """Writes variables, and their momentum into them."""
        if decay is not None:
            steps = steps + packed.values * decay
        scales, count = of_each(packed.scales), of_each(self.slots.updates[part])
        new = packing.pack(packed.values - steps, packed.momentum, scales, count)
        variables = self.variables[part]
        if IS_JAX and is_finite is not None:
            # A part of a stack with nothing done to it is a kernel by itself on a GPU.
            parts = unstacked(new, self.shape)
            for variable, value, finite in zip(variables, parts, is_finite):
                assign(variable, where(finite, value, tensor(variable)))
            return
        new = where(is_finite, new, packed.variables)
        for variable, value in zip(variables, unstacked(new, self.shape)):
            assign(variable, value)


class SparseGroup(Group):
    """The rows of one variable that a sparse gradient touches.

    The other rows have a gradient of zero: statistics see it, and nothing moves.
    """

    def _stacks(self, gradients):
        self.slice_ids, self.row_ids, matrix = sparse.touched_rows(
            gradients[0], self.index, self.shape, self.slots.dtype
        )
        return [ops.expand_dims(matrix, 0)]

    def _subtract(self, part, steps, rate, is_finite, packed=None):
        steps = where(is_finite, steps, 0.0)
        assign_sub(self.variables[0], sparse.slices(steps, self.slice_ids, self.shape))


class OrthogonalGroup(Group):
    """k matrices that move along the polar factors of their gradients."""

    takes_turns = True

    def squared_sums(self):
        """Returns the sums of squares (k, 1)."""
        squares = [ops.square(ops.cast(s, self.slots.dtype)) for s in self.stacks]
        return ops.expand_dims(joined([ops.sum(s, axis=(1, 2)) for s in squares]), 1)

    def step(self, learning_rate, sums=None, factor=None):
        """Updates variables, and momentum if there is any; see `Group.step`.

        A finite factor above 0 changes no polar factor, but a momentum.
        """
        settings, slots = self.settings, self.slots
        sums = self.squared_sums() if sums is None else sums
        gradients = joined([ops.cast(stack, slots.dtype) for stack in self.stacks])
        gradients = materialized(gradients)
        finite = None
        if settings.skip_nonfinite:
            # Not by the squares, which overflow where a polar factor does not.
            finite = ops.all(ops.isfinite(gradients), axis=(1, 2))
            if factor is not None:
                finite = ops.logical_and(finite, ops.isfinite(factor))
        part, packed = slice(0, len(self.variables)), None
        if self.beta_1:
            if factor is not None:
                gradients = gradients * of_each(factor)
            gradients, packed = self._averaged(part, gradients, finite)
        rate = ops.cast(learning_rate, slots.dtype)
        steps = settings.orthogonalizer.direction(gradients) * rate
        self._subtract(part, steps, rate, finite, packed)
        return self._taken(squared_norms(sums, self.index), finite, [packed])


def dense_group(settings, slots: GroupSlots, variables, gradients, decays) -> Group:
    """Returns the group of variables whose every entry is updated."""
    orthogonal = isinstance(slots.index, MatrixView)
    kind = OrthogonalGroup if orthogonal else Group
    return kind(settings, slots, variables, gradients, decays)


def make_group(settings, slots: GroupSlots, variables, gradients, decays) -> Group:
    """Returns a `SparseGroup` where some rows alone must be touched, else others."""
    (first, *_), (variable, *_) = gradients, variables
    if is_sparse(first) and not isinstance(slots.index, MatrixView):
        every_row = (
            decays
            or settings.beta_1
            or slots.diagonals[0] is not None
            or dtype_of(variable) != slots.dtype  # rounded once, with the subtraction
        )
        if not every_row and sparse.fits(slots.index, tuple(variable.shape)):
            return SparseGroup(settings, slots, variables, gradients, decays)
    return dense_group(settings, slots, variables, gradients, decays)
