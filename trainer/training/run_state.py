"""Counts the steps of a run once, for all that happens beside them."""

import collections
import math
import time

import keras

from extreme_tensoring_tf.variables import has_accelerator
from trainer.evaluation.evaluation import Evaluation


class Callbacks(keras.callbacks.CallbackList):
    """Calls callbacks with the logs as the backend has them.

    Keras makes numbers of them, which waits for the step: a GPU would be idle until the
    next one is prepared.
    """

    def on_train_batch_end(self, batch, logs=None):
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, logs)


class RunState(keras.callbacks.Callback):
    """Counts the steps of a run. The state is the first of the run's `Callbacks`.

    On a GPU, while a step is computed, the next one is prepared: a loss is read when
    the step after it has been started, or by `sync`.

    Args:
        start_step: steps that earlier starts have taken.
        train_steps: step at which the run ends.
        tokens_per_step: tokens of a batch, padding counted.
        nonfinite_steps: steps in a row with a loss that is not finite which end the
            run.
        lag: steps that may be under way when the loss of one is read. None is 1 on a
            GPU, and 0 elsewhere.

    Attributes:
        step: steps taken, those of earlier starts counted.
        loss: training loss of the last step that has been read.
        loss_step: that step.
        evaluations: list of (step, `Evaluation`) of this start.
        diverged_at: first of the steps, up to the last one, whose loss was not
            finite; None where the last loss was finite.
        reason: why a run that has diverged is ended.
        seconds: inside training steps; the first one, which compiles, is left out
            where there are more.
        timed_steps: steps of these seconds.
        lag: as given, or as found.
    """

    def __init__(
        self,
        start_step: int,
        train_steps: int,
        tokens_per_step: int,
        nonfinite_steps: int,
        lag: int | None = None,
    ):
        super().__init__()
        self.start_step = start_step
        self.step = start_step
        self.train_steps = train_steps
        self.tokens_per_step = tokens_per_step
        self.loss = math.nan
        self.loss_step = start_step
        self.evaluations: list[tuple[int, Evaluation]] = []
        self.diverged_at: int | None = None
        self.reason = "loss or weights were not finite"
        self.seconds = 0.0
        self.timed_steps = 0
        self._nonfinite_steps = nonfinite_steps
        self.lag = int(has_accelerator()) if lag is None else lag
        self._unread = collections.deque()  # (step, loss on the device)

    def set_model(self, model):
        super().set_model(model)
        # `self.model` would bring its variables up to date at each use, on JAX.
        self._trained = model

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self._unread.append((self.step, (logs or {})["loss"]))
        # The first one is not timed, so none of it may be left to the second.
        whole = self.step in (self.start_step + 1, self.train_steps)
        self._read(0 if whole else self.lag)
        if self.step > self.start_step + 1 or self.train_steps == self.step:
            self.seconds += time.perf_counter() - self._began
            self.timed_steps += 1

    def _read(self, left):
        """Reads the losses of all steps but the last so many."""
        while len(self._unread) > left:
            self.loss_step, loss = self._unread.popleft()
            self.loss = float(loss)
            if math.isfinite(self.loss):
                self.diverged_at = None
                continue
            self.diverged_at = self.diverged_at or self.loss_step
            if self.loss_step - self.diverged_at + 1 >= self._nonfinite_steps:
                self.stop()

    def is_due(self, frequency: int) -> bool:
        """Returns whether a step is one of every `frequency`, or the last of all."""
        return self.step % frequency == 0 or self.step == self.train_steps

    @property
    def stopping(self) -> bool:
        """True where this step is the last, though the run is not at its end."""
        return self._trained.stop_training

    def stop(self) -> None:
        """Ends training after this step."""
        self._trained.stop_training = True

    def diverge(self, reason: str | None = None) -> None:
        """Ends training: this step left weights that are not finite or give no loss.

        Args:
            reason: another one, for the error.
        """
        self.diverged_at = self.diverged_at or self.step
        self.reason = reason or self.reason
        self.stop()

    def sync(self) -> None:
        """Brings loss and variables up to date: on JAX, `fit` keeps copies of these."""
        began = time.perf_counter()
        self._read(0)
        if self.timed_steps:  # what is waited for is a part of the last one
            self.seconds += time.perf_counter() - began
        if keras.backend.backend() == "jax":
            self._trained.jax_state_sync()
