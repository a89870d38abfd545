import json

import pytest

from conftest import PROBLEM
from trainer.data import dataset
from trainer.errors import UsageError


def test_rows_are_read_as_they_were_written():
    first = dataset.encode_row([5, 6, 1], words=2, byte_count=9, length=4)
    second = dataset.encode_row([7, 1, 8, 9], words=1, byte_count=5, length=4)
    headers, ids = dataset.decode_rows([first, second], length=4)
    assert headers.tolist() == [[2, 9], [1, 5]]
    assert ids.tolist() == [[5, 6, 1, 0], [7, 1, 8, 9]]


def described(packed):
    splits = {"dev": dataset.Split(1, 2, 24, 4, {16: 1, 32: 1})}
    return dataset.Description("p", 300, 32, packed, "0" * 64, splits)


def test_a_description_is_read_as_it_was_written(tmp_path):
    path = dataset.Paths(tmp_path, "p").description
    dataset.write_description(path, described(True))
    assert dataset.load_description(tmp_path, "p") == described(True)
    assert json.loads(path.read_text())["splits"]["dev"]["words"] == 2
    assert described(True).efficiency("dev") == 0.5


def test_tokens_of_a_batch():
    assert described(packed=True).tokens_per_batch(100) == 96
    assert described(packed=False).tokens_per_batch(100) == 100
    with pytest.raises(UsageError, match="smaller than one row of 32"):
        described(packed=True).tokens_per_batch(31)


def test_missing_data(tmp_path):
    with pytest.raises(UsageError, match="none is not a folder"):
        dataset.load_description(tmp_path / "none", PROBLEM)
    with pytest.raises(UsageError, match="run et-datagen"):
        dataset.load_description(tmp_path, PROBLEM)


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", "{}", '{"splits": {}}', '{"splits": {"dev": 1}}']
)
def test_a_damaged_description(tmp_path, damaged):
    (tmp_path / "p.json").write_text(damaged)
    with pytest.raises(UsageError, match="p.json is damaged .*: run et-datagen again"):
        dataset.load_description(tmp_path, "p")
