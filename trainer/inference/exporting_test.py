"""An export answers with the model's figures where there is TensorFlow alone."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from trainer.data import batches
from trainer.data.datagen_test import small_files
from trainer.errors import UsageError
from trainer.inference import decoding
from trainer.inference import exporting
from trainer.runs import run_folder

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)


PROMPTS = np.array([[5, 9, 4, 0], [7, 0, 0, 0], [4, 4, 6, 8]], "int32")

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

def call(name, ids, **settings):
    if name == "generate":
        settings = dict(length=20, temperature=0.0, top_k=0, seed=0) | settings
    kinds = dict(length=tf.int32, temperature=tf.float32, top_k=tf.int32, seed=tf.int32)
    settings = {k: tf.constant(v, kinds[k]) for k, v in settings.items()}
    try:
        (found,) = model.signatures[name](ids=tf.constant(ids), **settings).values()
    except tf.errors.InvalidArgumentError as error:
        return str(error)
    return found.numpy().tolist()

def on_every_side(name, ids):
    # A row without padding, with it at the right, at the left, between.
    ids, zeros = ids.tolist(), [0] * 3
    rows = ids, ids + zeros, zeros + ids, ids[:2] + zeros + ids[2:]
    return [call(name, np.array([row], "int32"))[0] for row in rows]

prompts, full = given["prompts"], np.full((1, 32), 5, "int32")
empty = np.zeros((2, 0), "int32"), np.zeros((2, 3), "int32")
print(json.dumps({
    "nats": float(np.sum(call("score", given["rows"]), dtype="f8")),
    "logits": call("next_token_logits", prompts),
    "greedy": call("generate", prompts),
    "drawn": [call("generate", prompts, temperature=1.0, top_k=k, seed=s)
              for k, s in ((0, 1), (0, 1), (0, 2), (1, 3))],
    "short": call("generate", prompts, length=3),
    "longest": call("generate", prompts, length=100_000),
    "refused": [call("generate", prompts, temperature=t) for t in (-1.0, float("nan"))],
    "names": sorted(model.signatures),
    "default": call("serving_default", prompts),
    "sides": {n: on_every_side(n, given["scored"]) for n in model.signatures},
    "second": call("generate", np.array([[9, 9, 1, *given["scored"]]], "int32"))[0],
    "empty": {n: [call(n, ids) for ids in empty] for n in model.signatures},
    "full": {n: call(n, full) for n in model.signatures},
    "outside": [call(n, [[5, i]]) for n in model.signatures for i in (-1, 10**6)],
    "longer": {n: call(n, np.full((1, 40), 5, "int32")) for n in model.signatures},
}))
"""


@pytest.fixture(scope="module")
def answers(saved_model, data_dir, trained, tmp_path_factory):
    rows = [
        row
        for bucket in batches.buckets(data_dir, trained.description, "dev")
        for row in bucket.rows(range(len(bucket)))[1]
    ]
    arrays = tmp_path_factory.mktemp("arrays") / "given.npz"
    np.savez(
        arrays,
        rows=np.array(rows, "int32"),
        prompts=PROMPTS,
        scored=np.array([6, 4, 9, 5], "int32"),
    )
    process = subprocess.run(
        [sys.executable, "-c", _ALONE, str(saved_model), str(arrays)],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        cwd=arrays.parent,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def next_logits(trained, ids):
    """Those of the whole model."""
    row = np.zeros((1, 32), "int32")
    row[0, : len(ids)] = ids
    return trained.model.predict_on_batch(row)[0, len(ids)]


@needs_tensorflow
def test_scores_are_those_of_the_evaluation(answers, dev):
    np.testing.assert_allclose(answers["nats"], dev.nats, rtol=1e-5)


@needs_tensorflow
def test_next_token_logits_are_the_models(answers, trained):
    for prompt, logits in zip(PROMPTS, answers["logits"]):
        expected = next_logits(trained, prompt[prompt > 0])
        np.testing.assert_allclose(logits[1:], expected[1:], atol=1e-4)


@needs_tensorflow
def test_the_signature_without_a_name_gives_the_next_token(answers):
    names = ["generate", "next_token_logits", "score", "serving_default"]
    assert answers["names"] == names
    assert answers["default"] == answers["logits"]


@needs_tensorflow
def test_the_graph_generates_what_python_does(answers, trained):
    greedy = decoding.Decoder(
        trained.model, 32, 20, functools.partial(decoding.generate, temperature=0)
    )
    expected = greedy([p[p > 0].tolist() for p in PROMPTS]).tolist()
    assert answers["greedy"] == expected
    assert answers["short"] == [row[:3] for row in expected]
    assert [len(row) for row in answers["longest"]] == [32] * 3
    assert [row[:20] for row in answers["longest"]] == expected
    first, again, other, most_likely = answers["drawn"]
    assert first == again != other
    assert most_likely == expected  # top_k=1


@needs_tensorflow
def test_padding_on_every_side_is_no_token(answers):
    sides = answers["sides"]
    nats, right, left, between = sides.pop("score")
    assert min(nats) > 0
    np.testing.assert_allclose(right, nats + [0] * 3, rtol=1e-5)
    np.testing.assert_allclose(left, [0] * 3 + nats, rtol=1e-5)
    np.testing.assert_allclose(between, nats[:2] + [0] * 3 + nats[2:], rtol=1e-5)
    for name, (alone, *others) in sides.items():
        for other in others:
            np.testing.assert_allclose(other, alone, atol=1e-5, err_msg=name)


@needs_tensorflow
def test_a_sentence_that_has_ended_changes_nothing(answers):
    assert answers["second"] == answers["sides"]["generate"][0]


@needs_tensorflow
def test_an_empty_prompt_starts_a_sentence(answers, trained):
    narrow, wide = answers["empty"]["score"]
    assert (narrow, wide) == ([[], []], [[0] * 3] * 2)
    expected = next_logits(trained, [])
    for name in ("next_token_logits", "serving_default"):
        for logits in np.reshape(answers["empty"][name], (4, -1)):
            np.testing.assert_allclose(logits[1:], expected[1:], atol=1e-4)
    narrow, wide = answers["empty"]["generate"]
    assert narrow == wide
    assert narrow[0][0] == np.argmax(expected[1:]) + 1


@needs_tensorflow
def test_a_row_without_room_is_an_error(answers):
    full, longer = answers["full"], answers["longer"]
    assert np.shape(full.pop("score")) == (1, 32)
    assert "a row has more than 32 tokens" in longer.pop("score")
    for error in [*full.values(), *longer.values()]:
        assert "a row has more than 31 tokens; rows of the model have 32" in error


@needs_tensorflow
def test_an_id_outside_the_vocabulary_is_an_error(answers):
    assert len(answers["outside"]) == 8
    for error in answers["outside"]:
        assert "an id is not in the vocabulary: 0 to " in error


@needs_tensorflow
def test_a_temperature_that_is_none_is_an_error(answers):
    for error in answers["refused"]:
        assert "temperature must be 0 or more" in error


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
        "Optimizer `et2_orthogonal_momentum`",
        trained.description.tokenizer_sha256,
    ):
        assert fact in card, fact


def test_an_export_that_fails_leaves_nothing(trained, tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting.model_card, "text", fail)
    with pytest.raises(KeyboardInterrupt):
        exporting.export(trained, tmp_path / "1", "keras")
    assert not list(tmp_path.iterdir())


@needs_tensorflow
def test_a_full_disk_is_one_clear_line(tmp_path):
    import tensorflow as tf

    with pytest.raises(OSError, match="File too large"):
        with small_files(10):
            exporting.save(tf.Module(), tmp_path / "1", None)


@needs_tensorflow
def test_a_folder_in_use_is_refused(saved_model, trained):
    with pytest.raises(UsageError, match="is there already: name a new folder"):
        exporting.export(trained, saved_model)


def test_keras_format_is_the_model_without_the_optimizer(trained, tmp_path):
    folder = exporting.export(trained, tmp_path / "k", "keras")
    again = keras.saving.load_model(folder / "model.keras")
    assert not again.compiled
    row = np.full((1, 32), 3, "int32")
    np.testing.assert_allclose(
        again.predict_on_batch(row), trained.model.predict_on_batch(row), rtol=1e-5
    )
    card = (folder / "README.md").read_text()
    assert "model.keras" in card and "import trainer.models.transformer " in card


def test_the_folder_of_the_command_and_a_symlink(trained, tmp_path, monkeypatch):
    """Empty folders take an export, whatever they are called."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("there")
    monkeypatch.chdir(tmp_path / "here")
    # A checkpoint, too, is named from its own folder; the card tells its run.
    inside = dataclasses.replace(trained, path=pathlib.Path(trained.path.name))
    card = f"git {run_folder.starts(trained.path.parent.parent)[0]['git']}"
    assert exporting.export(trained, ".", "keras") == tmp_path / "here"
    assert (tmp_path / "here" / "model.keras").is_file()
    monkeypatch.chdir(trained.path.parent)
    exporting.export(inside, tmp_path / "link", "keras")
    assert (tmp_path / "link").is_symlink()
    assert card in (tmp_path / "there" / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "link", "there"]


def test_a_place_without_room_for_a_folder_is_refused(trained, tmp_path):
    """Before the work: `check` is asked before the model is loaded."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("file", "is there already"),
        ("pipe", "is there already"),
        ("file/x", "cannot be made: .*/file is no folder"),
    ):
        with pytest.raises(UsageError, match=f"--export_dir=.*/{name} {reason}"):
            exporting.check(tmp_path / name, "keras")


def test_an_unknown_format_is_refused(trained, tmp_path):
    with pytest.raises(UsageError, match="unknown format 'tflite'. Known: saved_model"):
        exporting.export(trained, tmp_path / "t", "tflite")


@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx_is_written_or_says_what_it_takes(trained, tmp_path):
    try:
        import onnxruntime
    except ImportError:
        with pytest.raises(UsageError, match="pip install"):
            exporting.export(trained, tmp_path / "o", "onnx")
        assert not list(tmp_path.iterdir())
        return
    folder = exporting.export(trained, tmp_path / "o", "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    row = np.full((1, 32), 3, "int32")
    (logits,) = session.run(None, {session.get_inputs()[0].name: row})
    expected = trained.model.predict_on_batch(row)
    np.testing.assert_allclose(logits, expected, atol=1e-3)
