"""Writes a trained model as a SavedModel that needs nothing but TensorFlow to run."""

import json
import pathlib
import shutil
from typing import Any

import keras
from keras import ops

from trainer import files
from trainer import paths
from trainer.data.tokenizer import EOS_ID
from trainer.data.tokenizer import PAD_ID
from trainer.errors import UsageError
from trainer.errors import unknown
from trainer.inference import decoding
from trainer.inference import model_card
from trainer.models import language_model
from trainer.runs import checkpoints

FORMATS = ("saved_model", "keras", "onnx")


def export(
    trained, export_dir, export_format="saved_model", evaluations=None, command=None
) -> pathlib.Path:
    """Writes a model, its vocabulary and its card into a new folder.

    It is written aside and renamed: a kill leaves no half export under the name.

    Args:
        trained: a `trained_model.TrainedModel`.
        export_dir: folder to make.
        export_format: "saved_model": a TensorFlow SavedModel, see `signatures`.
            "keras": a .keras file without the optimizer; loading it takes this package.
            "onnx": logits of whole rows; takes the packages tf2onnx and onnx.
        evaluations: {split: `evaluation.Evaluation`} for the card.
        command: that made the export, for the card.

    Returns:
        The folder's path.

    Raises:
        UsageError: the folder is there and not empty, another process exports to it,
            this backend or machine cannot write the format, or a SavedModel is asked
            of a model that cannot be decoded.
        OSError: it cannot be written.
    """
    check(export_dir, export_format, trained.model)
    target = paths.followed(paths.named(export_dir))
    write = {
        "saved_model": _write_saved_model,
        "keras": _write_keras,
        "onnx": _write_onnx,
    }[export_format]
    partial = files.partial_path(target)
    files.make_folder(target.parent)
    busy = f"another export to {target} is under way: wait for it"
    with files.lock(target.with_name(f"{target.name}.lock"), busy):
        check(export_dir, export_format)  # one that has ended in the meantime
        shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
        with files.removed_on_failure(target, lambda: checkpoints.size(trained.model)):
            partial.mkdir()
            write(trained, partial)
            card = model_card.text(trained, export_format, evaluations or {}, command)
            (partial / "README.md").write_text(card, encoding="utf-8")
            files.finish(target)
    return target


def check(export_dir, export_format, model=None):
    """Refuses what `export` would refuse, before the work.

    Args:
        export_dir, export_format: as `export` takes them.
        model: that is to be exported; None: not loaded yet.

    Raises:
        UsageError: see `export`.
    """
    if export_format not in FORMATS:
        raise unknown("format", export_format, FORMATS)
    paths.check_new_folder(export_dir, f"--export_dir={export_dir}")
    if export_format != "saved_model":
        return
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            "a SavedModel is written by TensorFlow: run et-exporter with "
            "KERAS_BACKEND=tensorflow. It reads checkpoints of every backend"
        )
    if model is not None:
        language_model.check(model, decodes=True)


def signatures(model, max_length) -> dict:
    """Returns the functions of the SavedModel by name.

    score: ids (B, T) -> nats (B, T), -log p of each token; 0 for padding.
    next_token_logits: ids (B, P) -> logits (B, V) of the token after each row.
    generate: ids (B, P), length, temperature, top_k, seed -> ids (B, L), the tokens
        after each row, EOS included, then 0; L is the smaller of length and max_length.
    serving_default: next_token_logits. It is what a server runs that was told no name:
        the model's own answer, from which the others can be had.

    Ids are int32 of sentences; 0 is padding and may stand on either side. EOS, 1, ends
    a sentence: what is scored should have it, what is continued should not. A row has
    at most max_length tokens to be scored, and fewer to be continued; others are
    refused (InvalidArgumentError), as is an id outside the vocabulary, or a temperature
    or length below 0. A row may be empty: a sentence starts. A temperature of 0 takes
    the most likely token; top_k=0 draws from all.
    """
    import tensorflow as tf

    scores = language_model.scoring_model(model, None)
    ids = tf.TensorSpec((None, None), tf.int32, name="ids")

    def known(ids):
        """Returns the ids, and refuses those that are not in the vocabulary."""
        size = model.embedding.input_dim
        reason = f"an id is not in the vocabulary: 0 to {size - 1}"
        checks = [
            tf.debugging.assert_non_negative(ids, reason),  # Keras counts from the end
            tf.debugging.assert_less(ids, size, reason),  # a GPU embeds them as zeros
        ]
        with tf.control_dependencies(checks):
            return tf.identity(ids)

    def check_length(lengths, most):
        tf.debugging.assert_less_equal(
            lengths,
            most,
            f"a row has more than {most} tokens; rows of the model have {max_length}",
        )

    @tf.function(input_signature=[ids])
    def score(ids):
        ids = tf.pad(known(ids), [[0, 0], [0, 1]])  # so that no row is without a slot
        real = tf.not_equal(ids, PAD_ID)
        check_length(tf.reduce_sum(tf.cast(real, tf.int32), axis=1), max_length)
        # The model's rows have their padding at the right.
        width = tf.shape(ids)[1]
        slots = tf.range(width)[None]
        order = tf.argsort(tf.where(real, slots, slots + width), axis=1)
        nats, _ = scores(tf.gather(ids, order, batch_dims=1), training=False)
        nats = tf.gather(nats, tf.argsort(order, axis=1), batch_dims=1)
        return {"nats": nats[:, :-1]}

    @tf.function(input_signature=[ids])
    def next_token_logits(ids):
        prompts = decoding.Prompts(known(ids), 0, max_length)
        check_length(prompts.lengths, max_length - 1)
        return {"logits": prompts.first_logits(model)[0]}

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
        ids = known(ids)
        check_length(decoding.Prompts(ids, 0, max_length).lengths, max_length - 1)
        for x, name in ((length, "length"), (temperature, "temperature")):
            tf.debugging.assert_non_negative(x, f"{name} must be 0 or more")
        out = decoding.generate(
            model, ids, length, max_length, temperature, top_k, seed=seed
        )
        return {"ids": out}

    return {
        "score": score,
        "next_token_logits": next_token_logits,
        "generate": generate,
        "serving_default": next_token_logits,
    }


def _write_saved_model(trained, folder):
    import tensorflow as tf

    functions = signatures(trained.model, trained.max_length)
    module: Any = tf.Module()
    module.held = [v.value for v in trained.model.variables]
    # Under its own name in assets/, so that a server finds it without asking.
    vocabulary = folder / "tokenizer.model"
    vocabulary.write_bytes(trained.processor.serialized_model_proto())
    module.tokenizer = tf.saved_model.Asset(str(vocabulary))
    save(module, folder, functions)
    vocabulary.unlink()
    limits = {"max_length": trained.max_length, "eos_id": EOS_ID, "pad_id": PAD_ID}
    (folder / "assets.extra").mkdir()
    text = json.dumps(limits | {"vocab_size": trained.description.vocab_size})
    (folder / "assets.extra" / "limits.json").write_text(text + "\n")


def save(module, folder, functions):
    """Writes a SavedModel.

    Args:
        module: `tf.Module`.
        folder: to write to.
        functions: {name: `tf.function`}, the signatures; None: there are none.

    Raises:
        OSError: the disk is full, for one.
        UsageError: TensorFlow gives another reason.
    """
    import tensorflow as tf

    try:
        with files.system_errors(folder, tf.errors.OpError):
            tf.saved_model.save(module, str(folder), signatures=functions)
    except tf.errors.OpError as error:
        raise UsageError(
            f"the SavedModel cannot be written: {error.message}"
        ) from error


def _write_keras(trained, folder):
    # `include_optimizer=False` would leave out its state alone.
    model = type(trained.model).from_config(trained.model.get_config())
    model.set_weights(trained.model.get_weights())
    model.save(folder / "model.keras")
    _write_vocabulary(trained, folder)


def _write_onnx(trained, folder):
    trained.model(ops.zeros((1, trained.max_length), "int32"))  # Keras asks for a call
    rows = keras.InputSpec("int32", (None, trained.max_length), name="targets")
    try:
        trained.model.export(
            str(folder / "model.onnx"),
            format="onnx",
            verbose=False,
            input_signature=[rows],
        )
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
