"""Files that are damaged, or of something else: an error that names them, or the truth.

Never is a wrong batch read, or a damaged model used.
"""

import dataclasses
import json
import random
import shutil

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from faults import runs
from trainer.data import batches
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.runs import checkpoints
from trainer.runs import trained_model
from trainer.training import divergence
from trainer.training import loop
from trainer.training.loop_test import run


def flip(content, position):
    """Content with one bit of it changed."""
    changed = bytearray(content)
    changed[position] ^= 1 << position % 8
    return bytes(changed)


@pytest.fixture
def two_checkpoints(data_dir, tmp_path):
    """A run of four steps, and its files."""
    settings = dataclasses.replace(
        run(data_dir, tmp_path, 4), save_checkpoints_steps=2, keep_checkpoint_max=2
    )
    loop.train(settings)
    return dataclasses.replace(settings, train_steps=8)


def test_all_checkpoints_are_damaged(two_checkpoints, tmp_path):
    """Every program says so, and nothing is deleted: no run starts at step 0 there."""
    for path in checkpoints.last(tmp_path, 2):
        path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2))
    before = runs.contents(tmp_path)
    for use in (
        lambda: loop.train(two_checkpoints),
        lambda: loop.finished(two_checkpoints),
        lambda: trained_model.load(tmp_path),
    ):
        with pytest.raises(UsageError, match="all 2 checkpoints in .* are damaged, no"):
            use()
    assert runs.contents(tmp_path) == before


def test_pruning_keeps_what_is_whole(two_checkpoints, tmp_path):
    """A damaged newer checkpoint does not count among those that are kept."""
    older, newer = checkpoints.last(tmp_path, 2)
    newer = newer.rename(newer.with_name("model-6.keras"))
    newer.write_bytes(flip(newer.read_bytes(), newer.stat().st_size // 2))
    again = dataclasses.replace(
        two_checkpoints, save_checkpoints_steps=3, keep_checkpoint_max=1
    )
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: 1 / (batch < 2)  # after step 4
    )
    with pytest.raises(ZeroDivisionError):
        loop.train(again, extra_callbacks=[stop])
    names = [p.name for p in checkpoints.last(tmp_path, 9)]
    assert names == ["model-3.keras", "model-6.keras"]
    assert checkpoints.latest(tmp_path).name == "model-3.keras"


@pytest.mark.faults
def test_a_flipped_bit_of_a_checkpoint(trained, tmp_path):
    """It is found, or it is one that changes nothing, as in the time of a member."""
    whole, path = trained.path.read_bytes(), tmp_path / "model-1.keras"
    weights = checkpoints.load(trained.path).get_weights()
    draw, found = random.Random(19), 0
    for _ in range(12):
        path.write_bytes(flip(whole, draw.randrange(len(whole))))
        try:
            model = checkpoints.load(path)
        except UsageError:
            found += 1
        else:
            for a, b in zip(weights, model.get_weights()):
                np.testing.assert_array_equal(a, b)
    assert found > 6


def test_a_flipped_bit_of_rows(data_dir, tmp_path):
    """ArrayRecord's own checksums find it; most bits of a small file are padding."""
    description = dataset.load_description(data_dir, PROBLEM)
    (bucket,) = batches.buckets(data_dir, description, "dev")
    everything = range(len(bucket))
    _, rows = bucket.rows(everything)
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    path = dataset.Paths(tmp_path, PROBLEM).rows("dev", 32)
    whole = path.read_bytes()
    used = [i for i in range(0, len(whole), 7) if whole[i]]
    draw, named = random.Random(19), 0
    for position in draw.sample(used, 150):
        path.write_bytes(flip(whole, position))
        try:
            (damaged,) = batches.buckets(tmp_path, description, "dev")
            np.testing.assert_array_equal(damaged.rows(everything)[1], rows)
        except UsageError as error:
            assert f"{path} is damaged" in str(error)
            named += "at row " in str(error)
    assert named > 75


def test_the_vocabulary_of_another_run(data_dir, trained, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    vocabulary = dataset.Paths(tmp_path / "data", PROBLEM).tokenizer
    vocabulary.write_bytes(flip(vocabulary.read_bytes(), 5000))
    with pytest.raises(UsageError, match=f"{vocabulary} is damaged"):
        loop.train(run(tmp_path / "data", tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    folder = shutil.copytree(trained.path.parents[1], tmp_path / "trained")
    shutil.copy(vocabulary, folder / "tokenizer.model")
    with pytest.raises(UsageError, match="tokenizer.model is not the vocabulary that"):
        trained_model.load(folder)


def test_tokens_outside_of_the_vocabulary(data_dir, tmp_path):
    """JAX would take the last token's embedding for them, a GPU zeros."""
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    path = dataset.Paths(tmp_path, PROBLEM).description
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"vocab_size": 50}))
    description = dataset.load_description(tmp_path, PROBLEM)
    (bucket,) = batches.buckets(tmp_path, description, "dev")
    with pytest.raises(UsageError, match=r"damaged at row \d+ \(token \d+ of 50\)"):
        bucket.rows(range(len(bucket)))


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX has no float16 products on the CPU"
)
def test_a_loss_scale_that_falls_to_nothing(data_dir, tmp_path):
    settings = dataclasses.replace(
        run(data_dir, tmp_path, 40), dtype="mixed_float16", save_checkpoints_steps=5
    )

    class Fall(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch > 7:
                scale = self.model.optimizer.inner_optimizer.dynamic_scale
                scale.assign(2.0**-20)

    with pytest.raises(divergence.Diverged) as error:
        loop.train(settings, extra_callbacks=[Fall()])
    said = str(error.value)
    assert "from step 20 on, the scale of float16's loss fell to nothing" in said
    assert "warm_start_from=" in said and "dtype=mixed_float16" in said


def optimizers():
    """All but Keras' Adafactor, whose rate is at most the root of 1 / step."""
    from trainer import registry

    return [name for name in registry.optimizers.names() if name != "adafactor"]


@pytest.mark.faults
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the test sets the rate within fit"
)
@pytest.mark.parametrize("optimizer", optimizers())
def test_a_rate_far_too_high(data_dir, tmp_path, optimizer):
    """Under every optimizer the run ends, and the last good checkpoint is named."""
    settings = dataclasses.replace(
        run(
            data_dir,
            tmp_path,
            30,
            optimizer=optimizer,
            learning_rate_schedule="constant",
            learning_rate_constant=0.001,
        ),
        save_checkpoints_steps=2,
        local_eval_frequency=99,
    )

    class Rise(keras.callbacks.Callback):
        """Raises the rate after four steps, to where steps leave float32."""

        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                self.model.optimizer.inner_optimizer.learning_rate = 1e38

    with pytest.raises(divergence.Diverged) as error:
        loop.train(settings, extra_callbacks=[Rise()])
    kept = checkpoints.latest(tmp_path)
    assert f"warm_start_from={kept}" in str(error.value)
    assert checkpoints.step_of(kept) <= 6
    checkpoints.load(kept)
