import collections
import itertools
import shutil

import numpy as np
import pytest

from conftest import PROBLEM
from trainer import registry
from trainer.data import batches
from trainer.data import datagen
from trainer.data import dataset
from trainer.data.encoding import Counts
from trainer.errors import UsageError


@pytest.fixture
def source(data_dir):
    description = dataset.load_description(data_dir, PROBLEM)
    (bucket,) = batches.buckets(data_dir, description, "train")
    return bucket


def drawn(source, seed=0, start=0, count=4, rows=8):
    stream = batches.training_batches([source], rows * 32, seed, start)
    return [rows for rows, _ in itertools.islice(stream, count)]


def test_a_batch_depends_on_seed_and_step_alone(source):
    first = drawn(source)
    np.testing.assert_array_equal(first, drawn(source))
    np.testing.assert_array_equal(first[2:], drawn(source, start=2, count=2))
    assert (np.array(first) != np.array(drawn(source, seed=1))).any()


def test_every_epoch_has_every_row_in_another_order(source):
    count = len(source)
    epochs = drawn(source, rows=1, count=2 * count)
    first, second = epochs[:count], epochs[count:]
    assert (np.array(first) != np.array(second)).any()
    rows = sorted(source.rows(range(count))[1].tolist())
    for epoch in (first, second):
        assert sorted(batch[0].tolist() for batch in epoch) == rows


def test_evaluation_covers_every_row_once(source):
    seen = []
    for headers, rows in batches.EvaluationBatches([source], 7 * 32 + 5):
        assert headers.shape == (7, 2) and rows.shape == (7, 32)
        seen += rows.tolist()
    expected = source.rows(range(len(source)))[1].tolist()
    assert seen[: len(source)] == expected
    assert not np.any(seen[len(source) :])


@pytest.mark.parametrize(
    "rows, replicas, empty", [(8, 4, 0), (8, 8, 0), (7, 4, 1), (5, 4, 3), (1, 8, 7)]
)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_out_the_rows_of_each_batch(
    source, rows, replicas, empty, processes
):
    """In order, none twice, none missed, and as many for each replica."""
    shares = [batches.Share(p, processes, replicas) for p in range(processes)]
    tokens = rows * 32
    streams = [
        batches.training_batches([source], tokens, 0, share=share) for share in shares
    ]
    for expected in drawn(source, rows=rows, count=2):
        parts = [next(stream)[0] for stream in streams]
        assert {len(part) for part in parts} == {(rows + empty) // processes}
        found = np.concatenate(parts)
        np.testing.assert_array_equal(found[:rows], expected)
        assert not found[rows:].any()
    whole = list(batches.EvaluationBatches([source], tokens))
    found = [list(batches.EvaluationBatches([source], tokens, None, s)) for s in shares]
    for expected, *parts in zip(whole, *found, strict=True):
        for a, *of_parts in zip(expected, *parts):
            np.testing.assert_array_equal(np.concatenate(of_parts)[:rows], a)


@pytest.fixture(scope="module")
def unpacked(data_dir, tmp_path_factory):
    """The same text, a sentence a row."""
    folder = tmp_path_factory.mktemp("unpacked")
    problem = registry.problems.get("languagemodel_lm1b2k")
    description = datagen.generate(problem, data_dir / "text", folder, max_length=48)
    return folder, description


def test_unpacked_rows_hold_the_same_sentences(data_dir, unpacked):
    folder, description = unpacked
    packed = dataset.load_description(data_dir, PROBLEM).splits["dev"]
    split = description.splits["dev"]
    for count in ("sentences", "words", "bytes", "tokens"):
        assert getattr(split, count) == getattr(packed, count)
    assert set(split.rows) <= {18, 24, 36, 48}  # few shapes to compile
    for bucket in batches.buckets(folder, description, "dev"):
        assert len(bucket) == split.rows[bucket.length]
        for ids in bucket.rows(range(len(bucket)))[1]:
            real = ids[ids != 0]
            assert len(ids) == bucket.length
            assert np.sum(real == 1) == (real[-1] == 1)  # one, or a segment


def test_unpacked_batches_are_of_one_length_and_few_tokens(unpacked):
    folder, description = unpacked
    train = batches.buckets(folder, description, "train")
    stream = batches.training_batches(train, 500, seed=0)
    found = [rows for rows, _ in itertools.islice(stream, 400)]
    shapes = collections.Counter(rows.shape for rows in found)
    assert set(shapes) == {(500 // b.length, b.length) for b in train}
    for bucket in train:  # as often as its share of the batches
        shape = (500 // bucket.length, bucket.length)
        share = len(bucket) * bucket.length / description.splits["train"].cells
        assert abs(shapes[shape] / 400 - share) < 0.02
    again = batches.training_batches(train, 500, seed=0, start_step=399)
    np.testing.assert_array_equal(next(again)[0], found[-1])


def test_a_part_of_an_evaluation_has_every_length(unpacked):
    folder, description = unpacked
    dev = batches.buckets(folder, description, "dev")
    whole = list(batches.EvaluationBatches(dev, 500))
    part = list(batches.EvaluationBatches(dev, 500, max_batches=len(whole) // 2))
    assert len(part) == len(whole) // 2
    assert {rows.shape for _, rows in part} == {rows.shape for _, rows in whole}


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, what",
    [
        (lambda path: path.write_bytes(b""), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:70_000]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (lambda path: path.write_bytes(b"no rows at all" * 9999), "damaged"),
        (lambda path: flip(path, 100), "damaged at row 0"),
        (lambda path: flip(path, 3000), r"damaged at row [1-9]\d*"),
        (  # whole, but of other rows
            lambda path: path.write_bytes(
                path.with_name(path.name.replace("train", "dev")).read_bytes()
            ),
            r"damaged: it holds [\d,]+ rows, not [\d,]+",
        ),
    ],
)
def test_damaged_rows(data_dir, tmp_path, damage, what):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    description = dataset.load_description(tmp_path, PROBLEM)
    damage(dataset.Paths(tmp_path, PROBLEM).rows("train", 32))
    with pytest.raises(UsageError, match=f"-32.array_record is {what}: run et-datag"):
        (bucket,) = batches.buckets(tmp_path, description, "train")
        next(batches.training_batches([bucket], len(bucket) * 32, seed=0))


def test_the_error_of_a_damaged_row_takes_the_place_of_the_library_s(
    data_dir, tmp_path
):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    path = dataset.Paths(tmp_path, PROBLEM).rows("train", 32)
    flip(path, 3000)
    description = dataset.load_description(tmp_path, PROBLEM)
    (bucket,) = batches.buckets(tmp_path, description, "train")

    def fit():
        try:
            next(batches.training_batches([bucket], len(bucket) * 32, seed=0))
        except UsageError:
            raise RuntimeError("of TensorFlow") from None

    with pytest.raises(UsageError, match="is damaged at row .*: run et-datagen again"):
        with batches.damage_named([bucket]):
            fit()
    (sound,) = batches.buckets(tmp_path, description, "dev")
    with pytest.raises(RuntimeError, match="of TensorFlow"):
        with batches.damage_named([sound]):
            fit()


def test_rows_of_another_data_set(data_dir, tmp_path):
    """As many, and as long: other text, or the same text in other tokens."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    description = dataset.load_description(tmp_path, PROBLEM)
    for change in (lambda ids: ids[::-1], lambda ids: [i + (i > 1) for i in ids]):
        (bucket,) = batches.buckets(data_dir, description, "dev")
        path = dataset.Paths(tmp_path, PROBLEM).rows("dev", 32)
        path.unlink()
        rows = zip(*bucket.rows(range(len(bucket))))
        other = (
            (change(ids[ids > 0].tolist()), [Counts(0, *header.tolist())])
            for header, ids in rows
        )
        datagen._write_rows(other, {32: path}, 1)
        with pytest.raises(UsageError, match="-32.array_record is of another data set"):
            batches.buckets(tmp_path, description, "dev")


def test_missing_rows(data_dir, tmp_path):
    description = dataset.load_description(data_dir, PROBLEM)
    with pytest.raises(UsageError, match="-32.array_record is missing: run et-datag"):
        batches.buckets(tmp_path, description, "train")
    with pytest.raises(UsageError, match="holds no x split of .*, only train, dev, te"):
        batches.buckets(data_dir, description, "x")
