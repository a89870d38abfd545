from hypothesis import given
from hypothesis import strategies as st

from trainer.data import packing


@given(st.data(), st.integers(2, 16), st.integers(1, 8))
def test_every_token_is_in_one_row(data, length, open_rows):
    ids = st.lists(st.integers(1, 99), min_size=1, max_size=length)
    sequences = data.draw(st.lists(ids, max_size=99))
    numbered = [(ids, number) for number, ids in enumerate(sequences)]
    rows = list(packing.pack(numbered, length, open_rows))
    found = sorted(n for _, numbers in rows for n in numbers)
    assert found == list(range(len(sequences)))
    for ids, numbers in rows:
        assert len(ids) <= length
        assert ids == [token for n in numbers for token in sequences[n]]


def test_best_fit():
    sequences = [([5] * 6, "a"), ([5] * 5, "b"), ([5] * 3, "c"), ([5] * 4, "d")]
    rows = [payloads for _, payloads in packing.pack(sequences, 9)]
    assert rows == [["a", "c"], ["b", "d"]]
