"""Groups as XLA programs (TensorFlow): the update is compiled though `fit` is not.

A program takes its variables and slots as arguments, so that variables alike share
it: a Transformer of any depth compiles what its different shapes need. It updates up
to `AT_ONCE` of them in one launch, for a launch costs some tens of microseconds.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.slots import GroupSlots
from extreme_tensoring_tf.update import Group
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import raw

AT_ONCE = 8


def inside_program() -> bool:
    """Returns whether what is traced now becomes a part of somebody's XLA program."""
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def is_distributed() -> bool:
    """Returns whether a distribution strategy of TensorFlow's is in effect.

    There a step is not compiled: a program cannot merge replicas.
    """
    return tf.distribute.has_strategy()


class Program:
    """A group's two functions, compiled: its sums, and its step.

    Args:
        settings: an `update.Settings`.
        index: a `tensor_index.TensorIndex`.
        decays: whether weight decay applies.
    """

    def __init__(self, settings, index, decays):
        @tf.function(jit_compile=True, autograph=False)
        def squared_sums(variables, gradients, arrays):
            with sums_in_blocks():
                slots = GroupSlots(index, *arrays)
                group = Group(settings, slots, variables, gradients, decays)
                return group.squared_sums()

        @tf.function(jit_compile=True, autograph=False)
        def step(variables, gradients, arrays, learning_rate, sums, factor):
            with sums_in_blocks():
                slots = GroupSlots(index, *arrays)
                group = Group(settings, slots, variables, gradients, decays)
                return group.step(learning_rate, sums, factor)

        self.squared_sums = squared_sums
        self.step = step


class CompiledGroup:
    """An `update.Group` whose work is done by a program.

    Args:
        settings, slots, variables, gradients, decays: as of `update.Group`.
        programs: dict of the optimizer's programs, to which what is missing is added.
    """

    def __init__(self, settings, slots, variables, gradients, decays, programs):
        self._arguments = (
            [raw(v) for v in variables],
            [tf.convert_to_tensor(g) for g in gradients],
            slots.arrays,
        )
        key = (
            settings,
            slots.index,
            decays,
            tuple(variables[0].shape),
            dtype_of(variables[0]),
            len(variables),
        )
        if key not in programs:
            programs[key] = Program(settings, slots.index, decays)
        self._program = programs[key]

    def squared_sums(self):
        """Returns the sums of squares over slices, one array (k, dim) per dim."""
        return self._program.squared_sums(*self._arguments)

    def step(self, learning_rate, sums=None, factor=None):
        """Updates statistics and variables; see `update.Group.step`."""
        rate = tf.convert_to_tensor(learning_rate)
        return self._program.step(*self._arguments, rate, sums, factor)
