"""Groups: variables alike, and their gradients, that are updated together.

A group holds variables of one tensor index, shape and dtype, whose short vectors are
stacked. It is traced or run as it is (`Group`), holds the gathered rows of one
embedding (`SparseGroup`), takes polar factors in place of statistics
(`OrthogonalGroup`), or calls a compiled program of one of these
(`xla.CompiledGroup`).
"""

from keras import ops

from extreme_tensoring_tf.gradients import is_sparse
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.preconditioner import squared_sums
from extreme_tensoring_tf.slots import GroupSlots
from extreme_tensoring_tf.slots import where
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
    # Whether it waits for the one before: TensorFlow would run them side by side, and
    # have the temporary memory of all of them at once.
    takes_turns = False

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


class OrthogonalGroup(Group):
    """k matrices that move along the polar factors of their gradients."""

    takes_turns = True

    def squared_sums(self):
        """Returns the sums of squares, one array (k, 1)."""
        dtype = self.slots.dtype
        squares = [ops.sum(ops.square(ops.cast(m, dtype))) for m in self.matrices]
        return [ops.expand_dims(ops.stack(squares), 1)]

    def step(self, learning_rate, sums=None, factor=None):
        """Updates variables, and momentum if there is any; see `Group.step`.

        A finite factor above 0 changes no polar factor, but a momentum.
        """
        settings, slots = self.settings, self.slots
        sums = self.squared_sums() if sums is None else sums
        squared_norms = ops.sum(sums[0], axis=1)
        gradients = [ops.cast(m, slots.dtype) for m in self.matrices]
        finite = None
        if settings.skip_nonfinite:
            # Not by the squares, which overflow where a polar factor does not.
            finite = ops.stack([ops.all(ops.isfinite(m)) for m in self.matrices])
            if factor is not None:
                finite = ops.logical_and(finite, ops.isfinite(factor))
        if settings.beta_1:
            t = slots.updates()
            for i, gradient in enumerate(gradients):
                if factor is not None:
                    gradient = gradient * factor[i]
                gradients[i] = slots.average_gradients(
                    i,
                    gradient,
                    settings.beta_1,
                    None if finite is None else finite[i],
                    t[i],
                )
        rate = ops.cast(learning_rate, slots.dtype)
        steps = settings.orthogonalizer.direction(ops.stack(gradients)) * rate
        for i, variable in enumerate(self.variables):
            is_finite = None if finite is None else finite[i]
            self._subtract(variable, steps[i], rate, is_finite)
        return Taken(squared_norms, finite)


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
