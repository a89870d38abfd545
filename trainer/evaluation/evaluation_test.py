"""Figures of whole and of partial evaluations."""

import math

import keras
import numpy as np
import pytest

from trainer import registry
from trainer.data import batches
from trainer.data import datagen
from trainer.evaluation import evaluation
from trainer.evaluation.evaluation import Evaluation
from trainer.models import language_model


def test_figures():
    found = Evaluation(2, 6, 40, 10, nats=16 * math.log(2), correct=5)
    assert found.nats_per_token == pytest.approx(1.6 * math.log(2))
    assert found.perplexity_per_token == pytest.approx(2**1.6)
    assert found.perplexity_per_word == pytest.approx(4)
    assert found.bits_per_byte == pytest.approx(0.4)
    assert found.accuracy == 0.5
    assert (found + found).figures() == pytest.approx(found.figures())


def test_figures_without_a_denominator():
    nothing = Evaluation(0, 0, 0, 0, nats=0.0, correct=0)
    assert all(math.isnan(figure) for figure in nothing.figures().values())
    assert "nan" in str(nothing)
    # Inside a word of many tokens.
    inside = Evaluation(0, 0, 8, 8, nats=8.0, correct=0)
    assert math.isnan(inside.perplexity_per_word)
    assert inside.perplexity_per_token == pytest.approx(math.e)


def test_figures_of_a_model_that_has_diverged():
    assert Evaluation(1, 1, 1, 1, nats=1e9, correct=0).perplexity_per_word == math.inf
    wild = Evaluation(1, 1, 1, 1, nats=math.nan, correct=0)
    assert math.isnan(wild.perplexity_per_word)


@pytest.mark.parametrize("words", [12, 5000], ids=["sentences", "documents"])
def test_a_partial_evaluation_is_near_the_whole(tmp_path, words):
    """Whether the rows covered hold ends of lines or lie inside of long ones.

    A model with no preference costs ln(V) nats a token, so its figures per word and
    per byte differ only by the tokens that words and bytes have here and there.
    """
    rng = np.random.default_rng(0)
    for split, lines in (("train", 60_000 // words), ("dev", 30_000 // words)):
        drawn = rng.zipf(1.3, (lines, words)) % 997
        text = "".join(" ".join(f"w{n:x}é" for n in line) + "\n" for line in drawn)
        (tmp_path / f"{split}.txt").write_text(text)
    problem = registry.problems.get("text_lines2k_packed")
    description = datagen.generate(problem, tmp_path, tmp_path / "data", max_length=64)
    buckets = batches.buckets(tmp_path / "data", description, "dev")
    embedding = keras.layers.ReversibleEmbedding(description.vocab_size, 4)
    row = keras.Input((None,), dtype="int32")
    model = language_model.LanguageModel(row, 0.0 * embedding(row), embedding)
    scoring_model = language_model.scoring_model(model, 64)
    whole = evaluation.evaluate(scoring_model, buckets, 64)
    split = description.splits["dev"]
    assert (whole.sentences, whole.words, whole.bytes, whole.tokens) == (
        split.sentences,
        split.words,
        split.bytes,
        split.tokens,
    )
    log_v = math.log(description.vocab_size)
    assert whole.nats == pytest.approx(split.tokens * log_v)
    one = evaluation.evaluate(scoring_model, buckets, 64, max_batches=1)
    some = evaluation.evaluate(scoring_model, buckets, 64, max_batches=40)
    for found, tolerance in ((one, 0.4), (some, 0.05)):
        for figure in ("bits_per_byte", "perplexity_per_word"):
            per_unit = [getattr(e, figure) for e in (found, whole)]
            if figure == "perplexity_per_word":
                per_unit = map(math.log, per_unit)
            part, all_of_it = per_unit
            assert part == pytest.approx(all_of_it, rel=tolerance), figure
    if words == 5000:
        assert one.sentences == 0
