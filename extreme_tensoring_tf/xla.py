"""The update of all variables as one XLA program (TensorFlow backend)."""

import tensorflow as tf

from extreme_tensoring_tf.marginals import sums_in_blocks
from extreme_tensoring_tf.sparse import is_sparse


def distributed():
    """Whether a distribution strategy is in effect."""
    return tf.distribute.has_strategy()


def compiled_update(optimizer, grads, variables, learning_rate):
    """Calls the optimizer's `_update_all` as one compiled program.

    Eager mode and an uncompiled `tf.function` call the program; inside an outer
    XLA function it becomes a part of that one. Nothing is compiled again when the
    rate or the step changes.

    Args:
        optimizer: an `ExtremeTensoring`, built on `variables`.
        grads, variables, learning_rate: arguments of `_update_all`.
    """
    dense, slices = [], []
    for gradient, variable in zip(grads, variables):
        # Scattering a few rows is faster outside: XLA may copy the variable.
        group = slices if is_sparse(gradient) else dense
        group.append((gradient, variable))
    if slices:
        optimizer._update_all(*zip(*slices), learning_rate)
    if not dense:
        return
    program = getattr(optimizer, "_update_program", None)
    if program is None:

        @tf.function(jit_compile=True, autograph=False)
        def program(positions, grads, learning_rate):
            known = optimizer._trainable_variables
            with sums_in_blocks():
                optimizer._update_all(
                    grads, [known[i] for i in positions], learning_rate
                )

        # Not a tracked attribute: a function is no part of a checkpoint.
        object.__setattr__(optimizer, "_update_program", program)
    program(
        tuple(optimizer._get_variable_index(v) for _, v in dense),
        [tf.convert_to_tensor(g) for g, _ in dense],
        tf.convert_to_tensor(learning_rate),
    )
