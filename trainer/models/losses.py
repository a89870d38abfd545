"""Cross-entropy of next-token predictions, in nats, without all logits in memory.

Shapes: n tokens, D hidden size, V vocabulary. The logits of n tokens are
z = hidden @ transpose(embeddings), (n, V): the largest array of a language model. The
functions here hold those of one chunk of tokens at a time.

Where devices share a batch, its tokens come in G groups, one a device, and each device
cuts its own group into chunks. Chunks of the whole batch would lie on a few devices
each: all of them would fetch all tokens, and compute the whole loss.
"""

import math

from keras import ops

# Logits of a chunk: 32 MB in float32.
CHUNK_LOGITS = 2**23


def largest_chunk(vocab_size):
    """Returns how many tokens of a vocabulary of this size a chunk may hold."""
    return max(1, CHUNK_LOGITS // vocab_size)


def chunks(tokens, vocab_size):
    """Returns (number, size) of the fewest equal chunks within `CHUNK_LOGITS`.

    Args:
        tokens: of the batch.
        vocab_size: V.

    Returns:
        Two integers whose product is `tokens` or more: the rest is padding.
    """
    number = math.ceil(tokens / largest_chunk(vocab_size))
    return number, math.ceil(tokens / number)


def chunked_cross_entropy(
    hidden, embeddings, labels, weights, smoothing, chunk=None, dtype="float32"
):
    """Returns the cross-entropy with smoothed labels, computed chunk by chunk.

    loss   = sum_i weights_i * loss_i
    loss_i = logsumexp(z_i) - sum_v q_iv z_iv,
    q_iv   = 1 - s for the label of token i, s / (V - 1) for the others

    where
        z: the logits; s: the label smoothing; V: the vocabulary.

    The gradient is computed in the same pass, while the logits of a chunk are there:
    with p = softmax(z), dloss/dz_i = weights_i * (p_i - q_i). Nothing is computed
    twice.

    Args:
        hidden: (G, n, D), float32.
        embeddings: (V, D), float32.
        labels: (G, n), integers.
        weights: (G, n), float32. No gradient flows to them.
        smoothing: s.
        chunk: tokens of a group whose logits are held at a time; it divides n. None:
            all.
        dtype: of what is multiplied: three products, a third of the operations of a
            small model. "bfloat16" has the range of float32, which the gradient by
            the logits needs. All else is float32.

    Returns:
        A scalar.
    """
    vocab_size = embeddings.shape[0]
    other = smoothing / (vocab_size - 1)
    above = 1 - smoothing - other  # of the label, above the others

    def product(a, b):
        return ops.cast(ops.matmul(a, b), "float32")

    def of_chunk(h, e, y, w):
        """Loss and its gradients, by hidden and by embeddings."""
        h = ops.cast(h, dtype)
        z = product(h, ops.transpose(e))
        greatest = ops.max(z, axis=-1, keepdims=True)
        exp = ops.exp(z - greatest)
        sum_exp = ops.sum(exp, axis=-1, keepdims=True)
        is_label = ops.equal(y[:, None], ops.arange(vocab_size, dtype=y.dtype))
        label = ops.sum(ops.where(is_label, z, 0.0), axis=-1)
        logsumexp = (greatest + ops.log(sum_exp))[:, 0]
        losses = logsumexp - above * label
        if other:
            losses = losses - other * ops.sum(z, axis=-1)
        w_column = w[:, None]
        dz = exp * (w_column / sum_exp) - ops.where(is_label, above * w_column, 0.0)
        if other:
            dz = dz - other * w_column
        dz = ops.cast(dz, dtype)
        return (
            ops.sum(losses * w),
            product(dz, e),
            product(ops.transpose(dz), h),
        )

    @ops.custom_gradient
    def loss_of(hidden, embeddings):
        e = ops.cast(embeddings, dtype)

        def of_group(h, y, w):
            if chunk is None:
                return of_chunk(h, e, y, w)

            def add_chunk(i, sums):
                loss, dh, de = sums
                its_h, its_y, its_w = (_chunk_of(x, i, chunk) for x in (h, y, w))
                more_loss, its_dh, more_de = of_chunk(its_h, e, its_y, its_w)
                dh = ops.slice_update(dh, (i * chunk, 0), its_dh)
                return loss + more_loss, dh, de + more_de

            zeros = (ops.zeros(()), ops.zeros_like(h), ops.zeros_like(embeddings))
            return ops.fori_loop(0, _count(y, chunk), add_chunk, zeros)

        loss, dh, de = _of_groups(of_group, hidden, labels, weights)
        # Devices add up once, after all of their chunks.
        loss, de = _sum_of_groups(loss), _sum_of_groups(de)

        def gradient(*args, upstream=None):
            upstream = args[-1] if upstream is None else upstream
            return dh * upstream, de * upstream

        return loss, gradient

    return loss_of(hidden, embeddings)


def chunked_token_scores(hidden, embeddings, labels, chunk=None):
    """Returns nats of each label, and 1.0 where it is the most likely token: (G, n).

    Args:
        hidden, embeddings, labels, chunk: as `chunked_cross_entropy` takes them.
    """
    kernel = ops.transpose(embeddings)

    def of_chunk(h, y):
        z = ops.matmul(h, kernel)
        nats = ops.sparse_categorical_crossentropy(y, z, from_logits=True)
        hits = ops.equal(ops.cast(ops.argmax(z, axis=-1), y.dtype), y)
        return nats, ops.cast(hits, "float32")

    def of_group(hidden, labels):
        if chunk is None:
            return of_chunk(hidden, labels)

        def add_chunk(i, scores):
            found = of_chunk(_chunk_of(hidden, i, chunk), _chunk_of(labels, i, chunk))
            return tuple(
                ops.slice_update(x, (i * chunk,), new) for x, new in zip(scores, found)
            )

        zeros = ops.zeros_like(labels, dtype="float32")
        return ops.fori_loop(0, _count(labels, chunk), add_chunk, (zeros, zeros))

    return _of_groups(of_group, hidden, labels)


def _of_groups(function, *arrays):
    """Returns what a function makes of each group, stacked along a first axis."""
    if arrays[0].shape[0] > 1:
        return ops.vectorized_map(lambda group: function(*group), arrays)
    found = function(*(ops.squeeze(x, 0) for x in arrays))
    return tuple(ops.expand_dims(x, 0) for x in found)


def _sum_of_groups(x):
    return ops.sum(x, axis=0) if x.shape[0] > 1 else ops.squeeze(x, 0)


def _chunk_of(x, i, chunk):
    """Returns entries i * chunk to (i + 1) * chunk of the first axis."""
    rest = x.shape[1:]
    return ops.slice(x, (i * chunk, *[0] * len(rest)), (chunk, *rest))


def _count(labels, chunk):
    return ops.shape(labels)[0] // chunk
