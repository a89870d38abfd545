"""An export answers with the model's figures where there is TensorFlow alone."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from trainer.data import batches
from trainer.errors import UsageError
from trainer.inference import decoding
from trainer.inference import exporting

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)


# Keras and ours cannot be imported: what answers is TensorFlow alone.
_ALONE = """
import importlib.machinery, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "trainer", "extreme_tensoring_tf"):
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(spec.name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import tensorflow as tf

folder, arrays = sys.argv[1:]
given = np.load(arrays)
model = tf.saved_model.load(folder)
nats = model.signatures["score"](ids=tf.constant(given["rows"]))["nats"]
prompts = tf.constant(given["prompts"])
logits = model.signatures["next_token_logits"](ids=prompts)["logits"]

def generate(**settings):
    settings = dict(length=20, temperature=0.0, top_k=0, seed=0) | settings
    kinds = dict(length=tf.int32, temperature=tf.float32, top_k=tf.int32, seed=tf.int32)
    settings = {k: tf.constant(v, kinds[k]) for k, v in settings.items()}
    return model.signatures["generate"](ids=prompts, **settings)["ids"].numpy().tolist()

print(json.dumps({
    "nats": float(np.sum(nats, dtype="f8")),
    "first": nats.numpy()[:2].tolist(),
    "logits": logits.numpy().tolist(),
    "greedy": generate(),
    "drawn": [generate(temperature=1.0, top_k=k, seed=s)
              for k, s in ((0, 1), (0, 1), (0, 2), (1, 3))],
    "short": generate(length=3),
}))
"""


@pytest.fixture(scope="module")
def answers(saved_model, data_dir, trained, tmp_path_factory):
    rows = [
        bucket[i][1]
        for bucket in batches.buckets(data_dir, trained.description, "dev")
        for i in range(len(bucket))
    ]
    prompts = np.array([[5, 9, 4, 0], [7, 0, 0, 0], [4, 4, 6, 8]], "int32")
    arrays = tmp_path_factory.mktemp("arrays") / "given.npz"
    np.savez(arrays, rows=np.array(rows, "int32"), prompts=prompts)
    process = subprocess.run(
        [sys.executable, "-c", _ALONE, str(saved_model), str(arrays)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        cwd=arrays.parent,
    )
    assert process.returncode == 0, process.stderr
    return prompts, json.loads(process.stdout.splitlines()[-1])


@needs_tensorflow
def test_scores_are_those_of_the_evaluation(answers, dev):
    np.testing.assert_allclose(answers[1]["nats"], dev.nats, rtol=1e-5)


@needs_tensorflow
def test_next_token_logits_are_the_models(answers, trained):
    prompts, found = answers
    for prompt, logits in zip(prompts, found["logits"]):
        row = np.zeros((1, 32), "int32")
        row[0, :4] = prompt
        expected = trained.model.predict_on_batch(row)[0, np.sum(prompt > 0)]
        np.testing.assert_allclose(logits[1:], expected[1:], atol=1e-4)


@needs_tensorflow
def test_the_graph_generates_what_python_does(answers, trained):
    prompts, found = answers
    greedy = decoding.Decoder(
        trained.model,
        32,
        20,
        lambda *a, **k: decoding.generate(*a, temperature=0, **k),
    )
    expected = greedy([p[p > 0].tolist() for p in prompts]).tolist()
    assert found["greedy"] == expected
    assert found["short"] == [row[:3] for row in expected]
    first, again, other, most_likely = found["drawn"]
    assert first == again != other
    assert most_likely == expected  # top_k=1


@needs_tensorflow
def test_the_export_is_complete(saved_model, trained, dev):
    vocabulary = saved_model / "assets" / "tokenizer.model"
    assert vocabulary.read_bytes() == trained.processor.serialized_model_proto()
    limits = json.loads((saved_model / "assets.extra" / "limits.json").read_text())
    assert limits["max_length"] == 32
    card = (saved_model / "README.md").read_text()
    for fact in (
        f"| dev | {dev.perplexity_per_word:,.2f} |",
        "200 of 200",
        f"{trained.model.count_params():,} parameters",
        "| ema_momentum | 0.9 |",
        "Optimizer `et2`",
        trained.description.tokenizer_sha256,
    ):
        assert fact in card, fact


@needs_tensorflow
def test_an_export_that_fails_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting.model_card, "text", fail)
    with pytest.raises(KeyboardInterrupt):
        exporting.export(trained, tmp_path / "1")
    assert not list(tmp_path.iterdir())


@needs_tensorflow
def test_a_folder_in_use_is_refused(saved_model, trained):
    with pytest.raises(UsageError, match="is there already: name a new folder"):
        exporting.export(trained, saved_model)


def test_keras_format_is_the_model_without_the_optimizer(trained, tmp_path):
    folder = exporting.export(trained, tmp_path / "k", format="keras")
    again = keras.saving.load_model(folder / "model.keras")
    assert not again.compiled
    row = np.full((1, 32), 3, "int32")
    np.testing.assert_allclose(
        again.predict_on_batch(row), trained.model.predict_on_batch(row), rtol=1e-5
    )
    assert "model.keras" in (folder / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx_is_written_or_says_what_it_takes(trained, tmp_path):
    try:
        import onnxruntime
    except ImportError:
        with pytest.raises(UsageError, match="pip install"):
            exporting.export(trained, tmp_path / "o", format="onnx")
        assert not list(tmp_path.iterdir())
        return
    folder = exporting.export(trained, tmp_path / "o", format="onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    row = np.full((1, 32), 3, "int32")
    (logits,) = session.run(None, {session.get_inputs()[0].name: row})
    expected = trained.model.predict_on_batch(row)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
