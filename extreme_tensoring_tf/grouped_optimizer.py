"""The Keras side of a step: what Keras calls, and how variables become groups."""

import contextlib
import dataclasses
import math
from collections.abc import Callable

import keras
from keras import ops

from extreme_tensoring_tf.gradients import check_gradient
from extreme_tensoring_tf.groups import make_group
from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.slots import Slots
from extreme_tensoring_tf.tensor_index import TensorIndex
from extreme_tensoring_tf.update import GROUP_ENTRIES
from extreme_tensoring_tf.update import Member
from extreme_tensoring_tf.update import Settings
from extreme_tensoring_tf.update import alike
from extreme_tensoring_tf.update import take_step
from extreme_tensoring_tf.variables import IS_JAX
from extreme_tensoring_tf.variables import IS_TENSORFLOW
from extreme_tensoring_tf.variables import assign
from extreme_tensoring_tf.variables import check_dtype
from extreme_tensoring_tf.variables import check_packable
from extreme_tensoring_tf.variables import outside_of_traces
from extreme_tensoring_tf.variables import path_of
from extreme_tensoring_tf.variables import unique_paths

if IS_TENSORFLOW:  # the others do without it
    from extreme_tensoring_tf import xla

# The private names of Keras' optimizer that this package uses, each with its reason.
# The public hook, `update_step`, is given one variable at a time.
KERAS_PRIVATES = {
    "_clip_gradients": "Keras clips in a pass over all gradients; here the step clips",
    "_apply_weight_decay": "Keras decays in a pass over all variables; here the step",
    "_backend_update_step": "it is given all variables of a step",
    "_backend_apply_gradients": "on JAX it writes averages into variables by itself",
    "_overwrite_model_variables_with_average_value": "averages hold no momentum",
    "_get_variable_index": "the place of a variable in the order of `build`",
    "_trainable_variables": "the variables in the order of `build`",
    "_use_weight_decay": "says whether a variable is excluded from decay",
    "_untrack_variable": "drops what `watch_diagonals` added",
}


class GroupedOptimizer(keras.optimizers.Optimizer):
    """A Keras optimizer that updates variables by groups: see `update.py`.

    A subclass has `jit_compile` and `momentum_dtype`, and the two methods that raise
    here.
    """

    _reported_norm = None

    def settings(self) -> Settings:
        """Returns the numbers of a step as they are now."""
        raise NotImplementedError

    def tensor_indices(self, variables) -> list[TensorIndex | MatrixView]:
        """Returns tensor indices, or views as matrices, for a list of (path, shape)."""
        raise NotImplementedError

    def build(self, variables) -> None:
        """Creates one vector per dim of each variable's tensor index."""
        if self.built:
            return
        settings = self.settings()
        for variable in variables:
            check_dtype(variable)
        indices = self.tensor_indices([(path_of(v), tuple(v.shape)) for v in variables])
        for variable, index in zip(variables, indices):
            if settings.packs_momentum and settings.momentum_of(index):
                check_packable(variable)
        with outside_of_traces():
            super().build(variables)
            self._slots = Slots(
                self.add_variable,
                unique_paths(variables),
                variables,
                indices,
                settings,
                self.momentum_dtype,
            )
        # Compiled programs. Not a tracked attribute: they are no part of a checkpoint.
        object.__setattr__(self, "_programs", {})

    def apply(self, grads, trainable_variables=None) -> None:
        """Updates variables by their gradients.

        Args:
            grads: one gradient, or None, per variable, of the shape of the variable.
            trainable_variables: the variables; None stands for those of `build`.

        Raises:
            ValueError: there are more or fewer gradients than variables, a
                gradient has another shape than its variable, or a variable is given
                twice.
        """
        grads = list(grads)
        if trainable_variables is None:
            variables = self._trainable_variables
        else:
            variables = trainable_variables = list(trainable_variables)
            if len(grads) != len(variables):
                raise ValueError(
                    f"{len(grads)} gradients were given for {len(variables)} "
                    "variables: give one per variable, None where there is none"
                )
        if len(set(map(id, variables))) < len(variables):
            twice = next(v for v in variables if sum(o is v for o in variables) > 1)
            raise ValueError(
                f"variable {path_of(twice)!r} was given twice: give it once, with the "
                "sum of its gradients"
            )
        if len(grads) == len(variables):  # Keras refuses others than those of `build`
            grads = [check_gradient(g, v) for g, v in zip(grads, variables)]
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Takes one step for one variable by itself, without clipping by norms."""
        self._step([gradient], [variable], learning_rate, clips=False)

    def _clip_gradients(self, grads):
        """Clips by value, and by norms where the step itself cannot."""
        if self.settings().clips_by_norm and not self._is_distributed():
            return grads
        return super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables):
        """Does nothing: the step decays."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Takes one step for all variables, and reports its norm."""
        if self._is_distributed():  # Keras sums gradients, then calls `update_step`
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        taken = self._step(grads, trainable_variables, learning_rate)
        if self._reported_norm is not None:
            squares = [ops.cast(ops.sum(t.squared_norms), "float32") for t in taken]
            assign(self._reported_norm, ops.sqrt(sum(squares)))

    def _backend_apply_gradients(self, grads, trainable_variables):
        """Takes a step. Packed momentum is 0 where JAX then writes averages."""
        super()._backend_apply_gradients(grads, trainable_variables)
        frequency = self.ema_overwrite_frequency
        if IS_JAX and self.use_ema and frequency is not None:
            self._slots.forget_packed_momentum((self.iterations + 1) % frequency == 0)

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        """Gives variables their averages. Momentum that was packed into them is 0."""
        super()._overwrite_model_variables_with_average_value(trainable_variables)
        self._slots.forget_packed_momentum()

    def _is_distributed(self):
        return IS_TENSORFLOW and xla.is_distributed()

    def _step(self, gradients, variables, learning_rate, clips=True):
        """Takes one step for variables, by groups, counts it and returns its `Taken`s.

        What compiles the step is the program that it is a part of, if there is one; a
        program of its own for each group; or nothing.
        """
        inside = IS_TENSORFLOW and xla.inside_program()
        compiles = (
            IS_TENSORFLOW
            and self.jit_compile
            and not (inside or self._is_distributed())
        )
        settings = self.settings()
        if not clips:
            settings = dataclasses.replace(settings, clipnorm=0.0, global_clipnorm=0.0)
        members = self._members(gradients, variables)
        if not members:
            return []
        groups, positions = [], []
        updates = self._slots.updates()
        entries = xla.GROUP_ENTRIES if inside else GROUP_ENTRIES
        with sums_in_blocks() if inside else contextlib.nullcontext():
            for kind in alike(members, self._slots.indices, entries):
                compiled = compiles and xla.are_worth_a_program(sum(kind, []))
                for group in kind:
                    positions.append([member.position for member in group])
                    arguments = (
                        settings,
                        self._slots.of(positions[-1], updates),
                        [member.variable for member in group],
                        [member.gradient for member in group],
                        group[0].decays,
                    )
                    groups.append(self._group(compiled, *arguments))
            taken = take_step(groups, settings, learning_rate)
        self._slots.record(positions, taken)
        return taken

    def _group(self, compiled, settings, slots, variables, gradients, decays):
        """Returns a group, which is a compiled one if it can be."""
        arguments = settings, slots, variables, gradients, decays
        if compiled and xla.are_on_one_device(variables, slots):
            return xla.CompiledGroup(*arguments, self._programs)
        return make_group(*arguments)

    def _members(self, gradients, variables):
        """Returns a `Member` for every variable that has entries."""
        members = []
        for gradient, variable in zip(gradients, variables):
            if 0 in variable.shape:
                continue
            position = self._get_variable_index(variable)
            known = self._trainable_variables[position]
            decays = bool(self.weight_decay) and self._use_weight_decay(known)
            watched = position in self._slots.diagonals
            members.append(Member(position, variable, gradient, decays, watched))
        return members

    def report_gradient_norm(self, variable) -> None:
        """Has every step assign the global norm of its gradients to a variable.

        The norm, sqrt(sum over variables and entries of g**2), follows from sums that
        a step needs anyway: it costs no pass over the gradients. It is that before
        clipping by norm. A step of replicas does not report, nor does one of JAX inside
        `fit` or `stateless_apply`, which give nothing back but the variables they know.

        Args:
            variable: a scalar float32 variable, not of this optimizer; or None.
        """
        # Not by a plain attribute, which Keras would take for the optimizer's state.
        object.__setattr__(self, "_reported_norm", variable)

    def watch_diagonals(self, matches: Callable[[str], bool]) -> dict[int, str]:
        """Keeps AdaGrad's full-size sums beside the statistics (`TraceRatio`).

        Args:
            matches: function of a variable's path: whether to watch it. A variable
                without entries, or without statistics, is not watched.

        Returns:
            A dict of position to path of the variables watched.
        """
        variables = self._trainable_variables
        watched = {
            position: path
            for position, path in enumerate(unique_paths(variables))
            if matches(path)
            and 0 not in variables[position].shape
            and self._slots.indices[position].dims
        }
        for position in watched:
            self._slots.watch(position, variables[position])
        return watched

    def unwatch_diagonals(self) -> None:
        """Drops the sums that `watch_diagonals` added."""
        for diagonal in self._slots.diagonals.values():
            self._untrack_variable(diagonal)
        self._slots.diagonals.clear()

    @property
    def state_size(self) -> int:
        """Returns the number of scalars of statistics and momentum.

        Counters (`iterations`, updates taken and skipped) and the learning rate
        are not state in this sense.
        """
        if not self.built:
            raise ValueError(
                "`state_size` is known once the optimizer is built. Call "
                "`optimizer.build(model.trainable_variables)` first."
            )
        statistics = sum(index.state_size for index in self._slots.indices)
        momentums = [*self._slots.momentums.values(), self._slots.momentum_scales]
        momentums = [m for m in momentums if m is not None]
        return statistics + sum(math.prod(m.shape) for m in momentums)

    @property
    def skipped_updates(self) -> dict[str, int]:
        """Returns {path: count} of the updates left out for a non-finite gradient.

        The second variable of a path P is called "P#2".
        """
        paths = unique_paths(self._trainable_variables)
        if not self.built or self._slots.counters is None:
            return dict.fromkeys(paths, 0)
        skipped = ops.convert_to_numpy(self._slots.counters.value)[:, 1]
        return {path: int(n) for path, n in zip(paths, skipped)}
