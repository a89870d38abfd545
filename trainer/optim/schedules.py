"""Registers learning-rate schedules by name.

An entry takes hparams and the rate constant c, and returns what a Keras optimizer
takes as its rate. t is the update, counted from 1; w is
`learning_rate_warmup_steps`.
"""

import math

import keras
from keras import ops

from extreme_tensoring_tf import InverseSqrtSchedule
from trainer import registry
from trainer.errors import HParamsError


@registry.schedules.register
def inverse_sqrt(hparams, constant):
    """Returns c * min(t * w ** -1.5, t ** -0.5), as the paper and `noam` have it."""
    slope = hparams.learning_rate_warmup_steps**-1.5
    return InverseSqrtSchedule(scale=constant, warmup_slope=slope)


@registry.schedules.register
def cosine(hparams, constant):
    """Returns a linear warm-up in w updates, then a cosine that ends at 0.

    The highest rate is c * w ** -0.5, that of `inverse_sqrt`: one c serves both. The
    last of `learning_rate_decay_steps` updates has the least rate above 0.
    """
    warmup = hparams.learning_rate_warmup_steps
    if hparams.learning_rate_decay_steps <= warmup:
        raise HParamsError(
            "the cosine falls from learning_rate_warmup_steps to "
            f"learning_rate_decay_steps, which must be more. Got {warmup} and "
            f"{hparams.learning_rate_decay_steps}"
        )
    return WarmupCosine(
        constant * warmup**-0.5, warmup, hparams.learning_rate_decay_steps
    )


@registry.schedules.register
def constant(hparams, c):
    """Returns c, the rate of every step."""
    return c


def is_schedule(rate) -> bool:
    """Returns whether a rate is called with the number of the step.

    Keras calls any other function without it.
    """
    return isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)


@keras.saving.register_keras_serializable("trainer")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """The rate warms up linearly from update 1 on, then falls along a cosine.

    eta_t = peak * min(t / w, sin(pi / 2 * min(1, (d + 1 - t) / (d + 1 - w))) ** 2)

    where

        t: the update, counted from 1 (Keras' step 0 is t = 1). From d + 1 on the rate
            is 0.

    Keras' `CosineDecay` has the rate 0 at the first update.

    Args:
        peak: highest rate.
        warmup_steps: w, updates.
        decay_steps: d, updates, more than w.
    """

    def __init__(self, peak, warmup_steps, decay_steps):
        super().__init__()
        self._config = {
            "peak": float(peak),
            "warmup_steps": int(warmup_steps),
            "decay_steps": int(decay_steps),
        }

    def __call__(self, step):
        """Returns the rate, float32, of a step counted from 0."""
        peak, w, d = self._config.values()
        t = ops.cast(step, "float32") + 1.0
        left = ops.maximum((d + 1.0 - t) / (d + 1.0 - w), 0.0)
        # A square, for 1 + cos has no digits left where it is nearly 0.
        fall = ops.square(ops.sin(0.5 * math.pi * ops.minimum(left, 1.0)))
        return peak * ops.where(t < w, t / w, fall)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor, for `from_config`."""
        return dict(self._config)


@keras.saving.register_keras_serializable("trainer")
class PerUpdate(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule's rate, for an optimizer that takes several batches an update.

    Keras gives a schedule the number of the batch.

    Args:
        schedule: that other one.
        batches: of an update.
    """

    def __init__(self, schedule, batches):
        super().__init__()
        self._schedule, self._batches = schedule, int(batches)

    def __call__(self, step):
        """Returns the rate of a batch counted from 0."""
        return self._schedule(step // self._batches)

    def get_config(self) -> dict:
        """Returns the arguments of the constructor, for `from_config`."""
        schedule = keras.saving.serialize_keras_object(self._schedule)
        return {"schedule": schedule, "batches": self._batches}

    @classmethod
    def from_config(cls, config):
        """Returns the schedule that `get_config` described."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["batches"])
