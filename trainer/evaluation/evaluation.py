"""Measures how well a language model predicts held-out text."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from trainer import distribution
from trainer import processes
from trainer import progress
from trainer.data import batches
from trainer.data.dataset import Description
from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import PAD_ID
from trainer.models import language_model


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Holds exact totals over the rows covered, and gives the figures that follow.

    A figure whose denominator is 0 is nan: no row was covered, or no word ended in
    those that were.
    """

    sentences: int  # EOS tokens
    words: int  # that end in the rows covered
    bytes: int  # UTF-8 bytes of the rows' text, one newline a sentence included
    tokens: int  # EOS counted, padding not
    nats: float  # total of -log p(token)
    correct: int  # tokens that were the most likely one

    def __add__(self, other: "Evaluation") -> "Evaluation":
        totals = zip(dataclasses.astuple(self), dataclasses.astuple(other))
        return Evaluation(*(a + b for a, b in totals))

    @property
    def nats_per_token(self) -> float:
        """Minus Tensor2Tensor's `neg_log_perplexity`."""
        return _ratio(self.nats, self.tokens)

    @property
    def perplexity_per_token(self) -> float:
        """exp(nats / tokens)."""
        return exp(self.nats_per_token)

    @property
    def perplexity_per_word(self) -> float:
        """exp(nats / (words + sentences)): comparable across vocabularies.

        A sentence's end counts as a word, as in the literature on GBW.
        """
        return exp(_ratio(self.nats, self.words + self.sentences))

    @property
    def bits_per_byte(self) -> float:
        """nats / ln(2) / bytes: comparable across vocabularies and languages."""
        return _ratio(self.nats / math.log(2), self.bytes)

    @property
    def accuracy(self) -> float:
        """Share of the tokens that were the most likely one."""
        return _ratio(self.correct, self.tokens)

    def figures(self) -> dict[str, float]:
        """Returns the figures that follow from the totals, by name."""
        names = (
            "nats_per_token",
            "perplexity_per_token",
            "perplexity_per_word",
            "bits_per_byte",
            "accuracy",
        )
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, float]:
        """Returns totals and figures, by name."""
        return dataclasses.asdict(self) | self.figures()

    def __str__(self):
        return "\n".join(
            [
                f"nats per token        {self.nats_per_token:10.4f}",
                f"perplexity per token  {self.perplexity_per_token:10.2f}",
                f"perplexity per word   {self.perplexity_per_word:10.2f}",
                f"bits per byte         {self.bits_per_byte:10.4f}",
                f"accuracy              {self.accuracy:10.2%}",
                f"covered: {self.sentences:,} sentences, {self.tokens:,} tokens, "
                f"{self.words:,} words, {self.bytes:,} bytes",
            ]
        )


def exp(nats: float) -> float:
    """Returns e ** nats: inf, not an error, for a model that has diverged."""
    return math.inf if nats >= 700 else math.exp(nats)


def _ratio(total, count):
    return total / count if count else math.nan


def evaluate(
    scoring_model: keras.Model,
    buckets: Sequence[batches.Bucket],
    tokens: int,
    max_batches: int | None = None,
    label: str | None = None,
) -> Evaluation:
    """Returns the `Evaluation` of a split, from a score of its rows.

    Processes of a `distribution` score rows of their own, and each returns the totals.

    Args:
        scoring_model: a `language_model.scoring_model` of `tokens` tokens. It sees
            weights as they are now.
        buckets: the rows of the split, from `batches.buckets`.
        tokens: scored at a time; has no effect on the result.
        max_batches: the number of batches to score, evenly spaced among all; None or
            0 scores every row.
        label: of the progress that is shown; None shows none.
    """
    totals = np.zeros(6)  # whole numbers in float64 are exact
    share = batches.Share(*processes.part(), distribution.replicas())
    found = batches.EvaluationBatches(buckets, tokens, max_batches, share)
    if label is not None:
        found = progress.over(found, label, "batch")
    for headers, rows in found:
        nats, hits = scoring_model.predict_on_batch(rows)
        totals += (
            np.sum(rows == EOS_ID),
            *headers.sum(axis=0),
            np.sum(rows != PAD_ID),
            np.sum(nats, dtype=np.float64),
            np.sum(hits, dtype=np.float64),
        )
    sentences, words, size, covered, nats, correct = processes.total(totals)
    return Evaluation(
        sentences=int(sentences),
        words=int(words),
        bytes=int(size),
        tokens=int(covered),
        nats=float(nats),
        correct=int(correct),
    )


def evaluate_model(
    model: language_model.LanguageModel,
    data_dir: str | pathlib.Path,
    description: Description,
    split: str,
    tokens_per_batch: int,
    max_batches: int | None = None,
    label: str | None = None,
) -> Evaluation:
    """Returns the `Evaluation` of a model, as its weights are, on a split.

    Args:
        model: a language model.
        data_dir: folder that et-datagen wrote.
        description: `dataset.Description` of the data.
        split: name of the split.
        tokens_per_batch: scored at a time; has no effect on the result.
        max_batches: the number of batches to score; None or 0 scores every row.
        label: of the progress that is shown; None shows none.

    Raises:
        UsageError: there is no such split, or its rows are missing or damaged.
    """
    buckets = batches.buckets(data_dir, description, split)
    tokens = description.tokens_per_batch(tokens_per_batch)
    scoring_model = language_model.scoring_model(model, tokens)
    return evaluate(scoring_model, buckets, tokens, max_batches, label)
