"""The optimizer's state: statistics, momentum, counters, and how a step moves them."""

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.preconditioner import squared_norms
from extreme_tensoring_tf.tensor_index import TensorIndex
from extreme_tensoring_tf.variables import assign
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import layout_of
from extreme_tensoring_tf.variables import materialized
from extreme_tensoring_tf.variables import own_momentum_dtype
from extreme_tensoring_tf.variables import raw
from extreme_tensoring_tf.variables import replicated_layout
from extreme_tensoring_tf.variables import statistics_dtype
from extreme_tensoring_tf.variables import tensor


class Slots:
    """State of a model's variables, in the order of `build`.

    Args:
        add_variable: `Optimizer.add_variable`, so that Keras tracks what is made.
        names: one name per variable, each different.
        variables: the model's trainable variables.
        indices: one `TensorIndex` or `MatrixView` per variable.
        settings: an `update.Settings`.
        momentum_dtype: dtype of the momentum; None: see `variables.own_momentum_dtype`.

    Attributes:
        statistics: per variable a list of vectors, of lengths `index.dims`.
        momentums: position -> an array like the variable; of the variables that
            have momentum, unless they hold it packed.
        momentum_scales: the scales of packed momentum, one array for all variables:
            each would be a copy of its own in every step. None if none is packed.
        counters: int32 (variables, 2), updates taken and skipped; None if no
            setting needs them. `iterations` counts steps, but a variable whose
            gradient was skipped or absent took fewer.
        diagonals: position -> sums of squares, full size: see `trace_ratio.py`.
    """

    def __init__(
        self, add_variable, names, variables, indices, settings, momentum_dtype=None
    ):
        self._add_variable = add_variable
        self._prefixes = [name.replace("/", "_") for name in names]
        self.indices = indices
        self._dtypes = [statistics_dtype(dtype_of(v)) for v in variables]
        self.statistics = []
        self.momentums = {}
        self.momentum_scales = None
        self.counters = None
        self.diagonals = {}
        for position, (prefix, variable, index) in enumerate(
            zip(self._prefixes, variables, indices)
        ):
            self.statistics.append(
                [
                    add_variable(
                        shape=(dim,),
                        dtype=self._dtypes[position],
                        layout=replicated_layout(1),
                        name=f"{prefix}_statistic_{label}",
                    )
                    for dim, label in zip(index.dims, index.labels)
                ]
            )
            if settings.momentum_of(index) and not settings.packs_momentum:
                self.momentums[position] = add_variable(
                    shape=variable.shape,
                    dtype=momentum_dtype or own_momentum_dtype(dtype_of(variable)),
                    layout=layout_of(variable),
                    name=f"{prefix}_momentum",
                )
        averaged = [p for p, i in enumerate(indices) if settings.momentum_of(i)]
        packed = averaged if settings.packs_momentum else []
        self._places = {position: place for place, position in enumerate(packed)}
        if packed:
            self.momentum_scales = add_variable(
                shape=(len(packed),),
                dtype="float32",
                layout=replicated_layout(1),
                name="momentum_scales",
            )
        if settings.skip_nonfinite or averaged or settings.beta_2:
            self.counters = add_variable(
                shape=(len(variables), 2),
                dtype="int32",
                layout=replicated_layout(2),
                name="counters",
            )

    def watch(self, position: int, variable) -> None:
        """Keeps AdaGrad's full-size sums of one variable."""
        self.diagonals[position] = self._add_variable(
            shape=variable.shape,
            dtype=self._dtypes[position],
            layout=layout_of(variable),
            name=f"{self._prefixes[position]}_diagonal",
        )

    def updates(self):
        """Returns the number of this update of each variable, from 1; or None."""
        if self.counters is None:
            return None
        return tensor(self.counters)[:, 0] + 1

    def of(self, positions: list[int], updates) -> "GroupSlots":
        """Returns the `GroupSlots` of variables of one tensor index.

        Args:
            positions: of the variables.
            updates: what `updates` returns.
        """
        return GroupSlots(
            self.indices[positions[0]],
            self._dtypes[positions[0]],
            [[raw(s) for s in self.statistics[p]] for p in positions],
            [raw(self.momentums.get(p)) for p in positions],
            [raw(self.diagonals.get(p)) for p in positions],
            self._scales(positions),
            None if updates is None else ops.take(updates, positions),
        )

    def _scales(self, positions):
        """Returns the scales of packed momentum (k,), or None if there is none."""
        if positions[0] not in self._places:
            return None
        places = [self._places[p] for p in positions]
        return ops.take(tensor(self.momentum_scales), places)

    def forget_packed_momentum(self, due=True) -> None:
        """Starts packed momentum anew: something else is written into the variables.

        Args:
            due: whether it is, a scalar of the backend or a bool.
        """
        if self.momentum_scales is not None:
            scales = tensor(self.momentum_scales)
            assign(self.momentum_scales, ops.where(due, 0.0, scales))

    def record(self, positions: list[list[int]], taken: list) -> None:
        """Counts a step, and keeps what one array holds for all variables.

        All variables are counted at once, after their updates: programs that wrote
        to one variable could not run side by side.

        Args:
            positions: list of lists, the positions of the variables of each group.
            taken: the `update.Taken` of each group.
        """
        self._count(positions, [t.finite for t in taken])
        packed = [
            (p, t.momentum_scales)
            for p, t in zip(positions, taken)
            if t.momentum_scales is not None
        ]
        if packed:
            places = [[self._places[p]] for of_group, _ in packed for p in of_group]
            new = ops.concatenate([scales for _, scales in packed])
            old = tensor(self.momentum_scales)
            assign(self.momentum_scales, ops.scatter_update(old, places, new))

    def _count(self, positions, finite):
        """Counts a step of every variable as taken or as skipped."""
        if self.counters is None:
            return
        taken = [
            ops.ones((len(p),), "int32") if f is None else ops.cast(f, "int32")
            for p, f in zip(positions, finite)
        ]
        taken = ops.concatenate(taken)
        places = ops.convert_to_tensor([[i] for p in positions for i in p], "int32")
        new = ops.stack([taken, 1 - taken], axis=1)
        new = ops.scatter(places, new, tuple(self.counters.shape))
        assign(self.counters, tensor(self.counters) + new)


@dataclasses.dataclass(frozen=True)
class GroupSlots:
    """Slots of k variables of one tensor index, which are updated together.

    Everything but index and dtype is a variable or a tensor, so that a compiled program
    can take it as an argument. Flags and counts have shape (k,).
    """

    index: TensorIndex | MatrixView
    dtype: str  # of the statistics: a step is computed in it
    statistics: list  # k lists of vectors
    momentums: list  # k arrays or None
    diagonals: list  # k arrays or None
    scales: Any  # (k,): of packed momentum; or None
    updates: Any  # int32 (k,): the number of this update of each, from 1; or None

    @property
    def arrays(self) -> tuple:
        """Returns all but index and dtype, in the order of the fields."""
        names = [field.name for field in dataclasses.fields(self)]
        return tuple(getattr(self, name) for name in names[2:])

    def accumulate(self, sums, beta_2: float | None, finite):
        """Adds a step's sums to the statistics.

        Args:
            sums: (k, state_size), those of all dims of the index side by side.
            beta_2: None for sums, else the factor of the moving average.
            finite: None, or (k,): where it is false the statistics stay.

        Returns:
            The new statistics, of the shape of `sums`, bias-corrected, and `finite`,
            which is false, too, where they would be too large: XLA divides by their
            total as by its inverse, and takes subnormal numbers for 0.
        """
        slots = [slot for of_one in self.statistics for slot in of_one]
        old = [tensor(slot) for slot in slots]
        # Else XLA for GPUs copies each slot, which may be written while it is read.
        old = old[0] if len(old) == 1 else materialized(ops.concatenate(old))
        old = ops.reshape(old, sums.shape)
        most, correction = 0.5 / float(np.finfo(self.dtype).tiny), None
        if beta_2 is None:
            new = old + sums
        else:
            new = beta_2 * old + (1.0 - beta_2) * sums
            correction = self.bias_correction(beta_2)
            most = most * correction
        if finite is not None:
            finite = ops.logical_and(finite, squared_norms(new, self.index) <= most)
        new = where(finite, new, old)
        ends = np.cumsum([slot.shape[0] for slot in slots[:-1]]).tolist()
        flat = ops.reshape(new, (-1,))
        for slot, value in zip(slots, ops.split(flat, ends) if ends else [flat]):
            assign(slot, value)
        if correction is not None:
            new = new / ops.expand_dims(correction, 1)
        return new, finite

    def accumulate_diagonal(self, i: int, gradient, finite) -> None:
        """Adds a gradient to AdaGrad's own sums of variable i, if these are watched."""
        diagonal = self.diagonals[i]
        if diagonal is None:
            return
        squares = ops.reshape(ops.square(gradient), tuple(diagonal.shape))
        assign(diagonal, tensor(diagonal) + where(finite, squares, 0.0))

    def average_gradients(self, part: slice, gradients, beta_1, finite):
        """Returns the moving averages of gradients, from zeros on.

        Args:
            part: which of the k variables.
            gradients: (k_i, *view), theirs.
            beta_1: the factor of the moving average.
            finite: None, or (k_i,): where it is false the average stays.
        """
        slots = self.momentums[part]
        old = stacked([tensor(slot) for slot in slots], gradients.shape[1:])
        old = ops.cast(old, gradients.dtype)
        new = where(finite, beta_1 * old + (1 - beta_1) * gradients, old)
        for slot, value in zip(slots, unstacked(new, tuple(slots[0].shape))):
            assign(slot, value)
        return new

    def unbiased(self, part: slice, averages, beta_1: float):
        """Returns averages (k_i, *view) corrected for their zeros at the start."""
        return averages / of_each(self.bias_correction(beta_1)[part])

    def bias_correction(self, beta: float):
        """Returns 1 - beta**t (k,), without the cancellation of a beta near 1."""
        return -ops.expm1(ops.cast(self.updates, self.dtype) * math.log(beta))


def of_each(numbers):
    """Returns numbers (k,) of k variables as (k, 1, 1), to go with their entries."""
    return ops.reshape(numbers, (-1, 1, 1))


def stacked(arrays, view):
    """Returns k arrays as one, (k, *view); a single one is not copied."""
    if len(arrays) == 1:
        return ops.reshape(arrays[0], (1, *view))
    return materialized(ops.reshape(ops.stack(arrays), (len(arrays), *view)))


def unstacked(stack, shape) -> list:
    """Returns the k arrays of a stack, each of a shape; a single one is not copied."""
    if stack.shape[0] == 1:
        return [ops.reshape(stack, shape)]
    return ops.unstack(ops.reshape(stack, (stack.shape[0], *shape)))


def where(condition, new, old):
    """Returns `new` where the condition holds, else `old`; None always holds.

    Args:
        condition: None, a scalar, or (k,) for arrays of shape (k, ...).
        new: an array.
        old: an array of the same shape, or a number.
    """
    if condition is None:
        return new
    if len(condition.shape):
        missing = len(new.shape) - len(condition.shape)
        condition = ops.reshape(condition, (-1,) + (1,) * missing)
    return ops.where(condition, new, old)
