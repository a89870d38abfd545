"""The Transformer language model, on packed rows.

The input is a row of token ids: sentences, each closed by EOS, one after another,
then padding. Everything else is derived from it: the decoder's input is the row
shifted right by one (a sentence starts from the EOS before it), sentences attend
only to themselves, positions restart.

Shapes: B rows, T tokens a row, D hidden size, H heads, V vocabulary.
"""

import math

import keras
from keras import layers
from keras import ops

from trainer import registry
from trainer.tokenizer import EOS_ID

PACKAGE = "extreme_tensoring_trainer"


@keras.saving.register_keras_serializable(PACKAGE)
class PackedRow(layers.Layer):
    """Decoder input, attention mask and positions of packed rows."""

    def call(self, row):
        """(B, T) ids -> (B, T) input ids, (B, T, T) mask, (B, T) positions."""
        shifted = ops.concatenate(
            [ops.full_like(row[:, :1], EOS_ID), row[:, :-1]], axis=1
        )
        starts = ops.cast(ops.equal(shifted, EOS_ID), "int32")
        segments = ops.cumsum(starts, axis=1)
        same = ops.equal(segments[:, :, None], segments[:, None, :])
        steps = ops.arange(row.shape[1])
        mask = ops.logical_and(same, steps[:, None] >= steps[None, :])
        # A token's position is the number of tokens of its sentence before it.
        positions = ops.sum(ops.cast(mask, "int32"), axis=-1) - 1
        return shifted, mask, positions


@keras.saving.register_keras_serializable(PACKAGE)
class TimingSignal(layers.Layer):
    """Adds sinusoids of the positions, as in "Attention is all you need".

    signal[t, k] = sin(t * w_k), signal[t, D/2 + k] = cos(t * w_k), where
    w_k = 10000 ** (-k / (D/2 - 1)), k from 0 to D/2 - 1.
    """

    def call(self, x, positions):
        """(B, T, D), (B, T) -> (B, T, D)."""
        half = x.shape[-1] // 2
        step = math.log(10_000) / max(half - 1, 1)
        rates = ops.exp(-step * ops.arange(half, dtype="float32"))
        angles = ops.cast(positions, "float32")[..., None] * rates
        signal = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        return x + ops.cast(signal, x.dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class SelfAttention(layers.Layer):
    """Multi-head dot-product attention without biases."""

    def __init__(self, num_heads, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.dropout = dropout

    def build(self, input_shape):
        size = input_shape[-1]
        for name in ("query", "key", "value", "output"):
            dense = layers.Dense(
                size, use_bias=False, name=name, dtype=self.dtype_policy
            )
            dense.build(input_shape)
            setattr(self, f"{name}_dense", dense)
        self.weights_dropout = layers.Dropout(self.dropout, dtype=self.dtype_policy)

    def call(self, x, mask, training=None):
        """(B, T, D), (B, T, T) -> (B, T, D)."""
        heads = (x.shape[1], self.num_heads, x.shape[-1] // self.num_heads)
        q, k, v = (
            ops.reshape(dense(x), (-1, *heads))  # (B, T, H, D/H)
            for dense in (self.query_dense, self.key_dense, self.value_dense)
        )
        mask = mask[:, None]  # (B, 1, T, T)
        if self.dropout and training:
            scores = ops.einsum("bthd,bshd->bhts", q, k) / heads[-1] ** 0.5
            weights = layers.Softmax(dtype=self.dtype_policy)(scores, mask)
            weights = self.weights_dropout(weights, training=True)
            out = ops.einsum("bhts,bshd->bthd", weights, v)
        else:
            out = ops.dot_product_attention(q, k, v, mask=mask)
        return self.output_dense(ops.reshape(out, (-1, *x.shape[1:])))

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout,
        }


def _block(x, mask, hparams, name):
    """Pre-norm sub-layers with residuals: attention, then feed-forward."""

    def residual(x, y):
        rate = hparams.layer_prepostprocess_dropout
        return x + layers.Dropout(rate)(y)

    def normalized(x, sublayer):
        return layers.LayerNormalization(epsilon=1e-6, name=f"{name}_{sublayer}_norm")(
            x
        )

    attention = SelfAttention(
        hparams.num_heads, hparams.attention_dropout, name=f"{name}_attention"
    )
    x = residual(x, attention(normalized(x, "attention"), mask))
    y = layers.Dense(hparams.filter_size, activation="relu", name=f"{name}_ffn_in")(
        normalized(x, "ffn")
    )
    y = layers.Dropout(hparams.relu_dropout)(y)
    y = layers.Dense(hparams.hidden_size, name=f"{name}_ffn_out")(y)
    return residual(x, y)


@registry.models.register
def transformer_lm(hparams, vocab_size, max_length):
    """Decoder-only Transformer of Tensor2Tensor's hyperparameters.

    Args:
        hparams: a `trainer.hparams.HParams`.
        vocab_size: V, tokens of the vocabulary.
        max_length: T, tokens of a row.

    Returns:
        A Keras model from (B, T) token ids to (B, T, V) logits; those at t
        predict token t from the tokens of its sentence before t.
    """
    size = hparams.hidden_size
    row = keras.Input((max_length,), dtype="int32", name="targets")
    inputs, mask, positions = PackedRow(name="packed_row")(row)
    embedding = layers.ReversibleEmbedding(
        vocab_size,
        size,
        embeddings_initializer=keras.initializers.RandomNormal(stddev=size**-0.5),
        reverse_dtype="float32",
        name="embedding",
    )
    x = layers.Rescaling(size**0.5, name="embedding_scale")(embedding(inputs))
    x = TimingSignal(name="timing_signal")(x, positions)
    x = layers.Dropout(hparams.layer_prepostprocess_dropout)(x)
    for i in range(hparams.num_hidden_layers):
        x = _block(x, mask, hparams, name=f"layer_{i}")
    x = layers.LayerNormalization(epsilon=1e-6, name="final_norm")(x)
    logits = embedding(x, reverse=True)
    return keras.Model(row, logits, name="transformer_lm")
