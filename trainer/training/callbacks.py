"""What happens beside the steps of a training run."""

import signal
import sys
import threading
import time

import keras
import tqdm
from keras import ops

from trainer.errors import UsageError
from trainer.evaluation.evaluation import exp
from trainer.optim import optimizer_state
from trainer.runs import checkpoints


def _sync(model):
    """Brings the model's variables up to date: on JAX, `fit` keeps copies."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


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
    """Calls `act(logs)` every `frequency` steps; `step` counts earlier runs, too.

    And at step `last`, if that is given.
    """

    def __init__(self, start_step, frequency, last=None):
        super().__init__()
        self.step = start_step
        self._frequency = frequency
        self._last = last
        self._acted_at = None

    def act(self, logs):
        raise NotImplementedError

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % self._frequency == 0 or self.step == self._last:
            self._act_once(logs)

    def _act_once(self, logs):
        """Acts, unless it did at this very step."""
        if self._acted_at != self.step:
            _sync(self.model)
            self.act(logs)
            self._acted_at = self.step


class Summaries(_Periodic):
    """Writes TensorBoard scalars. Needs `tensorboard`, not TensorFlow."""

    def __init__(
        self,
        output_dir,
        start_step,
        tokens_per_step,
        flops_per_token,
        state_bytes,
        frequency=20,
    ):
        super().__init__(start_step, frequency)
        from tensorboard.summary import Writer

        self._writer = Writer(str(output_dir))
        self._tokens_per_step = tokens_per_step
        self._flops_per_token = flops_per_token
        self.scalars(start_step, {"optimizer/state_bytes": state_bytes})

    def scalars(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def on_train_begin(self, logs=None):
        self._mark = self.step, time.perf_counter()

    def act(self, logs):
        step, then = self._mark
        now = time.perf_counter()
        speed = (self.step - step) * self._tokens_per_step / (now - then)
        optimizer = self.model.optimizer
        self.scalars(
            self.step,
            {
                "train/loss": logs["loss"],
                "train/perplexity_per_token": exp(logs["loss"]),
                "train/learning_rate": optimizer.learning_rate,
                "train/gradient_norm": ops.convert_to_numpy(optimizer.norm),
                "train/tokens_per_second": speed,
                "train/model_flops_per_second": speed * self._flops_per_token,
            },
        )
        self._mark = self.step, now

    def on_train_end(self, logs=None):
        self._writer.close()


class Profile(keras.callbacks.Callback):
    """Traces steps `first` to `last` for TensorBoard's profiler."""

    def __init__(self, output_dir, start_step, first, last):
        super().__init__()
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            self._tracer = tf.profiler.experimental
            self._names = "start", "stop"
        elif backend == "jax":
            import jax

            self._tracer = jax.profiler
            self._names = "start_trace", "stop_trace"
        else:
            raise UsageError(f"--profile works on TensorFlow and JAX, not on {backend}")
        self._output_dir = str(output_dir)
        self._next = start_step + 1
        self._first, self._last = first, last
        self._on = False

    def on_train_batch_begin(self, batch, logs=None):
        if self._first <= self._next <= self._last and not self._on:
            getattr(self._tracer, self._names[0])(self._output_dir)
            self._on = True

    def on_train_batch_end(self, batch, logs=None):
        if self._next >= self._last:
            self._stop()
        self._next += 1

    def on_train_end(self, logs=None):
        self._stop()

    def _stop(self):
        if self._on:
            getattr(self._tracer, self._names[1])()
            self._on = False


class Checkpoints(_Periodic):
    """Saves every `frequency` steps, at the last one and when training is stopped.

    Not in `on_train_end`: by then Keras has put averaged weights, if there are
    any, in the place of the weights that a continued run needs.
    """

    def __init__(self, model, output_dir, start_step, frequency, keep, last):
        super().__init__(start_step, frequency, last)
        self._saved = model
        self._output_dir = output_dir
        self._keep = keep

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        if self.model.stop_training:
            self._act_once(logs)

    def act(self, logs):
        checkpoints.save(self._saved, self._output_dir, self.step, self._keep)


class Evaluations(_Periodic):
    """Evaluates every `frequency` steps and at the last one.

    Keeps (step, Evaluation) in `history`, and the best model in `output_dir`.
    Calls `on_evaluation(step, evaluation)`. With `patience`, that many evaluations in
    a row without a better one end training.
    """

    def __init__(
        self,
        model,
        evaluate,
        start_step,
        frequency,
        last,
        summaries=None,
        output_dir=None,
        patience=0,
        on_evaluation=None,
    ):
        super().__init__(start_step, frequency, last)
        self._on_evaluation = on_evaluation
        self._evaluated = model
        self._evaluate = evaluate
        self._summaries = summaries
        self._output_dir = output_dir
        self._patience = patience
        self._best = output_dir and checkpoints.best(output_dir)
        self.history = []

    def act(self, logs):
        with optimizer_state.averaged_weights(self._evaluated):
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
        if self._on_evaluation:
            self._on_evaluation(self.step, evaluation)

    def _keep_best(self, nats):
        if self._best is None or nats < self._best[1]:
            self._best = self.step, nats
            if self._output_dir:
                checkpoints.save_best(self._evaluated, self._output_dir, *self._best)
        elif self._patience:
            worse = (self.step - self._best[0]) / self._frequency
            if worse >= self._patience:
                tqdm.tqdm.write(
                    f"step {self.step}: no better than {self._best[1]:.4f} nats per "
                    f"token of step {self._best[0]}, stopping",
                    file=sys.stderr,
                )
                self.model.stop_training = True
