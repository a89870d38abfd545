import random

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from testdata.generate import Grammar
from trainer.data import tokenizer
from trainer.data import vocabulary
from trainer.errors import UsageError

# Any text at all, and such in which SentencePiece's own signs are frequent.
TEXTS = st.one_of(st.text(), st.text("▁▅⁇ \t\n\r\0a<>é雪\x1f\u3000"))


@pytest.fixture(scope="module")
def model():
    rng = random.Random(0)
    grammar = Grammar()
    return vocabulary.train(
        (" ".join(grammar.sample(rng)[0]) for _ in range(500)), 2048
    )


@pytest.fixture(scope="module")
def vocab(model):
    return tokenizer.Tokenizer(model)


@given(text=TEXTS)
def test_every_text_survives(vocab, model, text):
    ids = vocab.encode(text)
    assert vocab.decode(ids) == text
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert plain.decode(ids) == text
    if "▁" not in text:
        assert plain.encode(text) == ids


@given(texts=st.lists(TEXTS))
def test_texts_are_encoded_one_by_one(vocab, texts):
    assert vocab.encode(texts) == [vocab.encode(text) for text in texts]


@given(text=TEXTS)
def test_byte_counts(vocab, text):
    ids = vocab.encode(text)
    assert vocab.byte_counts[ids].sum() == len(text.encode()) + bool(text)
    assert vocab.byte_counts[tokenizer.EOS_ID] == 1


def test_a_damaged_model(model, tmp_path):
    path = tmp_path / "x.model"
    with pytest.raises(UsageError, match="no SentencePiece model at .*x.model"):
        tokenizer.load(path)
    for damaged in (b"", model[:-1], model[: len(model) // 2], b"hello"):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match="x.model is damaged: run et-datagen"):
            tokenizer.load(path)
    path.write_bytes(model)
    assert tokenizer.load(path, tokenizer.checksum(path)).vocab_size() > 300
    with pytest.raises(UsageError, match="x.model is damaged"):
        tokenizer.load(path, sha256="0" * 64)
