"""Trains in a loop of JAX's own: one jitted function, state in and state out.

KERAS_BACKEND=jax python -m examples.jax_loop
"""

import keras
import numpy as np

from extreme_tensoring_tf import ExtremeTensoring


def main(steps=300):
    """Prints and returns the mean squared error at the first step and at the last."""
    import jax

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((32,)), keras.layers.Dense(64, "tanh"), keras.layers.Dense(4)]
    )
    optimizer = ExtremeTensoring.orthogonal(0.003)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(32, 4)).astype("float32") / 8

    def loss(weights, fixed, x, y):
        outputs, fixed = model.stateless_call(weights, fixed, x, training=True)
        return jax.numpy.mean((outputs - y) ** 2), fixed

    @jax.jit
    def step(weights, fixed, state, x, y):
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, fixed), gradients = gradient(weights, fixed, x, y)
        weights, state = optimizer.stateless_apply(state, gradients, weights)
        return value, weights, fixed, state

    weights = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]
    state = [v.value for v in optimizer.variables]
    losses = []
    for _ in range(steps):
        x = rng.normal(size=(128, 32)).astype("float32")
        value, weights, fixed, state = step(weights, fixed, state, x, x @ rule)
        losses.append(value)
    for variable, value in zip(
        [*model.trainable_variables, *optimizer.variables], [*weights, *state]
    ):
        variable.assign(value)  # so that the model can be used and saved
    first, last = float(losses[0]), float(losses[-1])
    print(f"mean squared error {first:.4f} at first, {last:.4f} after {steps} steps")
    return first, last


if __name__ == "__main__":
    main()
