import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import vocabulary
from trainer.data.tokenizer import Tokenizer
from trainer.errors import UsageError


@given(st.text("ab é雪😀"), st.integers(4, 20))
def test_lines_are_cut_at_spaces_and_between_characters(text, limit):
    lines = list(vocabulary.cut(text, limit))
    assert all(len(line.encode()) <= limit for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if all(len(word.encode()) <= limit for word in text.split(" ")):
        assert " ".join(lines) == text


def test_lines_are_drawn_from_all_of_the_text():
    """Evenly: each of 10,000 lines is among 1,000 of them once in ten times."""
    count, drawn = 1000, vocabulary.sample(map(str, range(10_000)), 1000)
    assert len(set(drawn)) == count
    for tenth in range(10):
        found = sum(tenth * 1000 <= int(line) < (tenth + 1) * 1000 for line in drawn)
        assert 70 <= found <= 130  # three times the spread of chance
    assert drawn == vocabulary.sample(map(str, range(10_000)), 1000)


@given(st.lists(st.text("ab"), max_size=9), st.integers(1, 9))
def test_few_lines_are_all_drawn(lines, count):
    drawn = vocabulary.sample(iter(lines), count)
    assert len(drawn) == min(count, len(lines))
    if len(lines) <= count:
        assert drawn == lines


def test_the_end_of_a_text_that_is_ordered_has_pieces(monkeypatch):
    monkeypatch.setattr(vocabulary, "MAX_SENTENCES", 200)
    lines = ["zebra and zebra"] * 1000 + ["quokka or quokka"] * 1000
    vocab = Tokenizer(vocabulary.train(iter(lines), 512))
    assert len(vocab.encode("zebra")) == len(vocab.encode("quokka")) == 1


def test_long_lines_count_for_the_vocabulary():
    """A word that stands in lines of more than SentencePiece's 4,192 bytes alone."""
    vocab = Tokenizer(vocabulary.train(["zebra " * 1000, "abracadabra" * 500], 512))
    assert len(vocab.encode("zebra")) == 1
    assert len(vocab.encode("abracadabra" * 50)) < 60


def test_a_line_with_a_reserved_character_counts():
    vocab = Tokenizer(vocabulary.train(["▅ zebra"] * 50, 512))
    assert len(vocab.encode("zebra")) == 1
    assert vocab.decode(vocab.encode("▅ zebra")) == "▅ zebra"


@pytest.mark.parametrize("weights", ["even", "zipf"])
def test_more_characters_than_pieces(weights):
    """As in Chinese text: what has no piece becomes bytes."""
    rng = random.Random(0)
    characters = [chr(0x4E00 + i) for i in range(4000)]
    shares = [1 / (i + 1) if weights == "zipf" else 1 for i in range(4000)]
    lines = ["".join(rng.choices(characters, shares, k=40)) for _ in range(1500)]
    model = vocabulary.train(lines, 2048)
    vocab = Tokenizer(model)
    assert 1500 < vocab.vocab_size() <= 2048
    assert vocab.decode(vocab.encode(lines)) == lines
    if weights == "zipf":  # the frequent characters are those with a piece
        assert len(vocab.encode("".join(characters[:1000]))) < 1100


def test_nothing_to_make_a_vocabulary_of():
    with pytest.raises(UsageError, match="no vocabulary of 2,048 pieces from the tr"):
        vocabulary.train([], 2048)
    with pytest.raises(UsageError, match="no vocabulary of 10 pieces"):
        vocabulary.train(["a b c"] * 10, 10)
