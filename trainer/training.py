"""One training run: data, model, optimizer, callbacks, `fit`."""

import dataclasses
import time

import keras
import numpy as np

from trainer import callbacks
from trainer import dataset
from trainer import evaluation
from trainer import losses
from trainer import optimizers
from trainer import registry
from trainer import run_folder
from trainer.errors import UsageError
from trainer.hparams import HParams


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of. The flags of et-trainer fill it."""

    problem: str
    data_dir: str
    hparams: HParams
    train_steps: int
    output_dir: str | None = None  # None: nothing is written
    model: str = "transformer_lm"
    seed: int = 0
    jit_compile: str = "auto"  # of the model; the optimizer has its own
    eval_frequency: int = 1000
    eval_batches: int = 0  # 0: the whole split
    checkpoint_frequency: int = 1000
    checkpoints_kept: int = 3
    label: str = ""  # of the progress bar

    def identity(self):
        """What must not change between the runs of one output_dir."""
        names = ("problem", "model", "seed")
        return {n: getattr(self, n) for n in names} | {
            "hparams": dataclasses.asdict(self.hparams)
        }


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with."""

    model: keras.Model
    steps: int
    seconds: float  # training alone: the evaluations are not in it
    tokens_per_second: float
    train_loss: float  # of the last step
    evaluations: list  # (step, Evaluation)
    state_scalars: int
    checkpoint: str | None  # path of the last one

    def __str__(self):
        step, final = self.evaluations[-1]
        optimizer = self.model.optimizer.name
        return (
            f"step {step:,}, optimizer {optimizer} with {self.state_scalars:,} "
            f"state scalars for {self.model.count_params():,} parameters\n"
            f"{self.seconds:.1f} s, {self.tokens_per_second:,.0f} tokens/s, "
            f"last training loss {self.train_loss:.4f}\n{final}"
        )


def optimizer_state_scalars(optimizer):
    """Scalars of state: without counters and the learning rate."""
    if hasattr(optimizer, "state_size"):
        return optimizer.state_size
    counters = {"iteration", "learning_rate"}
    return sum(
        int(np.prod(v.shape)) for v in optimizer.variables if v.name not in counters
    )


def build(run, description):
    """The compiled model of a run, at step 0."""
    keras.utils.set_random_seed(run.seed)
    make_model = registry.models.get(run.model)
    model = make_model(run.hparams, description.vocab_size, description.max_length)
    jit_compile = {"auto": "auto", "true": True, "false": False}
    model.compile(
        optimizer=optimizers.create(run.hparams),
        loss=losses.SmoothedCrossEntropy(run.hparams.label_smoothing),
        jit_compile=jit_compile[run.jit_compile],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def train(run) -> Result:
    """Trains, or continues from the newest checkpoint in `run.output_dir`.

    Raises:
        UsageError: data is missing, the batch is smaller than a row, a name is
            unknown, or output_dir holds another run.
    """
    if run.train_steps < 1:
        raise UsageError(f"train_steps must be >= 1. Got {run.train_steps}")
    description = dataset.load_description(run.data_dir, run.problem)
    rows = dataset.rows_per_batch(run.hparams.batch_size, description.max_length)
    train_rows = dataset.RowSource(run.data_dir, run.problem, "train")
    dev_rows = dataset.RowSource(run.data_dir, run.problem, "dev")
    if rows > len(train_rows):
        raise UsageError(
            f"a batch of {rows} rows is larger than the training data, "
            f"{len(train_rows)} rows: choose a smaller batch_size"
        )
    # Unknown names are refused before anything is written.
    registry.optimizers.get(run.hparams.optimizer)
    registry.models.get(run.model)
    newest = None
    if run.output_dir:
        run_folder.write_config(run.output_dir, run.identity())
        newest = run_folder.latest_checkpoint(run.output_dir)
    model = run_folder.load_checkpoint(newest) if newest else build(run, description)
    start_step = int(model.optimizer.iterations)
    if start_step >= run.train_steps:
        raise UsageError(
            f"{newest} is at step {start_step} already: choose "
            f"--train_steps > {start_step}"
        )

    tokens_per_step = rows * description.max_length
    scoring_model = evaluation.scorer(model)

    def evaluate():
        return evaluation.evaluate(scoring_model, dev_rows, rows, run.eval_batches)

    summaries = None
    if run.output_dir:
        summaries = callbacks.Summaries(run.output_dir, start_step, tokens_per_step)
    evaluations = callbacks.Evaluations(
        evaluate, start_step, run.eval_frequency, summaries
    )
    clock = _Clock()
    active = [
        callbacks.StepLosses(),
        clock,
        callbacks.ProgressBar(start_step, run.train_steps, tokens_per_step, run.label),
        evaluations,
    ]
    if run.output_dir:
        active.append(
            callbacks.Checkpoints(
                run.output_dir,
                start_step,
                run.checkpoint_frequency,
                run.checkpoints_kept,
            )
        )
        active.append(summaries)  # last: it closes its file at the end
    model.fit(
        dataset.training_batches(train_rows, rows, run.seed, start_step),
        steps_per_epoch=run.train_steps - start_step,
        epochs=1,
        shuffle=False,
        verbose=0,
        callbacks=active,
    )
    return Result(
        model=model,
        steps=run.train_steps,
        seconds=clock.seconds,
        tokens_per_second=clock.steps * tokens_per_step / clock.seconds,
        train_loss=clock.loss,
        evaluations=evaluations.history,
        state_scalars=optimizer_state_scalars(model.optimizer),
        checkpoint=run.output_dir and str(run_folder.latest_checkpoint(run.output_dir)),
    )


class _Clock(keras.callbacks.Callback):
    """Seconds inside training steps. The first one, which compiles, is not in."""

    def __init__(self):
        super().__init__()
        self.seconds = 0.0
        self.steps = 0
        self.loss = None

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.loss = logs["loss"]
        if batch or self.params["steps"] == 1:
            self.seconds += time.perf_counter() - self._start
            self.steps += 1
