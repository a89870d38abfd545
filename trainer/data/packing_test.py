from hypothesis import given
from hypothesis import strategies as st

from trainer.data import packing
from trainer.data.tokenizer import EOS_ID

SENTENCES = st.lists(st.lists(st.integers(3, 99), min_size=1, max_size=40), max_size=60)


@given(SENTENCES, st.integers(2, 16), st.integers(1, 8))
def test_every_token_is_in_one_row(sentences, length, open_rows):
    pieces = [c for s in sentences for c in packing.chunks(s, length)]
    sequences = [(ids, number) for number, ids in enumerate(pieces)]
    rows = list(packing.pack(sequences, length, open_rows))
    assert sorted(n for _, numbers in rows for n in numbers) == list(range(len(pieces)))
    for ids, numbers in rows:
        assert len(ids) <= length
        assert ids == [token for n in numbers for token in pieces[n]]


@given(SENTENCES, st.integers(2, 16))
def test_a_sentence_ends_at_eos_or_at_the_end_of_a_row(sentences, length):
    for sentence in sentences:
        pieces = packing.chunks(sentence, length)
        assert [t for p in pieces for t in p] == [*sentence, EOS_ID]
        assert all(len(p) == length for p in pieces[:-1])
        assert 0 < len(pieces[-1]) <= length


def test_best_fit():
    sequences = [([5] * 6, "a"), ([5] * 5, "b"), ([5] * 3, "c"), ([5] * 4, "d")]
    rows = [payloads for _, payloads in packing.pack(sequences, 9)]
    assert rows == [["a", "c"], ["b", "d"]]
