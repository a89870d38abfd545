"""The chunked loss against the plain one, with automatic differentiation."""

import keras
import numpy as np
import pytest
from keras import ops

from trainer.models import losses
from trainer.models.testing.whole_logits import SmoothedCrossEntropy

TOKENS, SIZE, VOCAB = 24, 8, 50


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(TOKENS, SIZE)).astype("float32")
    embeddings = rng.normal(size=(VOCAB, SIZE)).astype("float32")
    labels = rng.integers(0, VOCAB, TOKENS).astype("int32")
    weights = rng.random(TOKENS).astype("float32") * (rng.random(TOKENS) > 0.3)
    return hidden, embeddings, labels, weights.astype("float32")


def value_and_gradients(function, *arrays):
    """By the backend's own differentiation, as `fit` does it: compiled."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        value, grads = jax.jit(jax.value_and_grad(function, (0, 1)))(*arrays)
    elif backend == "torch":
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        value = function(*tensors)
        value.backward()
        value, grads = value.detach(), [t.grad for t in tensors]
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def compiled(*tensors):
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = function(*tensors)
            return value, tape.gradient(value, tensors)

        value, grads = compiled(*map(tf.constant, arrays))
    return [np.asarray(ops.convert_to_numpy(x)) for x in (value, *grads)]


def grouped(groups, *arrays):
    """Arrays of tokens in groups, as tensors."""
    return [
        ops.convert_to_tensor(a.reshape(groups, TOKENS // groups, *a.shape[1:]))
        for a in arrays
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("groups, chunk", [(1, None), (1, 4), (1, 12), (2, 4)])
def test_chunks_change_neither_loss_nor_gradient(arrays, smoothing, groups, chunk):
    hidden, embeddings, labels, weights = arrays

    def whole(h, e):
        z = ops.matmul(h, ops.transpose(e))
        q = ops.one_hot(labels, VOCAB) * (1 - smoothing * VOCAB / (VOCAB - 1))
        q = q + smoothing / (VOCAB - 1)
        return -ops.sum(weights * ops.sum(q * ops.log_softmax(z), axis=-1))

    def chunked(h, e):
        y, w = grouped(groups, labels, weights)
        h = ops.reshape(h, (groups, -1, SIZE))
        return 3.0 * losses.chunked_cross_entropy(h, e, y, w, smoothing, chunk) / 3.0

    expected = value_and_gradients(whole, hidden, embeddings)
    found = value_and_gradients(chunked, hidden, embeddings)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_short_products_change_little(arrays):
    """Inputs and results of a product are rounded to 8 bits, the softmax is not."""
    hidden, embeddings, labels, weights = arrays

    def loss(dtype):
        def of(h, e):
            y, w = grouped(1, labels, weights)
            return losses.chunked_cross_entropy(h[None], e, y, w, 0.1, 6, dtype)

        return of

    expected = value_and_gradients(loss("float32"), hidden, embeddings)
    found = value_and_gradients(loss("bfloat16"), hidden, embeddings)
    for a, b in zip(found, expected):
        assert a.dtype == "float32"
        assert 0 < np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_plain_loss_is_the_same(arrays, smoothing):
    hidden, embeddings, labels, weights = arrays
    loss = SmoothedCrossEntropy(smoothing)
    whole = loss(labels[None], (hidden @ embeddings.T)[None], weights[None])
    h, y, w = grouped(1, hidden, labels, weights)
    chunked = losses.chunked_cross_entropy(h, embeddings, y, w, smoothing, 8)
    np.testing.assert_allclose(
        ops.convert_to_numpy(chunked) / weights.sum(),
        ops.convert_to_numpy(whole),
        rtol=1e-5,
    )


@pytest.mark.parametrize("groups, chunk", [(1, None), (1, 6), (2, 6)])
def test_scores(arrays, groups, chunk):
    hidden, embeddings, labels, _ = arrays
    z = hidden.astype("f8") @ embeddings.T.astype("f8")
    nats = np.log(np.exp(z).sum(-1)) - z[np.arange(TOKENS), labels]
    h, y = grouped(groups, hidden, labels)
    found = losses.chunked_token_scores(h, ops.convert_to_tensor(embeddings), y, chunk)
    found = [ops.convert_to_numpy(x).reshape(TOKENS) for x in found]
    np.testing.assert_allclose(found[0], nats, rtol=1e-5)
    np.testing.assert_array_equal(found[1], z.argmax(-1) == labels)


def test_enormous_logits_stay_finite():
    hidden = ops.convert_to_tensor(np.full((1, 2, 1), 1e4, "float32"))
    embeddings = ops.convert_to_tensor(np.array([[1.0], [-1.0]], "float32"))
    labels = ops.convert_to_tensor(np.array([[0, 1]], "int32"))
    loss = losses.chunked_cross_entropy(
        hidden, embeddings, labels, ops.ones((1, 2)), 0.0, 1
    )
    np.testing.assert_allclose(ops.convert_to_numpy(loss), 2e4, rtol=1e-6)


@pytest.mark.parametrize(
    "tokens, vocab_size, number, size",
    [
        (4096, 32768, 16, 256),
        (4096, 8192, 4, 1024),
        (2048, 2048, 1, 2048),
        (4352, 8192, 5, 871),
        (3, 100_000_000, 3, 1),
    ],
)
def test_chunks_are_few_and_equal(tokens, vocab_size, number, size):
    assert losses.chunks(tokens, vocab_size) == (number, size)
