"""Trains: takes a run from its data and its folder through `fit` to its result."""

import contextlib
import sys
from collections.abc import Callable
from collections.abc import Sequence

import keras
import numpy as np

from trainer import distribution
from trainer import processes
from trainer import registry
from trainer.data import batches
from trainer.data import dataset
from trainer.errors import HParamsError
from trainer.errors import UsageError
from trainer.evaluation import evaluation
from trainer.evaluation.evaluation import Evaluation
from trainer.models import language_model
from trainer.optim import optimizer_state
from trainer.runs import checkpoints
from trainer.runs import run_folder
from trainer.training import building
from trainer.training import callbacks
from trainer.training import divergence
from trainer.training import flops
from trainer.training import monitoring
from trainer.training.run import Result
from trainer.training.run import Run
from trainer.training.run_state import Callbacks
from trainer.training.run_state import RunState


def train(
    run: Run,
    on_start: Callable[[], None] | None = None,
    extra_callbacks: Sequence[keras.callbacks.Callback] = (),
    on_evaluation: Callable[[int, Evaluation], None] | None = None,
) -> Result:
    """Trains, or continues from the newest checkpoint in `run.output_dir`.

    Args:
        run: a `Run`.
        on_start: called when all is checked, before the first step.
        extra_callbacks: Keras callbacks, called before the run's own. The loss in their
            logs is a scalar tensor: to make it a number is to wait for the step.
        on_evaluation: called with step and `Evaluation` after each; what it raises
            ends the run.

    Raises:
        UsageError: data is missing, a name is unknown, output_dir is busy or holds
            another run, or the run is finished.
        HParamsError: the batch is smaller than a row or larger than the data, or the
            optimizer cannot have its budget of state.
        divergence.Diverged: the loss was not finite for `run.nonfinite_steps` in a row
            or at the last step, or weights or an evaluation were not.
    """
    data = _Data(run)
    # Unknown names are refused before anything is written.
    registry.optimizers.get(run.hparams.optimizer)
    registry.models.get(run.model)
    building.check_schedule(run)
    building.jit_compile(run)  # what cannot be compiled, too
    # JAX's programs give the same bits on a CPU as they are: `interruption_test`.
    if run.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    with contextlib.ExitStack() as stack:

        def lock():
            stack.enter_context(run_folder.lock(str(run.output_dir)))

        if run.output_dir:
            processes.from_first(lock)
        stack.enter_context(processes.lost_processes_named())
        stack.enter_context(batches.damage_named(data.train))
        return _train(run, data, on_start, extra_callbacks, on_evaluation)


def finished(run: Run) -> str | None:
    """Returns a sentence that says why nothing is left of a run, or None.

    Raises:
        UsageError: output_dir holds another run, or data is missing.
    """
    check_folder(run)
    output_dir = str(run.output_dir)
    newest = checkpoints.latest(output_dir)
    if newest is None:
        return None
    step = checkpoints.step_of(newest)
    if step >= run.train_steps:
        return f"finished before: {newest} is at step {step:,} of {run.train_steps:,}"
    best = callbacks.best_so_far(run)
    if best and callbacks.is_enough(run, best):
        return (
            f"finished before: {newest} is at step {step:,}, and {len(best.later)} "
            f"evaluations were no better than the best one, of step {best.step:,}"
        )
    return None


def check_folder(run: Run) -> None:
    """Refuses a run whose output_dir holds another one."""
    description = dataset.load_description(run.data_dir, run.problem)
    run_folder.check(
        str(run.output_dir), run.identity(), run.default_identity(), description
    )


class _Data:
    """Holds the data of a run, checked: description, tokens of a batch, rows."""

    def __init__(self, run):
        self.description = dataset.load_description(run.data_dir, run.problem)
        self.tokens = self.description.tokens_per_batch(run.hparams.batch_size)
        self.train = batches.buckets(run.data_dir, self.description, "train")
        self.dev = batches.buckets(run.data_dir, self.description, "dev")
        split = self.description.splits["train"]
        if self.tokens > split.cells:
            raise HParamsError(
                f"a batch of {self.tokens:,} tokens is larger than the training data, "
                f"{split.cells:,} in {split.row_count:,} rows: choose a smaller "
                "batch_size"
            )
        self.mean_length = split.cells / split.row_count
        self._share = batches.Share(*processes.part(), distribution.replicas())
        rows = self.tokens // self.description.max_length
        if self.description.packed and rows % self._share.replicas:
            raise HParamsError(
                f"a batch of {rows} rows ({self.tokens:,} tokens in rows of "
                f"{self.description.max_length}) cannot be shared out evenly among "
                f"{self._share.replicas} devices: choose batch_size as a multiple of "
                f"{self._share.replicas * self.description.max_length}"
            )

    def batches(self, seed, start_step):
        """Returns training batches as `fit` takes them."""

        def stream():
            return batches.training_batches(
                self.train, self.tokens, seed, start_step, self._share
            )

        if keras.backend.backend() != "tensorflow":
            return stream()
        import tensorflow as tf

        # Keras would take the shapes of the first two batches for those of all.
        rows = tf.TensorSpec((None, self.description.row_length), tf.int32)
        generated = tf.data.Dataset.from_generator(
            stream, output_signature=(rows, rows)
        )
        return batches.untuned(generated)


def _train(run, data, on_start, extra_callbacks, on_evaluation):
    model, step = _start(run, data)
    if on_start and processes.is_first():
        on_start()
    state = RunState(
        step,
        run.train_steps,
        data.tokens,
        run.nonfinite_steps,
    )
    building.seed_dropout(model, run.random_seed, state.step)
    scoring_model = language_model.scoring_model(model, data.tokens)

    def evaluate():
        return evaluation.evaluate(scoring_model, data.dev, data.tokens, run.eval_steps)

    trained = building.trainable(model, run, data.tokens)
    flops_per_token = flops.per_token(model, run.hparams, data.mean_length)
    state_scalars = optimizer_state.state_scalars(model.optimizer)
    interruption = callbacks.Interruption(state)
    parts = [
        interruption,
        callbacks.Evaluations(state, run, model, evaluate, on_evaluation),
    ]
    if run.dtype == "mixed_float16":
        parts.append(callbacks.LossScale(state, model.optimizer))
    if processes.is_first():
        parts += _reports(run, state, flops_per_token, 4 * state_scalars)
    if run.output_dir:
        # Last: a run that goes on from a step has written all else of that step.
        parts.append(callbacks.Checkpoints(state, run, model))
    with contextlib.ExitStack() as stack:
        for part in reversed(parts):
            stack.callback(part.close)  # each, whatever the others raise
        trained.fit(
            data.batches(run.random_seed, state.step),
            steps_per_epoch=run.train_steps - state.step,
            epochs=1,
            shuffle=False,
            verbose=0,
            callbacks=Callbacks(
                [*extra_callbacks, state, *parts], add_history=True, model=trained
            ),
        )
    if state.diverged_at and not interruption.signal:
        rate = float(model.optimizer.learning_rate)
        raise divergence.error(run, state.diverged_at, state.reason, rate)
    newest = checkpoints.latest(run.output_dir) if run.output_dir else None
    speed = state.timed_steps * data.tokens / (state.seconds or np.inf)
    return Result(
        model=model,
        steps=state.step,
        seconds=state.seconds,
        tokens_per_second=speed,
        train_loss=state.loss,
        flops_per_second=speed * flops_per_token,
        evaluations=state.evaluations,
        state_scalars=state_scalars,
        checkpoint=str(newest) if newest else None,
        interrupted_by=interruption.signal.name if interruption.signal else None,
    )


def _reports(run, state, flops_per_token, state_bytes):
    """Returns the callbacks that show a run and change nothing."""
    parts = [callbacks.Progress(state, run.label)]
    if run.output_dir and run.profile:
        first, last = run.profile
        if first > state.step:
            parts.append(monitoring.Profile(state, run.output_dir, first, last))
        else:  # no error: the same command goes on with a run that took its trace
            print(
                f"--profile={first},{last} has no effect: the run goes on from step "
                f"{state.step:,}",
                file=sys.stderr,
            )
    if run.output_dir:
        parts.append(
            monitoring.Summaries(
                state,
                run.output_dir,
                flops_per_token,
                state_bytes,
                run.save_checkpoints_steps,
            )
        )
    return parts


def _start(run, data):
    """Returns the language model to go on with, and the steps that it has taken.

    The folder of the run is begun. Nothing is written before the model is there. Steps
    are batches: the optimizer's `iterations` are fewer where it accumulates gradients,
    or leaves out those that float16 could not hold.
    """
    if not run.output_dir:
        return building.build(run, data.description), 0
    newest = processes.from_first(lambda: _newest(run))
    # A model is drawn before it is loaded, and processes must draw the same one.
    keras.utils.set_random_seed(run.random_seed)
    if newest:
        path = checkpoints.folder(run.output_dir) / newest
        model, step = checkpoints.load(path), checkpoints.step_of(path)
    else:
        model, step = building.build(run, data.description), 0
    if processes.is_first():
        vocabulary = dataset.Paths(run.data_dir, run.problem).tokenizer
        run_folder.begin(run.output_dir, run.identity(), data.description, vocabulary)
    return model, step


def _newest(run):
    """Returns the name of the checkpoint that a run goes on from, or None."""
    check_folder(run)
    checkpoints.clear(run.output_dir)
    newest = checkpoints.latest(run.output_dir)
    if newest is None:
        return None
    step = checkpoints.step_of(newest)
    if step >= run.train_steps:
        raise UsageError(
            f"{newest} is at step {step} already: choose train_steps > {step}"
        )
    return newest.name
