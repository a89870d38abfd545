import itertools

import numpy as np
import pytest

from conftest import PROBLEM
from trainer import dataset
from trainer.errors import UsageError


@pytest.fixture
def source(data_dir):
    return dataset.RowSource(data_dir, PROBLEM, "train")


def batches(source, seed=0, start=0, count=4, rows=8):
    stream = dataset.training_batches(source, rows, seed, start)
    return [rows for rows, _ in itertools.islice(stream, count)]


def test_a_batch_depends_on_seed_and_step_alone(source):
    first = batches(source)
    np.testing.assert_array_equal(first, batches(source))
    np.testing.assert_array_equal(first[2:], batches(source, start=2, count=2))
    assert (np.array(first) != np.array(batches(source, seed=1))).any()


def test_every_epoch_has_every_row_in_another_order(source):
    count = len(source)
    epochs = batches(source, rows=1, count=2 * count)
    first, second = epochs[:count], epochs[count:]
    assert (np.array(first) != np.array(second)).any()
    rows = sorted(source[i][1].tolist() for i in range(count))
    for epoch in (first, second):
        assert sorted(batch[0].tolist() for batch in epoch) == rows


def test_evaluation_covers_every_row_once(source):
    seen = []
    for headers, rows in dataset.evaluation_batches(source, 7):
        assert headers.shape == (7, 2) and rows.shape == (7, 32)
        seen += rows.tolist()
    expected = [source[i][1].tolist() for i in range(len(source))]
    assert seen[: len(source)] == expected
    assert not np.any(seen[len(source) :])


def test_batch_smaller_than_a_row():
    assert dataset.rows_per_batch(100, 32) == 3
    with pytest.raises(UsageError, match="smaller than one row of 32"):
        dataset.rows_per_batch(31, 32)


def test_missing_data(data_dir, tmp_path):
    with pytest.raises(UsageError, match="is not a folder"):
        dataset.load_description(tmp_path / "none", PROBLEM)
    with pytest.raises(UsageError, match="run et-datagen"):
        dataset.load_description(tmp_path, PROBLEM)
