"""Counts the steps of a run once, for all that happens beside them."""

import math
import time

import keras

from trainer.evaluation.evaluation import Evaluation


class RunState(keras.callbacks.Callback):
    """Counts the steps of a run. The state is the first of the run's callbacks.

    Args:
        start_step: steps that earlier starts have taken.
        train_steps: step at which the run ends.
        tokens_per_step: tokens of a batch, padding counted.
        nonfinite_steps: steps in a row with a loss that is not finite which end the
            run.

    Attributes:
        step: steps taken, those of earlier starts counted.
        loss: training loss of the last step.
        evaluations: list of (step, `Evaluation`) of this start.
        diverged_at: first of the steps, up to the last one, whose loss was not
            finite; None where the last loss was finite.
        seconds: inside training steps; the first one, which compiles, is left out
            where there are more.
        timed_steps: steps of these seconds.
    """

    def __init__(
        self,
        start_step: int,
        train_steps: int,
        tokens_per_step: int,
        nonfinite_steps: int,
    ):
        super().__init__()
        self.start_step = start_step
        self.step = start_step
        self.train_steps = train_steps
        self.tokens_per_step = tokens_per_step
        self.loss = math.nan
        self.evaluations: list[tuple[int, Evaluation]] = []
        self.diverged_at: int | None = None
        self.seconds = 0.0
        self.timed_steps = 0
        self._nonfinite_steps = nonfinite_steps

    def on_train_batch_begin(self, batch, logs=None):
        for metric in self.model.metrics:  # the loss of this step, not a mean
            metric.reset_state()
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.loss = (logs or {})["loss"]
        if self.step > self.start_step + 1 or self.train_steps == self.step:
            self.seconds += time.perf_counter() - self._began
            self.timed_steps += 1
        if math.isfinite(self.loss):
            self.diverged_at = None
            return
        self.diverged_at = self.diverged_at or self.step
        if self.step - self.diverged_at + 1 >= self._nonfinite_steps:
            self.stop()

    def is_due(self, frequency: int) -> bool:
        """Returns whether a step is one of every `frequency`, or the last of all."""
        return self.step % frequency == 0 or self.step == self.train_steps

    @property
    def stopping(self) -> bool:
        """True where this step is the last, though the run is not at its end."""
        return self.model.stop_training

    def stop(self) -> None:
        """Ends training after this step."""
        self.model.stop_training = True

    def diverge(self) -> None:
        """Ends training: this step left weights that are not finite or give no loss."""
        self.diverged_at = self.diverged_at or self.step
        self.stop()

    def sync(self) -> None:
        """Brings the model's variables up to date: on JAX, `fit` keeps copies."""
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
