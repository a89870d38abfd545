"""Classifies small pictures of shapes, in float32 or in mixed precision.

    python -m examples.image_classification
    python -m examples.image_classification --dtype=mixed_float16

Nothing differs between the runs but `optimizer=` and, in mixed precision, the dtype
policy: with float16 Keras scales the loss, and a step that overflows is skipped.
"""

import argparse

import keras
import numpy as np

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report

SIZE = 16
CLASSES = ("square", "frame", "cross", "line")


def pictures(count, seed):
    """Returns noisy pictures (count, SIZE, SIZE, 1) of shapes, and their classes."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 0.5, (count, SIZE, SIZE, 1))
    labels = rng.integers(len(CLASSES), size=count)
    for image, label in zip(images, labels):
        side = rng.integers(5, 10)
        top, left = rng.integers(0, SIZE - side, 2)
        part = image[top : top + side, left : left + side, 0]
        middle = side // 2
        if CLASSES[label] == "square":
            part += 1
        elif CLASSES[label] == "frame":
            part += 1
            part[1:-1, 1:-1] -= 1
        else:
            part[middle] += 1
            if CLASSES[label] == "cross":
                part[:, middle] += 1
    return images.astype("float32"), labels


def network(dtype="float32"):
    """Returns a convolutional network whose logits are float32."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            layers.Conv2D(32, 3, activation="relu", dtype=dtype),
            layers.Conv2D(64, 3, strides=2, activation="relu", dtype=dtype),
            layers.Conv2D(64, 3, activation="relu", dtype=dtype),
            layers.GlobalMaxPooling2D(dtype=dtype),
            layers.Dense(len(CLASSES), dtype="float32"),
        ]
    )


def main(dtype="float32", count=4096, epochs=3):
    """Prints, and returns by optimizer, the state and the accuracy on new pictures."""
    images, labels = pictures(count, seed=0)
    held_out = pictures(1000, seed=1)
    optimizers = {
        "adam": keras.optimizers.Adam(0.003),
        "orthogonal": ExtremeTensoring.orthogonal(0.003),
    }
    found = {}
    for name, optimizer in optimizers.items():
        keras.utils.set_random_seed(0)
        model = network(dtype)
        model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
        accuracy = model.evaluate(*held_out, verbose=0)[1]
        asked = optimizer if isinstance(optimizer, ExtremeTensoring) else name
        (total,) = memory_report(model, [asked]).totals.values()
        scalars = total["scalars"]
        found[name] = scalars, accuracy
        print(f"{name}: {scalars:,} scalars of state, {accuracy:.1%} right")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "mixed_bfloat16", "mixed_float16"],
    )
    main(parser.parse_args().dtype)
