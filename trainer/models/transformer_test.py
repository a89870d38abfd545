"""No later token and no other sentence of a row changes a prediction."""

import keras
import numpy as np
import pytest

from trainer import registry
from trainer.data.tokenizer import EOS_ID
from trainer.hparams import HParams
from trainer.models.testing.whole_logits import SmoothedCrossEntropy

LENGTH, VOCAB = 16, 50


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    hparams = HParams(num_hidden_layers=2, hidden_size=16, filter_size=32, num_heads=2)
    return registry.models.get("transformer_lm")(hparams, VOCAB, LENGTH)


def row(*sentences):
    ids = [token for s in sentences for token in [*s, EOS_ID]]
    return ids + [0] * (LENGTH - len(ids))


def logits(model, *rows):
    return model.predict_on_batch(np.array(rows, "int32"))


def test_shapes(model):
    assert logits(model, row([5, 6])).shape == (1, LENGTH, VOCAB)
    # body 2 * (4 d^2 + 2 d f + f + d + 4 d) + embedding V d + final norm 2 d
    body = 2 * (4 * 16**2 + 2 * 16 * 32 + 32 + 16 + 4 * 16)
    assert model.count_params() == body + VOCAB * 16 + 2 * 16


def test_later_tokens_change_nothing(model):
    a, b = row([5, 6, 7, 8, 9]), row([5, 6, 7, 30, 31])
    left, right = logits(model, a, b)
    np.testing.assert_allclose(left[:4], right[:4], atol=1e-5)
    assert np.abs(left[4] - right[4]).max() > 1e-3  # it does read its own past


def test_other_sentences_change_nothing(model):
    left, right = logits(model, row([5, 6], [7, 8, 9]), row([20, 21], [7, 8, 9]))
    np.testing.assert_allclose(left[3:7], right[3:7], atol=1e-5)


def test_positions_restart(model):
    left, right = logits(model, row([7, 8, 9]), row([5, 6, 4], [7, 8, 9]))
    np.testing.assert_allclose(left[:4], right[4:8], atol=1e-5)


def test_order_within_a_sentence_matters(model):
    left, right = logits(model, row([5, 6, 7]), row([6, 5, 7]))
    assert np.abs(left[2] - right[2]).max() > 1e-3


def test_rows_of_the_embedding_are_looked_up_in_float32():
    """So that their gradients, sums over all places of a token, are float32, too."""
    hparams = HParams(num_hidden_layers=1, hidden_size=16, filter_size=32, num_heads=2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = registry.models.get("transformer_lm")(hparams, VOCAB, LENGTH)
    finally:
        keras.config.set_dtype_policy("float32")
    looked_up = mixed.embedding(np.array([[5, 6]], "int32"))
    dtypes = [
        keras.backend.standardize_dtype(x.dtype) for x in (looked_up, mixed.hidden)
    ]
    assert dtypes == ["float32", "bfloat16"]


def test_wrong_sizes():
    with pytest.raises(ValueError, match="multiple of 2"):
        HParams(hidden_size=20, num_heads=8)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss(smoothing):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 3, VOCAB))
    labels = rng.integers(0, VOCAB, size=(2, 3))
    weights = np.array([[1, 1, 0], [1, 0, 0]], "float32")
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    q = np.full(z.shape, smoothing / (VOCAB - 1))
    np.put_along_axis(q, labels[..., None], 1 - smoothing, -1)
    expected = (-(q * log_p).sum(-1) * weights).sum() / weights.sum()
    loss = SmoothedCrossEntropy(smoothing)(labels, z, sample_weight=weights)
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
