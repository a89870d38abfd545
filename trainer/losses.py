"""Cross-entropy of next-token predictions, in nats."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("extreme_tensoring_trainer")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Mean cross-entropy over tokens, the labels smoothed.

    loss = logsumexp(z) - sum_v q_v z_v,
    q_v = 1 - s for the label, s / (V - 1) for the others

    where
        z: logits, shape (B, T, V); s: label smoothing; V: the vocabulary.

    The mean is weighted: padding has weight 0 and does not count.
    """

    def __init__(self, label_smoothing=0.0, name="loss", **kwargs):
        kwargs.setdefault("reduction", "mean_with_sample_weight")
        super().__init__(name=name, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, labels, logits):
        labels = ops.cast(labels, "int32")  # Keras hands them over as floats
        logits = ops.cast(logits, "float32")
        nats = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        if not self.label_smoothing:
            return nats
        # The smoothed loss moves s/(V-1) per token to each other token:
        # nats + s/(V-1) * sum_v (z_label - z_v).
        vocab_size = logits.shape[-1]
        others = self.label_smoothing / (vocab_size - 1)
        label = ops.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
        return nats + others * (vocab_size * label - ops.sum(logits, axis=-1))

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
