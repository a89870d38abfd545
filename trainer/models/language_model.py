"""The interface of a language model, and the models that train and score it.

A user's model is a subclass of `LanguageModel`. Training, scoring, decoding and export
use nothing of a model but what that class names.

Shapes: B rows, T tokens a row, D hidden size, V vocabulary, S slots of a cache.
"""

import keras
from keras import ops

from trainer import distribution
from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.models import losses
from trainer.models import towers


class LanguageModel(keras.Model):
    """Maps (B, T) token ids to (B, T, V) logits; every registered model is one.

    logits = hidden @ transpose(E)

    where

        hidden: states, (B, T, D). Those at t predict token t, so that they may follow
            from the tokens of its sentence before t alone. A row holds sentences,
            each closed by EOS, then padding; `transformer.PackedRow` keeps them apart.
        E: the output embedding, (V, D).

    A subclass builds `hidden` from `row` by Keras' functional API in its `__init__`,
    ends it with `super().__init__`, and returns the arguments of its `__init__` from
    `get_config`. It is registered with `keras.saving.register_keras_serializable`, so
    that its checkpoints can be loaded, and a function of (hparams, vocab_size,
    max_length) that returns it with `registry.models.register`. That is enough to
    train and to score. `empty_cache` and `decode` let it be sampled from and exported.

    Args:
        row: symbolic token ids, `keras.Input((None,), dtype="int32")`. Their number is
            open: T is at most max_length in training, and other numbers come later.
        hidden: symbolic states, (B, T, D).
        embedding: the `keras.layers.ReversibleEmbedding` whose `embeddings` are E. It
            may embed the inputs too.
        name: of the model.

    Attributes:
        hidden, embedding: as given.
        remat: whether training computes parts of the model again for the gradient, to
            save memory. A model that can do so has it as an attribute or a property
            of its own; of others it is False, and setting it is refused.

    Raises:
        UsageError: the model would be trained by other logits than it returns, or T is
            fixed.
    """

    def __init__(self, row, hidden, embedding, name=None, **kwargs):
        if row.shape[1] is not None:
            raise UsageError(
                f"model {name!r} takes rows of {row.shape[1]} tokens alone: give it "
                'rows of any length, keras.Input((None,), dtype="int32")'
            )
        if not isinstance(embedding, keras.layers.ReversibleEmbedding):
            raise UsageError(
                f"the output embedding of model {name!r} must be a keras.layers."
                f"ReversibleEmbedding. Got {type(embedding).__name__} "
                f"{embedding.name!r}"
            )
        if not embedding.tie_weights or embedding.logit_soft_cap is not None:
            raise UsageError(
                f"the output embedding of model {name!r} must have tie_weights=True "
                "and logit_soft_cap=None. Other weights for the inputs are another "
                "layer"
            )
        super().__init__(row, embedding(hidden, reverse=True), name=name, **kwargs)
        self.hidden = hidden
        self.embedding = embedding

    @property
    def remat(self):
        return False

    @remat.setter
    def remat(self, value):
        if value:
            raise UsageError(
                f"remat: model {self.name!r} cannot recompute its blocks: "
                f"its class {type(self).__name__} has no `remat` of its own, which "
                "trainer.models.language_model documents. Train without it"
            )

    def empty_cache(self, rows, slots):
        """Returns what `decode` keeps of the tokens so far, before the first one.

        Args:
            rows: B.
            slots: S, tokens that can be kept.

        Returns:
            A structure (lists, tuples, dicts) of tensors whose first axis is B. The
            shapes and dtypes of them stay the same from call to call of `decode`.
        """
        raise NotImplementedError

    def decode(self, tokens, positions, mask, cache, at):
        """Returns the states of T further tokens, from theirs and those in the cache.

        Token number i of the T goes into slot `at` + i. A slot is used again when its
        token is too old to be seen. A model whose cache has no slots, such as a
        recurrent one, starts anew where a position is 0.

        Args:
            tokens: (B, T) ids that the states follow: token t - 1 where the states
                predict token t, and EOS where they predict the first of a sentence.
            positions: (B, T), tokens of the sentence before each: 0 at its start, and
                in slots before that, which hold padding.
            mask: (B, T, S), true where a token may see a slot.
            cache: of `empty_cache` or of the call before.
            at: slot of the first of the T tokens; T > 1 only in the first call.

        Returns:
            States, (B, T, D), as `hidden` has them, and the cache with these tokens.
        """
        raise NotImplementedError


def check(model, decodes=False):
    """Refuses what is no `LanguageModel`.

    Args:
        model: a Keras model.
        decodes: whether `decode` and `empty_cache` are needed, too.

    Raises:
        UsageError: it is none, or it does not define them.
    """
    kind = type(model).__name__
    if not isinstance(model, LanguageModel):
        raise UsageError(
            f"model {model.name!r} is a {kind}: a language model is a subclass of "
            "trainer.models.language_model.LanguageModel"
        )
    if decodes and type(model).decode is LanguageModel.decode:
        raise UsageError(
            f"model {model.name!r} cannot be decoded: its class {kind} does not define "
            "`decode` and `empty_cache`, which trainer.models.language_model documents"
        )


def training_model(model, label_smoothing, tokens):
    """Returns a model from (B, T) token ids to their scalar loss.

    The loss is the model's own (`add_loss`): it is compiled with an optimizer alone.

    Args:
        model: `LanguageModel`. The two share their weights.
        label_smoothing: see `losses.chunked_cross_entropy`.
        tokens: B * T, at most.
    """
    return _ending_with(_Loss(model, tokens, label_smoothing), model, _Training)


class _Training(keras.Model):
    """Reports the loss of each step, where Keras reports a mean over the steps."""

    def __init__(self, row, loss, name):
        super().__init__(row, loss, name=name)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return {"loss": y_pred}

    def train_step(self, *arguments):
        if not distribution.towers():
            return super().train_step(*arguments)
        ((rows, _),) = arguments
        return {"loss": towers.train_step(self, rows)}


def scoring_model(model, tokens):
    """Returns a model from (B, T) ids to (B, T) nats and (B, T) hits; 0 for padding.

    A hit is a token that was the most likely one.

    Args:
        model: `LanguageModel`. The two share their weights.
        tokens: B * T, at most; None: B and T may be known only when the model is
            called.
    """
    return _ending_with(_Scores(model, tokens), model, _Scoring)


class _Scoring(keras.Model):
    """Scores the rows of this process, under a `keras.distribution`, beside others.

    Keras would take the rows of each process for all there are, and fetch the scores
    of all.
    """

    def predict_step(self, *arguments):
        if not distribution.towers():
            return super().predict_step(*arguments)
        ((rows,),) = arguments
        return towers.scores(self, rows)

    def predict_on_batch(self, x):
        if keras.distribution.distribution() is None:
            return super().predict_on_batch(x)
        if self._program is None:
            import jax

            self._program = jax.jit(
                lambda *arguments: self.stateless_call(*arguments)[0]
            )
        variables = self.trainable_variables, self.non_trainable_variables
        values = ([v.value for v in group] for group in variables)
        scores = self._program(*values, distribution.distribute(x))
        return tuple(map(distribution.own_rows, scores))

    _program = None


def _ending_with(last_layer, model, kind=keras.Model):
    (row,) = model.inputs
    return kind(row, last_layer(model.hidden, row), name=last_layer.name)


class _Ending(keras.layers.Layer):
    """Holds the output embedding, and cuts a batch of at most `tokens` into chunks.

    Under a `keras.distribution` the batch has a group of rows for each replica. A
    tower is called with its own rows alone.
    """

    def __init__(self, model, tokens, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        check(model)
        self._embedding = model.embedding
        vocab_size = self._embedding.input_dim
        self._groups = distribution.groups()
        if tokens is None:
            self._chunk = losses.largest_chunk(vocab_size)
        else:
            of_group = -(-tokens // distribution.replicas())
            number, size = losses.chunks(of_group, vocab_size)
            self._chunk = None if number == 1 else size

    def _grouped(self, hidden, row):
        """Returns hidden (G, n, D), embeddings (V, D) and labels (G, n).

        A group is some whole rows, then padding: n fills the chunks.
        """
        size = hidden.shape[-1]
        hidden = ops.reshape(ops.cast(hidden, "float32"), (self._groups, -1, size))
        labels = ops.reshape(row, (self._groups, -1))
        if self._chunk:
            missing = -ops.shape(labels)[1] % self._chunk
            hidden = ops.pad(hidden, ((0, 0), (0, missing), (0, 0)))
            labels = ops.pad(labels, ((0, 0), (0, missing)), constant_values=PAD_ID)
        embeddings = ops.convert_to_tensor(self._embedding.embeddings)
        return hidden, ops.cast(embeddings, "float32"), labels


class _Loss(_Ending):
    def __init__(self, model, tokens, label_smoothing):
        super().__init__(model, tokens, name="loss")
        self._label_smoothing = label_smoothing
        # float16 lacks the range that the products of the loss need.
        short = model.hidden.dtype == "bfloat16"
        self._product_dtype = "bfloat16" if short else "float32"

    def compute_output_spec(self, hidden, row):
        return keras.KerasTensor((), "float32")

    def call(self, hidden, row):
        hidden, embeddings, labels = self._grouped(hidden, row)
        real = ops.cast(ops.not_equal(labels, PAD_ID), "float32")
        weights = real / ops.maximum(ops.sum(real), 1.0)
        loss = losses.chunked_cross_entropy(
            hidden,
            embeddings,
            labels,
            weights,
            self._label_smoothing,
            self._chunk,
            self._product_dtype,
        )
        self.add_loss(loss)
        return loss


class _Scores(_Ending):
    def __init__(self, model, tokens):
        super().__init__(model, tokens, name="scores")

    def compute_output_spec(self, hidden, row):
        return keras.KerasTensor(row.shape), keras.KerasTensor(row.shape)

    def call(self, hidden, row):
        hidden, embeddings, labels = self._grouped(hidden, row)
        scores = losses.chunked_token_scores(hidden, embeddings, labels, self._chunk)
        real = ops.cast(ops.not_equal(row, PAD_ID), "float32")
        count = ops.shape(ops.reshape(row, (self._groups, -1)))[1]
        return tuple(ops.reshape(s[:, :count], ops.shape(row)) * real for s in scores)
