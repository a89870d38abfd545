"""The likeliest continuations, by beam search.

Shapes: B rows, K beams, V vocabulary, L tokens of a continuation.
"""

import math

import keras
from keras import ops

from trainer.data.tokenizer import EOS_ID
from trainer.inference import decoding
from trainer.inference import sampling

_NEVER = -1e9


def length_penalty(length, alpha):
    """Returns ((5 + length) / 6) ** alpha, which a log-probability is divided by.

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", equation 14.
    """
    return ((5.0 + ops.cast(length, "float32")) / 6.0) ** alpha


def beam_search(model, ids, length, max_length, beams=4, alpha=0.6, seed=None):
    """Returns the best continuations of each prompt, and their scores.

    score = log p(continuation) / length_penalty(tokens of it)

    Args:
        model, ids, length, max_length: as `decoding.generate` takes them.
        beams: K, at least 1.
        alpha: of the length penalty, at least 0; 0 prefers short continuations.
        seed: has no effect: nothing is drawn.

    Returns:
        (B, K, L) int32 ids, L the smaller of `length` and `max_length`: best first,
        EOS included, then 0; (B, K) scores. A beam that found nothing has a score below
        -1e8.

    Raises:
        UsageError: a number is out of its range.
    """
    sampling.check("beams", beams, lambda x: x >= 1, "1 or more")
    sampling.check("alpha", alpha, lambda x: 0 <= x < math.inf, "0 or more")
    length = decoding.at_most(length, max_length)
    rows = ops.shape(ids)[0]
    prompts = decoding.Prompts(ops.repeat(ids, beams, axis=0), length, max_length)
    logits, cache = prompts.first_logits(model)
    limit = max_length - ops.reshape(prompts.lengths, (rows, beams))[:, :1]
    limit = ops.minimum(limit, length)
    first_row = ops.arange(rows)[:, None] * beams  # of each prompt in the batch

    def take(x, index):
        """Returns entries (B, K', ...) of x (B, N, ...) by index (B, K')."""
        index = ops.reshape(index, (*ops.shape(index), *[1] * (x.ndim - 2)))
        return ops.take_along_axis(x, index, axis=1)

    def best(scores, sequences, count):
        scores, index = ops.top_k(scores, count)
        return scores, take(sequences, index), index

    def goes_on(i, alive, *rest):
        _, scores = rest[:2]
        # What a beam can still reach is at most its log-probability, which only
        # falls, under the largest penalty.
        reach = ops.max(alive[0], axis=1) / length_penalty(length, alpha)
        return ops.logical_and(i < length, ops.any(reach > ops.min(scores, axis=1)))

    def step(i, alive, finished, scores, logits, cache):
        log_p, sequences = alive
        log_p = (
            ops.reshape(ops.log_softmax(logits), (rows, beams, -1)) + log_p[..., None]
        )
        vocab_size = logits.shape[-1]
        # Of 2 K candidates at most K end here, so K go on.
        log_p, index = ops.top_k(ops.reshape(log_p, (rows, -1)), 2 * beams)
        beam, token = index // vocab_size, ops.cast(index % vocab_size, "int32")
        sequences = take(sequences, beam)
        sequences = ops.slice_update(sequences, (0, 0, i), token[..., None])
        ends = ops.logical_or(token == EOS_ID, i + 1 >= limit)

        score = log_p / length_penalty(i + 1, alpha)
        found = ops.logical_and(ends, log_p > _NEVER / 2)
        ended = ops.where(found, score, _NEVER)
        scores, finished, _ = best(
            ops.concatenate([scores, ended], axis=1),
            ops.concatenate([finished, sequences], axis=1),
            beams,
        )
        log_p, sequences, kept = best(ops.where(ends, _NEVER, log_p), sequences, beams)
        source = ops.reshape(first_row + take(beam, kept), (-1,))
        cache = keras.tree.map_structure(lambda x: ops.take(x, source, axis=0), cache)
        token = ops.reshape(take(token, kept), (-1,))
        logits, cache = prompts.next_logits(model, token, i, cache)
        return i + 1, (log_p, sequences), finished, scores, logits, cache

    empty = ops.zeros((rows, beams, length), "int32")
    never = ops.full((rows, beams), _NEVER)
    # The others are copies of it; and a row that is full already goes on with none.
    begins = ops.logical_and(ops.arange(beams)[None] == 0, limit > 0)
    only_first = ops.where(begins, 0.0, never)
    start = ops.convert_to_tensor(0, "int32")
    state = start, (only_first, empty), empty, never, logits, cache
    _, _, finished, scores, _, _ = ops.while_loop(goes_on, step, state)
    return finished, scores
