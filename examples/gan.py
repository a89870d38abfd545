"""Trains a GAN, whose two networks have an optimizer each, on points of a circle.

    python -m examples.gan

A loop of TensorFlow's own: Keras' `fit` knows one optimizer a model.
"""

import keras
import numpy as np
import tensorflow as tf

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf import memory_report

NOISE = 16


def network(inputs, outputs):
    """Returns a network of two hidden layers."""
    hidden = [keras.layers.Dense(128, "leaky_relu") for _ in range(2)]
    return keras.Sequential(
        [keras.Input((inputs,)), *hidden, keras.layers.Dense(outputs)]
    )


def real_points(count):
    """Returns points of the unit circle."""
    angles = tf.random.uniform((count,), 0, 2 * np.pi)
    return tf.stack([tf.cos(angles), tf.sin(angles)], axis=1)


def main(steps=2000, batch=128):
    """Prints and returns what tells whether the generator has learnt the circle.

    Returns:
        The mean distance of generated points from the circle, and the share of its
        16 sectors in which at least 1 of 100 points lies.
    """
    keras.utils.set_random_seed(0)
    generator, discriminator = network(NOISE, 2), network(2, 1)
    optimizers = {
        "generator": (generator, ExtremeTensoring(0.001, beta_1=0.5)),
        "discriminator": (discriminator, ExtremeTensoring(0.001)),
    }
    loss = keras.losses.BinaryCrossentropy(from_logits=True)

    @tf.function
    def step():
        fake = generator(tf.random.normal((batch, NOISE)))
        both = tf.concat([real_points(batch), fake], axis=0)
        real = tf.concat([tf.ones((batch, 1)), tf.zeros((batch, 1))], axis=0)
        with tf.GradientTape() as tape:
            value = loss(real, discriminator(both))
        model, optimizer = optimizers["discriminator"]
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(value, weights), weights)
        with tf.GradientTape() as tape:
            fake = generator(tf.random.normal((batch, NOISE)))
            value = loss(tf.ones((batch, 1)), discriminator(fake))
        model, optimizer = optimizers["generator"]
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(value, weights), weights)

    for model, optimizer in optimizers.values():
        optimizer.build(model.trainable_variables)
    for _ in range(steps):
        step()
    points = generator(tf.random.normal((1600, NOISE))).numpy()
    distance = float(np.abs(np.linalg.norm(points, axis=1) - 1).mean())
    sector = np.floor(np.arctan2(*points.T) / (2 * np.pi) * 16).astype(int) % 16
    covered = float((np.bincount(sector, minlength=16) >= 16).mean())
    for name, (model, optimizer) in optimizers.items():
        totals = memory_report(model, [optimizer, "adam"]).totals
        ours, adam = (total["scalars"] for total in totals.values())
        print(f"{name}: {ours:,} scalars of state, Adam {adam:,}")
    print(f"distance from the circle {distance:.3f}, {covered:.0%} of it covered")
    return distance, covered


if __name__ == "__main__":
    main()
