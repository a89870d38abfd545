"""Sentences drawn from a language model."""

import numpy as np

from trainer.tokenizer import EOS_ID


def sample(model, processor, count, temperature=1.0, seed=0):
    """Draws sentences, token by token, from the start of a sentence.

    Args:
        model: a language model over packed rows (`trainer/transformer.py`).
        processor: the SentencePiece processor of its vocabulary.
        count: how many sentences.
        temperature: divides the logits; below 1 prefers likely tokens.
        seed: of the draws.

    Returns:
        A list of strings. A sentence that reaches the row's length is cut there.
    """
    rng = np.random.default_rng(seed)
    length = model.input_shape[1]
    rows = np.zeros((count, length), np.int32)
    open_rows = np.ones(count, bool)
    for t in range(length):
        logits = model.predict_on_batch(rows)[:, t].astype(np.float64)
        # The Gumbel trick: the argmax is a draw from the softmax.
        noise = rng.gumbel(size=logits.shape)
        tokens = np.argmax(logits / temperature + noise, axis=-1)
        rows[open_rows, t] = tokens[open_rows]
        open_rows &= tokens != EOS_ID
        if not open_rows.any():
            break
    return [processor.decode([int(t) for t in row if t > EOS_ID]) for row in rows]
