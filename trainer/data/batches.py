"""Batches of rows: shuffled without end for training, all once for evaluation."""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

import numpy as np

from trainer.data.dataset import HEADER
from trainer.data.dataset import Description
from trainer.data.dataset import Paths
from trainer.data.dataset import checksum
from trainer.data.dataset import decode_rows
from trainer.errors import UsageError


class Bucket:
    """Random access to the rows of one length.

    Args:
        path: the ArrayRecord file.
        length: tokens of a row.
        rows: the number of rows that the file must hold.
        ends: the `dataset.checksum` of its first and last row; None: not known.
        vocab_size: ids of tokens are below it; None: not known.

    Raises:
        UsageError: the file is missing, damaged or of another data set; also where
            rows are read.
    """

    def __init__(
        self,
        path: pathlib.Path,
        length: int,
        rows: int,
        ends: int | None = None,
        vocab_size: int | None = None,
    ):
        from array_record.python import array_record_data_source

        if not path.is_file():
            raise UsageError(f"{path} is missing: run et-datagen again")
        self.length = length
        self._vocab_size = vocab_size
        self.damage = None  # the error, once a row could not be read
        self._path = path
        try:
            self._source = array_record_data_source.ArrayRecordDataSource(str(path))
            found = len(self._source)
        except (RuntimeError, ValueError):
            found = None
        if found is None:
            raise self._damaged("damaged")
        if found != rows:
            raise self._damaged(f"damaged: it holds {found:,} rows, not {rows:,}")
        if ends is not None and ends != checksum(*self._records([0, found - 1])):
            raise self._damaged("of another data set: its first or last row differs")

    def _damaged(self, what):
        self.damage = UsageError(f"{self._path} is {what}: run et-datagen again")
        return self.damage

    def _records(self, indices):
        try:
            return self._source.__getitems__(indices) if len(indices) else []
        except (RuntimeError, ValueError):  # which of them, it does not say
            return [self._record(i) for i in indices]

    def _record(self, index):
        try:
            return self._source[index]
        except (RuntimeError, ValueError):
            raise self._damaged(f"damaged at row {index:,}") from None

    def __len__(self):
        return len(self._source)

    def rows(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the headers (N, 2) and the token ids (N, T) of N rows.

        All are read by one call: Grain reads in threads, and what Python does for each
        row would keep the thread that trains waiting.
        """
        records = self._records(indices)
        for i, record in zip(indices, records):
            if len(record) != 4 * (HEADER + self.length):
                raise self._damaged(f"damaged at row {i:,}")
        headers, ids = decode_rows(records, self.length)
        if self._vocab_size:
            # A GPU embeds such an id as zeros, JAX as the last token.
            for row, column in np.argwhere((ids < 0) | (ids >= self._vocab_size)):
                raise self._damaged(
                    f"damaged at row {indices[row]:,} (token {ids[row, column]} of "
                    f"{self._vocab_size})"
                )
        return headers, ids


@dataclasses.dataclass(frozen=True)
class Share:
    """Says which rows of each batch a process takes: none twice, and none is missed.

    The batch itself is the same, however many share it.
    """

    process: int = 0
    processes: int = 1
    replicas: int = 1  # of all processes: each takes as many rows, of which some
    # may be empty

    def of(self, rows: int) -> tuple[slice, int]:
        """Returns this process' rows of a batch, and how many empty ones follow."""
        number = math.ceil(rows / self.replicas) * self.replicas // self.processes
        first, last = (min(p * number, rows) for p in (self.process, self.process + 1))
        return slice(first, last), number - (last - first)


ALONE = Share()
# Batches that are read ahead. Grain looks at all of these for each that it yields, and
# has 500 by default.
PREFETCHED = 16


@contextlib.contextmanager
def damage_named(buckets: Iterable[Bucket]) -> Iterator[None]:
    """Ends a failed block with the error of a damaged row, if there was one.

    TensorFlow makes an error of its own, of many lines, of all that a generator
    raises inside of `fit`.
    """
    try:
        yield
    except Exception:
        for bucket in buckets:
            if bucket.damage:
                raise bucket.damage from None
        raise


def buckets(
    data_dir: str | pathlib.Path, description: Description, split: str
) -> list[Bucket]:
    """Returns the rows of a split, a `Bucket` for each length, shortest first.

    Raises:
        UsageError: the data set has no such split, or a file is missing or damaged.
    """
    if split not in description.splits:
        raise UsageError(
            f"{data_dir} holds no {split} split of {description.problem}, only "
            f"{', '.join(description.splits)}"
        )
    paths = Paths(data_dir, description.problem)
    counts = description.splits[split]
    return [
        Bucket(
            paths.rows(split, length),
            length,
            rows,
            counts.ends.get(length),
            description.vocab_size,
        )
        for length, rows in sorted(counts.rows.items())
    ]


def training_batches(
    buckets: Sequence[Bucket],
    tokens: int,
    seed: int,
    start_step: int = 0,
    share: Share = ALONE,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields endless batches of shuffled rows for `model.fit`, from `start_step` on.

    The batch of a step depends on (seed, step) alone: every epoch has its own
    permutation, and a start in the middle costs nothing. Rows of a batch are of one
    length; the lengths take turns, each as often as it has batches.

    Args:
        buckets: the rows of a split, from the function `buckets`.
        tokens: of a batch, at most: `tokens` // length rows.
        seed: of the shuffling.
        start_step: the first step that a batch is needed for.
        share: of each batch, that is yielded.

    Yields:
        (rows, rows): int32 ids (B, T) as input and as labels.
    """
    import grain

    def own(bucket, indices):
        mine, empty = share.of(len(indices))
        _, rows = bucket.rows(indices[mine])
        return np.pad(rows, ((0, empty), (0, 0)))  # PAD_ID is 0

    streams = [
        grain.MapDataset.range(len(bucket))
        .shuffle(seed=seed)
        .repeat()
        .batch(tokens // bucket.length, drop_remainder=True)
        .map(functools.partial(own, bucket))
        for bucket in buckets
    ]
    stream = streams[0]
    if len(streams) > 1:
        weights = [len(bucket) * bucket.length for bucket in buckets]
        stream = grain.MapDataset.mix(streams, weights)
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=PREFETCHED)
    for batch in stream[start_step:].to_iter_dataset(options):
        yield batch, batch


def untuned(dataset):
    """Returns a `tf.data.Dataset` without autotuning: reading ends when it is ended.

    The thread that tunes a dataset sleeps between, for 10 ms at first and twice as long
    each time, up to a minute. TensorFlow 2.21 signals the end before it marks it, so
    that the thread often sleeps on, and whoever drops the iterator waits for it: a
    `fit` of 6 s took 10.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


class EvaluationBatches:
    """Holds all rows once, in batches; the last of a length ends in empty rows.

    Each is (headers, rows) of shapes (B, 2) and (B, T); empty rows hold zeros.

    Args:
        buckets: the rows of a split, from the function `buckets`.
        tokens: of a batch, at most.
        max_batches: the number of batches, evenly spaced among all; None or 0: all.
        share: of each batch, that is held.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        tokens: int,
        max_batches: int | None = None,
        share: Share = ALONE,
    ):
        self._share = share
        starts = []  # (bucket, first row, rows) of every batch
        for bucket in buckets:
            size = tokens // bucket.length
            starts += [(bucket, start, size) for start in range(0, len(bucket), size)]
        if max_batches and max_batches < len(starts):
            # The middle of each of so many spans: the first rows of a packed split are
            # all from inside of long sentences, which fill rows by themselves.
            middles = range(1, 2 * max_batches, 2)
            starts = [starts[i * len(starts) // (2 * max_batches)] for i in middles]
        self._starts = starts

    def __len__(self):
        return len(self._starts)

    def __iter__(self):
        for bucket, start, size in self._starts:
            mine, empty = self._share.of(size)
            indices = range(start, min(start + size, len(bucket)))[mine]
            headers, rows = bucket.rows(indices)
            empty += len(range(size)[mine]) - len(indices)
            yield tuple(np.pad(a, ((0, empty), (0, 0))) for a in (headers, rows))
