"""Registers learning-rate schedules by name.

An entry takes hparams and the rate constant c, and returns what a Keras optimizer
takes as its rate. t is the update, counted from 1; w is
`learning_rate_warmup_steps`.
"""

import keras

from extreme_tensoring_tf import InverseSqrtSchedule
from trainer import registry


@registry.schedules.register
def inverse_sqrt(hparams, constant):
    """Returns c * min(t * w ** -1.5, t ** -0.5), as the paper and `noam` have it."""
    slope = hparams.learning_rate_warmup_steps**-1.5
    return InverseSqrtSchedule(scale=constant, warmup_slope=slope)


@registry.schedules.register
def cosine(hparams, constant):
    """Returns a linear warm-up in w updates, then a cosine that ends at 0.

    The highest rate is c * w ** -0.5, that of `inverse_sqrt`: one c serves both. The
    cosine ends after `learning_rate_decay_steps` updates.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(
            hparams.learning_rate_decay_steps - hparams.learning_rate_warmup_steps, 1
        ),
        warmup_target=constant * hparams.learning_rate_warmup_steps**-0.5,
        warmup_steps=hparams.learning_rate_warmup_steps,
    )


@registry.schedules.register
def constant(hparams, constant):
    """Returns c, the rate of every step."""
    return constant
