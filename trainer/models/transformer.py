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
from trainer.data.tokenizer import EOS_ID
from trainer.errors import UsageError
from trainer.models import language_model
from trainer.models import noise

PACKAGE = "extreme_tensoring_trainer"


@keras.saving.register_keras_serializable(PACKAGE)
class PackedRow(layers.Layer):
    """Derives decoder input, attention mask and positions from packed rows."""

    def call(self, row):
        """Maps (B, T) ids to (B, T) input ids, (B, T, T) mask, (B, T) positions."""
        shifted = ops.concatenate(
            [ops.full_like(row[:, :1], EOS_ID), row[:, :-1]], axis=1
        )
        starts = ops.cast(ops.equal(shifted, EOS_ID), "int32")
        segments = ops.cumsum(starts, axis=1)
        same = ops.equal(segments[:, :, None], segments[:, None, :])
        steps = ops.arange(ops.shape(row)[1])
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
        """Maps x (B, T, D) and positions (B, T) to (B, T, D)."""
        half = x.shape[-1] // 2
        step = math.log(10_000) / max(half - 1, 1)
        rates = ops.exp(-step * ops.arange(half, dtype="float32"))
        angles = ops.cast(positions, "float32")[..., None] * rates
        signal = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        return x + ops.cast(signal, x.dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class SelfAttention(layers.Layer):
    """Applies multi-head dot-product attention without biases.

    Args:
        num_heads: H; it divides D.
        dropout: of the attention weights, in training.
    """

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

    def call(self, x, mask, cache=None, at=0, seed=None):
        """Attends from T positions to S: the same ones, or those of a cache.

        Args:
            x: (B, T, D).
            mask: (B, T, S), true where a position may be seen.
            cache: None, or keys and values of S positions, (B, S, H, D/H) each.
            at: where in the cache the T positions stand.
            seed: of the dropout of attention weights; None: no dropout.

        Returns:
            (B, T, D), and the keys and values of all S positions.
        """
        length, size = ops.shape(x)[1], x.shape[-1]
        heads = (length, self.num_heads, size // self.num_heads)
        q, k, v = (
            ops.reshape(dense(x), (-1, *heads))  # (B, T, H, D/H)
            for dense in (self.query_dense, self.key_dense, self.value_dense)
        )
        if cache is not None:
            start = (0, at, 0, 0)
            k, v = (ops.slice_update(c, start, new) for c, new in zip(cache, (k, v)))
        mask = mask[:, None]  # (B, 1, T, S)
        if self.dropout and seed is not None:
            scores = ops.einsum("bthd,bshd->bhts", q, k) / heads[-1] ** 0.5
            weights = layers.Softmax(dtype=self.dtype_policy)(scores, mask)
            weights = noise.dropout(weights, self.dropout, seed)
            out = ops.einsum("bhts,bshd->bthd", weights, v)
        else:
            out = ops.dot_product_attention(q, k, v, mask=mask)
        return self.output_dense(ops.reshape(out, (-1, length, size))), (k, v)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "dropout": self.dropout,
        }


@keras.saving.register_keras_serializable(PACKAGE)
class Block(layers.Layer):
    """Applies pre-norm sub-layers with residuals: attention, then feed-forward.

    y = x + dropout(attention(norm(x)))
    out = y + dropout(W2 dropout(relu(W1 norm(y) + b1)) + b2)

    Where `remat` is set, training computes the block again for the gradient, and keeps
    only its input in memory.

    Args:
        num_heads: H; it divides D.
        filter_size: width of the feed-forward layer.
        dropout: of the output of each sub-layer.
        attention_dropout: of the attention weights.
        relu_dropout: inside the feed-forward layer.
    """

    remat = False

    def __init__(
        self,
        num_heads,
        filter_size,
        dropout=0.0,
        attention_dropout=0.0,
        relu_dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.filter_size = filter_size
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.relu_dropout = relu_dropout
        rates = (dropout, attention_dropout, relu_dropout)
        self._seeds = keras.random.SeedGenerator() if any(rates) else None

    def build(self, input_shape):
        def norm(name):
            return layers.LayerNormalization(
                epsilon=1e-6, name=name, dtype=self.dtype_policy
            )

        def dense(units, name, activation=None):
            return layers.Dense(units, activation, name=name, dtype=self.dtype_policy)

        wide = (*input_shape[:-1], self.filter_size)
        self.attention_norm = norm("attention_norm")
        self.attention = SelfAttention(
            self.num_heads,
            self.attention_dropout,
            name="attention",
            dtype=self.dtype_policy,
        )
        self.ffn_norm = norm("ffn_norm")
        self.ffn_in = dense(self.filter_size, "ffn_in", "relu")
        self.ffn_out = dense(input_shape[-1], "ffn_out")
        for layer in (self.attention_norm, self.attention, self.ffn_norm, self.ffn_in):
            layer.build(input_shape)
        self.ffn_out.build(wide)

    def call(self, x, mask, training=None):
        """Maps x (B, T, D) and mask (B, T, T) to (B, T, D)."""
        seeds = [None] * 4
        if training and self._seeds is not None:
            # One draw a step: the generator counts steps, which `training` sets.
            drawn = self._seeds.next()
            seeds = [drawn + ops.array([k, 0], drawn.dtype) for k in range(4)]

        def block(x):
            return self._apply(x, mask, None, 0, seeds)[0]

        return keras.remat(block)(x) if training and self.remat else block(x)

    def decode(self, x, mask, cache, at):
        """Maps x (B, T, D) to (B, T, D) and the new cache, as `SelfAttention` does."""
        return self._apply(x, mask, cache, at, [None] * 4)

    def _apply(self, x, mask, cache, at, seeds):
        out, cache = self.attention(
            self.attention_norm(x), mask, cache=cache, at=at, seed=seeds[0]
        )
        x = x + noise.dropout(out, self.dropout, seeds[1])
        wide = noise.dropout(self.ffn_in(self.ffn_norm(x)), self.relu_dropout, seeds[2])
        return x + noise.dropout(self.ffn_out(wide), self.dropout, seeds[3]), cache

    def get_config(self):
        names = (
            "num_heads",
            "filter_size",
            "dropout",
            "attention_dropout",
            "relu_dropout",
        )
        return super().get_config() | {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(PACKAGE)
class TransformerLM(language_model.LanguageModel):
    """Decoder-only Transformer, its embedding shared by inputs and logits.

    Args:
        vocab_size: V.
        num_hidden_layers: blocks.
        hidden_size: D, even.
        num_heads, filter_size, attention_dropout, relu_dropout: see `Block`.
        dropout: of the embeddings and of each block.
        dtype: policy of the layers. Defaults to Keras' global one.
        name: of the model.
    """

    def __init__(
        self,
        vocab_size,
        num_hidden_layers,
        hidden_size,
        num_heads,
        filter_size,
        dropout=0.0,
        attention_dropout=0.0,
        relu_dropout=0.0,
        dtype=None,
        name="transformer_lm",
        **kwargs,
    ):
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        row = keras.Input((None,), dtype="int32", name="targets")
        inputs, mask, positions = PackedRow(name="packed_row")(row)
        # Rows are looked up in float32, whatever the policy: the gradient of a row is a
        # sum over all places where its token stands.
        embedding = layers.ReversibleEmbedding(
            vocab_size,
            hidden_size,
            embeddings_initializer=keras.initializers.RandomNormal(
                stddev=hidden_size**-0.5
            ),
            dtype="float32",
            name="embedding",
        )
        scale = layers.Rescaling(hidden_size**0.5, dtype=dtype, name="embedding_scale")
        timing_signal = TimingSignal(dtype=dtype, name="timing_signal")
        x = timing_signal(scale(embedding(inputs)), positions)
        x = layers.Dropout(dropout, dtype=dtype, name="embedding_dropout")(x)
        blocks = []
        for i in range(num_hidden_layers):
            blocks.append(
                Block(
                    num_heads,
                    filter_size,
                    dropout,
                    attention_dropout,
                    relu_dropout,
                    dtype=dtype,
                    name=f"layer_{i}",
                )
            )
            x = blocks[-1](x, mask)
        norm = layers.LayerNormalization(epsilon=1e-6, dtype=dtype, name="final_norm")
        super().__init__(row, norm(x), embedding, name=name, **kwargs)
        self._scale = scale
        self._timing_signal = timing_signal
        self._blocks = blocks
        self._norm = norm
        self._settings = {
            "vocab_size": vocab_size,
            "num_hidden_layers": num_hidden_layers,
            "hidden_size": hidden_size,
            "num_heads": num_heads,
            "filter_size": filter_size,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "relu_dropout": relu_dropout,
            "dtype": keras.dtype_policies.serialize(dtype),
        }

    @property
    def remat(self):
        """True where training computes each block again for its gradient."""
        return self._blocks[0].remat

    @remat.setter
    def remat(self, value):
        for block in self._blocks:
            block.remat = value

    def empty_cache(self, rows, slots):
        """Returns keys and values of each block, (B, S, H, D/H), all zero."""

        def zeros(block):
            heads = block.num_heads
            shape = (rows, slots, heads, self.embedding.output_dim // heads)
            return ops.zeros(shape, block.compute_dtype)

        return [(zeros(block), zeros(block)) for block in self._blocks]

    def decode(self, tokens, positions, mask, cache, at):
        """See `LanguageModel.decode`."""
        x = self._timing_signal(self._scale(self.embedding(tokens)), positions)
        kept = []
        for block, keys_and_values in zip(self._blocks, cache):
            x, keys_and_values = block.decode(x, mask, keys_and_values, at)
            kept.append(keys_and_values)
        return self._norm(x), kept

    def get_config(self):
        return {"name": self.name, "trainable": self.trainable, **self._settings}


@registry.models.register
def transformer_lm(hparams, vocab_size, max_length):
    """Returns a `TransformerLM` of Tensor2Tensor's hyperparameters.

    Args:
        hparams: a `trainer.hparams.HParams`.
        vocab_size: V, tokens of the vocabulary.
        max_length: tokens of the longest row. It has no effect: timing signals are
            there for every length.
    """
    return TransformerLM(
        vocab_size,
        hparams.num_hidden_layers,
        hparams.hidden_size,
        hparams.num_heads,
        hparams.filter_size,
        hparams.layer_prepostprocess_dropout,
        hparams.attention_dropout,
        hparams.relu_dropout,
    )


def transformer_lm_layout(hparams, vocab_size, devices):
    """Returns which axis of each variable devices cut, by pattern of its path.

    Heads and the units of feed-forward layers are shared out, so that a sub-layer ends
    with one sum over devices (Shoeybi et al. 2019, "Megatron-LM"); so is the
    vocabulary where it can be, and else the width of the embedding. Everything else is
    whole on each device.

    Args:
        hparams: `trainer.hparams.HParams` of the model.
        vocab_size: V.
        devices: that share a copy of the model.

    Raises:
        UsageError: heads or units cannot be shared out among so many devices.
    """
    for name in ("num_heads", "filter_size"):
        if getattr(hparams, name) % devices:
            raise UsageError(
                f"{name}={getattr(hparams, name)} cannot be shared out among "
                f"{devices} devices: choose another --model_devices"
            )
    columns, rows = (None, "model"), ("model", None)
    return {
        ".*embedding/embeddings": columns if vocab_size % devices else rows,
        ".*attention/(query|key|value)/kernel": columns,
        ".*attention/output/kernel": rows,
        ".*ffn_in/kernel": columns,
        ".*ffn_in/bias": ("model",),
        ".*ffn_out/kernel": rows,
    }


registry.layouts.register(transformer_lm_layout, name="transformer_lm")
