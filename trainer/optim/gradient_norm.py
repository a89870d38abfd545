"""Wraps an optimizer so that the norm of the last gradient is kept."""

import keras
from keras import ops

from extreme_tensoring_tf import memory
from extreme_tensoring_tf.gradients import is_sparse


class GradientNorm(keras.optimizers.Optimizer):
    """Passes everything on to an optimizer, and keeps the norm of the last gradient.

    norm = sqrt(sum over variables and entries of g^2), before clipping, and without
    the loss scale of mixed_float16.

    An optimizer that sums the squares of gradients anyway spares a second pass over
    them: it has a method `report_gradient_norm(variable)`, and from then on its
    `apply` assigns the norm to that variable. With `gradient_accumulation_steps` this
    is the norm of the mean gradient. On JAX, where a variable that is not the
    optimizer's own cannot be assigned by it, the second pass stays.

    The wrapper is put around the optimizer of a run and never saved, so that
    checkpoints do not depend on it.

    Args:
        inner_optimizer: a Keras optimizer, or a `LossScaleOptimizer` of one.

    Attributes:
        norm: scalar variable, float32; there once the optimizer is built.
    """

    def __init__(self, inner_optimizer):
        super().__init__(learning_rate=0.0, name="gradient_norm")
        self.inner_optimizer = inner_optimizer

    def build(self, variables):
        self.norm = self.add_variable(shape=(), dtype="float32", name="norm")
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(variables)
        optimizer = memory.inner(self.inner_optimizer)
        self._reported = keras.backend.backend() != "jax" and hasattr(
            optimizer, "report_gradient_norm"
        )
        if self._reported:
            optimizer.report_gradient_norm(self.norm)
        super().build(variables)

    @property
    def variables(self):
        return self._variables + self.inner_optimizer.variables

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        if not self._reported:
            self.norm.assign(self._norm_of(grads))
        self.inner_optimizer.apply(grads, trainable_variables)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        # JAX: an optimizer that scales the loss can only be called this way.
        own = len(self._variables)
        mapping = list(zip(self.variables, optimizer_variables))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.norm.assign(self._norm_of(grads))
        values, inner = self.inner_optimizer.stateless_apply(
            optimizer_variables[own:], grads, trainable_variables
        )
        return values, [scope.get_current_value(v) for v in self._variables] + inner

    def _norm_of(self, grads):
        given = [ops.cast(g, "float32") for g in grads if g is not None]
        # A sparse gradient may hold a row several times. Others may be spread over
        # devices, which reshaping would undo.
        given = [ops.reshape(g, (-1,)) if is_sparse(g) else g for g in given]
        squares = [ops.sum(ops.square(g)) for g in given]
        return ops.sqrt(sum(squares)) / self.inner_optimizer.scale_loss(1.0)

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @property
    def iterations(self):
        return self.inner_optimizer.iterations

    def scale_loss(self, loss):
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, variables):
        self.inner_optimizer.finalize_variable_values(variables)
