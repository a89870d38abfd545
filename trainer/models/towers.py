"""A step of several devices on TensorFlow, by towers: Tensor2Tensor's `--worker_gpu`.

A tower is the model on one device. Variables lie on the first one, of which TensorFlow
sends the others copies; each tower computes the gradients of its own rows, and their
sum is the gradient of one device, which clips and updates as ever. Neither the model
nor the optimizer knows that there are towers.
"""

import keras

from trainer import distribution
from trainer.data.tokenizer import PAD_ID


def each(function, rows):
    """Returns what a function makes of each tower's rows, on the tower's device.

    Args:
        function: of rows. All that it makes, it makes on that device.
        rows: (B, T) token ids, of which each tower has as many; B divides.
    """
    import tensorflow as tf

    devices = distribution.towers()
    found = []
    for device, part in zip(devices, tf.split(rows, len(devices))):
        with tf.device(device):
            found.append(function(part))
    return found


def train_step(model, rows):
    """Takes a step of a `language_model.training_model`, and returns the loss.

    The loss of a tower is a mean over its own tokens. It counts as often as these are
    of all; what else a model adds, to the loss of each tower, is averaged.

    Args:
        model: compiled `training_model`.
        rows: (B, T) token ids.
    """
    import tensorflow as tf

    def real(ids):
        return tf.math.count_nonzero(ids != PAD_ID, dtype="float32")

    number = len(distribution.towers())
    tokens = tf.maximum(real(rows), 1.0)
    weights = model.trainable_weights

    def loss_and_gradients(own):
        with tf.GradientTape() as tape:
            mean = model(own, training=True)
            added = model._compute_loss(x=own, y_pred=mean, training=True) - mean
            loss = mean * (real(own) / tokens)
            scaled = model.optimizer.scale_loss(loss + added / number)
        return loss, tape.gradient(scaled, weights)

    found = each(loss_and_gradients, rows)
    gradients = [_sum(parts) for parts in zip(*(g for _, g in found))]
    model.optimizer.apply(gradients, weights)
    return tf.add_n([loss for loss, _ in found])


def scores(model, rows):
    """Returns what a `language_model.scoring_model` does, of which each has a part."""
    found = each(lambda own: model(own, training=False), rows)
    return tuple(keras.ops.concatenate(parts) for parts in zip(*found))


def _sum(gradients):
    """Returns the sum of a variable's gradients, which are alike; None for no one."""
    import tensorflow as tf

    if gradients[0] is None:
        return None
    if not isinstance(gradients[0], tf.IndexedSlices):
        return tf.add_n(gradients)
    return tf.IndexedSlices(
        tf.concat([g.values for g in gradients], 0),
        tf.concat([g.indices for g in gradients], 0),
        gradients[0].dense_shape,
    )
