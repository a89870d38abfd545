"""Rows on disk: their files, their record format, their description.

A data folder holds, for each problem,

    PROBLEM.model                   the SentencePiece model
    PROBLEM-SPLIT-T.array_record    the rows of T tokens, one record a row
    PROBLEM.json                    a `Description`; written last, so a folder
                                    that has it is complete

Packed rows are of one length, others of a few ("buckets"). A record is 2 + T
little-endian int32: the words and the UTF-8 bytes (newlines counted) of the sentences
that end in the row, then the token ids.
"""

import dataclasses
import pathlib

import numpy as np

from trainer.errors import UsageError
from trainer.files import read_json

HEADER = 2  # words, bytes


@dataclasses.dataclass(frozen=True)
class Split:
    """What a split holds, exactly."""

    sentences: int = 0
    words: int = 0
    tokens: int = 0  # EOS counted, padding not
    bytes: int = 0
    rows: dict = dataclasses.field(default_factory=dict)  # tokens of a row -> rows

    @property
    def row_count(self):
        return sum(self.rows.values())

    @property
    def cells(self):
        """Tokens and padding."""
        return sum(length * count for length, count in self.rows.items())


@dataclasses.dataclass(frozen=True)
class Description:
    problem: str
    vocab_size: int  # pieces of the trained model
    max_length: int
    packed: bool
    tokenizer_sha256: str
    splits: dict  # name -> Split

    def efficiency(self, split):
        """Share of a split's cells that are not padding."""
        return self.splits[split].tokens / self.splits[split].cells

    @property
    def row_length(self):
        """Tokens of every row; None where they differ."""
        return self.max_length if self.packed else None

    def tokens_per_batch(self, batch_size):
        """Tokens of a batch, padding counted: whole rows within `batch_size`.

        Rows of other lengths than `max_length` fill it as far as they can.
        """
        if batch_size < self.max_length:
            raise UsageError(
                f"batch_size={batch_size} tokens is smaller than one row of "
                f"{self.max_length}: choose batch_size >= {self.max_length}"
            )
        rest = batch_size % self.max_length if self.packed else 0
        return batch_size - rest


@dataclasses.dataclass(frozen=True)
class Paths:
    """File names of one problem in one data folder."""

    data_dir: str
    problem: str

    def _file(self, suffix):
        return pathlib.Path(self.data_dir) / f"{self.problem}{suffix}"

    @property
    def tokenizer(self):
        return self._file(".model")

    @property
    def description(self):
        return self._file(".json")

    @property
    def progress(self):
        return self._file(".progress.json")

    def split(self, split):
        """Counts of a split that is finished, until the description is written."""
        return self._file(f"-{split}.progress.json")

    def rows(self, split, length):
        return self._file(f"-{split}-{length}.array_record")


def encode_row(ids, words, byte_count, length) -> bytes:
    record = np.zeros(HEADER + length, "<i4")
    record[:HEADER] = words, byte_count
    record[HEADER : HEADER + len(ids)] = ids
    return record.tobytes()


def decode_row(record: bytes):
    """Returns the header (words, bytes) and the token ids of a record."""
    values = np.frombuffer(record, "<i4")
    return values[:HEADER], values[HEADER:]


def load_description(data_dir, problem) -> Description:
    """Reads the description of a generated data set, or says how to make it."""
    if not pathlib.Path(data_dir).is_dir():
        raise UsageError(f"--data_dir={data_dir} is not a folder")
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
    """Reads the JSON file of a `Description`.

    Raises:
        UsageError: the file is damaged; the message ends with `remedy`.
    """
    fields = read_json(path, remedy)
    try:
        splits = {name: read_split(value) for name, value in fields["splits"].items()}
        return Description(**fields | {"splits": splits})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UsageError(
            f"{path} is damaged (it describes no data set): {remedy}"
        ) from None


def read_split(fields) -> Split:
    """A `Split` from JSON, whose keys are strings."""
    rows = {int(length): count for length, count in fields["rows"].items()}
    return Split(**fields | {"rows": rows})
