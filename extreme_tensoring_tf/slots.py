"""State of the optimizer: what is kept per variable, and how a step changes it."""

import dataclasses
import math

import keras
from keras import ops


class Slots:
    """Statistics, momentum and counters of the model's variables, in build order.

    A plain object, so that Keras tracks the variables once, as the optimizer's.

    Attributes:
        indices: one `tensor_index.TensorIndex` per variable.
        statistics: per variable a list of vectors, of lengths `index.dims`.
        momentums: one array like the variable each; empty without beta_1.
        counters: int32 (variables, 2), updates taken and skipped; None if no
            setting needs them. `iterations` counts steps, but a variable whose
            gradient was skipped or absent took fewer.
        diagonals: position -> sums of squares, full size: see `trace_ratio.py`.
    """

    def __init__(self, optimizer, paths, variables):
        self.optimizer = optimizer
        self.indices = optimizer.tensor_indices(
            [(path, tuple(v.shape)) for path, v in zip(paths, variables)]
        )
        self.statistics = []
        self.momentums = []
        self.counters = None
        self.diagonals = {}
        for path, variable, index in zip(paths, variables, self.indices):
            prefix = path.replace("/", "_")
            self.statistics.append(
                [
                    optimizer.add_variable(
                        shape=(dim,),
                        dtype=_statistics_dtype(variable),
                        name=f"{prefix}_statistic_{label}",
                    )
                    for dim, label in zip(index.dims, index.labels)
                ]
            )
            if optimizer.beta_1:
                self.momentums.append(
                    optimizer.add_variable(
                        shape=variable.shape,
                        dtype=optimizer.momentum_dtype or variable.dtype,
                        layout=getattr(variable, "_layout", None),
                        name=f"{prefix}_momentum",
                    )
                )
        if optimizer.skip_nonfinite or optimizer.beta_1 or optimizer.beta_2:
            self.counters = optimizer.add_variable(
                shape=(len(variables), 2), dtype="int32", name="counters"
            )

    def watch(self, position, path, shape):
        """Keeps AdaGrad's full-size sums of one variable."""
        self.diagonals[position] = self.optimizer.add_variable(
            shape=shape,
            dtype=self.statistics[position][0].dtype,
            name=f"{path.replace('/', '_')}_diagonal",
        )

    def part(self, positions):
        """The slots of variables that are updated together, of one tensor index."""
        return Part(
            self.optimizer,
            self.indices[positions[0]],
            [self.statistics[p] for p in positions],
            [self.momentums[p] for p in positions] if self.momentums else [],
            [self.diagonals.get(p) for p in positions],
            None if self.counters is None else ops.copy(raw(self.counters)),
            ops.convert_to_tensor(positions, "int32"),
        )

    def record(self, positions, finite):
        """Counts a step: taken where `finite`, skipped elsewhere.

        Once for all variables, after their updates: programs that wrote to one
        variable could not run side by side.

        Args:
            positions: list of lists.
            finite: as many flags (k,), or None each: then all are taken.
        """
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
        self.optimizer.assign_add(self.counters, new)


@dataclasses.dataclass(frozen=True)
class Part:
    """Slots of k variables of one tensor index, stacked where they are short.

    Arrays have shapes (k, dim), flags and counts (k,).
    """

    optimizer: object
    index: object  # tensor_index.TensorIndex
    statistics: list  # k lists of vectors
    momentums: list  # k arrays, or empty
    diagonals: list  # k arrays or None
    counts: object  # tensor: what `Slots.counters` held before this step, or None
    places: object  # int32 (k,): rows of `counts`

    def tree(self):
        """The variables and counts, as an argument of a compiled program."""
        lists = [[raw(v) for v in s] for s in self.statistics]
        momentums = [raw(v) for v in self.momentums]
        diagonals = [raw(v) for v in self.diagonals]
        return lists, momentums, diagonals, self.counts

    def over(self, tree, places):
        """The same with other variables, those that a program was called with."""
        names = ("statistics", "momentums", "diagonals", "counts")
        return dataclasses.replace(self, places=places, **dict(zip(names, tree)))

    @property
    def dtype(self):
        return keras.backend.standardize_dtype(self.statistics[0][0].dtype)

    def updates(self):
        """t (k,): the number of this update for each variable, from 1."""
        if self.counts is None:
            return None
        return ops.cast(ops.take(self.counts[:, 0], self.places) + 1, self.dtype)

    def accumulate(self, sums, finite, t):
        """Adds a step's sums to the statistics; returns them bias-corrected."""
        beta_2 = self.optimizer.beta_2
        keep, add = (1.0, 1.0) if beta_2 is None else (beta_2, 1.0 - beta_2)
        finite = None if finite is None else ops.expand_dims(finite, 1)
        accumulated = []
        for slots, new in zip(zip(*self.statistics), sums):
            old = ops.stack([raw(s) for s in slots])
            values = where(finite, keep * old + add * new, old)
            for i, slot in enumerate(slots):
                self.optimizer.assign(slot, values[i])
            accumulated.append(values)
        if beta_2 is None:
            return accumulated
        correction = ops.expand_dims(_bias_correction(beta_2, t), 1)
        return [s / correction for s in accumulated]

    def accumulate_diagonal(self, i, direction, finite):
        """AdaGrad's own sums, where they are watched."""
        if self.diagonals[i] is not None:
            shape = tuple(self.diagonals[i].shape)
            squares = ops.reshape(ops.square(direction), shape)
            self.optimizer.assign_add(self.diagonals[i], where(finite, squares, 0.0))

    def average_gradients(self, i, direction, finite, t):
        """First moment of one variable with bias correction, as in Adam."""
        beta_1 = self.optimizer.beta_1
        slot = self.momentums[i]
        old = ops.reshape(ops.cast(raw(slot), direction.dtype), direction.shape)
        new = beta_1 * old + (1 - beta_1) * direction
        new = where(finite, new, old)
        stored = ops.reshape(ops.cast(new, slot.dtype), tuple(slot.shape))
        self.optimizer.assign(slot, stored)
        return new / _bias_correction(beta_1, t)


def raw(variable):
    """The backend's own variable or array, of a Keras variable or of itself."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _statistics_dtype(variable):
    """float32, for bfloat16 sums lose small increments; float64 for float64."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return dtype if dtype == "float64" else "float32"


def _bias_correction(beta, t):
    """1 - beta**t, without the cancellation that a beta near 1 would bring."""
    return -ops.expm1(t * math.log(beta))


def where(condition, new, old):
    return new if condition is None else ops.where(condition, new, old)
