"""Groups as XLA programs (TensorFlow): the update is compiled though `fit` is not.

A program takes its variables and slots as arguments, so that groups alike share it: a
Transformer of any depth compiles what its different shapes need, and optimizers of
equal settings compile it once.
"""

import collections
import math
import weakref

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from extreme_tensoring_tf.gradients import is_sparse
from extreme_tensoring_tf.groups import dense_group
from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.slots import GroupSlots
from extreme_tensoring_tf.variables import dtype_of
from extreme_tensoring_tf.variables import raw

# Entries of variables alike from which these are worth a program. Compiling one takes
# half a second, and saves passes over gradients, cheap as long as they stay in a cache:
# at this size it pays after some 400 steps, at a quarter of it after 1,000.
WORTH_COMPILING = 2**19
# Entries of a group in somebody's program, at most: there each group is compiled.
GROUP_ENTRIES = 2**23

# The programs of all optimizers that are alive, by what they were traced for; and the
# last ones. TensorFlow never frees what XLA made of a program that is dropped: a loop
# that makes one model after the other must find those of the model before.
_programs: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
_recent: collections.deque = collections.deque(maxlen=64)


def inside_program() -> bool:
    """Returns whether what is traced now becomes a part of somebody's XLA program."""
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def is_distributed() -> bool:
    """Returns whether a distribution strategy of TensorFlow's is in effect.

    There a step is not compiled: a program cannot merge replicas.
    """
    return tf.distribute.has_strategy()


def are_worth_a_program(members) -> bool:
    """Returns whether a program pays for variables alike, `update.Member`s."""
    if is_sparse(members[0].gradient):
        return False  # XLA may copy a variable to scatter a few rows into it
    return len(members) * math.prod(members[0].variable.shape) >= WORTH_COMPILING


def are_on_one_device(variables, slots) -> bool:
    """Returns whether variables and `GroupSlots` are, as a program requires."""
    arrays = [*variables, *slots.momentums, *slots.diagonals]
    for statistics in slots.statistics:
        arrays += statistics
    return len({raw(a).device for a in arrays if a is not None}) == 1


class CompiledGroup:
    """A `groups.Group` whose work is done by programs.

    Args:
        settings, slots, variables, gradients, decays: as of `groups.Group`.
        programs: dict of the programs that the optimizer holds, to which those of its
            steps are added.
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
            None if slots.momentums[0] is None else dtype_of(slots.momentums[0]),
            self._arguments[0][0].device,
        )
        self.index = slots.index
        self._rate_dtype = slots.dtype
        self.takes_turns = isinstance(slots.index, MatrixView)
        self._programs = programs
        self._earlier = []

    def wait_for(self, squared_norm):
        """Has the program start after another group; see `groups.Group`."""
        self._earlier = [squared_norm]

    def squared_sums(self):
        """Returns the sums of squares over slices; see `groups.Group`."""
        return self._run("squared_sums")

    def step(self, learning_rate, sums=None, factor=None):
        """Updates statistics and variables; see `groups.Group.step`."""
        rate = tf.cast(learning_rate, self._rate_dtype)
        return self._run("step", rate, sums, factor)

    def _run(self, method, *more):
        """Calls the program of a method, which is made at the first call."""
        key = method, *self._key
        if key not in self._programs:
            self._programs[key] = self._shared(key, method, more)
        with tf.control_dependencies(self._earlier):
            return self._programs[key](*self._arguments, *more)

    def _shared(self, key, method, more):
        """Returns a program of any optimizer's with this key, or a new one."""
        program = _programs.get(key)
        if program is None:
            # One trace each. A `tf.function` would look for others at every call, and
            # warn of many.
            program = _program(method, *self._fixed)
            program = program.get_concrete_function(*self._arguments, *more)
            _programs[key] = program
            _recent.append(program)
        return program


def _program(method, settings, index, dtype, decays):
    """Returns a method of a group as a compiled function of variables and tensors."""

    @tf.function(jit_compile=True, autograph=False)
    def run(variables, gradients, arrays, *more):
        with sums_in_blocks():
            slots = GroupSlots(index, dtype, *arrays)
            group = dense_group(settings, slots, variables, gradients, decays)
            return getattr(group, method)(*more)

    return run
