"""Packed rows on disk: their files, their record format, their description.

A data folder holds, for each problem,

    PROBLEM.model                   the SentencePiece model
    PROBLEM-SPLIT.array_record      one record a row
    PROBLEM.json                    a `Description`; written last, so a folder
                                    that has it is complete

A record is 2 + max_length little-endian int32: the words and the UTF-8 bytes
(newlines counted) of the sentences that end in the row, then the token ids.
"""

import dataclasses
import json
import pathlib

import numpy as np

from trainer.errors import UsageError

HEADER = 2  # words, bytes


@dataclasses.dataclass(frozen=True)
class Split:
    """What a split holds, exactly."""

    sentences: int = 0
    words: int = 0
    tokens: int = 0  # EOS counted, padding not
    bytes: int = 0
    rows: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    problem: str
    vocab_size: int  # pieces of the trained model
    max_length: int
    tokenizer_sha256: str
    splits: dict  # name -> Split

    def efficiency(self, split):
        """Share of a split's cells that are not padding."""
        s = self.splits[split]
        return s.tokens / (s.rows * self.max_length)


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

    def rows(self, split):
        return self._file(f"-{split}.array_record")


def encode_row(ids, words, byte_count, max_length) -> bytes:
    record = np.zeros(HEADER + max_length, "<i4")
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
    fields = json.loads(path.read_text())
    fields["splits"] = {k: Split(**v) for k, v in fields["splits"].items()}
    return Description(**fields)


class RowSource:
    """Random access to the rows of a split, for Grain."""

    def __init__(self, data_dir, problem, split):
        from array_record.python import array_record_data_source

        path = Paths(data_dir, problem).rows(split)
        if not path.is_file():
            raise UsageError(f"{path} is missing: run et-datagen again")
        self._source = array_record_data_source.ArrayRecordDataSource(str(path))

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return decode_row(self._source[index])


def rows_per_batch(batch_size, max_length):
    """Rows that a batch of `batch_size` tokens holds."""
    rows = batch_size // max_length
    if not rows:
        raise UsageError(
            f"batch_size={batch_size} tokens is smaller than one row of "
            f"{max_length}: choose batch_size >= {max_length}"
        )
    return rows


def training_batches(source, rows_per_batch, seed, start_step=0):
    """Endless batches of shuffled rows for `model.fit`, from `start_step` on.

    The batch of a step depends on (seed, step) alone: every epoch has its own
    permutation, and a start in the middle costs nothing.

    Yields:
        (rows, rows): int32 ids (B, T) as input and as labels.
    """
    import grain

    rows = (
        grain.MapDataset.source(source)
        .shuffle(seed=seed)
        .repeat()
        .map(lambda item: item[1])
        .batch(rows_per_batch, drop_remainder=True)
    )
    for batch in rows[start_step:].to_iter_dataset():
        yield batch, batch


def evaluation_batches(source, rows_per_batch):
    """All rows in order, the last batch filled up with empty rows.

    Yields:
        (headers, rows) of shapes (B, 2) and (B, T); empty rows hold zeros.
    """
    for start in range(0, len(source), rows_per_batch):
        stop = min(start + rows_per_batch, len(source))
        items = [source[i] for i in range(start, stop)]
        items += [(np.zeros(HEADER, "<i4"), np.zeros_like(items[0][1]))] * (
            rows_per_batch - len(items)
        )
        yield tuple(np.stack(column) for column in zip(*items))
