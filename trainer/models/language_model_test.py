"""Training and scoring models: the same figures, in less memory."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from benchmarks.measure import RETURNING_MEMORY
from conftest import unmeasured_environment
from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.models import language_model
from trainer.models import losses
from trainer.models.testing.whole_logits import SmoothedCrossEntropy

ROWS, LENGTH, VOCAB = 4, 16, 50
TOKENS = ROWS * LENGTH
HPARAMS = HParams(num_hidden_layers=2, hidden_size=16, filter_size=32, num_heads=2)
PLAIN = dataclasses.replace(
    HPARAMS,
    layer_prepostprocess_dropout=0.0,
    attention_dropout=0.0,
    relu_dropout=0.0,
)


def transformer(hparams=PLAIN):
    keras.utils.set_random_seed(0)
    return registry.models.get("transformer_lm")(hparams, VOCAB, LENGTH)


def rows():
    ids = np.random.default_rng(0).integers(1, VOCAB, (ROWS, LENGTH), "int32")
    ids[:, 12:] = 0
    return ids


def steps(model, *data, loss=None):
    """Losses of three steps, and the weights after them."""
    model.compile(keras.optimizers.SGD(0.5), loss)
    values = [float(model.train_on_batch(*data)) for _ in range(3)]
    return values, model.get_weights()


def test_training_model_trains_the_model(monkeypatch):
    """Chunk by chunk it takes the steps that whole logits would."""
    x = rows()
    weights = (x != 0).astype("float32")
    loss = SmoothedCrossEntropy(0.1)
    whole = steps(transformer(), x, x, weights, loss=loss)
    monkeypatch.setattr(losses, "CHUNK_LOGITS", LENGTH * VOCAB)  # a row at a time
    model = transformer()
    trained = language_model.training_model(model, 0.1, TOKENS)
    # The order in which an optimizer keeps state and averages.
    names = [v.path for v in model.trainable_variables]
    assert [v.path for v in trained.trainable_variables] == names
    chunked = steps(trained, x)
    np.testing.assert_allclose(chunked[0], whole[0], rtol=1e-5)
    for a, b in zip(model.get_weights(), whole[1]):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("hparams", [PLAIN, HPARAMS], ids=["plain", "dropout"])
def test_rematerialization_changes_nothing(hparams):
    """The same noise too, when a block is computed again."""
    found = []
    for remat in (False, True):
        model = transformer(hparams)
        model.remat = remat
        trained = language_model.training_model(model, 0.0, TOKENS)
        x = rows()
        found.append(steps(trained, x))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    for a, b in zip(found[0][1], found[1][1]):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_another_kind_of_model_is_refused():
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(VOCAB, 8)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(VOCAB)(x), name="mine")
    with pytest.raises(UsageError, match="'mine' is a Functional: a language model is"):
        language_model.training_model(model, 0.0, TOKENS)


@pytest.mark.parametrize(
    "length, embedding, message",
    [
        (LENGTH, {}, "'mine' takes rows of 16 tokens alone: give it rows of"),
        (None, {"tie_weights": False}, "'mine' must have tie_weights=True"),
        (None, {"logit_soft_cap": 30.0}, "'mine' must have tie_weights=True"),
        (None, None, "'mine' must be a keras.layers.Rev.* Got Embedding"),
    ],
)
def test_other_logits_than_those_trained_are_refused(length, embedding, message):
    row = keras.Input((length,), dtype="int32")
    hidden = keras.layers.Embedding(VOCAB, 8)(row)
    if embedding is None:
        layer = keras.layers.Embedding(VOCAB, 8)
    else:
        layer = keras.layers.ReversibleEmbedding(VOCAB, 8, **embedding)
    with pytest.raises(UsageError, match=message):
        language_model.LanguageModel(row, hidden, layer, name="mine")


_PEAKS = """
import json, sys
import numpy as np
from benchmarks.measure import peak_temporary_bytes
from trainer import registry
from trainer.models import language_model
from trainer.optim import catalog
from trainer.hparams import HParams

rows, layers, vocab_size, remat = map(int, sys.argv[1:])
hparams = HParams(
    num_hidden_layers=layers, hidden_size=64, filter_size=256, num_heads=2,
    optimizer="sgd",
)
model = registry.models.get("transformer_lm")(hparams, vocab_size, 256)
model.remat = bool(remat)
trained = language_model.training_model(model, 0.1, rows * 256)
optimizer = catalog.create(hparams, trained.trainable_variables)
trained.compile(optimizer)
x = np.random.default_rng(0).integers(2, vocab_size, (rows, 256), "int32")
trained.train_on_batch(x)
print(json.dumps(peak_temporary_bytes(lambda: trained.train_on_batch(x))))
"""

needs_tensorflow_and_proc = pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists()
    or keras.backend.backend() != "tensorflow",
    reason="peaks are read from /proc; on a CPU, JAX shares what it would recompute",
)


def peak(rows, layers, vocab_size, remat=0):
    """Bytes that a training step takes at its peak, in a process of its own."""
    arguments = map(str, (rows, layers, vocab_size, remat))
    output = subprocess.run(
        [sys.executable, "-c", _PEAKS, *arguments],
        env={**unmeasured_environment(), **RETURNING_MEMORY},
        cwd=pathlib.Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return json.loads(output.splitlines()[-1])


@needs_tensorflow_and_proc
def test_logits_are_never_whole_in_memory():
    """3,072 tokens x 32k words: logits of 403 MB.

    In one chunk a step takes almost four times that. Of what it takes in many, most
    does not grow with the batch, and up to as much as them was seen.
    """
    assert peak(12, 1, 32768) < 1.5 * 4 * 12 * 256 * 32768


@pytest.mark.slow
@needs_tensorflow_and_proc
def test_rematerialized_blocks_take_less_memory():
    """6 layers, of which one at a time is there."""
    assert peak(16, 6, 512, remat=1) < 0.5 * peak(16, 6, 512)
