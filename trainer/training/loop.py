"""One training run: data, model, optimizer, callbacks, `fit`."""

import time

import keras
import numpy as np

from trainer import registry
from trainer.data import batches
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.evaluation import evaluation
from trainer.models import language_model
from trainer.optim import gradient_norm
from trainer.optim import optimizer_state
from trainer.runs import checkpoints
from trainer.runs import run_folder
from trainer.training import building
from trainer.training import callbacks
from trainer.training import flops
from trainer.training.run import Result


def train(run, on_start=None, extra_callbacks=(), on_evaluation=None) -> Result:
    """Trains, or continues from the newest checkpoint in `run.output_dir`.

    Args:
        run: a `Run`.
        on_start: called when all is checked, before the first step.
        extra_callbacks: Keras callbacks, called before the run's own.
        on_evaluation: called with step and `Evaluation` after each; what it raises
            ends the run.

    Raises:
        UsageError: data is missing, the batch is smaller than a row, a name is
            unknown, output_dir is busy or holds another run.
    """
    data = _Data(run)
    # Unknown names are refused before anything is written.
    registry.schedules.get(run.hparams.learning_rate_schedule)
    registry.optimizers.get(run.hparams.optimizer)
    registry.models.get(run.model)
    if run.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    arguments = run, data, on_start, extra_callbacks, on_evaluation
    if not run.output_dir:
        return _train(*arguments)
    with run_folder.lock(run.output_dir):
        return _train(*arguments)


class _Data:
    """The data of a run, checked: description, tokens of a batch, rows."""

    def __init__(self, run):
        if run.train_steps < 1:
            raise UsageError(f"train_steps must be >= 1. Got {run.train_steps}")
        self.description = dataset.load_description(run.data_dir, run.problem)
        self.tokens = self.description.tokens_per_batch(run.hparams.batch_size)
        self.train = batches.buckets(run.data_dir, self.description, "train")
        self.dev = batches.buckets(run.data_dir, self.description, "dev")
        split = self.description.splits["train"]
        if self.tokens > split.cells:
            raise UsageError(
                f"a batch of {self.tokens:,} tokens is larger than the training data, "
                f"{split.cells:,} in {split.row_count:,} rows: choose a smaller "
                "batch_size"
            )
        self.mean_length = split.cells / split.row_count

    def identity(self):
        """What the weights and the order of the data depend on."""
        names = ("vocab_size", "max_length", "tokenizer_sha256")
        facts = {name: getattr(self.description, name) for name in names}
        rows = self.description.splits["train"].row_count
        return {"data": facts | {"train_rows": rows}}


def _train(run, data, on_start, extra_callbacks, on_evaluation):
    newest = None
    if run.output_dir:
        run_folder.write_config(run.output_dir, run.identity() | data.identity())
        newest = checkpoints.latest(run.output_dir)
    model = (
        checkpoints.load(newest) if newest else building.build(run, data.description)
    )
    start_step = int(model.optimizer.iterations)
    if start_step >= run.train_steps:
        raise UsageError(
            f"{newest} is at step {start_step} already: choose "
            f"--train_steps > {start_step}"
        )

    if on_start:
        on_start()
    building.seed_dropout(model, run.seed, start_step)
    model.remat = run.remat
    scoring_model = language_model.scoring_model(model, data.tokens)

    def evaluate():
        return evaluation.evaluate(
            scoring_model, data.dev, data.tokens, run.eval_batches
        )

    jit_compile = {"auto": "auto", "true": True, "false": False}
    trained = language_model.training_model(
        model, run.hparams.label_smoothing, data.tokens
    )
    optimizer = model.optimizer
    if run.output_dir:
        optimizer = gradient_norm.GradientNorm(optimizer)
    trained.compile(
        optimizer=optimizer,
        loss=language_model.PassedThrough(),
        jit_compile=jit_compile[run.jit_compile],
        auto_scale_loss=False,
    )
    flops_per_token = flops.per_token(model, run.hparams, data.mean_length)
    summaries = None
    if run.output_dir:
        summaries = callbacks.Summaries(
            run.output_dir,
            start_step,
            data.tokens,
            flops_per_token,
            4 * optimizer_state.state_scalars(model.optimizer),
        )
    evaluations = callbacks.Evaluations(
        model,
        evaluate,
        start_step,
        run.eval_frequency,
        run.train_steps,
        summaries,
        run.output_dir,
        run.patience,
        on_evaluation,
    )
    clock = _Clock()
    interruption = callbacks.Interruption()
    active = [
        *extra_callbacks,
        callbacks.StepLosses(),
        clock,
        interruption,
        callbacks.ProgressBar(start_step, run.train_steps, data.tokens, run.label),
        evaluations,
    ]
    if run.output_dir:
        active.append(
            callbacks.Checkpoints(
                model,
                run.output_dir,
                start_step,
                run.checkpoint_frequency,
                run.checkpoints_kept,
                run.train_steps,
            )
        )
        if run.profile:
            active.append(callbacks.Profile(run.output_dir, start_step, *run.profile))
        active.append(summaries)  # last: it closes its file at the end
    trained.fit(
        _batches(data, run.seed, start_step),
        steps_per_epoch=run.train_steps - start_step,
        epochs=1,
        shuffle=False,
        verbose=0,
        callbacks=active,
    )
    speed = clock.steps * data.tokens / (clock.seconds or np.inf)
    return Result(
        model=model,
        steps=start_step + clock.ended,
        seconds=clock.seconds,
        tokens_per_second=speed,
        train_loss=clock.loss,
        flops_per_second=speed * flops_per_token,
        evaluations=evaluations.history,
        state_scalars=optimizer_state.state_scalars(model.optimizer),
        checkpoint=run.output_dir and str(checkpoints.latest(run.output_dir)),
        interrupted_by=interruption.signal and interruption.signal.name,
    )


def _batches(data, seed, start_step):
    """Training batches as `fit` takes them."""

    def stream():
        return batches.training_batches(data.train, data.tokens, seed, start_step)

    if keras.backend.backend() != "tensorflow":
        return stream()
    import tensorflow as tf

    # Keras would take the shapes of the first two batches for those of all.
    rows = tf.TensorSpec((None, data.description.row_length), tf.int32)
    return tf.data.Dataset.from_generator(stream, output_signature=(rows, rows))


class _Clock(keras.callbacks.Callback):
    """Seconds inside training steps. The first one, which compiles, is not in."""

    def __init__(self):
        super().__init__()
        self.seconds = 0.0
        self.steps = 0  # of these seconds
        self.ended = 0  # in all
        self.loss = None

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.loss = logs["loss"]
        self.ended += 1
        if batch or self.params["steps"] == 1:
            self.seconds += time.perf_counter() - self._start
            self.steps += 1
