"""What happens beside the steps of a training run."""

import contextlib
import signal
import sys
import threading
import time

import keras
import tqdm
from keras import ops

from trainer import run_folder


def _sync(model):
    """Brings the model's variables up to date: on JAX, `fit` keeps copies."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def inner(optimizer):
    """The optimizer itself, inside one that scales the loss (mixed_float16)."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextlib.contextmanager
def averaged_weights(model):
    """Within, the model has the moving averages of its weights, if it keeps any."""
    optimizer = inner(model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    raw = [ops.convert_to_numpy(v) for v in variables]
    for variable, average in zip(variables, optimizer._model_variables_moving_average):
        # A copy: on JAX two variables of one array would both be given away.
        variable.assign(ops.convert_to_numpy(average))
    try:
        yield
    finally:
        for variable, value in zip(variables, raw):
            variable.assign(value)


def set_averaged_weights(model, values):
    """Gives a model weights that are to be used, not trained further."""
    optimizer = inner(model.optimizer)
    kept = optimizer._model_variables_moving_average if optimizer.use_ema else []
    for variables in (model.trainable_variables, kept):
        for variable, value in zip(variables, values):
            variable.assign(value)


class Interruption(keras.callbacks.Callback):
    """Ends training after the step during which SIGINT or SIGTERM came.

    The callbacks after it see `model.stop_training` and save. A second signal acts
    at once. `signal` is the one received, or None.
    """

    signal = None

    def on_train_begin(self, logs=None):
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number, frame):
        self.signal = signal.Signals(number)
        tqdm.tqdm.write(
            f"{self.signal.name}: saving after this step, again to quit at once",
            file=sys.stderr,
        )
        self._restore()

    def on_train_batch_end(self, batch, logs=None):
        if self.signal:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self._restore()

    def _restore(self):
        while self._before:
            signal.signal(*self._before.popitem())


class StepLosses(keras.callbacks.Callback):
    """Makes `logs["loss"]` the loss of this step, not the mean so far."""

    def on_train_batch_begin(self, batch, logs=None):
        for metric in self.model.metrics:
            metric.reset_state()


class ProgressBar(keras.callbacks.Callback):
    """Progress bar with the loss, tokens per second and the time left."""

    def __init__(self, start_step, train_steps, tokens_per_step, label=""):
        super().__init__()
        self._start_step = start_step
        self._train_steps = train_steps
        self._tokens_per_step = tokens_per_step
        self._label = label

    def on_train_begin(self, logs=None):
        self._bar = tqdm.tqdm(
            total=self._train_steps,
            initial=self._start_step,
            desc=self._label,
            unit="step",
            file=sys.stderr,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, batch, logs=None):
        rate = self._bar.format_dict["rate"] or 0.0
        self._bar.set_postfix(
            {
                "loss": f"{logs['loss']:.3f}",
                "tokens/s": f"{rate * self._tokens_per_step:,.0f}",
            },
            refresh=False,
        )
        self._bar.update()

    def on_train_end(self, logs=None):
        self._bar.close()


class _Periodic(keras.callbacks.Callback):
    """Calls `act(logs)` every `frequency` steps; `step` counts earlier runs, too."""

    def __init__(self, start_step, frequency):
        super().__init__()
        self.step = start_step
        self._frequency = frequency
        self._acted_at = None

    def act(self, logs):
        raise NotImplementedError

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self._frequency == 0:
            self._act_once(logs)

    def _act_once(self, logs):
        """Acts, unless it did at this very step."""
        if self._acted_at != self.step:
            _sync(self.model)
            self.act(logs)
            self._acted_at = self.step


class Summaries(_Periodic):
    """Writes TensorBoard scalars. Needs `tensorboard`, not TensorFlow."""

    def __init__(self, output_dir, start_step, tokens_per_step, frequency=20):
        super().__init__(start_step, frequency)
        from tensorboard.summary import Writer

        self._writer = Writer(str(output_dir))
        self._tokens_per_step = tokens_per_step

    def scalars(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def on_train_begin(self, logs=None):
        self._mark = self.step, time.perf_counter()

    def act(self, logs):
        step, then = self._mark
        now = time.perf_counter()
        tokens = (self.step - step) * self._tokens_per_step
        self.scalars(
            self.step,
            {
                "train/loss": logs["loss"],
                "train/learning_rate": self.model.optimizer.learning_rate,
                "train/tokens_per_second": tokens / (now - then),
            },
        )
        self._mark = self.step, now

    def on_train_end(self, logs=None):
        self._writer.close()


class Checkpoints(_Periodic):
    """Saves every `frequency` steps, at the last one and when training is stopped.

    Not in `on_train_end`: by then Keras has put averaged weights, if there are
    any, in the place of the weights that a continued run needs.
    """

    def __init__(self, output_dir, start_step, frequency, keep, train_steps):
        super().__init__(start_step, frequency)
        self._output_dir = output_dir
        self._keep = keep
        self._train_steps = train_steps

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step == self._train_steps or self.model.stop_training:
            self._act_once(logs)

    def act(self, logs):
        run_folder.save_checkpoint(self.model, self._output_dir, self.step, self._keep)


class Evaluations(_Periodic):
    """Evaluates every `frequency` steps and at the last one.

    Keeps (step, Evaluation) in `history`, and the best model in `output_dir`.
    With `patience`, that many evaluations in a row without a better one end
    training.
    """

    def __init__(
        self,
        evaluate,
        start_step,
        frequency,
        train_steps,
        summaries=None,
        output_dir=None,
        patience=0,
    ):
        super().__init__(start_step, frequency)
        self._evaluate = evaluate
        self._summaries = summaries
        self._train_steps = train_steps
        self._output_dir = output_dir
        self._patience = patience
        self._best = output_dir and run_folder.best(output_dir)
        self.history = []

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.step == self._train_steps:
            self._act_once(logs)

    def act(self, logs):
        with averaged_weights(self.model):
            evaluation = self._evaluate()
            self._keep_best(evaluation.nats_per_token)
        self.history.append((self.step, evaluation))
        if self._summaries:
            figures = evaluation.figures().items()
            self._summaries.scalars(self.step, {f"dev/{k}": v for k, v in figures})
        tqdm.tqdm.write(
            f"step {self.step}: dev "
            f"{evaluation.nats_per_token:.4f} nats per token, perplexity per "
            f"word {evaluation.perplexity_per_word:.2f}",
            file=sys.stderr,
        )

    def _keep_best(self, nats):
        if self._best is None or nats < self._best[1]:
            self._best = self.step, nats
            if self._output_dir:
                run_folder.save_best(self.model, self._output_dir, *self._best)
        elif self._patience:
            worse = (self.step - self._best[0]) / self._frequency
            if worse >= self._patience:
                tqdm.tqdm.write(
                    f"step {self.step}: no better than {self._best[1]:.4f} nats per "
                    f"token of step {self._best[0]}, stopping",
                    file=sys.stderr,
                )
                self.model.stop_training = True
