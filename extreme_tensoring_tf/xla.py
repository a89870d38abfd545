"""The update of all variables as one XLA program (TensorFlow backend)."""

import tensorflow as tf

from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.sparse import is_sparse
from extreme_tensoring_tf.update import update_all


def distributed():
    """Whether a distribution strategy is in effect."""
    return tf.distribute.has_strategy()


def compiled_update(optimizer, grads, variables, learning_rate, fused):
    """Calls `update_all` as one compiled program.

    Eager mode and an uncompiled `tf.function` call the program; inside an outer
    XLA function it becomes a part of that one. Nothing is compiled again when the
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
    program = getattr(optimizer, "_update_program", None)
    if program is None:

        @tf.function(jit_compile=True, autograph=False)
        def program(positions, grads, learning_rate, fused):
            known = optimizer._trainable_variables
            variables = [known[i] for i in positions]
            with sums_in_blocks():
                update_all(optimizer, grads, variables, learning_rate, fused)

        # Not a tracked attribute: a function is no part of a checkpoint.
        object.__setattr__(optimizer, "_update_program", program)
    program(
        tuple(optimizer._get_variable_index(v) for _, v in dense),
        [tf.convert_to_tensor(g) for g, _ in dense],
        tf.convert_to_tensor(learning_rate),
        fused,
    )
