"""One step for all variables: sums, clipping, statistics, scaling, weight decay.

Variables of one tensor index, shape and dtype form a group whose short vectors are
stacked. The sums of squares of all groups come first. From them follow, at no
further pass over a gradient, what is not finite and the norms that clipping needs;
weight decay goes into the same write as the step.
"""

import keras
from keras import ops

from extreme_tensoring_tf.preconditioner import squared_sums
from extreme_tensoring_tf.slots import where

if keras.backend.backend() == "tensorflow":  # the others have no sparse gradients
    from extreme_tensoring_tf import sparse


def update_all(optimizer, gradients, variables, learning_rate, fused=False):
    """Takes one step of Algorithm 1 for every variable.

    Args:
        optimizer: an `ExtremeTensoring`, built on `variables`.
        gradients: one per variable, dense or `tf.IndexedSlices`.
        variables: Keras variables, or backend variables of the optimizer.
        learning_rate: scalar tensor.
        fused: whether to clip by norm and decay weights here as well. Otherwise
            that has been done.
    """
    groups = {}
    for gradient, variable in zip(gradients, variables):
        position = optimizer._get_variable_index(variable)
        alone = stays_sparse(optimizer, gradient, position, variable.shape)
        key = (
            optimizer._slots.indices[position],
            tuple(variable.shape),
            keras.backend.standardize_dtype(variable.dtype),
            position if alone else None,  # each has its own number of rows
        )
        groups.setdefault(key, []).append((position, gradient, variable))
    groups = [_Group(optimizer, *zip(*members)) for members in groups.values()]
    if fused:
        _clip(optimizer, groups)
    for group in groups:
        group.step(learning_rate, decay=fused)


def stays_sparse(optimizer, gradient, position, shape):
    """Whether only the gathered rows are touched. Momentum moves every row."""
    return (
        keras.backend.backend() == "tensorflow"
        and position not in optimizer._slots.diagonals
        and sparse.is_sparse(gradient)
        and not optimizer.beta_1
        and sparse.fits(optimizer._slots.indices[position], shape)
    )


def _clip(optimizer, groups):
    """Multiplies gradients by what `clipnorm` or `global_clipnorm` ask for.

    A gradient that is not finite makes its factor nan, as in Keras: with the
    global norm no variable is updated.
    """
    bound = optimizer.clipnorm or optimizer.global_clipnorm
    if not bound:
        return
    squares = [ops.sum(group.sums[0], axis=1) for group in groups]
    if not optimizer.clipnorm:
        total = ops.sum(ops.stack([ops.sum(s) for s in squares]))
        squares = [ops.broadcast_to(total, s.shape) for s in squares]
    for group, square in zip(groups, squares):
        norm = ops.sqrt(square)
        group.multiply_gradients(bound / ops.maximum(norm, bound) + (norm - norm))


class _Group:
    """k variables that are updated together, and their gradients."""

    def __init__(self, optimizer, positions, gradients, variables):
        self.optimizer = optimizer
        self.slots = optimizer._slots
        self.positions = positions
        self.variables = variables
        self.index = self.slots.indices[positions[0]]
        self.dtype = self.slots.statistics[positions[0]][0].dtype
        self.shape = variables[0].shape
        self.slice_ids = self.row_ids = None
        if stays_sparse(optimizer, gradients[0], positions[0], self.shape):
            self.slice_ids, self.row_ids, matrix = sparse.touched_rows(
                gradients[0], self.index, self.shape, self.dtype
            )
            self.matrices = [matrix]
        else:
            self.matrices = [
                ops.reshape(ops.convert_to_tensor(g), self.index.view)
                for g in gradients
            ]
        self.factor = None  # (k,), of the gradients
        self.sums = squared_sums(self.matrices, self.index, self.row_ids, self.dtype)

    def multiply_gradients(self, factor):
        self.factor = factor
        squared = ops.expand_dims(ops.square(factor), 1)
        self.sums = [s * squared for s in self.sums]

    def step(self, learning_rate, decay):
        """Updates statistics and variables."""
        optimizer, slots = self.optimizer, self.slots
        finite = None
        if optimizer.skip_nonfinite:
            finite = ops.isfinite(ops.sum(self.sums[0], axis=1))
        t = slots.count(self.positions, finite, self.dtype)
        sums = slots.accumulate(self.positions, self.sums, finite, t)
        factors = optimizer._preconditioner.factors(sums, self.index, self.row_ids)
        rate = ops.cast(learning_rate, self.dtype)
        for i, position in enumerate(self.positions):
            ok = None if finite is None else finite[i]
            direction = self.matrices[i]
            multiplier = None if self.factor is None else self.factor[i]
            if optimizer.beta_1 or position in slots.diagonals:
                direction = ops.cast(direction, self.dtype)
                if multiplier is not None:
                    direction, multiplier = direction * multiplier, None
                slots.accumulate_diagonal(position, direction, ok)
            if optimizer.beta_1:
                direction = slots.average_gradients(position, direction, ok, t[i])
            step = factors[i].scale(direction, rate, multiplier)
            self._subtract(self.variables[i], step, ok, rate if decay else None)

    def _subtract(self, variable, step, ok, decay_rate):
        optimizer = self.optimizer
        if self.slice_ids is not None:
            step = sparse.slices(where(ok, step, 0.0), self.slice_ids, self.shape)
            optimizer.assign_sub(variable, step)
            return
        step = ops.reshape(step, self.shape)
        decays = decay_rate is not None and optimizer.weight_decay
        if decays and optimizer._use_weight_decay(variable):
            value = ops.cast(ops.convert_to_tensor(variable), self.dtype)
            step = step + value * (optimizer.weight_decay * decay_rate)
        step = where(ok, step, 0.0)
        if keras.backend.standardize_dtype(variable.dtype) == self.dtype:
            optimizer.assign_sub(variable, step)
        else:  # subtract before rounding to the variable's shorter dtype
            value = ops.cast(ops.convert_to_tensor(variable), self.dtype) - step
            optimizer.assign(variable, ops.cast(value, variable.dtype))
