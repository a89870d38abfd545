"""Checkpoints are whole, and finite, or refused in one clear line."""

import contextlib
import resource
import shutil

import keras
import numpy as np
import pytest

from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.runs import checkpoints


@contextlib.contextmanager
def file_size_limit(size):
    """Within, the system writes no file larger than this: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def model(trained):
    """The trained model, loaded again: tests change its weights."""
    return checkpoints.load(trained.path)


def names(output_dir):
    return sorted(p.name for p in checkpoints.folder(output_dir).iterdir())


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(model, tmp_path):
    checkpoints.save(model, tmp_path, 1)
    with file_size_limit(20_000):
        with pytest.raises(UsageError, match="model-2.keras could not be written: "):
            checkpoints.save(model, tmp_path, 2)
    assert names(tmp_path) == ["model-1.keras"]
    checkpoints.load(checkpoints.latest(tmp_path))
    (tmp_path / "file").touch()
    for gone in ("file", "none"):
        with pytest.raises(UsageError, match=f"{gone} is no folder any more"):
            checkpoints.save(model, tmp_path / gone, 1)
    assert not (tmp_path / "none").exists()


def test_the_newest_are_kept(model, tmp_path):
    for step in (8, 9, 10):
        checkpoints.save(model, tmp_path, step)
    checkpoints.keep_newest(tmp_path, 2, step=10)
    assert names(tmp_path) == ["model-10.keras", "model-9.keras"]
    assert checkpoints.step_of(checkpoints.latest(tmp_path)) == 10
    assert [p.name for p in checkpoints.last(tmp_path, 5)] == names(tmp_path)[::-1]


def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, capfd):
    checkpoints.folder(tmp_path).mkdir()
    for step in (2, 4):
        shutil.copy(trained.path, checkpoints.folder(tmp_path) / f"model-{step}.keras")
    flip_a_bit(checkpoints.folder(tmp_path) / "model-4.keras")
    assert checkpoints.latest(tmp_path).name == "model-2.keras"
    assert "model-4.keras is damaged" in capfd.readouterr().err


def test_a_damaged_checkpoint_is_one_clear_line(trained, tmp_path):
    """A bit of it flipped, its end cut off, nothing in it, something else."""
    path = tmp_path / "model-1.keras"
    whole = trained.path.read_bytes()
    path.write_bytes(whole)
    flip_a_bit(path)
    with pytest.raises(UsageError, match="model-1.keras is damaged: Bad CRC-32"):
        checkpoints.load(path)
    other = (
        "cannot be loaded as a checkpoint: it is missing, damaged or no .keras file$"
    )
    for content in (whole[: len(whole) // 2], b"", b"not a model"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"{other}$"):
            checkpoints.load(path)
    (tmp_path / "text.txt").write_text("Keras has much to say of this name")
    for name in ("text.txt", "none.keras"):
        with pytest.raises(UsageError, match=f"{other}$"):
            checkpoints.load(tmp_path / name)


def test_a_layer_that_is_not_registered_is_one_clear_line(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((2,))
    keras.Model(inputs, Mine()(inputs)).save(tmp_path / "model-1.keras")
    with pytest.raises(UsageError, match="'Mine'.*--usr_dir"):
        checkpoints.load(tmp_path / "model-1.keras")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_neither_saved_nor_used(
    trained, tmp_path, value
):
    broken = checkpoints.load(trained.path)
    kernel = broken.trainable_variables[-1]
    kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(checkpoints.NotFinite, match=f"{kernel.path} are not finite"):
        checkpoints.save(broken, tmp_path, 1)
    assert not checkpoints.any_model(tmp_path)
    broken.save(tmp_path / "model-1.keras")
    with pytest.raises(checkpoints.NotFinite, match="Use a checkpoint from before"):
        checkpoints.load(tmp_path / "model-1.keras")


@pytest.mark.parametrize("content", ['{"st', "{}", "null", '{"step": "x"}'])
def test_a_damaged_best_is_one_clear_line(tmp_path, content):
    checkpoints.folder(tmp_path).mkdir()
    assert checkpoints.best(tmp_path) is None
    (checkpoints.folder(tmp_path) / "best.json").write_text(content)
    assert checkpoints.best(tmp_path) is None, "of a model that is gone"
    (checkpoints.folder(tmp_path) / "best.keras").touch()
    with pytest.raises(UsageError, match="best.json is damaged.*: delete it, and"):
        checkpoints.best(tmp_path)


@pytest.mark.filterwarnings("ignore:.*matches no trainable variable")
@pytest.mark.parametrize("name", registry.optimizers.names())
def test_a_checkpoint_goes_on_with_its_optimizer(name, tmp_path):
    """Kind, settings and state are loaded: the next step is the same."""
    optimizer = registry.optimizers.get(name)(0.01, HParams(hidden_size=64))
    model = keras.Sequential(
        [keras.Input((32,)), keras.layers.Dense(64), keras.layers.Dense(16)]
    )
    model.compile(optimizer, "mse", jit_compile=False, run_eagerly=True)
    rows, labels = np.eye(32, dtype="float32"), np.ones((32, 16), "float32")
    model.train_on_batch(rows, labels)
    model.save(tmp_path / "model.keras")
    loaded = checkpoints.load(tmp_path / "model.keras")
    assert type(loaded.optimizer) is type(optimizer)
    for own, other in zip(optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(own, other)
    for each in (model, loaded):
        each.run_eagerly = True
        each.train_on_batch(rows, labels)
    for own, other in zip(model.weights, loaded.weights):
        np.testing.assert_allclose(own, other, rtol=1e-6, atol=1e-7)
