import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import encoding
from trainer.data import vocabulary
from trainer.data.encoding import Counts
from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def vocab():
    return Tokenizer(vocabulary.train(["one two three four five"] * 50, 512))


TEXTS = st.one_of(
    st.text(min_size=1),
    st.text(" ab▁é雪\u3000\x1f", min_size=1),
    st.lists(st.sampled_from("one two three four five".split())).map(" ".join),
)


@given(texts=st.lists(TEXTS, max_size=4), length=st.integers(2, 12))
def test_sequences_hold_exactly_the_text(vocab, texts, length):
    found = list(encoding.sequences(texts, vocab, length))
    for text, whole in zip(texts, vocab.encode(texts)):
        ids, totals = [], Counts()
        while not totals.sentences:
            segment, counts = found.pop(0)
            assert 0 < len(segment) <= length
            assert counts.sentences == (segment[-1] == EOS_ID)
            assert counts.sentences or len(segment) == length
            assert min(counts) >= 0
            ids += segment
            totals = Counts(*map(sum, zip(totals, counts)))
            # What the segments so far decode to is what they count.
            if counts.sentences:
                break
            so_far = vocab.decode(ids)
            if not so_far.endswith("\ufffd"):
                assert totals.bytes == len(so_far.encode()) or not so_far
        assert ids == [*whole, EOS_ID]
        assert totals == (1, len(text.split()), len(text.encode()) + 1)
    assert not found


def test_a_word_counts_where_it_ends(vocab):
    """Each of these characters is three tokens, its bytes; a space is one."""
    found = [counts for _, counts in encoding.sequences(["雪雪 雪"], vocab, 4)]
    assert found == [(0, 0, 3), (0, 1, 4), (1, 1, 4)]
