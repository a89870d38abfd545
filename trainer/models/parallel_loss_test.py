"""The loss on eight devices: each computes its own rows of it, and sends no states."""

import re

import keras
import numpy as np
import pytest

from benchmarks.measure import compiled_step
from trainer import registry
from trainer.hparams import HParams
from trainer.models import language_model
from trainer.models import losses

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="keras.distribution is for JAX"
)

ROWS, LENGTH, VOCAB, SIZE = 16, 24, 96, 32
HPARAMS = HParams(
    num_hidden_layers=1,
    hidden_size=SIZE,
    filter_size=48,
    num_heads=2,
    layer_prepostprocess_dropout=0.0,
    attention_dropout=0.0,
    relu_dropout=0.0,
)


@pytest.fixture
def distribute():
    """Returns a function that spreads over all devices what is made after it."""

    def begin():
        devices = keras.distribution.list_devices()
        assert len(devices) == 8
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices)
        )

    yield begin
    keras.distribution.set_distribution(None)


def rows():
    ids = np.random.default_rng(0).integers(2, VOCAB, (ROWS, LENGTH), "int32")
    ids[::3, 12:] = 0  # the replicas have unequal numbers of tokens
    return ids


def language_models():
    keras.utils.set_random_seed(0)
    model = registry.models.get("transformer_lm")(HPARAMS, VOCAB, LENGTH)
    trained = language_model.training_model(model, 0.1, ROWS * LENGTH)
    trained.compile(keras.optimizers.SGD(0.5))
    return model, trained, language_model.scoring_model(model, ROWS * LENGTH)


@pytest.mark.parametrize("chunk_tokens", [4, 10, 10_000])
def test_no_device_fetches_or_computes_the_tokens_of_another(
    distribute, monkeypatch, chunk_tokens
):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_tokens * VOCAB)
    distribute()
    text = compiled_step(language_models()[1], rows()).as_text()
    assert "all-reduce" in text  # of the gradients
    for operation in ("all-gather", "all-to-all", "collective-permute"):
        assert operation not in text, operation
    # Logits, by their shape: those of a chunk of one device's rows, and no more.
    found = re.findall(rf"f32\[(?:1,)?(\d+),{VOCAB}\]", text)
    tokens = {int(n) for n in found} - {SIZE}  # the embeddings, transposed
    assert 0 < max(tokens) <= min(chunk_tokens, ROWS * LENGTH // 8)


@pytest.mark.parametrize("chunk_tokens", [10, 10_000])
def test_losses_scores_and_weights_are_those_of_one_device(
    distribute, monkeypatch, chunk_tokens
):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk_tokens * VOCAB)
    found = []
    for spread in (False, True):
        if spread:
            distribute()
        model, trained, scoring = language_models()
        values = [float(trained.train_on_batch(rows())) for _ in range(3)]
        found.append((values, *scoring.predict_on_batch(rows()), *model.get_weights()))
    for a, b in zip(*found):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
