import dataclasses
import json

import pytest

from conftest import PROBLEM
from trainer import files
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.runs import run_folder

DEFAULTS = {"random_seed": 0, "dtype": "float32"}


@pytest.fixture
def description(data_dir):
    return dataset.load_description(data_dir, PROBLEM)


def config(**changes):
    hparams = dataclasses.asdict(HParams())
    return {"problem": PROBLEM, "hparams": hparams} | DEFAULTS | changes


@pytest.fixture
def folder(tmp_path, data_dir, description):
    """A folder of a run that has saved a model."""
    vocabulary = dataset.Paths(data_dir, PROBLEM).tokenizer
    run_folder.begin(tmp_path, config(), description, vocabulary)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "model-1.keras").touch()
    return tmp_path


def test_a_setting_that_came_later_had_its_default(folder, description):
    """A key, and an hparam, that the config.json of an older version lacks."""
    path = folder / "config.json"
    before = json.loads(path.read_text())
    del before["hparams"]["ema_momentum"], before["random_seed"]
    path.write_text(json.dumps(before))
    now = config()
    run_folder.check(folder, now, DEFAULTS, description)
    assert run_folder.read_config(folder)["hparams"]["ema_momentum"] == 0.0
    now["hparams"]["ema_momentum"] = 0.5
    with pytest.raises(UsageError, match=r"hparams.ema_momentum=0.0, this .*=0.5"):
        run_folder.check(folder, now, DEFAULTS, description)
    with pytest.raises(UsageError, match="random_seed=0, this one has random_seed=7"):
        run_folder.check(folder, config(random_seed=7), DEFAULTS, description)


def test_other_data_is_refused(folder, description):
    other = dataclasses.replace(description, tokenizer_sha256="0")
    with pytest.raises(UsageError, match="data.tokenizer_sha256=.*another output_dir"):
        run_folder.check(folder, config(), DEFAULTS, other)


def test_a_folder_without_a_model_is_free(folder, description):
    """A start that failed, or diverged before it saved, is no run to continue."""
    model = folder / "checkpoints" / "model-1.keras"
    model.rename(files.partial_path(model))  # a kill while the first was written
    run_folder.check(folder, config(dtype="mixed_float16"), DEFAULTS, description)


@pytest.mark.parametrize("content", ['{"prob', "[]", "{}", "null"])
def test_damaged_files_are_one_clear_line(folder, description, content):
    for name in ("config.json", "data.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(content)
        with pytest.raises(UsageError, match=f"{name} is damaged.*bring it back from"):
            run_folder.check(folder, config(), DEFAULTS, description)
        (folder / name).write_text(whole)


def test_a_damaged_vocabulary_is_not_copied(tmp_path, data_dir, description):
    """It would be found out when the run is done, and decodes nothing."""
    vocabulary = tmp_path / "p.model"
    whole = dataset.Paths(data_dir, PROBLEM).tokenizer.read_bytes()
    vocabulary.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="p.model is damaged: run et-datagen again"):
        run_folder.begin(tmp_path, config(), description, vocabulary)
    vocabulary.unlink()
    with pytest.raises(UsageError, match="no SentencePiece model at .*p.model"):
        run_folder.begin(tmp_path, config(), description, vocabulary)
    assert not list(tmp_path.iterdir())


def test_a_lock_leaves_no_empty_folder(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match="failed"), run_folder.lock(folder):
        with pytest.raises(UsageError, match="another run is busy in"):
            with run_folder.lock(folder):
                pass
        raise UsageError("failed")
    assert not folder.exists()
    with run_folder.lock(folder):
        (folder / "config.json").touch()
    assert (folder / "config.json").exists()
