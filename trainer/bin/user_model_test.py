"""A user's model is trained, scored, decoded and exported by its interface alone."""

import dataclasses
import functools

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer import registry
from trainer.bin.bin_test import call
from trainer.errors import UsageError
from trainer.evaluation import scoring
from trainer.hparams import HParams
from trainer.inference import beam_search
from trainer.inference import decoding
from trainer.inference import exporting
from trainer.runs import run_folder
from trainer.training import loop
from trainer.training.run import Run

MODULE = '''
import keras
from keras import ops

from trainer import registry
from trainer.models.language_model import LanguageModel
from trainer.models.transformer import PackedRow


@keras.saving.register_keras_serializable("users")
class Fading(keras.layers.Layer):
    """h[t] = x[t] + h[t - 1] / 2, anew where a sentence starts."""

    def call(self, x, positions, state=None):
        t = ops.arange(ops.shape(x)[1])
        age = t[:, None] - t[None]
        passed = positions[:, :, None] - positions[:, None]
        same = ops.logical_and(ops.equal(passed, age), age >= 0)
        fade = 0.5 ** ops.cast(ops.maximum(age, 0), "float32")
        h = ops.matmul(ops.where(same, fade, 0.0), x)
        if state is not None:  # of a sentence that began before these tokens
            fade = 0.5 ** ops.cast(t + 1, "float32")
            fade = ops.where(positions > t, fade, 0.0)
            h = h + fade[..., None] * state[:, None]
        return h, h[:, -1]


@keras.saving.register_keras_serializable("users")
class FadingLM(LanguageModel):
    def __init__(self, vocab_size, size, name="fading_lm", **kwargs):
        row = keras.Input((None,), dtype="int32")
        inputs, _, positions = PackedRow()(row)
        embedding = keras.layers.ReversibleEmbedding(vocab_size, size)
        fading, dense = Fading(), keras.layers.Dense(size, "tanh")
        states, _ = fading(embedding(inputs), positions)
        super().__init__(row, dense(states), embedding, name=name, **kwargs)
        self.fading, self.dense, self.size = fading, dense, size

    def get_config(self):
        vocab_size = self.embedding.input_dim
        return {"vocab_size": vocab_size, "size": self.size, "name": self.name}


@keras.saving.register_keras_serializable("users")
class DecodedLM(FadingLM):
    def empty_cache(self, rows, slots):
        return ops.zeros((rows, self.size))

    def decode(self, tokens, positions, mask, cache, at):
        states, cache = self.fading(self.embedding(tokens), positions, cache)
        return self.dense(states), cache


@registry.models.register
def fading_lm(hparams, vocab_size, max_length):
    return FadingLM(vocab_size, hparams.hidden_size)


@registry.models.register
def decoded_lm(hparams, vocab_size, max_length):
    return DecodedLM(vocab_size, hparams.hidden_size)
'''
PROMPTS = [[5, 9, 4], [], [7] * 20]


@pytest.fixture(scope="module")
def usr_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("usr_dir")
    (folder / "fading.py").write_text(MODULE)
    registry.import_usr_dir(folder)
    return folder


def train(model, data_dir, output_dir, steps=40, **changes):
    settings = {"hidden_size": 32, "batch_size": 512, "learning_rate_warmup_steps": 20}
    hparams = HParams(**settings | changes)
    run = Run(PROBLEM, str(data_dir), hparams, steps, str(output_dir), model=model)
    return loop.train(run, lambda: run_folder.record_start(output_dir, ""))


@pytest.fixture(scope="module")
def result(usr_dir, data_dir, tmp_path_factory):
    return train("decoded_lm", data_dir, tmp_path_factory.mktemp("decoded"))


@pytest.fixture(scope="module")
def again(result):
    """Loaded again, under Keras' safe mode."""
    return keras.saving.load_model(result.checkpoint)


def log_probabilities(model, ids):
    row = np.array([[*ids, 0]], "int32")
    logits = model.predict_on_batch(row)[0, -1].astype("float64")
    logits[0] = -np.inf
    return logits - np.log(np.exp(logits).sum())


def test_it_learns(result, data_dir, again):
    ((_, evaluation),) = result.evaluations
    assert evaluation.nats_per_token < 5.5  # log(676) is 6.5
    row = np.array([[5, 9, 1, 4, 4]], "int32")
    np.testing.assert_allclose(
        again.predict_on_batch(row), result.model.predict_on_batch(row), rtol=1e-5
    )


def test_it_is_scored(again, trained):
    """A line is scored from its own tokens, whatever shares its row."""
    lines = ["ti bo .", "zu ."]
    scores = list(scoring.score_lines(again, trained.processor, lines, 32, 64))
    for line, score in zip(lines, scores):
        ids = [*trained.processor.encode(line), 1]
        nats = [-log_probabilities(again, ids[:k])[i] for k, i in enumerate(ids)]
        assert score.evaluation.nats == pytest.approx(sum(nats), rel=1e-2)


def test_it_is_decoded(again):
    greedy = functools.partial(decoding.generate, temperature=0)
    found = decoding.Decoder(again, 32, 4, greedy)(PROMPTS).tolist()
    for prompt, tokens in zip(PROMPTS, found):
        for k, token in enumerate(tokens):
            if token:
                assert token == np.argmax(
                    log_probabilities(again, [*prompt, *tokens[:k]])
                )
    search = functools.partial(beam_search.beam_search, beams=2, alpha=0.0)
    beams, scores = decoding.Decoder(again, 32, 4, search)(PROMPTS)
    for prompt, tokens, score in zip(PROMPTS, beams[:, 0].tolist(), scores[:, 0]):
        tokens = [t for t in tokens if t]
        log_p = [
            log_probabilities(again, [*prompt, *tokens[:k]])[token]
            for k, token in enumerate(tokens)
        ]
        assert score == pytest.approx(sum(log_p), rel=1e-3)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)
def test_it_is_exported(again, result, tmp_path):
    import tensorflow as tf

    functions = exporting.signatures(again, 32)
    module = tf.Module()
    module.held = [v.value for v in again.variables]
    tf.saved_model.save(module, str(tmp_path), signatures=functions)
    found = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    logits = found(ids=tf.constant([[0, *PROMPTS[0]]]))["logits"].numpy()
    expected = result.model.predict_on_batch(np.array([[*PROMPTS[0], 0]], "int32"))
    np.testing.assert_allclose(logits[0, 1:], expected[0, -1, 1:], atol=1e-4)


def test_without_a_remat_of_its_own_it_is_refused(usr_dir, data_dir, tmp_path):
    hparams = HParams(hidden_size=32, batch_size=512)
    folder = tmp_path / "run"
    run = Run(PROBLEM, str(data_dir), hparams, 2, str(folder), model="fading_lm")
    with pytest.raises(UsageError, match="'fading_lm' cannot recompute"):
        loop.train(dataclasses.replace(run, remat=True))
    assert not folder.exists()


def test_without_a_decode_step_the_decoder_says_so(usr_dir, data_dir, tmp_path):
    result = train("fading_lm", data_dir, tmp_path, steps=2, optimizer="sgd")
    assert np.isfinite(result.train_loss)
    with pytest.raises(UsageError, match="'fading_lm' cannot be decoded: its cl"):
        decoding.Decoder(result.model, 32, 4)
    with pytest.raises(UsageError, match="'fading_lm' cannot be decoded: its cl"):
        exporting.check(tmp_path / "lm", "saved_model", result.model)
    status, out, err = call(
        "et_decoder",
        f"--usr_dir={usr_dir}",
        f"--output_dir={tmp_path}",
        stdin="ti\n",
    )
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: model 'fading_lm' cannot be decoded")
    assert "Traceback" not in err
