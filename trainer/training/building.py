"""The model of a run at step 0, and what a continued run sets anew."""

import keras
import numpy as np

from trainer import registry
from trainer.errors import UsageError
from trainer.models import language_model
from trainer.models import losses
from trainer.optim import catalog
from trainer.runs import checkpoints


def build(run, description):
    """The compiled model of a run, at step 0."""
    keras.utils.set_random_seed(run.seed)
    make_model = registry.models.get(run.model)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(run.dtype)
    try:
        model = make_model(run.hparams, description.vocab_size, description.max_length)
    finally:
        keras.config.set_dtype_policy(before)
    language_model.check(model)
    if run.warm_start_from:
        _take_weights(model, run.warm_start_from)
    optimizer = catalog.create(run.hparams, model.trainable_variables)
    if run.dtype == "mixed_float16":
        # Here, not by `compile`: that would ask the policy again at every loading.
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=losses.SmoothedCrossEntropy(run.hparams.label_smoothing),
        auto_scale_loss=False,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def seed_dropout(model, seed, step):
    """Makes the noise of a step depend on (seed, step) alone.

    A layer's generator counts its calls. Keras does not save that count, so a
    continued run would draw other noise than the run in one.
    """
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    for layer, state in enumerate(states):
        (own,) = np.random.SeedSequence([seed, layer]).generate_state(1)
        state.assign(np.array([own, step], dtype=state.dtype))


def _take_weights(model, path):
    """Gives a new model the weights of a checkpoint, if they fit."""
    source = checkpoints.load(path)
    ours, theirs = ({v.path: v for v in m.weights} for m in (model, source))
    for name in sorted(set(ours) | set(theirs)):
        shapes = [tuple(w[name].shape) if name in w else None for w in (ours, theirs)]
        if shapes[0] != shapes[1] and "seed_generator" not in name:
            raise UsageError(
                f"{path} cannot start this model: {name} has shape {shapes[1]} there "
                f"and {shapes[0]} here"
            )
    for name in set(ours) & set(theirs):
        ours[name].assign(theirs[name])
