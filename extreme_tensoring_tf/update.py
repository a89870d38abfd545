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
    members = alike(optimizer, gradients, variables).values()
    groups = [Group(optimizer, *m, fused) for m in members]
    sums = [group.squared_sums() for group in groups]
    factors = clip_factors(optimizer, sums) if fused else [None] * len(groups)
    finite = [
        group.step(squares, factor, learning_rate)
        for group, squares, factor in zip(groups, sums, factors)
    ]
    optimizer._slots.record([positions for positions, *_ in members], finite)


def alike(optimizer, gradients, variables):
    """What is to be updated together: {key: (positions, gradients, variables)}.

    Variables of one key can share a compiled program.
    """
    groups = {}
    for gradient, variable in zip(gradients, variables):
        position = optimizer._get_variable_index(variable)
        key = (
            optimizer._slots.indices[position],
            tuple(variable.shape),
            keras.backend.standardize_dtype(variable.dtype),
            # Each sparse gradient has its own number of rows.
            position if _is_sparse(gradient) else None,
            position in optimizer._slots.diagonals,
            bool(optimizer.weight_decay) and optimizer._use_weight_decay(variable),
        )
        groups.setdefault(key, []).append((position, gradient, variable))
    return {key: tuple(zip(*members)) for key, members in groups.items()}


def _is_sparse(gradient):
    return keras.backend.backend() == "tensorflow" and sparse.is_sparse(gradient)


def clip_factors(optimizer, sums):
    """What `clipnorm` or `global_clipnorm` multiply each gradient by.

    A gradient that is not finite makes its factor nan, as in Keras: with the
    global norm no variable is updated.

    Args:
        sums: `Group.squared_sums()` of every group.

    Returns:
        One vector (k,) per group, or None where nothing is clipped.
    """
    bound = optimizer.clipnorm or optimizer.global_clipnorm
    if not bound:
        return [None] * len(sums)
    squares = [ops.sum(group[0], axis=1) for group in sums]
    if not optimizer.clipnorm:
        total = ops.sum(ops.stack([ops.sum(s) for s in squares]))
        squares = [ops.broadcast_to(total, s.shape) for s in squares]
    norms = [ops.sqrt(s) for s in squares]
    return [bound / ops.maximum(n, bound) + (n - n) for n in norms]


class Group:
    """k variables that are updated together, and their gradients.

    Args:
        optimizer: an `ExtremeTensoring`.
        positions: of the variables in the optimizer.
        gradients, variables: k each.
        fused: as in `update_all`.
        part: the `slots.Part` of these positions, if it is not the optimizer's own.
    """

    def __init__(self, optimizer, positions, gradients, variables, fused, part=None):
        self.optimizer = optimizer
        self.variables = variables
        self.part = part or optimizer._slots.part(positions)
        self.index = self.part.index
        self.dtype = self.part.dtype
        self.shape = tuple(variables[0].shape)
        self.decays = (
            fused
            and bool(optimizer.weight_decay)
            and optimizer._use_weight_decay(
                optimizer._trainable_variables[positions[0]]
            )
        )
        self.slice_ids = self.row_ids = None
        if self._stays_sparse(gradients[0]):
            self.slice_ids, self.row_ids, matrix = sparse.touched_rows(
                gradients[0], self.index, self.shape, self.dtype
            )
            self.matrices = [matrix]
        else:
            self.matrices = [
                ops.reshape(ops.convert_to_tensor(g), self.index.view)
                for g in gradients
            ]

    def _stays_sparse(self, gradient):
        """Whether only the gathered rows are touched. Momentum moves every row."""
        return (
            _is_sparse(gradient)
            and self.part.diagonals[0] is None
            and not self.optimizer.beta_1
            and sparse.fits(self.index, self.shape)
        )

    def squared_sums(self):
        return squared_sums(self.matrices, self.index, self.row_ids, self.dtype)

    def step(self, sums, factor, learning_rate):
        """Updates statistics and variables. Returns which gradients were finite.

        Args:
            sums: `squared_sums()`.
            factor: None, or (k,), what the gradients are to be multiplied by.
            learning_rate: scalar tensor.
        """
        optimizer, part = self.optimizer, self.part
        if factor is not None:
            squared = ops.expand_dims(ops.square(factor), 1)
            sums = [s * squared for s in sums]
        finite = None
        if optimizer.skip_nonfinite:
            finite = ops.isfinite(ops.sum(sums[0], axis=1))
        t = part.updates()
        sums = part.accumulate(sums, finite, t)
        factors = optimizer._preconditioner.factors(sums, self.index, self.row_ids)
        rate = ops.cast(learning_rate, self.dtype)
        for i, direction in enumerate(self.matrices):
            ok = None if finite is None else finite[i]
            multiplier = None if factor is None else factor[i]
            if optimizer.beta_1 or part.diagonals[i] is not None:
                direction = ops.cast(direction, self.dtype)
                if multiplier is not None:
                    direction, multiplier = direction * multiplier, None
                part.accumulate_diagonal(i, direction, ok)
            if optimizer.beta_1:
                direction = part.average_gradients(i, direction, ok, t[i])
            step = factors[i].scale(direction, rate, multiplier)
            self._subtract(self.variables[i], step, ok, rate)
        return finite

    def _subtract(self, variable, step, ok, rate):
        optimizer = self.optimizer
        if self.slice_ids is not None:
            step = sparse.slices(where(ok, step, 0.0), self.slice_ids, self.shape)
            optimizer.assign_sub(variable, step)
            return
        step = ops.reshape(step, self.shape)
        if self.decays:
            value = ops.cast(ops.convert_to_tensor(variable), self.dtype)
            step = step + value * (optimizer.weight_decay * rate)
        step = where(ok, step, 0.0)
        if keras.backend.standardize_dtype(variable.dtype) == self.dtype:
            optimizer.assign_sub(variable, step)
        else:  # subtract before rounding to the variable's shorter dtype
            value = ops.cast(ops.convert_to_tensor(variable), self.dtype) - step
            optimizer.assign(variable, ops.cast(value, variable.dtype))
