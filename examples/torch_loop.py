"""Trains in a loop of torch's own: its `backward`, and one call of the optimizer.

KERAS_BACKEND=torch python -m examples.torch_loop
"""

import keras
import numpy as np

from extreme_tensoring_tf import ExtremeTensoring


def main(steps=300):
    """Prints and returns the mean squared error at the first step and at the last."""
    import torch

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((32,)), keras.layers.Dense(64, "tanh"), keras.layers.Dense(4)]
    )
    optimizer = ExtremeTensoring.orthogonal(0.003)
    weights = model.trainable_variables
    optimizer.build(weights)
    rng = np.random.default_rng(0)
    rule = rng.normal(size=(32, 4)).astype("float32") / 8
    losses = []
    for _ in range(steps):
        x = rng.normal(size=(128, 32)).astype("float32")
        model.zero_grad()
        loss = ((model(x) - torch.as_tensor(x @ rule)) ** 2).mean()
        loss.backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in weights], weights)
        losses.append(float(loss.detach()))
    print(f"mean squared error {losses[0]:.4f} at first, {losses[-1]:.4f} at last")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
