"""The cross-entropy of `losses.py` from whole logits, for tests to compare with."""

import keras
from keras import ops


class SmoothedCrossEntropy(keras.losses.Loss):
    """Mean over tokens; padding, of weight 0, does not count.

    Args:
        label_smoothing: s of `losses.chunked_cross_entropy`.
    """

    def __init__(self, label_smoothing=0.0):
        super().__init__(reduction="mean_with_sample_weight")
        self._smoothing = label_smoothing

    def call(self, labels, logits):
        """Returns the nats (B, T) of labels (B, T) by logits (B, T, V)."""
        logits = ops.cast(logits, "float32")
        vocab_size = logits.shape[-1]
        other = self._smoothing / (vocab_size - 1)
        one_hot = ops.one_hot(ops.cast(labels, "int32"), vocab_size)
        targets = other + (1 - self._smoothing - other) * one_hot
        return -ops.sum(targets * ops.log_softmax(logits), axis=-1)
