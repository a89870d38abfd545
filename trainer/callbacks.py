"""What happens beside the steps of a training run."""

import sys
import time

import keras
import tqdm

from trainer import run_folder


def _sync(model):
    """Brings the model's variables up to date: on JAX, `fit` keeps copies."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


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
    """Saves every `frequency` steps and at the end."""

    def __init__(self, output_dir, start_step, frequency, keep):
        super().__init__(start_step, frequency)
        self._output_dir = output_dir
        self._keep = keep

    def act(self, logs):
        run_folder.save_checkpoint(self.model, self._output_dir, self.step, self._keep)

    def on_train_end(self, logs=None):
        self._act_once(logs)


class Evaluations(_Periodic):
    """Evaluates every `frequency` steps and at the end.

    Keeps (step, Evaluation) in `history`.
    """

    def __init__(self, evaluate, start_step, frequency, summaries=None):
        super().__init__(start_step, frequency)
        self._evaluate = evaluate
        self._summaries = summaries
        self.history = []

    def act(self, logs):
        evaluation = self._evaluate()
        self.history.append((self.step, evaluation))
        figures = {
            "nats_per_token": evaluation.nats_per_token,
            "perplexity_per_token": evaluation.perplexity_per_token,
            "perplexity_per_word": evaluation.perplexity_per_word,
            "accuracy": evaluation.accuracy,
        }
        if self._summaries:
            self._summaries.scalars(
                self.step, {f"dev/{k}": v for k, v in figures.items()}
            )
        tqdm.tqdm.write(
            f"step {self.step}: dev "
            f"{evaluation.nats_per_token:.4f} nats per token, perplexity per "
            f"word {evaluation.perplexity_per_word:.2f}",
            file=sys.stderr,
        )

    def on_train_end(self, logs=None):
        self._act_once(logs)
