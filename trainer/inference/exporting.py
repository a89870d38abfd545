"""Writes a trained model as a SavedModel that needs nothing but TensorFlow to run."""

import json
import os
import pathlib
import shutil

import keras
from keras import ops

from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.inference import decoding
from trainer.inference import model_card
from trainer.inference import sampling
from trainer.models import language_model

FORMATS = ("saved_model", "keras", "onnx")


def export(trained, export_dir, format="saved_model", evaluations=None, command=None):
    """Writes a model, its vocabulary and its card into a new folder.

    It is written aside and renamed: a kill leaves no half export under the name.

    Args:
        trained: a `trained_model.TrainedModel`.
        export_dir: folder to make.
        format: "saved_model": a TensorFlow SavedModel, see `signatures`. "keras": a
            .keras file without the optimizer; loading it takes this package. "onnx":
            logits of whole rows; takes the packages tf2onnx and onnx.
        evaluations: {split: `evaluation.Evaluation`} for the card.
        command: that made the export, for the card.

    Returns:
        The folder's path.

    Raises:
        UsageError: the folder is there and not empty, or this backend or machine
            cannot write the format.
    """
    check(export_dir, format)
    target = pathlib.Path(export_dir)
    write = {
        "saved_model": _write_saved_model,
        "keras": _write_keras,
        "onnx": _write_onnx,
    }[format]
    partial = target.with_name(f"partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    try:
        write(trained, partial)
        card = model_card.text(trained, format, evaluations or {}, command)
        (partial / "README.md").write_text(card, encoding="utf-8")
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def check(export_dir, format):
    """Refuses what `export` would refuse, before the work."""
    target = pathlib.Path(export_dir)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise UsageError(f"--export_dir={target} is there already: name a new folder")
    if format == "saved_model" and keras.backend.backend() != "tensorflow":
        raise UsageError(
            "a SavedModel is written by TensorFlow: run et-exporter with "
            "KERAS_BACKEND=tensorflow. It reads checkpoints of every backend"
        )


def any_length(model):
    """A model of the same weights for rows of every length."""
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "InputLayer":
            layer["config"]["batch_shape"] = (None, None)
    return _twin(model, config)


def _twin(model, config):
    """A model of the same weights, without an optimizer."""
    twin = keras.Model.from_config(config)
    twin.set_weights(model.get_weights())
    return twin


def signatures(model, max_length):
    """The functions of the SavedModel, by name, and what holds their variables.

    score: ids (B, T) -> nats (B, T), -log p of each token; 0 for padding.
    next_token_logits: ids (B, T) -> logits (B, V) of the token after each row.
    generate: ids (B, P), length, temperature, top_k, seed -> ids (B, length).

    Ids are int32 of sentences, filled up with 0 at the right. EOS, 1, ends a sentence;
    what is scored should have it, what is continued should not. A temperature of 0
    takes the most likely token; top_k=0 draws from all.
    """
    import tensorflow as tf

    twin = any_length(model)
    scores = language_model.scoring_model(twin, None)
    embedding, hidden = language_model.output_embedding(twin)
    states = keras.Model(twin.inputs, hidden)
    cached = decoding.CachedModel(twin)
    ids = tf.TensorSpec((None, None), tf.int32, name="ids")

    @tf.function(input_signature=[ids])
    def score(ids):
        return {"nats": scores(ids, training=False)[0]}

    @tf.function(input_signature=[ids])
    def next_token_logits(ids):
        lengths = ops.sum(ops.cast(ops.not_equal(ids, PAD_ID), "int32"), axis=-1)
        row = ops.pad(ids, ((0, 0), (0, 1)), constant_values=PAD_ID)
        h = states(row, training=False)
        h = ops.take_along_axis(h, lengths[:, None, None], axis=1)
        logits = ops.cast(embedding(h, reverse=True)[:, 0], "float32")
        return {"logits": sampling.real_tokens(logits)}

    def scalar(name, dtype):
        return tf.TensorSpec((), dtype, name=name)

    @tf.function(
        input_signature=[
            ids,
            scalar("length", tf.int32),
            scalar("temperature", tf.float32),
            scalar("top_k", tf.int32),
            scalar("seed", tf.int32),
        ]
    )
    def generate(ids, length, temperature, top_k, seed):
        out = decoding.generate(
            cached, ids, length, max_length, temperature, top_k, seed=seed
        )
        return {"ids": out}

    functions = (score, next_token_logits, generate)
    return {f.python_function.__name__: f for f in functions}, twin.variables


def _write_saved_model(trained, folder):
    import tensorflow as tf

    functions, variables = signatures(trained.model, trained.max_length)
    module = tf.Module()
    module.held = [v.value for v in variables]
    # Under its own name in assets/, so that a server finds it without asking.
    vocabulary = folder / "tokenizer.model"
    vocabulary.write_bytes(trained.processor.serialized_model_proto())
    module.tokenizer = tf.saved_model.Asset(str(vocabulary))
    tf.saved_model.save(module, str(folder), signatures=functions)
    vocabulary.unlink()
    limits = {"max_length": trained.max_length, "eos_id": EOS_ID, "pad_id": PAD_ID}
    (folder / "assets.extra").mkdir()
    text = json.dumps(limits | {"vocab_size": trained.description.vocab_size})
    (folder / "assets.extra" / "limits.json").write_text(text + "\n")


def _write_keras(trained, folder):
    # `include_optimizer=False` would leave out its state alone.
    _twin(trained.model, trained.model.get_config()).save(folder / "model.keras")
    _write_vocabulary(trained, folder)


def _write_onnx(trained, folder):
    trained.model(ops.zeros((1, trained.max_length), "int32"))  # Keras asks for a call
    try:
        trained.model.export(str(folder / "model.onnx"), format="onnx", verbose=False)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"Keras could not write ONNX here: {error}. It takes "
            "`pip install tf2onnx onnx` beside TensorFlow"
        ) from None
    _write_vocabulary(trained, folder)


def _write_vocabulary(trained, folder):
    (folder / "assets").mkdir()
    model = trained.processor.serialized_model_proto()
    (folder / "assets" / "tokenizer.model").write_bytes(model)
