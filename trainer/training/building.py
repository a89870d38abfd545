"""Builds the model of a run, and makes a model ready to be trained."""

import re
from typing import Any

import keras
import numpy as np
from keras import ops

from trainer import distribution
from trainer import registry
from trainer.data import dataset
from trainer.errors import HParamsError
from trainer.errors import UsageError
from trainer.models import language_model
from trainer.optim import catalog
from trainer.optim import gradient_norm
from trainer.optim import schedules
from trainer.runs import checkpoints
from trainer.runs import run_folder
from trainer.runs import trained_model
from trainer.training.run import Run


def build(run: Run, description: dataset.Description) -> Any:
    """Returns the language model of a run at step 0, with its optimizer.

    Args:
        run: `Run`.
        description: `dataset.Description` of the run's data.

    Raises:
        UsageError: a name is unknown, the model cannot do `remat`, or the checkpoint
            of `warm_start_from` does not fit model or data.
    """
    keras.utils.set_random_seed(run.random_seed)
    make_model = registry.models.get(run.model)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(run.dtype)
    try:
        model = make_model(run.hparams, description.vocab_size, description.max_length)
    finally:
        keras.config.set_dtype_policy(before)
    language_model.check(model)
    model.remat = run.remat  # refused, where it is, before anything is written
    if run.warm_start_from:
        _take_weights(model, run, description)
    optimizer = catalog.create(run.hparams, model.trainable_variables)
    if run.dtype == "mixed_float16":
        # Here, not by `compile`: that would ask the policy again at every loading.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # A checkpoint holds the optimizer of the model that it is made of.
    model.compile(optimizer=optimizer, auto_scale_loss=False)
    model.optimizer.build(model.trainable_variables)
    return model


def trainable(model, run: Run, tokens: int) -> keras.Model:
    """Returns the compiled model that `fit` trains, on the weights of `model`.

    Args:
        model: language model with its optimizer.
        run: `Run`.
        tokens: of a batch, at most.
    """
    compiles = jit_compile(run)
    model.remat = run.remat
    trained = language_model.training_model(model, run.hparams.label_smoothing, tokens)
    optimizer = model.optimizer
    if run.output_dir:  # TensorBoard shows the norm
        optimizer = gradient_norm.GradientNorm(optimizer)
    trained.compile(
        optimizer=optimizer,
        jit_compile=compiles,
        auto_scale_loss=False,
    )
    return trained


def check_schedule(run: Run) -> None:
    """Refuses a run whose learning rate is 0 at its last step: it would learn no more.

    Raises:
        HParamsError: the schedule ends before.
        UsageError: its name is unknown.
    """
    hparams = run.hparams
    schedule = registry.schedules.get(hparams.learning_rate_schedule)
    rate: Any = schedule(hparams, 1.0)
    updates = run.train_steps // hparams.gradient_accumulation_steps
    if not (updates and schedules.is_schedule(rate)):
        return
    if not np.any(ops.convert_to_numpy(rate(updates - 1))):
        raise HParamsError(
            f"with learning_rate_schedule={hparams.learning_rate_schedule} the rate "
            f"has fallen to 0 before update {updates:,}, the last of "
            f"train_steps={run.train_steps}. Got learning_rate_decay_steps="
            f"{hparams.learning_rate_decay_steps}: give {updates}, or fewer train_steps"
        )


def jit_compile(run: Run) -> bool | str:
    """Returns whether XLA compiles the whole step of a run, as Keras takes it.

    Raises:
        UsageError: it should, and cannot.
    """
    if not distribution.towers():
        return {"auto": "auto", "true": True, "false": False}[run.xla_compile]
    if run.xla_compile == "true":
        raise UsageError(
            "--xla_compile=true is for one device: on TensorFlow, a program of XLA's "
            f"cannot use the {distribution.devices()} devices of --strategy=data"
        )
    return False


def seed_dropout(model: keras.Model, seed: int, step: int) -> None:
    """Makes the noise of each step depend on (seed, step) alone.

    A layer's generator counts its calls. Keras does not save that count, so a
    continued run would draw other noise than the run in one.

    Args:
        model: language model that is to be trained.
        seed: of the run.
        step: steps that were taken.
    """
    step *= len(distribution.towers()) or 1  # each of them draws
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    for layer, state in enumerate(states):
        (own,) = np.random.SeedSequence([seed, layer]).generate_state(1)
        state.assign(np.array([own, step], dtype=state.dtype))


def _take_weights(model, run, description):
    """Gives a new model the weights of a checkpoint.

    Raises:
        UsageError: the checkpoint is of another vocabulary or of other shapes.
    """
    path = run.warm_start_from
    _, trained_on = run_folder.read_vocabulary(run_folder.of_checkpoint(path))
    trained_model.check_vocabulary(path, trained_on, run.data_dir, description)
    source = checkpoints.load(path)
    ours, theirs = _named_weights(model), _named_weights(source)
    # Keras numbers the layers without names of a process: `dense` is the same layer as
    # the `dense_1` of a model that was made after it.
    if list(map(_without_numbers, ours)) == list(map(_without_numbers, theirs)):
        theirs = dict(zip(ours, theirs.values()))
    for name in sorted(set(ours) | set(theirs)):
        shapes = [tuple(w[name].shape) if name in w else None for w in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"{path} cannot start this model: {name} has shape {shapes[1]} there "
                f"and {shapes[0]} here"
            )
    for name, weight in ours.items():
        weight.assign(theirs[name])


def _without_numbers(path):
    return re.sub(r"_\d+(?=/|$)", "", path)


def _named_weights(model):
    """Returns the weights of a model by their paths, without the seeds of dropout."""
    return {v.path: v for v in model.weights if "seed_generator" not in v.path}
