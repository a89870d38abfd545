"""Groups as XLA programs (TensorFlow): the update is compiled though `fit` is not.

A program takes its variables and slots as arguments, so that variables alike share
it: a Transformer of any depth compiles what its different shapes need. It updates up
to `AT_ONCE` of them in one launch, for a launch costs some tens of microseconds.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from extreme_tensoring_tf.groups import dense_group
from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.slots import GroupSlots
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


def on_one_device(slots, variables) -> bool:
    """Returns whether variables and slots are on one device, as a program requires."""
    arrays = [*variables, *slots.momentums, *slots.diagonals]
    for statistics in slots.statistics:
        arrays += statistics
    return len({raw(a).device for a in arrays if a is not None}) == 1


class CompiledGroup:
    """A `groups.Group` whose work is done by programs.

    Args:
        settings, slots, variables, gradients, decays: as of `groups.Group`.
        programs: dict of the optimizer's programs, to which what is missing is added.
    """

    def __init__(self, settings, slots, variables, gradients, decays, programs):
        self._arguments = (
            [raw(v) for v in variables],
            [tf.convert_to_tensor(g) for g in gradients],
            slots.arrays,
        )
        self._fixed = settings, slots.index, slots.dtype, decays
        self._key = (
            *self._fixed,
            tuple(variables[0].shape),
            dtype_of(variables[0]),
            tuple(map(dtype_of, self._arguments[1])),  # of each gradient
            slots.diagonals[0] is None,
        )
        self._rate_dtype = slots.dtype
        self.takes_turns = isinstance(slots.index, MatrixView)
        self._programs = programs

    def squared_sums(self):
        """Returns the sums of squares over slices, one array (k, dim) per dim."""
        return self._run("squared_sums")

    def step(self, learning_rate, sums=None, factor=None):
        """Updates statistics and variables; see `groups.Group.step`."""
        rate = tf.cast(learning_rate, self._rate_dtype)
        return self._run("step", rate, sums, factor)

    def _run(self, method, *more):
        """Calls the program of a method, which is made at the first call."""
        key = method, *self._key
        if key not in self._programs:
            program = _program(method, *self._fixed)
            # One trace each. A `tf.function` would look for others at every call, and
            # warn of many.
            self._programs[key] = program.get_concrete_function(*self._arguments, *more)
        return self._programs[key](*self._arguments, *more)


def _program(method, settings, index, dtype, decays):
    """Returns a method of a group as a compiled function of variables and tensors."""

    @tf.function(jit_compile=True, autograph=False)
    def run(variables, gradients, arrays, *more):
        with sums_in_blocks():
            slots = GroupSlots(index, dtype, *arrays)
            group = dense_group(settings, slots, variables, gradients, decays)
            return getattr(group, method)(*more)

    return run
