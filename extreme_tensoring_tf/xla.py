"""The update as a few XLA programs, one for each shape (TensorFlow backend).

A program takes its variables and slots as arguments, so that variables alike share
it: a Transformer of any depth compiles what its different shapes need. It updates up
to `_AT_ONCE` of them in one launch, for a launch costs some tens of microseconds.
"""

import tensorflow as tf

from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.slots import raw
from extreme_tensoring_tf.sparse import is_sparse
from extreme_tensoring_tf.update import Group
from extreme_tensoring_tf.update import alike
from extreme_tensoring_tf.update import clip_factors
from extreme_tensoring_tf.update import update_all

_AT_ONCE = 8


def distributed():
    """Whether a distribution strategy is in effect."""
    return tf.distribute.has_strategy()


def compiled_update(optimizer, grads, variables, learning_rate, fused):
    """Does what `update_all` does, compiled.

    Eager mode and an uncompiled `tf.function` call the programs; inside an outer
    XLA function they become a part of that one. Nothing is compiled again when the
    rate or the step changes.

    Args:
        optimizer: an `ExtremeTensoring`, built on `variables`.
        grads, variables, learning_rate, fused: arguments of `update_all`.
    """
    dense, slices = [], []
    for gradient, variable in zip(grads, variables):
        # Scattering a few rows is faster outside: XLA may copy the variable.
        group = slices if is_sparse(gradient) else dense
        group.append((gradient, variable))
    if slices:
        update_all(optimizer, *zip(*slices), learning_rate)
    if not dense:
        return
    launches = [
        _Launch(
            optimizer, key, *(column[i : i + _AT_ONCE] for column in members), fused
        )
        for key, members in alike(optimizer, *zip(*dense)).items()
        for i in range(0, len(members[0]), _AT_ONCE)
    ]
    sums = factors = [None] * len(launches)
    if fused and (optimizer.clipnorm or optimizer.global_clipnorm):
        sums = [launch.squared_sums() for launch in launches]
        factors = clip_factors(optimizer, sums)
    finite = [
        launch.step(learning_rate, *given)
        for launch, *given in zip(launches, sums, factors)
    ]
    optimizer._slots.record([launch.positions for launch in launches], finite)


class _Launch:
    """One call of the program for some variables alike."""

    def __init__(self, optimizer, key, positions, grads, variables, fused):
        self.positions = positions
        self.part = optimizer._slots.part(positions)
        self.grads = [tf.convert_to_tensor(g) for g in grads]
        self.variables = [raw(v) for v in variables]
        programs = optimizer._programs
        if (key, fused) not in programs:
            programs[key, fused] = _programs(optimizer, positions, self.part, fused)
        self._sums, self._step = programs[key, fused]

    def squared_sums(self):
        return self._sums(self.grads, self.variables)

    def step(self, learning_rate, sums, factor):
        return self._step(
            self.grads,
            self.variables,
            self.part.tree(),
            self.part.places,
            tf.convert_to_tensor(learning_rate),
            sums,
            factor,
        )


def _programs(optimizer, positions, part, fused):
    """The two programs for variables like those at `positions`."""

    @tf.function(jit_compile=True, autograph=False)
    def squared_sums(grads, variables):
        with sums_in_blocks():
            group = Group(optimizer, positions, grads, variables, fused, part)
            return group.squared_sums()

    @tf.function(jit_compile=True, autograph=False)
    def step(grads, variables, tree, places, learning_rate, sums, factor):
        with sums_in_blocks():
            own = part.over(tree, places)
            group = Group(optimizer, positions, grads, variables, fused, own)
            sums = group.squared_sums() if sums is None else sums
            return group.step(sums, factor, learning_rate)

    return squared_sums, step
