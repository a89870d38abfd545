"""A run is used with its own vocabulary, and with data of that vocabulary alone."""

import dataclasses
import shutil

import pytest

from conftest import PROBLEM
from trainer.data import dataset
from trainer.data import tokenizer
from trainer.errors import UsageError
from trainer.runs import trained_model


@pytest.fixture(scope="module")
def other_data(trained, data_dir, tmp_path_factory):
    """Data whose vocabulary has as many pieces, but others."""
    folder = tmp_path_factory.mktemp("other")
    for file in data_dir.glob(f"{PROBLEM}*"):
        content = file.read_bytes()
        if file.suffix == ".json":
            checksum = trained.description.tokenizer_sha256.encode()
            content = content.replace(checksum, b"0" * len(checksum))
        (folder / file.name).write_bytes(content)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """The run's folder, copied, and its checkpoint there."""
    folder = tmp_path / "copied"
    shutil.copytree(trained.path.parent.parent, folder)
    return folder, folder / "checkpoints" / trained.path.name


def test_a_run_is_used_without_its_data(trained, copied, data_dir):
    folder, path = copied
    again = trained_model.load(folder)
    assert again.path == path
    text = "zu bo ti , ka ."
    assert again.processor.encode(text) == trained.processor.encode(text)
    assert again.description == trained.check_data(data_dir)


def test_longer_rows_are_refused(trained, data_dir, tmp_path):
    """Shorter ones are not: a model takes rows up to the longest of its training."""
    for length in (16, 32, 64):
        described = dataclasses.replace(trained.description, max_length=length)
        path = dataset.Paths(tmp_path, PROBLEM).description
        dataset.write_description(path, described)
        if length <= 32:
            assert trained.check_data(tmp_path) == described
    with pytest.raises(UsageError, match="rows of 64 tokens.*trained on rows of 32 at"):
        trained.check_data(tmp_path)


def test_data_of_another_vocabulary_is_refused(trained, other_data):
    with pytest.raises(UsageError, match="has another vocabulary than the one that"):
        trained.check_data(other_data)


def test_a_checkpoint_of_another_vocabulary_is_refused(copied, trained):
    folder, path = copied
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("float32", "mixed_bfloat16"))
    loaded = trained_model.load(trained.path.parent.parent, path)
    assert loaded.config["dtype"] == "mixed_bfloat16", "its own run's"
    description = folder / "data.json"
    checksum = trained.description.tokenizer_sha256
    vocabulary = folder / "tokenizer.model"
    empty_field = b"\x22\x00"  # of a protocol buffer: still a model, other bytes
    vocabulary.write_bytes(vocabulary.read_bytes() + empty_field)
    with pytest.raises(UsageError, match="is not the vocabulary that .* describes"):
        trained_model.load(folder)
    text = description.read_text().replace(checksum, tokenizer.checksum(vocabulary))
    description.write_text(text)
    with pytest.raises(UsageError, match="another vocabulary"):
        trained_model.load(trained.path.parent.parent, path)
    vocabulary.unlink()
    with pytest.raises(UsageError, match="tokenizer.model is missing"):
        trained_model.load(folder)


def test_a_checkpoint_outside_of_a_run_is_refused(trained, tmp_path):
    """Nothing says what its token ids mean."""
    with pytest.raises(UsageError, match="there is no checkpoint"):
        trained_model.load(trained.path.parent.parent, tmp_path / "none.keras")
    loose = shutil.copy(trained.path, tmp_path)
    with pytest.raises(UsageError, match="name it as RUN/checkpoints/model-60.keras"):
        trained_model.load(trained.path.parent.parent, loose)
