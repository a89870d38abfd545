"""Reports, evaluates and saves between the steps of a run, and ends it when told to."""

import math
import pathlib
import signal
import threading
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from trainer import processes
from trainer import progress
from trainer.evaluation.evaluation import Evaluation
from trainer.optim import optimizer_state
from trainer.runs import checkpoints
from trainer.training.run import Run
from trainer.training.run_state import RunState


class Part(keras.callbacks.Callback):
    """Reads the `run_state.RunState` of its run, which is `state`."""

    def __init__(self, state: RunState):
        super().__init__()
        self.state = state

    def close(self) -> None:
        """Ends the part's work. It is called however the training ends."""


class Interruption(Part):
    """Ends training after the step during which SIGINT or SIGTERM came.

    The callbacks after it see that training stops, and save. A second signal acts at
    once. Where there are several processes, a signal to one of them ends all, after
    the same step. `signal` is the one that ended training, or None.
    """

    signal = None
    _received = None

    def __init__(self, state: RunState):
        super().__init__(state)
        self._stop = processes.Stop(state.lag)

    def on_train_begin(self, logs=None):
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self._received = signal.Signals(number).name
        progress.write(
            f"{self._received}: saving after this step, again to quit at once"
        )
        self.close()

    def on_train_batch_end(self, batch, logs=None):
        if self._received:
            self._stop.call(self.state.step, self._received)
            self._received = None
        if reason := self._stop.called(self.state.step):
            self.signal = signal.Signals[reason]
            self.state.stop()

    def on_train_end(self, logs=None):
        if self._received:  # in the evaluation of the last step, or while it is saved
            self.signal = signal.Signals[self._received]

    def close(self):
        while self._before:
            signal.signal(*self._before.popitem())

    _before = {}


class LossScale(Part):
    """Ends a run of mixed_float16 in which no step has finite gradients any more.

    Keras halves the scale of the loss at each step that it leaves out, without end.
    """

    LEAST = 2.0**-14  # float16's smallest number with all digits
    FREQUENCY = 20  # steps; from its start the scale takes more to fall so low

    def __init__(self, state: RunState, optimizer: keras.optimizers.LossScaleOptimizer):
        super().__init__(state)
        self._optimizer = optimizer

    def on_train_batch_end(self, batch, logs=None):
        if self.state.is_due(self.FREQUENCY):
            self.state.sync()
            scale = float(ops.convert_to_numpy(self._optimizer.dynamic_scale))
            if not scale >= self.LEAST:
                self.state.diverge(
                    "the scale of float16's loss fell to nothing "
                    f"({scale:.3g}): no step had finite gradients"
                )


class Progress(Part):
    """Shows step, loss, tokens per second and the time left."""

    def __init__(self, state: RunState, label: str = ""):
        super().__init__(state)
        self._label = label
        self._shown: Any = None

    def on_train_begin(self, logs=None):
        self._shown = progress.Progress(
            self.state.train_steps, self.state.start_step, self._label
        )

    def on_train_batch_end(self, batch, logs=None):
        self._shown.update(self._figures)

    def _figures(self, rate):
        speed = rate * self.state.tokens_per_step
        return {"loss": f"{self.state.loss:.3f}", "tokens/s": f"{speed:,.0f}"}

    def close(self):
        if self._shown:  # not where `fit` failed before the first step
            self._shown.close()


class Evaluations(Part):
    """Evaluates every `local_eval_frequency` steps and at the last one.

    The best model is kept in the run's folder. An evaluation that is not finite is
    never the best: it ends the run as diverged. `early_stopping_evaluations` in a row
    without a better one end training.

    Args:
        state: `RunState`.
        run: `Run`.
        model: language model that is trained.
        evaluate: function without arguments that returns the model's `Evaluation`.
        on_evaluation: None, or called with step and `Evaluation`.
    """

    def __init__(
        self,
        state: RunState,
        run: Run,
        model: keras.Model,
        evaluate: Callable[[], Evaluation],
        on_evaluation: Callable[[int, Evaluation], None] | None = None,
    ):
        super().__init__(state)
        self._run = run
        self._evaluated = model
        self._evaluate = evaluate
        self._on_evaluation = on_evaluation
        found = processes.from_first(lambda: best_so_far(run))
        self._best = checkpoints.Best(*found) if found else None

    def on_train_batch_end(self, batch, logs=None):
        if not self.state.is_due(self._run.local_eval_frequency):
            return
        self.state.sync()
        step = self.state.step
        with optimizer_state.averaged_weights(self._evaluated):
            evaluation = self._evaluate()
            if math.isfinite(evaluation.nats_per_token):
                self._keep_best(step, evaluation.nats_per_token)
            else:
                self.state.diverge()
        self.state.evaluations.append((step, evaluation))
        if processes.is_first():
            progress.write(
                f"step {step}: dev {evaluation.nats_per_token:.4f} nats per token, "
                f"perplexity per word {evaluation.perplexity_per_word:.2f}"
            )
        if self._on_evaluation:
            self._on_evaluation(step, evaluation)

    def _keep_best(self, step, nats):
        best, output_dir = self._best, self._run.output_dir
        if best is None or nats < best.nats_per_token:
            self._best = checkpoints.Best(step, nats, self._run.eval_steps)
            if output_dir:
                checkpoints.save_best(self._evaluated, output_dir, self._best)
            return
        # A run that goes on from before some evaluations takes these again.
        if step > best.step and step not in best.later:
            self._best = best = best._replace(later=[*best.later, step])
            if output_dir:
                checkpoints.record_best(output_dir, best)
        if is_enough(self._run, best):
            if processes.is_first():
                progress.write(
                    f"step {step}: no better than {best.nats_per_token:.4f} nats per "
                    f"token of step {best.step}, stopping"
                )
            self.state.stop()


def best_so_far(run: Run) -> checkpoints.Best | None:
    """Returns how the best model of a run was found, or None.

    Evaluations of another number of batches say nothing of it: the next one is the
    best.
    """
    best = checkpoints.best(run.output_dir) if run.output_dir else None
    return best if best and best.eval_steps == run.eval_steps else None


def is_enough(run: Run, best: checkpoints.Best) -> bool:
    """Returns whether a run ends: too many evaluations were no better than the best."""
    return 0 < run.early_stopping_evaluations <= len(best.later)


class Checkpoints(Part):
    """Saves every `save_checkpoints_steps`, at the last step and when training stops.

    Weights of a run that has diverged are not saved: the checkpoints before stay. The
    loss of a step is that of the weights before it. So a checkpoint takes the place of
    the oldest when a later step has shown a finite loss, and is dropped where none has.

    The last one is not saved in `on_train_end`: by then Keras has put averaged weights,
    if there are any, in the place of the weights that a continued run needs.
    """

    def __init__(self, state: RunState, run: Run, model: keras.Model):
        super().__init__(state)
        self._run = run
        self._output_dir = str(run.output_dir)
        self._saved = model
        # The path and the step of a checkpoint whose loss is not known yet.
        self._unproven: tuple[pathlib.Path, int] | None = None

    def on_train_batch_end(self, batch, logs=None):
        state = self.state
        self._settle()
        due = state.is_due(self._run.save_checkpoints_steps) or state.stopping
        if not due:
            return
        state.sync()
        self._settle()  # before another one is there whose loss is not known
        if state.diverged_at:
            return
        try:
            path = checkpoints.save(self._saved, self._output_dir, state.step)
            self._unproven = path, state.step
        except checkpoints.NotFinite:
            state.diverge()

    def _settle(self):
        """Drops older checkpoints once the newest one's loss is known, and finite."""
        known = self._unproven and self.state.loss_step > self._unproven[1]
        if known and math.isfinite(self.state.loss):
            self.close()

    def close(self):
        if self._unproven and not math.isfinite(self.state.loss):
            checkpoints.drop(self._unproven[0])
        elif self._unproven:
            keep = self._run.keep_checkpoint_max
            checkpoints.keep_newest(self._output_dir, keep, self._unproven[1])
        self._unproven = None
