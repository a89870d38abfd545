"""Continues token sequences, each step at the same cost, however long they are.

A step computes the states of its own token only; what they need of the tokens before is
kept in the model's cache, see `language_model.LanguageModel`. Prompts of different
lengths share a batch: they end in the same slot.

Shapes: B rows, P tokens of the widest prompt, T tokens of a step, V vocabulary.
"""

import keras
import numpy as np
from keras import ops

from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.inference import sampling
from trainer.models import language_model


class Prompts:
    """Holds (B, P) token ids, moved so that the last of each row stands in slot P.

    Padding may stand anywhere: it is no token. Where a row holds EOS, only what comes
    after is continued: a sentence is predicted from its own tokens. The slot in front
    of its first token holds EOS, from which a sentence starts.

    Slots are those of a ring, for the cache is no longer than a row: slot n of a
    sequence without an end is number n modulo the size of the cache.

    Args:
        ids: (B, P) int32.
        length: tokens of the continuations, at most.
        max_length: tokens of prompt and continuation, at most.
    """

    def __init__(self, ids, length, max_length):
        width = ops.shape(ids)[1]
        ids = ops.pad(ids, ((0, 0), (1, 0)), constant_values=PAD_ID)  # for the EOS
        ends = ops.cast(ops.equal(ids, EOS_ID), "int32")
        ended = ops.flip(ops.cumsum(ops.flip(ends, axis=1), axis=1), axis=1)
        real = ops.logical_and(ops.not_equal(ids, PAD_ID), ops.equal(ended, 0))
        slots = ops.arange(width + 1)[None]
        order = ops.argsort(ops.where(real, slots, slots - width - 1), axis=1)
        moved = ops.take_along_axis(ops.where(real, ids, PAD_ID), order, axis=1)
        self.lengths = ops.sum(ops.cast(real, "int32"), axis=1)
        self._start = width - self.lengths[:, None]
        self._tokens = ops.where(ops.equal(slots, self._start), EOS_ID, moved)
        self._width = width
        # EOS and max_length tokens: none is overwritten while it can be seen. But the
        # first P + 1 slots are written at once.
        self._size = width + 1 + at_most(length, _positive(max_length - width))

    def first_logits(self, model):
        """Returns the logits of the tokens after the prompts, (B, V), and the cache."""
        cache = model.empty_cache(ops.shape(self._tokens)[0], self._size)
        slots = ops.arange(self._width + 1)
        return self._logits(model, self._tokens, slots, cache)

    def next_logits(self, model, tokens, i, cache):
        """Returns logits after token number `i` of the continuations, and the cache.

        Args:
            model: a `LanguageModel` that can be decoded.
            tokens: (B,), token number `i` of each continuation; i counts from 0.
            cache: of the call before.
        """
        slots = ops.reshape(self._width + 1 + i, (1,))
        return self._logits(model, tokens[:, None], slots, cache)

    def _logits(self, model, tokens, slots, cache):
        """Returns the logits after the tokens (B, T) in slots (T,), and the cache."""
        positions = ops.maximum(slots[None] - self._start, 0)
        # The newest slot that each entry of the cache holds, this step's included.
        entries = ops.arange(self._size)
        held = slots[-1] - ops.mod(slots[-1] - entries, self._size)
        seen = ops.logical_and(
            held[None, None] <= slots[None, :, None],
            held[None, None] >= self._start[:, None],
        )
        at = ops.mod(slots[0], self._size)
        hidden, cache = model.decode(tokens, positions, seen, cache, at)
        logits = ops.cast(model.embedding(hidden[:, -1], reverse=True), "float32")
        return sampling.real_tokens(logits), cache


def generate(
    model, ids, length, max_length, temperature=1.0, top_k=0, top_p=1.0, seed=0
):
    """Continues prompts by sampling.

    Args:
        model: a `LanguageModel` that can be decoded.
        ids: (B, P) int32 prompts; see `Prompts` for what they may hold.
        length: tokens of the continuations, at most.
        max_length: tokens of prompt and continuation, at most.
        temperature, top_k, top_p: see `sampling.pick`.
        seed: of the draws.

    Returns:
        (B, L) int32, L the smaller of `length` and `max_length`: what follows each
        prompt, EOS included, then 0.
    """
    length = at_most(length, max_length)
    prompts = Prompts(ids, length, max_length)
    logits, cache = prompts.first_logits(model)
    out = ops.zeros((ops.shape(ids)[0], length), "int32")
    is_open = prompts.lengths < max_length

    def goes_on(i, is_open, *_):
        return ops.logical_and(i < length, ops.any(is_open))

    def step(i, is_open, out, logits, cache):
        draw = ops.stack([ops.cast(seed, "int32"), i])
        token = sampling.pick(logits, temperature, top_k, top_p, draw)
        # TensorFlow loses the length of a batch of one once it has seen two widths.
        token = ops.reshape(token, ops.shape(is_open))
        token = ops.where(is_open, token, PAD_ID)
        out = ops.slice_update(out, (0, i), token[:, None])
        is_open = ops.logical_and(is_open, token != EOS_ID)
        is_open = ops.logical_and(is_open, prompts.lengths + i + 1 < max_length)
        logits, cache = prompts.next_logits(model, token, i, cache)
        return i + 1, is_open, out, logits, cache

    start = ops.convert_to_tensor(0, "int32"), is_open, out, logits, cache
    return ops.while_loop(goes_on, step, start)[2]


def at_most(value, bound):
    """Returns the smaller of two integers, of which a graph may take some as inputs."""
    if isinstance(value, int) and isinstance(bound, int):
        return min(value, bound)
    return ops.minimum(value, bound)


def _positive(value):
    """Returns an integer, or 0 where it is negative."""
    return max(value, 0) if isinstance(value, int) else ops.maximum(value, 0)


class Decoder:
    """Continues lists of ids with a compiled `generate` or `beam_search`.

    Args:
        model: a `LanguageModel` that can be decoded.
        max_length: tokens of prompt and continuation, at most.
        length: tokens of the continuations, at most.
        function: of (model, ids, length, max_length, seed), such as a
            `functools.partial` of `generate` with its temperature.

    Raises:
        UsageError: the model cannot be decoded.
    """

    def __init__(self, model, max_length, length, function=generate):
        language_model.check(model, decodes=True)
        self._max_length = max_length
        self._compiled = _Compiled(
            model,
            lambda ids, seed: function(
                model, ids, length=length, max_length=max_length, seed=seed
            ),
        )

    def __call__(self, prompts, seed=0):
        """Returns the continuations of lists of ids, as the function returns them.

        Args:
            prompts: one list of ids or more.
            seed: any integer; what is drawn depends on it modulo 2**32.

        Raises:
            UsageError: a prompt leaves no room for a token.
        """
        for prompt in prompts:
            self.check(prompt)
        # Few shapes, compiled once each.
        width = -(-max(map(len, prompts)) // 16) * 16
        width = min(max(width, 16), self._max_length)
        ids = np.zeros((len(prompts), width), "int32")
        for row, prompt in zip(ids, prompts):
            row[: len(prompt)] = prompt
        # A seed has 32 bits, whose sign means nothing.
        seed = np.array(seed % 2**32, "uint32").astype("int32")
        return self._compiled.predict_on_batch((ids, seed))

    def check(self, prompt, name="a prompt"):
        """Refuses ids that leave no room for a token.

        Args:
            prompt: list of ids.
            name: of the prompt, for the error.
        """
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
        self.built = True

    def call(self, inputs):
        return self._function(*inputs)
