"""Continues token sequences, each step at the same cost, however long they are.

A step computes keys and values of its own token only; those of the tokens before are
kept ("cache"). Prompts of different lengths share a batch: they end in the same slot.

Shapes: B rows, P tokens of the longest prompt, S = P + 1 + length slots.
"""

import keras
import numpy as np
from keras import ops

from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.inference import sampling
from trainer.models import language_model


class CachedModel:
    """A `transformer_lm` called on the next tokens alone."""

    def __init__(self, model):
        self.embedding, _ = language_model.output_embedding(model)
        self.blocks = [layer for layer in model.layers if hasattr(layer, "decode")]
        if not self.blocks:
            raise UsageError(
                f"model {model.name!r} cannot be decoded: none of its layers has a "
                "`decode` method, as `trainer.models.transformer.Block` has"
            )
        self._scale = model.get_layer("embedding_scale")
        self._timing_signal = model.get_layer("timing_signal")
        self._norm = model.get_layer("final_norm")

    def no_keys(self, rows, slots):
        """Keys and values of each block, (B, S, H, D/H), before the first token."""

        def zeros(block):
            size = self.embedding.output_dim // block.num_heads
            return ops.zeros((rows, slots, block.num_heads, size), block.compute_dtype)

        return [(zeros(block), zeros(block)) for block in self.blocks]

    def __call__(self, tokens, positions, mask, cache, at):
        """Logits after the last of T tokens, and the cache with theirs.

        Args:
            tokens, positions: (B, T).
            mask: (B, T, S), true where a slot may be seen.
            cache: keys and values of all slots.
            at: slot of the first of the T tokens.

        Returns:
            (B, V) and the new cache.
        """
        x = self._timing_signal(self._scale(self.embedding(tokens)), positions)
        kept = []
        for block, keys_and_values in zip(self.blocks, cache):
            x, keys_and_values = block.decode(x, mask, keys_and_values, at)
            kept.append(keys_and_values)
        logits = self.embedding(self._norm(x[:, -1:]), reverse=True)[:, 0]
        return sampling.real_tokens(ops.cast(logits, "float32")), kept


class Prompts:
    """(B, P) token ids, filled up at the right, moved to end in slot P.

    Slot 0 of a row of P tokens holds EOS, from which a sentence starts; a shorter
    row starts later.
    """

    def __init__(self, ids):
        self.width = ops.shape(ids)[1]
        self.lengths = ops.sum(ops.cast(ops.not_equal(ids, PAD_ID), "int32"), axis=-1)
        self.start = self.width - self.lengths
        inputs = ops.concatenate([ops.full_like(ids[:, :1], EOS_ID), ids], axis=1)
        source = ops.arange(self.width + 1)[None] - self.start[:, None]
        moved = ops.take_along_axis(inputs, ops.maximum(source, 0), axis=1)
        self.tokens = ops.where(source >= 0, moved, PAD_ID)

    def positions(self, slots):
        """(T,) slots -> (B, T) positions in the sentence."""
        return ops.maximum(slots[None] - self.start[:, None], 0)

    def mask(self, slots, count):
        """(B, T, S): what the tokens in (T,) slots may see of `count` slots."""
        keys = ops.arange(count)
        seen = keys[None, None] <= slots[None, :, None]
        return ops.logical_and(seen, keys[None, None] >= self.start[:, None, None])


def first_logits(model, prompts, slots):
    """Logits after the prompts, and the cache of `slots` slots with the prompts'."""
    first = ops.arange(prompts.width + 1)
    return model(
        prompts.tokens,
        prompts.positions(first),
        prompts.mask(first, slots),
        model.no_keys(ops.shape(prompts.tokens)[0], slots),
        0,
    )


def next_logits(model, prompts, token, i, cache, slots):
    """Logits after token number `i` of the continuations, (B,), and the cache."""
    at = prompts.width + 1 + i
    slot = ops.reshape(at, (1,))
    return model(
        token[:, None], prompts.positions(slot), prompts.mask(slot, slots), cache, at
    )


def generate(
    model, ids, length, max_length, temperature=1.0, top_k=0, top_p=1.0, seed=0
):
    """Continues prompts by sampling.

    Args:
        model: a `CachedModel`.
        ids: (B, P) int32 prompts, each filled up with 0 at the right. No EOS.
        length: tokens of the continuations, at most.
        max_length: tokens of prompt and continuation, at most.
        temperature, top_k, top_p: see `sampling.pick`.
        seed: of the draws.

    Returns:
        (B, length) int32: what follows each prompt, EOS included, then 0.
    """
    prompts = Prompts(ids)
    slots = prompts.width + 1 + length
    logits, cache = first_logits(model, prompts, slots)
    out = ops.zeros((ops.shape(ids)[0], length), "int32")
    is_open = prompts.lengths < max_length

    def goes_on(i, is_open, *_):
        return ops.logical_and(i < length, ops.any(is_open))

    def step(i, is_open, out, logits, cache):
        draw = ops.stack([ops.cast(seed, "int32"), i])
        token = sampling.pick(logits, temperature, top_k, top_p, draw)
        token = ops.where(is_open, token, PAD_ID)
        out = ops.slice_update(out, (0, i), token[:, None])
        is_open = ops.logical_and(is_open, token != EOS_ID)
        is_open = ops.logical_and(is_open, prompts.lengths + i + 1 < max_length)
        logits, cache = next_logits(model, prompts, token, i, cache, slots)
        return i + 1, is_open, out, logits, cache

    start = ops.convert_to_tensor(0, "int32"), is_open, out, logits, cache
    return ops.while_loop(goes_on, step, start)[2]


class Decoder:
    """Continues lists of ids with a compiled `generate` or `beam_search`.

    Args:
        model: a language model.
        max_length: tokens of prompt and continuation, at most.
        length: tokens of the continuations, at most.
        function: of (`CachedModel`, ids, length, max_length), and of `seed` where it
            takes one.
    """

    def __init__(self, model, max_length, length, function):
        self._max_length = max_length
        self._compiled = _Compiled(
            model,
            lambda cached, ids, seed: function(
                cached, ids, length=length, max_length=max_length, seed=seed
            ),
        )

    def __call__(self, prompts, seed=0):
        """Lists of ids -> their continuations; see the function.

        Raises:
            UsageError: a prompt leaves no room for a token.
        """
        for prompt in prompts:
            self.check(prompt)
        longest = max(map(len, prompts))
        width = max(16, -(-longest // 16) * 16)  # few shapes, compiled once each
        ids = np.zeros((len(prompts), width), "int32")
        for row, prompt in zip(ids, prompts):
            row[: len(prompt)] = prompt
        # A seed has 32 bits, whose sign means nothing.
        seed = np.array(seed % 2**32, "uint32").astype("int32")
        return self._compiled.predict_on_batch((ids, seed))

    def check(self, prompt, name="a prompt"):
        """Refuses ids that leave no room for a token."""
        if len(prompt) >= self._max_length:
            raise UsageError(
                f"{name} has {len(prompt)} tokens, but the model's rows have "
                f"{self._max_length}: shorten it to {self._max_length - 1} or fewer"
            )


class _Compiled(keras.Model):
    """Makes a function of a model what Keras compiles, on every backend."""

    def __init__(self, model, function):
        super().__init__(name="decoder")
        self.language_model = model  # Keras finds the weights here
        self._function = function
        self._cached = CachedModel(model)
        self.built = True

    def call(self, inputs):
        return self._function(self._cached, *inputs)
