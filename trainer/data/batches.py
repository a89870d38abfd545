"""Batches of rows: shuffled without end for training, all once for evaluation."""

import numpy as np

from trainer.data.dataset import HEADER
from trainer.data.dataset import Paths
from trainer.data.dataset import decode_row
from trainer.errors import UsageError


def buckets(data_dir, description, split):
    """The rows of a split, a `Bucket` for each length, shortest first."""
    if split not in description.splits:
        raise UsageError(
            f"{data_dir} holds no {split} split of {description.problem}, only "
            f"{', '.join(description.splits)}"
        )
    paths = Paths(data_dir, description.problem)
    lengths = sorted(description.splits[split].rows)
    return [Bucket(paths.rows(split, length), length) for length in lengths]


class Bucket:
    """Random access to the rows of one length, for Grain."""

    def __init__(self, path, length):
        from array_record.python import array_record_data_source

        if not path.is_file():
            raise UsageError(f"{path} is missing: run et-datagen again")
        self._source = array_record_data_source.ArrayRecordDataSource(str(path))
        self.length = length

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return decode_row(self._source[index])


def training_batches(buckets, tokens, seed, start_step=0):
    """Endless batches of shuffled rows for `model.fit`, from `start_step` on.

    The batch of a step depends on (seed, step) alone: every epoch has its own
    permutation, and a start in the middle costs nothing. Rows of a batch are of one
    length; the lengths take turns, each as often as it has batches.

    Args:
        buckets: what `buckets` gives.
        tokens: of a batch, at most: `tokens` // length rows.

    Yields:
        (rows, rows): int32 ids (B, T) as input and as labels.
    """
    import grain

    streams = [
        grain.MapDataset.source(bucket)
        .shuffle(seed=seed)
        .repeat()
        .map(lambda item: item[1])
        .batch(tokens // bucket.length, drop_remainder=True)
        for bucket in buckets
    ]
    stream = streams[0]
    if len(streams) > 1:
        weights = [len(bucket) * bucket.length for bucket in buckets]
        stream = grain.MapDataset.mix(streams, weights)
    for batch in stream[start_step:].to_iter_dataset():
        yield batch, batch


def evaluation_batches(buckets, tokens, max_batches=None):
    """All rows once, the last batch of a length filled up with empty rows.

    Args:
        buckets: what `buckets` gives.
        tokens: of a batch, at most.
        max_batches: so many batches, evenly spaced among all; None: all.

    Yields:
        (headers, rows) of shapes (B, 2) and (B, T); empty rows hold zeros.
    """
    parts = []
    for bucket in buckets:
        size = tokens // bucket.length
        parts += [(bucket, start, size) for start in range(0, len(bucket), size)]
    if max_batches and max_batches < len(parts):
        parts = [parts[i * len(parts) // max_batches] for i in range(max_batches)]
    for bucket, start, size in parts:
        stop = min(start + size, len(bucket))
        items = [bucket[i] for i in range(start, stop)]
        empty = np.zeros(HEADER, "<i4"), np.zeros_like(items[0][1])
        items += [empty] * (size - len(items))
        yield tuple(np.stack(column) for column in zip(*items))
