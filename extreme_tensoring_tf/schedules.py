"""The learning-rate schedule of the paper."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("extreme_tensoring_tf")
class InverseSqrtSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The rate warms up linearly, then decays with the inverse root of the step.

    eta_t = scale * min(warmup_slope * t, t ** -0.5)

    where

        t: the update, counted from 1 (Keras' step 0 is t = 1).

    The two branches meet at t = warmup_slope ** (-2/3): 10,000 updates for the
    default slope. It equals Tensor2Tensor's `constant*linear_warmup*rsqrt_decay`
    with `warmup_steps = warmup_slope ** (-2/3)`.

    Args:
        scale: the constant c, tuned per optimizer. The peak rate is
            scale * warmup_slope ** (1/3). Must be positive.
        warmup_slope: rise per update of the warm-up, in units of `scale`.
            Defaults to 1e-6. Must be positive.
        name: optional name.

    Raises:
        ValueError: `scale` or `warmup_slope` is not a positive number.

    Source: arXiv 1902.04620, Section 5 (learning-rate schedule).
    """

    def __init__(self, scale, warmup_slope=1e-6, name="inverse_sqrt_schedule"):
        super().__init__()
        for key, value in (("scale", scale), ("warmup_slope", warmup_slope)):
            if not value > 0:
                raise ValueError(
                    f"`{key}` must be a positive number. Received: {key}={value!r}"
                )
        self.scale = float(scale)
        self.warmup_slope = float(warmup_slope)
        self.name = name

    def __call__(self, step):
        """Returns the rate, float32, of a step counted from 0."""
        t = ops.cast(step, "float32") + 1.0
        return self.scale * ops.minimum(self.warmup_slope * t, ops.rsqrt(t))

    def get_config(self) -> dict:
        """Returns the arguments of the constructor, for `from_config`."""
        return {
            "scale": self.scale,
            "warmup_slope": self.warmup_slope,
            "name": self.name,
        }
