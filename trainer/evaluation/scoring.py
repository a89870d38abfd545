"""Measures how well a language model predicts given text, line by line."""

import dataclasses
import itertools
from collections.abc import Iterable
from collections.abc import Iterator

import numpy as np

from trainer.data import packing
from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import Tokenizer
from trainer.evaluation import evaluation
from trainer.models import language_model

# Lines that are encoded and packed together.
_GROUP = 1000


@dataclasses.dataclass(frozen=True)
class Score:
    """Holds the evaluation of one line."""

    line: int  # from 1
    windows: int  # more than 1: the line is longer than a row
    evaluation: evaluation.Evaluation


def windows(ids: list[int], length: int) -> list[tuple[list[int], int]]:
    """Covers ids with windows of at most `length` that overlap by half or more.

    Returns:
        A list of (ids of a window, the number of its first ids that an earlier window
        has).
    """
    if len(ids) <= length:
        return [(ids, 0)]
    last = len(ids) - length
    starts = [*range(0, last, max(1, length // 2)), last]
    ends = [0, *(start + length for start in starts)]
    return [(ids[s : s + length], end - s) for s, end in zip(starts, ends)]


def score_lines(
    model, tokenizer: Tokenizer, lines: Iterable[str], max_length: int, batch_size: int
) -> Iterator[Score]:
    """Scores lines, each a sentence of its own.

    In a line of more tokens than a row has, a token is predicted from half a row of
    tokens before it, or more.

    Args:
        model: a language model.
        tokenizer: of the model's vocabulary.
        lines: text. Blank lines are left out, as in training.
        max_length: tokens of a row.
        batch_size: tokens scored at a time; has no effect on the result.

    Yields:
        A `Score` for every line, in order.
    """
    rows_per_batch = max(1, batch_size // max_length)
    scoring_model = language_model.scoring_model(model, rows_per_batch * max_length)

    def scored(rows):
        """Yields (nats, hits, payloads) of every row, computed batch by batch."""
        for start in range(0, len(rows), rows_per_batch):
            batch = np.zeros((rows_per_batch, max_length), "int32")
            real = rows[start : start + rows_per_batch]
            for row, (ids, _) in zip(batch, real):
                row[: len(ids)] = ids
            nats, hits = map(np.asarray, scoring_model.predict_on_batch(batch))
            yield from zip(nats, hits, (payloads for _, payloads in real))

    numbered = ((n, text.strip()) for n, text in enumerate(lines, start=1))
    numbered = ((n, text) for n, text in numbered if text)
    while group := list(itertools.islice(numbered, _GROUP)):
        encoded = [[*ids, EOS_ID] for ids in tokenizer.encode([t for _, t in group])]
        covered = [windows(ids, max_length) for ids in encoded]
        # A window that does not end in EOS fills its row: nothing follows it there.
        sequences = (
            (ids, (i, len(ids), skipped))
            for i, spans in enumerate(covered)
            for ids, skipped in spans
        )
        totals = np.zeros((len(group), 2))
        for nats, hits, payloads in scored(list(packing.pack(sequences, max_length))):
            at = 0
            for i, length, skipped in payloads:
                new = slice(at + skipped, at + length)
                totals[i] += nats[new].sum(dtype="float64"), hits[new].sum()
                at += length
        for (n, text), ids, spans, (nats, hits) in zip(group, encoded, covered, totals):
            result = evaluation.Evaluation(
                sentences=1,
                words=len(text.split()),
                bytes=len(text.encode()) + 1,
                tokens=len(ids),
                nats=float(nats),
                correct=int(hits),
            )
            yield Score(n, len(spans), result)
