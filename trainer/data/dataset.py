"""Rows on disk: their files, their record format, their description.

A data folder holds, for each problem,

    PROBLEM.model                   the SentencePiece model
    PROBLEM-SPLIT-T.array_record    the rows of T tokens, one record a row
    PROBLEM.json                    a `Description`; written last, so a folder
                                    that has it is complete
    PROBLEM.unfinished/             a data set that is being made: see staging.py
    PROBLEM.lock                    while it is made

Packed rows are of one length, others of a few ("buckets"). A record is 2 + T
little-endian int32: the words and the UTF-8 bytes (newlines counted) that the row
ends, see `encoding.Counts`, then the token ids.
"""

import dataclasses
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.errors import HParamsError
from trainer.errors import UsageError
from trainer.files import read_json
from trainer.files import write_json

HEADER = 2  # words, bytes


@dataclasses.dataclass(frozen=True)
class Split:
    """Holds the exact counts of a split."""

    sentences: int = 0
    words: int = 0
    tokens: int = 0  # EOS counted, padding not
    bytes: int = 0
    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    # `rows` maps the tokens of a row to the number of such rows, `ends` to the CRC-32
    # of the first and the last of their records: a file of other rows is found out.
    ends: dict[int, int] = dataclasses.field(default_factory=dict)

    @property
    def row_count(self) -> int:
        return sum(self.rows.values())

    @property
    def cells(self) -> int:
        """Tokens and padding."""
        return sum(length * count for length, count in self.rows.items())


@dataclasses.dataclass(frozen=True)
class Description:
    """Holds the sizes of a data set and the checksum of its vocabulary."""

    problem: str
    vocab_size: int  # pieces of the trained model
    max_length: int
    packed: bool
    tokenizer_sha256: str
    splits: dict[str, Split]

    def efficiency(self, split: str) -> float:
        """Returns the share of a split's cells that are not padding."""
        return self.splits[split].tokens / self.splits[split].cells

    @property
    def row_length(self) -> int | None:
        """Tokens of every row; None where rows differ."""
        return self.max_length if self.packed else None

    def tokens_per_batch(self, batch_size: int) -> int:
        """Returns the tokens of a batch, padding counted: whole rows of `batch_size`.

        Rows of other lengths than `max_length` fill the batch as far as they can.

        Raises:
            HParamsError: `batch_size` is less than one row.
        """
        if batch_size < self.max_length:
            raise HParamsError(
                f"batch_size={batch_size} tokens is smaller than one row of "
                f"{self.max_length}: choose batch_size >= {self.max_length}"
            )
        rest = batch_size % self.max_length if self.packed else 0
        return batch_size - rest


@dataclasses.dataclass(frozen=True)
class Paths:
    """Names the files of one problem in one data folder."""

    data_dir: str | pathlib.Path
    problem: str

    def _file(self, suffix):
        return pathlib.Path(self.data_dir) / f"{self.problem}{suffix}"

    @property
    def tokenizer(self) -> pathlib.Path:
        return self._file(".model")

    @property
    def description(self) -> pathlib.Path:
        return self._file(".json")

    @property
    def lock(self) -> pathlib.Path:
        return self._file(".lock")

    @property
    def unfinished(self) -> pathlib.Path:
        return self._file(".unfinished")

    def rows(self, split: str, length: int) -> pathlib.Path:
        return self._file(f"-{split}-{length}.array_record")


def encode_row(ids: list[int], words: int, byte_count: int, length: int) -> bytes:
    """Returns the record of a row of `length` tokens; zeros follow `ids`."""
    record = np.zeros(HEADER + length, "<i4")
    record[:HEADER] = words, byte_count
    record[HEADER : HEADER + len(ids)] = ids
    return record.tobytes()


def checksum(first: bytes, last: bytes) -> int:
    """Returns the CRC-32 of the first and the last record of a file: `Split.ends`."""
    return zlib.crc32(last, zlib.crc32(first))


def decode_rows(records: Sequence[bytes], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the headers (N, 2) and the token ids (N, `length`) of N records."""
    values = np.frombuffer(b"".join(records), "<i4").reshape(-1, HEADER + length)
    return values[:, :HEADER], values[:, HEADER:]


def load_description(data_dir: str | pathlib.Path, problem: str) -> Description:
    """Reads the description of a generated data set.

    Raises:
        UsageError: the data set is missing or its description damaged; the message
            says how to make it.
    """
    if not pathlib.Path(data_dir).is_dir():
        raise UsageError(f"data_dir={data_dir} is not a folder")
    path = Paths(data_dir, problem).description
    if not path.is_file():
        raise UsageError(
            f"{data_dir} holds no complete data of {problem} (no {path.name}): "
            f"run et-datagen --problem={problem} --data_dir={data_dir}"
        )
    return read_description(path)


def read_description(
    path: pathlib.Path, remedy: str = "run et-datagen again"
) -> Description:
    """Reads a description that `write_description` wrote.

    Raises:
        UsageError: the file is damaged; the message ends with `remedy`.
    """
    fields = read_json(path, remedy)
    try:
        splits = {name: split_of(value) for name, value in fields["splits"].items()}
        found = Description(**fields | {"splits": splits})
        for name in (found.problem, found.tokenizer_sha256, *splits):
            _check(name, str)
        _check(found.packed, bool)
        for size in (found.vocab_size, found.max_length):
            _check(size, int, least=1)
        return found
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise UsageError(
            f"{path} is damaged (it describes no data set): {remedy}"
        ) from None


def write_description(path: pathlib.Path, description: Description):
    """Writes a description as JSON, whole or not at all."""
    write_json(path, dataclasses.asdict(description))


def split_of(fields: dict) -> Split:
    """Returns the `Split` of JSON fields, in which lengths are strings."""
    maps: dict[str, Any] = {
        name: {int(length): int(number) for length, number in value.items()}
        for name, value in fields.items()
        if name in ("rows", "ends")
    }
    split = Split(**fields | maps)
    counts = (split.sentences, split.words, split.tokens, split.bytes)
    for count in (*counts, *split.rows, *split.rows.values()):
        _check(count, int)
    return split


def _check(value, kind, least=0):
    if type(value) is not kind or (kind is int and value < least):
        raise TypeError
