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


class Summaries(keras.callbacks.Callback):
    """Writes TensorBoard scalars. Needs `tensorboard`, not TensorFlow."""

    def __init__(self, output_dir, start_step, tokens_per_step, frequency=20):
        super().__init__()
        from tensorboard.summary import Writer

        self._writer = Writer(str(output_dir))
        self._step = start_step
        self._tokens_per_step = tokens_per_step
        self._frequency = frequency

    def scalars(self, step, values):
        for name, value in values.items():
            self._writer.add_scalar(name, float(value), step)
        self._writer.flush()

    def on_train_begin(self, logs=None):
        self._mark = self._step, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._step % self._frequency:
            return
        _sync(self.model)  # for the rate
        step, then = self._mark
        now = time.perf_counter()
        tokens = (self._step - step) * self._tokens_per_step
        self.scalars(
            self._step,
            {
                "train/loss": logs["loss"],
                "train/learning_rate": self.model.optimizer.learning_rate,
                "train/tokens_per_second": tokens / (now - then),
            },
        )
        self._mark = self._step, now

    def on_train_end(self, logs=None):
        self._writer.close()


class Checkpoints(keras.callbacks.Callback):
    """Saves every `frequency` steps and at the end."""

    def __init__(self, output_dir, start_step, frequency, keep):
        super().__init__()
        self._output_dir = output_dir
        self._step = start_step
        self._saved = None
        self._frequency = frequency
        self._keep = keep

    def _save(self):
        if self._saved != self._step:
            _sync(self.model)
            run_folder.save_checkpoint(
                self.model, self._output_dir, self._step, self._keep
            )
            self._saved = self._step

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._step % self._frequency == 0:
            self._save()

    def on_train_end(self, logs=None):
        self._save()


class Evaluations(keras.callbacks.Callback):
    """Evaluates every `frequency` steps. Keeps (step, Evaluation) in `history`."""

    def __init__(self, evaluate, start_step, frequency, summaries=None):
        super().__init__()
        self._evaluate = evaluate
        self._step = start_step
        self._frequency = frequency
        self._summaries = summaries
        self.history = []

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._step % self._frequency == 0:
            self.run()

    def run(self):
        """Evaluates now, unless this step was evaluated already."""
        if self.history and self.history[-1][0] == self._step:
            return self.history[-1][1]
        _sync(self.model)
        evaluation = self._evaluate()
        self.history.append((self._step, evaluation))
        figures = {
            "nats_per_token": evaluation.nats_per_token,
            "perplexity_per_token": evaluation.perplexity_per_token,
            "perplexity_per_word": evaluation.perplexity_per_word,
            "accuracy": evaluation.accuracy,
        }
        if self._summaries:
            self._summaries.scalars(
                self._step, {f"dev/{k}": v for k, v in figures.items()}
            )
        tqdm.tqdm.write(
            f"step {self._step}: dev "
            f"{evaluation.nats_per_token:.4f} nats per token, perplexity per "
            f"word {evaluation.perplexity_per_word:.2f}",
            file=sys.stderr,
        )
        return evaluation

    def on_train_end(self, logs=None):
        self.run()
