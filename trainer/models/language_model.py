"""What is trained and what scores: models that share a language model's weights.

A language model maps (B, T) token ids to (B, T, V) logits, and ends with a
`ReversibleEmbedding` called in reverse. Training and scoring need the loss of each
token, not its V logits: they take the hidden states in front of that layer.
"""

import keras
from keras import ops

from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.models import losses


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


def training_model(model, label_smoothing, tokens):
    """A model from (B, T) token ids to their scalar loss; B * T <= `tokens`.

    The loss is the model's own (`add_loss`): it is compiled with an optimizer alone.
    """
    return _ending_with(_Loss(model, tokens, label_smoothing), model)


def scoring_model(model, tokens):
    """A model from (B, T) ids to (B, T) nats and (B, T) hits; 0 for padding.

    A hit is a token that was the most likely one. B * T <= `tokens`; where that is
    None, B and T may be known only when the model is called.
    """
    return _ending_with(_Scores(model, tokens), model)


def _ending_with(last_layer, model):
    _, hidden = output_embedding(model)
    row = model.inputs[0]
    return keras.Model(row, last_layer(hidden, row), name=last_layer.name)


class _Ending(keras.layers.Layer):
    """Holds the embedding, and cuts a batch of at most `tokens` into chunks."""

    def __init__(self, model, tokens, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self._embedding, _ = output_embedding(model)
        vocab_size = self._embedding.input_dim
        self._padding = None  # tokens of a batch -> tokens that fill up its chunks
        if tokens is None:
            self._chunk = losses.largest_chunk(vocab_size)
            self._padding = lambda count: -count % self._chunk
            return
        number, size = losses.chunks(tokens, vocab_size)
        self._chunk = None if number == 1 else size
        # Batches of the unpacked form have fewer tokens, each its own number.
        if model.input_shape[1] is None or number * size > tokens:
            self._padding = lambda count: number * size - count

    def _flat(self, hidden, row):
        """(n, D) hidden states, (V, D) embeddings, (n,) labels; n fills the chunks."""
        hidden = ops.reshape(ops.cast(hidden, "float32"), (-1, hidden.shape[-1]))
        labels = ops.reshape(row, (-1,))
        if self._padding:
            missing = self._padding(ops.shape(labels)[0])
            hidden = ops.pad(hidden, ((0, missing), (0, 0)))
            labels = ops.pad(labels, ((0, missing),), constant_values=PAD_ID)
        embeddings = ops.convert_to_tensor(self._embedding.embeddings)
        return hidden, ops.cast(embeddings, "float32"), labels


class _Loss(_Ending):
    def __init__(self, model, tokens, label_smoothing):
        super().__init__(model, tokens, name="loss")
        self._label_smoothing = label_smoothing

    def compute_output_spec(self, hidden, row):
        return keras.KerasTensor((), "float32")

    def call(self, hidden, row):
        hidden, embeddings, labels = self._flat(hidden, row)
        real = ops.cast(ops.not_equal(labels, PAD_ID), "float32")
        weights = real / ops.maximum(ops.sum(real), 1.0)
        loss = losses.chunked_cross_entropy(
            hidden, embeddings, labels, weights, self._label_smoothing, self._chunk
        )
        self.add_loss(loss)
        return loss


class _Scores(_Ending):
    def __init__(self, model, tokens):
        super().__init__(model, tokens, name="scores")

    def compute_output_spec(self, hidden, row):
        return keras.KerasTensor(row.shape), keras.KerasTensor(row.shape)

    def call(self, hidden, row):
        hidden, embeddings, labels = self._flat(hidden, row)
        scores = losses.chunked_token_scores(hidden, embeddings, labels, self._chunk)
        real = ops.cast(ops.not_equal(row, PAD_ID), "float32")
        if self._padding:
            count = ops.shape(ops.reshape(row, (-1,)))[0]
            scores = (s[:count] for s in scores)
        return tuple(ops.reshape(s, ops.shape(row)) * real for s in scores)
