"""Adapts a trained network to another task by LoRA: a few columns beside each kernel.

    python -m examples.lora

`orthogonalize=True` takes the two factors of every layer, whose names contain
"kernel", and keeps nothing for them.
"""

import keras
import numpy as np

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report

FEATURES = 64


def task(seed, count):
    """Returns points and classes; tasks share all but the last layer of the rule."""
    common = np.random.default_rng(0).normal(size=(FEATURES, 32)) / 8
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(32, 4))
    points = rng.normal(size=(count, FEATURES)).astype("float32")
    return points, np.tanh(points @ common).dot(own).argmax(axis=1)


def fit(model, data, optimizer, epochs):
    """Trains, and returns the accuracy on the last eighth of the data."""
    points, classes = data
    cut = len(points) * 7 // 8
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(points[:cut], classes[:cut], batch_size=64, epochs=epochs, verbose=0)
    return model.evaluate(points[cut:], classes[cut:], verbose=0)[1]


def main(rank=4, epochs=6, count=8192):
    """Prints and returns the accuracy on a new task, before and after adapting."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(256, "relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((FEATURES,)), *hidden, keras.layers.Dense(4)])
    fit(model, task(1, count), ExtremeTensoring(0.001, orthogonalize=True), epochs)
    new = task(2, count)
    before = fit(model, new, "sgd", epochs=0)
    for layer in model.layers:
        layer.enable_lora(rank)  # its kernel and nothing else of it is frozen
    optimizer = ExtremeTensoring(0.003, orthogonalize=True)
    after = fit(model, new, optimizer, epochs)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    totals = memory_report(model, [optimizer, "adam"]).totals
    ours, adam = (total["scalars"] for total in totals.values())
    print(f"{trained:,} trained numbers; state {ours:,} scalars, Adam {adam:,}")
    print(f"accuracy on the new task: {before:.1%} before, {after:.1%} after")
    return before, after


if __name__ == "__main__":
    main()
