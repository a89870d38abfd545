import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data import text
from trainer.errors import UsageError


def read(data):
    return list(text.lines(io.BytesIO(data), "it"))


CHARACTERS = st.characters(codec="utf-8", exclude_characters="\r\n")


@given(st.lists(st.text(CHARACTERS)), st.data())
def test_every_end_of_a_line(lines, data):
    """What Python's universal newlines give, whichever ends are mixed."""
    ends = st.sampled_from(["\n", "\r\n", "\r"])
    whole = "".join(line + data.draw(ends) for line in lines)
    expected = io.TextIOWrapper(io.BytesIO(whole.encode()), "utf-8-sig", newline=None)
    assert read(whole.encode()) == [line.removesuffix("\n") for line in expected]


@pytest.mark.parametrize(
    "data, lines",
    [
        (b"", []),
        (b"a\rb\rc", ["a", "b", "c"]),
        (b"a\r\nb\n\nc\n", ["a", "b", "", "c"]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb", ["a", "\ufeffb"]),
        ("a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),
    ],
)
def test_lines(data, lines):
    assert read(data) == lines


def test_text_that_is_not_utf8():
    with pytest.raises(UsageError, match="it is not UTF-8 .* line 2 has byte 0xe9 at"):
        read(b"one\ncaf\xe9\n")


def test_sentences(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf one \r \r\ntwo")
    (tmp_path / "b").write_bytes(b"\xef\xbb\xbfthree\n")
    found = text.sentences([tmp_path / "a", tmp_path / "b"])
    assert list(found) == ["one", "two", "three"]
