"""Picks the next token: the most likely one, or a draw.

Settings may be numbers or tensors, so that a graph can take them as inputs. Numbers are
checked.
Shapes: B rows, V vocabulary.
"""

import math

import keras
from keras import ops

from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.models import noise


def pick(logits, temperature, top_k, top_p, seed):
    """Returns a token for each row, drawn from softmax(logits / temperature).

    Args:
        logits: (B, V).
        temperature: 0 takes the most likely token, whatever else is given.
        top_k: only the k most likely tokens are drawn; 0: all.
        top_p: only the fewest tokens whose probabilities, after temperature and
            top_k, sum to p are drawn; 1: all. Source: Holtzman et al. 2020, "The
            Curious Case of Neural Text Degeneration".
        seed: two integers, shape (2,).

    Returns:
        (B,) int32 ids.

    Raises:
        UsageError: a number is out of its range.
    """
    check("temperature", temperature, lambda x: 0 <= x < math.inf, "0 or more")
    check("top_k", top_k, lambda x: x >= 0, "0 or more")
    check("top_p", top_p, lambda x: 0 < x <= 1, "above 0 and at most 1")
    greedy = ops.cast(ops.argmax(logits, axis=-1), "int32")
    if _is(temperature, 0):
        return greedy
    cold = ops.maximum(ops.cast(temperature, "float32"), 1e-6)
    scaled = _most_likely(logits / cold, top_k)
    if not _is(top_p, 1):
        scaled = _nucleus(scaled, top_p)
    seed = noise.Drawn(ops.cast(seed, "uint32"))
    drawn = keras.random.categorical(scaled, 1, dtype="int32", seed=seed)[:, 0]
    return ops.where(ops.cast(temperature, "float32") > 0, drawn, greedy)


def check(name, value, allowed, expected):
    """Refuses a number that is out of its range; a tensor's value is not known yet.

    Args:
        name: of the argument.
        value: of the argument.
        allowed: whether a number is in the range; false for nan.
        expected: the range, in words.
    """
    if isinstance(value, int | float) and not allowed(value):
        raise UsageError(f"{name} must be a number, {expected}. Got {value}")


def real_tokens(logits):
    """Returns logits that no draw takes padding from, which is not a token."""
    vocab_size = logits.shape[-1]
    return ops.where(ops.arange(vocab_size) == PAD_ID, -1e9, logits)


def _is(value, number):
    """Returns whether an argument is this number, as far as Python knows."""
    return isinstance(value, int | float) and value == number


def _most_likely(logits, k):
    if _is(k, 0):
        return logits

    def kept():
        least = ops.minimum if ops.is_tensor(k) else min
        values, _ = ops.top_k(logits, least(k, logits.shape[-1]))
        return ops.where(logits < values[:, -1:], -1e9, logits)

    return ops.cond(k > 0, kept, lambda: logits) if ops.is_tensor(k) else kept()


def _nucleus(logits, p):
    values = ops.flip(ops.sort(logits, axis=-1), axis=-1)
    probabilities = ops.softmax(values, axis=-1)
    above = ops.cumsum(probabilities, axis=-1) - probabilities  # of likelier tokens
    least = ops.min(ops.where(above < p, values, 1e9), axis=-1, keepdims=True)
    return ops.where(logits < least, -1e9, logits)
