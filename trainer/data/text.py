"""The one reader of text: every line of input comes through here."""

import codecs
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from typing import BinaryIO

from trainer.errors import UsageError


def lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Yields the lines of UTF-8 text, without their ends.

    LF, CRLF and a lone CR end a line. A byte order mark at the start is no part of
    the first line.

    Args:
        file: the text, opened for reading bytes.
        name: the name of the text in an error.

    Raises:
        UsageError: the text is not UTF-8, or reading fails.
    """
    try:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            yield from line.split("\r")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text: line {number} has byte "
            f"0x{error.object[error.start]:02x} at position {error.start + 1}"
        ) from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None


def sentences(files: Iterable[pathlib.Path]) -> Iterator[str]:
    """Yields the lines of text files, stripped, blank lines left out."""
    for path in files:
        with open(path, "rb") as file:
            yield from filter(None, map(str.strip, lines(file, str(path))))
