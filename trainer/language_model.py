"""What is trained and what scores: models that share a language model's weights.

A language model maps (B, T) token ids to (B, T, V) logits, and ends with a
`ReversibleEmbedding` called in reverse. Training and scoring need the loss of each
token, not its V logits: they take the hidden states in front of that layer.
"""

import keras
from keras import ops

from trainer import losses
from trainer.errors import UsageError
from trainer.tokenizer import PAD_ID


def output_embedding(model):
    """The layer that makes the logits, and the hidden states (B, T, D) it gets.

    Raises:
        UsageError: the model ends with another layer.
    """
    layer, node_index, _ = model.outputs[0]._keras_history
    if not isinstance(layer, keras.layers.ReversibleEmbedding):
        raise UsageError(
            f"a language model must end with a ReversibleEmbedding called in reverse. "
            f"Model {model.name!r} ends with {layer.name!r}, a {type(layer).__name__}"
        )
    return layer, layer._inbound_nodes[node_index].input_tensors[0]


def training_model(model, label_smoothing, rows):
    """A model from `rows` rows of token ids to the scalar loss of their tokens."""
    return _ending_with(_Loss(model, rows, label_smoothing), model)


def scoring_model(model, rows):
    """A model from `rows` rows of ids to (B, T) nats and (B, T) hits; 0 for padding.

    A hit is a token that was the most likely one.
    """
    return _ending_with(_Scores(model, rows), model)


def _ending_with(last_layer, model):
    _, hidden = output_embedding(model)
    row = model.inputs[0]
    return keras.Model(row, last_layer(hidden, row), name=last_layer.name)


class _Ending(keras.layers.Layer):
    """Holds the embedding, and cuts a batch of `rows` rows into chunks."""

    def __init__(self, model, rows, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self._embedding, _ = output_embedding(model)
        length = model.input_shape[1]
        part = losses.rows_per_chunk(rows, length, self._embedding.input_dim)
        self._chunk = None if part == rows else part * length

    def _flat(self, hidden, row):
        """(n, D) hidden states, (V, D) embeddings, (n,) labels."""
        embeddings = ops.convert_to_tensor(self._embedding.embeddings)
        return (
            ops.reshape(ops.cast(hidden, "float32"), (-1, hidden.shape[-1])),
            ops.cast(embeddings, "float32"),
            ops.reshape(row, (-1,)),
        )


class _Loss(_Ending):
    def __init__(self, model, rows, label_smoothing):
        super().__init__(model, rows, name="loss")
        self._label_smoothing = label_smoothing

    def compute_output_spec(self, hidden, row):
        return keras.KerasTensor((), "float32")

    def call(self, hidden, row):
        hidden, embeddings, labels = self._flat(hidden, row)
        real = ops.cast(ops.not_equal(labels, PAD_ID), "float32")
        weights = real / ops.maximum(ops.sum(real), 1.0)
        return losses.chunked_cross_entropy(
            hidden, embeddings, labels, weights, self._label_smoothing, self._chunk
        )


class _Scores(_Ending):
    def __init__(self, model, rows):
        super().__init__(model, rows, name="scores")

    def compute_output_spec(self, hidden, row):
        return keras.KerasTensor(row.shape), keras.KerasTensor(row.shape)

    def call(self, hidden, row):
        hidden, embeddings, labels = self._flat(hidden, row)
        scores = losses.chunked_token_scores(hidden, embeddings, labels, self._chunk)
        real = ops.cast(ops.not_equal(row, PAD_ID), "float32")
        return tuple(ops.reshape(s, ops.shape(row)) * real for s in scores)


class PassedThrough(keras.losses.Loss):
    """The loss of a `training_model`: its output."""

    def call(self, labels, loss):
        return loss
