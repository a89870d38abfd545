"""Runs that go on from a checkpoint, or start from another run's weights."""

import dataclasses

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer import registry
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.models import language_model
from trainer.models.transformer import PackedRow
from trainer.runs import checkpoints
from trainer.training import building
from trainer.training import loop
from trainer.training.loop_test import OURS
from trainer.training.loop_test import evaluate
from trainer.training.loop_test import run


@pytest.mark.parametrize(
    "dtype, optimizer", [("mixed_bfloat16", "adam"), ("mixed_float16", OURS)]
)
def test_mixed_precision_learns_and_continues(data_dir, tmp_path, dtype, optimizer):
    if (dtype, keras.backend.backend()) == ("mixed_float16", "jax"):
        pytest.skip("JAX has no float16 products on the CPU")
    settings = run(data_dir, tmp_path, steps=30, optimizer=optimizer)
    first = dataclasses.replace(settings, dtype=dtype)
    result = loop.train(first)
    most = {"adam": 2 * result.model.count_params(), OURS: 1000}[optimizer]
    assert 0 < result.state_scalars <= most
    again = loop.train(dataclasses.replace(first, train_steps=60))
    assert again.evaluations[-1][1].nats < result.evaluations[-1][1].nats
    assert {v.dtype for v in again.model.trainable_variables} == {"float32"}
    with pytest.raises(UsageError, match="dtype='mixed_.*this one has dtype='float32'"):
        loop.train(dataclasses.replace(settings, train_steps=61))


REGULARIZED = {
    "attention_dropout": 0.1,
    "relu_dropout": 0.1,
    "layer_prepostprocess_dropout": 0.1,
    "label_smoothing": 0.1,
    "weight_decay": 0.01,
    "clip_grad_norm": 1.0,
    "ema_momentum": 0.9,
}


@pytest.mark.parametrize(
    "hparams",
    [
        {"optimizer": "et2"} | REGULARIZED,
        # By the signals of bin/interruption_test.py in the quick tests.
        pytest.param({"optimizer": "adam"}, marks=pytest.mark.slow),
        {"optimizer": "sgd", "gradient_accumulation_steps": 2, "ema_momentum": 0.9},
    ],
    ids=lambda hparams: hparams["optimizer"],
)
def test_a_run_in_two_parts_is_the_run_in_one(data_dir, tmp_path, hparams):
    """And a checkpoint evaluates as the run did: with averages, if it keeps them.

    The checkpoint holds both: raw weights to go on from, averages to use. The default
    optimizer is tried, bit for bit, by bin/interruption_test.py.
    """
    whole = loop.train(run(data_dir, tmp_path / "whole", **hparams))
    loop.train(run(data_dir, tmp_path / "parts", 3, **hparams))
    keras.backend.clear_session()
    parts = loop.train(run(data_dir, tmp_path / "parts", **hparams))
    assert np.isfinite(whole.train_loss)
    assert parts.steps == whole.steps == 8
    assert parts.checkpoint.endswith("model-8.keras")
    for a, b in zip(whole.model.variables, parts.model.variables):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(a),
            keras.ops.convert_to_numpy(b),
            atol=1e-6,
            err_msg=a.path,
        )
    nats = whole.evaluations[-1][1].nats
    found = evaluate(whole.checkpoint, data_dir)
    np.testing.assert_allclose(found.nats, nats, rtol=1e-6)


def test_float16_goes_on_from_its_step_whatever_was_left_out(data_dir, tmp_path):
    """Keras' scale of the loss grows until a step overflows and is no update."""
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float16 products on the CPU")
    short = dataclasses.replace(run(data_dir, tmp_path, 2), dtype="mixed_float16")
    loop.train(short)
    path = checkpoints.latest(tmp_path)
    model = checkpoints.load(path)
    model.optimizer.dynamic_scale.assign(float("inf"))  # as far as it can grow
    model.save(path)
    longer = dataclasses.replace(short, train_steps=4, save_checkpoints_steps=3)
    loop.train(longer)
    model = checkpoints.load(checkpoints.latest(tmp_path))
    assert model.optimizer.iterations < 4
    result = loop.train(dataclasses.replace(longer, train_steps=5))
    names = {path.name for path in checkpoints.folder(tmp_path).glob("model-*")}
    assert result.steps == 5 and names == {f"model-{n}.keras" for n in (3, 4, 5)}


@keras.saving.register_keras_serializable("loop_test")
class Plain(language_model.LanguageModel):
    """A user's model, whose layers have no names of their own."""

    def __init__(self, vocab_size, size, **kwargs):
        row = keras.Input((None,), dtype="int32")
        before, _, _ = PackedRow()(row)
        embedding = keras.layers.ReversibleEmbedding(vocab_size, size)
        hidden = embedding(before)
        for _ in range(2):
            hidden = keras.layers.Dense(size, "tanh")(hidden)
        super().__init__(row, hidden, embedding, **kwargs)
        self.sizes = {"vocab_size": vocab_size, "size": size}

    def get_config(self):
        return self.sizes | {"name": self.name}


@registry.models.register
def plain_dense(hparams, vocab_size, max_length):
    return Plain(vocab_size, hparams.hidden_size)


def test_a_model_with_unnamed_layers_starts_warm(data_dir, tmp_path):
    """Keras numbers them by how many there were before in the process."""
    first = dataclasses.replace(
        run(data_dir, tmp_path / "first", 2, optimizer="sgd"), model="plain_dense"
    )
    source = loop.train(first)
    warm = dataclasses.replace(
        first,
        output_dir=None,
        warm_start_from=str(checkpoints.latest(first.output_dir)),
    )
    model = building.build(warm, dataset.load_description(data_dir, PROBLEM))
    paths = [[v.path for v in m.weights] for m in (source.model, model)]
    assert paths[0] != paths[1], "or this test shows nothing"
    for ours, theirs in zip(model.weights, source.model.weights):
        np.testing.assert_array_equal(ours, theirs)
    wider = dataclasses.replace(warm.hparams, hidden_size=64)
    with pytest.raises(UsageError, match=r"has shape \(.*32.* there and \(.*64"):
        building.build(
            dataclasses.replace(warm, hparams=wider),
            dataset.load_description(data_dir, PROBLEM),
        )
