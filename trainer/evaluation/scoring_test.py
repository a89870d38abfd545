"""Scores of lines are what the whole model says of each, alone."""

import dataclasses
import functools
import operator

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from testdata.generate import DEV
from testdata.generate import FOLDER
from trainer import registry
from trainer.data import datagen
from trainer.data import dataset
from trainer.data import tokenizer
from trainer.evaluation import evaluation
from trainer.evaluation import scoring
from trainer.hparams import HParams

LENGTH = 32
HPARAMS = HParams(num_hidden_layers=2, hidden_size=16, filter_size=32, num_heads=2)


@pytest.fixture(scope="module")
def processor(data_dir):
    return tokenizer.load(dataset.Paths(data_dir, PROBLEM).tokenizer)


@pytest.fixture(scope="module", params=[LENGTH, None], ids=["packed", "unpacked"])
def model(request, processor):
    keras.utils.set_random_seed(0)
    make = registry.models.get("transformer_lm")
    return make(HPARAMS, processor.vocab_size(), request.param)


def nats(model, ids):
    """-log p of each of at most LENGTH tokens, in float64."""
    row = np.zeros((1, LENGTH), "int32")
    row[0, : len(ids)] = ids
    z = model.predict_on_batch(row)[0, : len(ids)].astype("float64")
    return np.log(np.exp(z).sum(-1)) - z[np.arange(len(ids)), ids]


def test_windows_cover_every_token_once_with_context():
    for count in (1, 32, 33, 48, 49, 100, 512):
        ids = list(range(count))
        seen = []
        for window, skipped in scoring.windows(ids, LENGTH):
            assert len(window) <= LENGTH
            if seen:
                assert len(window) == LENGTH and skipped >= LENGTH // 2
            seen += window[skipped:]
        assert seen == ids


def test_each_line_has_its_own_score(model, processor):
    lines = ["ti .", "", "zu bo ti , ka .", " ", "one more é line .", "ti . " * 40]
    scores = list(scoring.score_lines(model, processor, lines, LENGTH, 100))
    assert [s.line for s in scores] == [1, 3, 5, 6]
    for s in scores[:3]:
        text = lines[s.line - 1]
        ids = [*processor.encode(text), tokenizer.EOS_ID]
        assert s.windows == 1
        assert s.evaluation.tokens == len(ids)
        assert s.evaluation.words == len(text.split())
        assert s.evaluation.bytes == len(text.encode()) + 1
        np.testing.assert_allclose(s.evaluation.nats, nats(model, ids).sum(), rtol=1e-5)
    # The long line: each window from its first token that is new.
    long_line = scores[3]
    ids = [*processor.encode(lines[5].strip()), tokenizer.EOS_ID]
    windows = scoring.windows(ids, LENGTH)
    expected = sum(nats(model, w)[skipped:].sum() for w, skipped in windows)
    assert long_line.windows == len(windows) > 1
    assert long_line.evaluation.tokens == len(ids)
    np.testing.assert_allclose(long_line.evaluation.nats, expected, rtol=1e-5)


def test_the_sum_is_what_the_evaluation_of_the_text_gives(data_dir, tmp_path):
    """Where no line is longer than a row. A split and a file of the same text."""
    text = data_dir / "text" / FOLDER / DEV
    length = 128
    description = datagen.generate(
        registry.problems.get(PROBLEM), data_dir / "text", tmp_path, length
    )
    processor = tokenizer.load(dataset.Paths(tmp_path, PROBLEM).tokenizer)
    keras.utils.set_random_seed(1)
    model = registry.models.get("transformer_lm")(
        HPARAMS, processor.vocab_size(), length
    )
    expected = evaluation.evaluate_model(model, tmp_path, description, "dev", 1024)
    lines = text.read_text().splitlines()
    scores = list(scoring.score_lines(model, processor, lines, length, 512))
    assert {s.windows for s in scores} == {1}
    total = functools.reduce(operator.add, (s.evaluation for s in scores))
    np.testing.assert_allclose(total.nats, expected.nats, rtol=1e-5)
    assert dataclasses.replace(total, nats=expected.nats) == expected


def test_batches_and_neighbours_do_not_matter(model, processor):
    lines = [f"ti {'bo ' * (i % 7)}." for i in range(50)]
    together = list(scoring.score_lines(model, processor, lines, LENGTH, 1000))
    for i in (0, 17, 49):
        (alone,) = scoring.score_lines(model, processor, [lines[i]], LENGTH, LENGTH)
        np.testing.assert_allclose(
            together[i].evaluation.nats, alone.evaluation.nats, rtol=1e-5
        )
