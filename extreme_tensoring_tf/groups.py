"""Groups: variables alike, and their gradients, that are updated together.

A group holds variables of one tensor index, shape and dtype, whose short vectors are
stacked. It is traced or run as it is (`Group`), holds the gathered rows of one
embedding (`SparseGroup`), takes polar factors in place of statistics
(`OrthogonalGroup`), or calls a compiled program of one of these
(`xla.CompiledGroup`).
"""

import math

from keras import ops

from extreme_tensoring_tf import packing
from extreme_tensoring_tf.gradients import is_sparse
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.preconditioner import joined
from extreme_tensoring_tf.preconditioner import squared_norms
from extreme_tensoring_tf.preconditioner import squared_sums
from extreme_tensoring_tf.slots import GroupSlots
from extreme_tensoring_tf.slots import where
from extreme_tensoring_tf.update import STACKED
from extreme_tensoring_tf.update import Taken
from extreme_tensoring_tf.variables import IS_TENSORFLOW
from extreme_tensoring_tf.variables import assign
from extreme_tensoring_tf.variables import assign_sub
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import tensor

if IS_TENSORFLOW:  # the others have no sparse gradients
    from extreme_tensoring_tf import sparse


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
        self.stacks = self._stacks(gradients)
        self._to_pack = {}  # values and momentum, by variable

    def _stacks(self, gradients):
        """Returns the gradients as arrays (k_i, *view), in order.

        Small ones are stacked. A large one is an array by itself, for it would be
        copied, and so is one that has a full-size slot of its own.
        """
        if is_sparse(gradients[0]):
            gradients = [sparse.dense(g, self.shape) for g in gradients]
        view = self.index.view
        by_itself = self.slots.momentums or self.slots.diagonals[0] is not None
        if len(gradients) > 1 and math.prod(view) < STACKED and not by_itself:
            stack = ops.stack([ops.convert_to_tensor(g) for g in gradients])
            return [ops.reshape(stack, (len(gradients), *view))]
        return [ops.reshape(ops.convert_to_tensor(g), (1, *view)) for g in gradients]

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
        start = 0
        for stack in self.stacks:
            part = slice(start, start + stack.shape[0])
            start = part.stop
            is_finite = None if finite is None else finite[part]
            multiplier = None if factor is None else factor[part]
            if settings.beta_1 or slots.diagonals[part.start] is not None:
                stack = self._averaged(part.start, stack, is_finite, multiplier)
                multiplier = None
            steps = factors[part].scale(stack, rate, multiplier)
            self._subtract(part, steps, rate, is_finite)
        return Taken(norms, finite)

    def _averaged(self, i, stack, is_finite, multiplier):
        """Returns the average gradient of variable i, and keeps its full-size slots."""
        slots = self.slots
        gradient = ops.cast(stack, slots.dtype)
        if multiplier is not None:
            gradient = gradient * multiplier
        slots.accumulate_diagonal(i, gradient, is_finite)
        if not self.settings.beta_1:
            return gradient
        return self._momentum(i, gradient, is_finite)

    def _momentum(self, i, gradient, is_finite):
        """Returns the unbiased average of the gradients of variable i, and keeps it."""
        slots, beta_1 = self.slots, self.settings.beta_1
        values = packed = None
        if self.settings.packs_momentum:
            variable, scale = tensor(self.variables[i]), tensor(slots.momentums[i])
            values, packed = packing.unpack(variable, scale)
        new = slots.average_gradients(i, gradient, beta_1, is_finite, packed)
        if self.settings.packs_momentum:
            self._to_pack[i] = values, ops.reshape(new, self.shape)
        return slots.unbiased(i, new, beta_1)

    def _subtract(self, part, steps, rate, is_finite):
        """Writes the steps (k_i, *view), and weight decay with them, into variables.

        Args:
            part: slice, which of the variables.
            steps, rate: tensors.
            is_finite: None, or (k_i,).
        """
        dtype, variables = self.slots.dtype, self.variables[part]
        if len(variables) == 1:  # a reshape, where a slice might be a copy
            steps = [ops.reshape(steps, self.shape)]
        else:
            steps = ops.unstack(ops.reshape(steps, (len(variables), *self.shape)))
        for i, (variable, step) in enumerate(zip(variables, steps)):
            if self.decays:
                value = ops.cast(tensor(variable), dtype)
                step = step + value * (self.settings.weight_decay * rate)
            taken = None if is_finite is None else is_finite[i]
            if self.settings.packs_momentum:
                self._pack(part.start + i, variable, step, taken)
                continue
            step = where(taken, step, 0.0)
            if dtype_of(variable) == dtype:
                assign_sub(variable, step)
            else:  # subtract before rounding to the variable's shorter dtype
                assign(variable, ops.cast(tensor(variable), dtype) - step)

    def _pack(self, i, variable, step, taken):
        """Writes variable i, and its momentum into it."""
        values, momentum = self._to_pack.pop(i)
        new = packing.pack(values - step, momentum, tensor(self.slots.momentums[i]))
        assign(variable, where(taken, new, tensor(variable)))


class SparseGroup(Group):
    """The rows of one variable that a sparse gradient touches.

    The other rows have a gradient of zero: statistics see it, and nothing moves.
    """

    def _stacks(self, gradients):
        self.slice_ids, self.row_ids, matrix = sparse.touched_rows(
            gradients[0], self.index, self.shape, self.slots.dtype
        )
        return [ops.expand_dims(matrix, 0)]

    def _subtract(self, part, steps, rate, is_finite):
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
        finite = None
        if settings.skip_nonfinite:
            # Not by the squares, which overflow where a polar factor does not.
            finite = ops.all(ops.isfinite(gradients), axis=(1, 2))
            if factor is not None:
                finite = ops.logical_and(finite, ops.isfinite(factor))
        if settings.beta_1:
            if factor is not None:
                gradients = gradients * ops.reshape(factor, (-1, 1, 1))
            gradients = ops.stack(
                [
                    self._momentum(
                        i, gradients[i], None if finite is None else finite[i]
                    )
                    for i in range(len(self.variables))
                ]
            )
        rate = ops.cast(learning_rate, slots.dtype)
        steps = settings.orthogonalizer.direction(gradients) * rate
        self._subtract(slice(0, len(self.variables)), steps, rate, finite)
        return Taken(squared_norms(sums, self.index), finite)


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
