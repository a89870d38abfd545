"""What cannot be spread is refused in one line; layouts fit their models."""

import keras
import pytest

from trainer import distribution
from trainer import processes
from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams

BACKEND = keras.backend.backend()


def test_nothing_is_asked_of_a_run_on_one_device():
    distribution.begin("none")
    distribution.spread("none", "transformer_lm", HParams(), 100)
    assert keras.distribution.distribution() is None
    assert distribution.replicas() == distribution.devices() == 1
    assert processes.part() == (0, 1) and processes.is_first()


@pytest.mark.parametrize(
    "backend, arguments, message",
    [
        ("torch", ("none", False), "train on TensorFlow and JAX, and the backend is"),
        ("torch", ("data", False), "train on TensorFlow and JAX, and the backend is"),
        ("tensorflow", ("model", False), "--strategy=model works on JAX, and the"),
        ("tensorflow", ("data", True), "--coordinator works on JAX, and the backend"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(monkeypatch, backend, arguments, message):
    strategy, several = arguments
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(UsageError, match=message):
        distribution.begin(strategy, *(("h:1", 2, 0) if several else ()))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of towers")
def test_tensorflow_has_a_tower_on_each_device():
    distribution.spread("data", "transformer_lm", HParams(), 100)
    try:
        assert distribution.replicas() == distribution.devices() == 2
        assert distribution.groups() == 1
    finally:
        distribution.spread("none", "transformer_lm", HParams(), 100)
    assert distribution.towers() == ()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("pipeline",), "strategy must be one of none, data, model. Got pipeline"),
        (("none", "h:1", 2, 0), "give --strategy=data, too"),
        (("none", None, 2, None), "give --strategy=data, too"),
    ],
)
def test_flags_that_say_nothing_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        distribution.begin(*arguments)


@pytest.mark.parametrize("strategy", ["none", "data"])
def test_devices_of_a_model_that_is_not_shared_are_refused(strategy):
    with pytest.raises(UsageError, match="--model_devices=2 says .* --strategy=model"):
        distribution.spread(strategy, "transformer_lm", HParams(), 100, 2)


@pytest.mark.skipif(BACKEND != "jax", reason="for JAX")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (("model", "h:1", 2, 0), "--strategy=model is for one process"),
        (("data", None, 2, 0), "are given together"),
        (("data", "h:1", 2, None), "are given together"),
        (("data", "h", 2, 0), "--coordinator=h is not HOST:PORT"),
        (("data", "h:x", 2, 0), "--coordinator=h:x is not HOST:PORT"),
        (("data", "h:1", 2, 2), "--process_id=2 must be below --num_processes=2"),
    ],
)
def test_processes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        distribution.begin(*arguments)


@pytest.mark.skipif(BACKEND != "jax", reason="for JAX")
@pytest.mark.parametrize(
    "changes, devices, message",
    [
        ({}, 3, "--model_devices=3 must divide the 8 devices"),
        ({"num_heads": 2}, 4, "num_heads=2 cannot be shared out among 4 devices"),
        ({"filter_size": 2}, 4, "filter_size=2 cannot be shared out among 4"),
    ],
)
def test_a_model_that_cannot_be_cut_is_refused(changes, devices, message):
    with pytest.raises(UsageError, match=message):
        hparams = HParams(**changes)
        distribution.spread("model", "transformer_lm", hparams, 96, devices)
    assert keras.distribution.distribution() is None


@pytest.mark.skipif(BACKEND != "jax", reason="for JAX")
@pytest.mark.parametrize("vocab_size", [96, 97])
def test_the_layout_cuts_most_of_the_model(vocab_size):
    hparams = HParams(num_hidden_layers=2, hidden_size=32, num_heads=4, filter_size=64)
    try:
        distribution.spread("model", "transformer_lm", hparams, vocab_size, 4)
        assert distribution.replicas() == 2 and distribution.devices() == 8
        model = registry.models.get("transformer_lm")(hparams, vocab_size, 16)
        held = sum(v.value.addressable_shards[0].data.size for v in model.weights)
        whole = {
            v.path
            for v in model.trainable_variables
            if v.value.sharding.is_fully_replicated
        }
    finally:
        keras.distribution.set_distribution(None)
    assert held < 0.3 * model.count_params()
    assert all("norm" in path or path.endswith("ffn_out/bias") for path in whole)
