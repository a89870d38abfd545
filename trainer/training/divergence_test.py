"""A run that diverges ends, says why, and keeps what was good."""

import dataclasses

import keras
import numpy as np
import pytest

from trainer.runs import checkpoints
from trainer.training import divergence
from trainer.training import loop
from trainer.training import run_state
from trainer.training.loop_test import run
from trainer.training.monitoring_test import steps_of
from trainer.training.monitoring_test import summaries


class Poison(keras.callbacks.Callback):
    """Gives weights a value after a step, as a rate that is far too high does."""

    def __init__(self, step, value):
        super().__init__()
        self._step, self._value = step, value

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self._step:
            for v in self.model.trainable_variables:
                v.assign(np.full(v.shape, self._value))


@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "gpu"])
@pytest.mark.parametrize("value", [np.nan, 1e30], ids=["weights", "loss"])
def test_a_run_that_diverges_keeps_what_was_good(
    data_dir, tmp_path, monkeypatch, value, on_gpu
):
    """Neither weights that are not finite are saved nor those that give no loss.

    On a GPU a loss is read one step later.
    """
    monkeypatch.setattr(run_state, "has_accelerator", lambda: on_gpu)
    frequent = dataclasses.replace(
        run(data_dir, tmp_path, 60, optimizer="sgd"),
        save_checkpoints_steps=2,
        local_eval_frequency=9,
        keep_checkpoint_max=1,
        nonfinite_steps=3,
    )
    counted = []
    steps = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: counted.append(batch + 1)
    )
    with pytest.raises(divergence.Diverged) as error:
        loop.train(frequent, extra_callbacks=[Poison(4, value), steps])
    kept = checkpoints.latest(tmp_path)
    assert {p.name for p in kept.parent.iterdir()} == {"model-2.keras"}
    assert counted[-1] == (4 if np.isnan(value) else 7 + on_gpu)  # 5, 6, 7 had none
    for part in (
        f"from step {counted[-1] if np.isnan(value) else 5} on",
        "optimizer=sgd",
        "learning_rate_warmup_steps=100",
        "dtype=float32",
        f"warm_start_from={kept}",
    ):
        assert part in str(error.value)
    checkpoints.load(kept)


def test_a_rate_that_is_far_too_high(data_dir, tmp_path):
    """The first evaluation is nan: it is not the best. The corrected command runs."""
    wild = dataclasses.replace(
        run(
            data_dir,
            tmp_path,
            60,
            optimizer="sgd",
            learning_rate_constant=1e12,
            learning_rate_schedule="constant",
        ),
        local_eval_frequency=1,
        save_checkpoints_steps=1,
    )
    with pytest.raises(divergence.Diverged, match="learning_rate_constant=1e.12.*Noth"):
        loop.train(wild)
    assert not (tmp_path / "checkpoints").exists()
    hparams = dataclasses.replace(wild.hparams, learning_rate_constant=0.1)
    mended = dataclasses.replace(wild, hparams=hparams, train_steps=2)
    assert loop.train(mended).checkpoint.endswith("model-2.keras")
    assert steps_of(summaries(tmp_path)["dev/nats_per_token"]) == [1, 2]
