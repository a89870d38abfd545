"""Searches hyperparameters with Optuna, where the paper used Vizier.

A study lives in an SQLite file. Workers share it, a study that was interrupted goes
on, and `optuna-dashboard sqlite:///FILE` shows it.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import signal
import sqlite3
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from trainer import files
from trainer.data import dataset
from trainer.errors import HParamsError
from trainer.errors import Interrupted
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.runs import run_folder
from trainer.training.ranges import Range

if TYPE_CHECKING:  # it imports Keras
    from trainer.training.run import Run


@contextlib.contextmanager
def storage_errors(path: str | pathlib.Path) -> Iterator[None]:
    """Makes one line of the errors of a study's file: damaged, or on a full disk.

    Raises:
        UsageError: see above.
    """
    import optuna
    from sqlalchemy import exc

    database = exc.DatabaseError
    try:
        yield
    except (optuna.exceptions.StorageInternalError, database) as error:
        cause = error if isinstance(error, database) else error.__cause__
        raise UsageError(
            f"{path}: {getattr(cause, 'orig', error)}. The trials that have ended are "
            "in it, if it is whole: mend that, and the same command goes on"
        ) from error


def settings_of(
    run: "Run", ranges: dict[str, Range], description: dataset.Description
) -> dict:
    """Returns the JSON values that must not change within one study.

    Losses compare if they are of the same training, and trials are pruned by those
    before them at the same steps. The range of a hyperparameter stands for its value.
    """
    names = ("train_steps", "eval_steps", "local_eval_frequency")
    settings = run.identity() | {name: getattr(run, name) for name in names}
    settings["hparams"] |= {name: str(values) for name, values in ranges.items()}
    settings["data"] = dataclasses.asdict(description)
    return json.loads(json.dumps(settings))  # as they are read again


def create_study(
    path: str | pathlib.Path,
    name: str,
    seed: int = 0,
    first: Sequence[dict] = (),
    settings: dict | None = None,
    alone: bool = False,
):
    """Returns the Optuna study of a name in an SQLite file; a new one if none is there.

    Args:
        path: of the file.
        name: of the study.
        seed: of the search.
        first: values to try first, {hparam: value} each, also after an interruption.
        settings: None, or those of its trials, of `settings_of`.
        alone: whether no other process works on the study: a trial that is under way
            was cut off.

    Raises:
        UsageError: its trials are of other settings.
    """
    import optuna

    path = pathlib.Path(path)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Workers that start at the same time: the first one makes tables, study and trials.
    with files.lock(path.with_name(f"{path.name}.lock"), busy=None):
        study = optuna.create_study(
            storage=_storage(path),
            study_name=name,
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=3),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
            direction="minimize",
            load_if_exists=True,
        )
        if settings:
            _check_settings(study, path, settings)
        # Here, where no other worker sees a dead one's trial failed, but not yet there
        # again to be tried.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        if alone:
            for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        # A trial that was interrupted left nothing: its values are to be tried again.
        kept = [t for t in study.trials if t.state != optuna.trial.TrialState.FAIL]
        tried = [trial.system_attrs.get("fixed_params") for trial in kept]
        for values in first:
            if values not in tried:
                study.enqueue_trial(values)
    return study


def _check_settings(study, path, settings):
    """Gives a study its settings, if it has none, and refuses others."""
    before = study.user_attrs.get("settings")
    if before is None:  # new, or made by a version that kept no settings
        study.set_user_attr("settings", settings)
        return
    # An hparam that came with a newer version had its default.
    before["hparams"] = dataclasses.asdict(HParams()) | before["hparams"]
    if difference := run_folder.first_difference(before, settings):
        setting, old, new = difference
        raise UsageError(
            f"{path} holds study {study.study_name!r} with {setting}={old!r}, "
            f"this start has {setting}={new!r}. Continue with the same value, or "
            "choose another --study=NAME or --output_dir"
        )


def _storage(path):
    """Returns Optuna's storage in an SQLite file, whose tables are made if need be."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            "sqlite:///sweep.db",
            heartbeat_interval=30,  # trials of a worker that was killed: tried again
            heartbeat_stale_trial_callback=(
                optuna.storages.RetryHeartbeatStaleTrialCallback()
            ),
            # Not that file, but one of any path: what "?", "%" and "{" mean in a URL
            # depends on the versions of Optuna and of SQLAlchemy.
            engine_kwargs={
                "creator": functools.partial(
                    sqlite3.connect,
                    path.absolute(),
                    timeout=60,
                    check_same_thread=False,  # as SQLAlchemy has it for files
                )
            },
        )


def optimize(
    study,
    objective: Callable[[Any], float],
    trials: int,
    report: Callable[[Any], object] | None = None,
) -> None:
    """Runs trials until the study has `trials` that ended, pruned ones counted.

    Args:
        study: of `create_study`.
        objective: takes a trial, returns the value to minimize.
        trials: number of them all, those of other workers and earlier calls counted.
        report: None, or called with each `optuna.trial.FrozenTrial` that ends. The
            attribute "reason" of a pruned one says why.
    """
    import optuna

    def with_reason(trial):
        try:
            return objective(trial)
        except optuna.TrialPruned as end:
            trial.set_user_attr("reason", str(end))
            raise

    while len(ended(study)) < trials:
        study.optimize(
            with_reason,
            n_trials=1,
            callbacks=[lambda _, trial: report(trial)] if report else None,
        )


def ended(study) -> list:
    """Returns the trials of a study that ended, pruned ones too."""
    import optuna

    states = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    return study.get_trials(states=states)


def best_trial(study, counts: Callable[[Any], bool] = lambda trial: True):
    """Returns the trial of a study with the lowest value, of those that ran to the end.

    Args:
        study: of `create_study`.
        counts: whether a trial is one of those to choose from.

    Raises:
        UsageError: none did.
    """
    import optuna

    states = (optuna.trial.TrialState.COMPLETE,)  # pruned ones have values, too
    if complete := [*filter(counts, study.get_trials(states=states))]:
        return min(complete, key=lambda trial: trial.value)
    reasons = [t.user_attrs["reason"] for t in study.trials if "reason" in t.user_attrs]
    last = f", the last one because: {reasons[-1]}" if reasons else ""
    raise UsageError(
        f"none of the {len(study.trials)} trials of {study.study_name!r} ended with a "
        f"finite loss{last}. Search lower rates, longer warm-ups or other hparams"
    )


def pruning(
    trial, last_step: float, first_step: float = 0
) -> Callable[[int, float], None]:
    """Returns a function of step and loss that ends a trial.

    A trial ends that has diverged, or that is worse at a step from `first_step` on and
    before `last_step` than the median of the trials before. While rates warm up the
    lower one is always worse.
    """
    import optuna

    def prune(step, loss):
        if not math.isfinite(loss):
            raise optuna.TrialPruned(f"diverged at step {step}")
        trial.report(loss, step)
        if first_step <= step < last_step and trial.should_prune():
            raise optuna.TrialPruned(f"no better than the median at step {step}")

    return prune


@contextlib.contextmanager
def pruning_diverged() -> Iterator[None]:
    """Ends the trial of a block whose run diverges between two evaluations."""
    import optuna

    from trainer.training import divergence

    try:
        yield
    except divergence.Diverged as error:
        raise optuna.TrialPruned(str(error)) from error


def training_objective(run: "Run", ranges: dict[str, Range]) -> Callable[[Any], float]:
    """Returns a function of a trial that trains, and returns nats per token of dev.

    The trial's attribute "result" holds all figures. No output_dir is written. A trial
    whose hyperparameters cannot be trained together is pruned: it counts, and the
    search goes on.

    Args:
        run: `Run` whose hyperparameters the trial changes.
        ranges: of the hyperparameters to change.
    """
    import keras
    import optuna

    from trainer.training import loop

    def objective(trial):
        changes = {name: r.suggest(trial, name) for name, r in ranges.items()}
        keras.backend.clear_session(free_memory=True)
        label = ", ".join(f"{k}={_show(v)}" for k, v in changes.items())
        # Of the errors of a trial, those that other trials need not have.
        try:
            hparams = dataclasses.replace(run.hparams, **changes)
            trial_run = dataclasses.replace(
                run, hparams=hparams, output_dir=None, label=label
            )
            warmup = hparams.learning_rate_warmup_steps
            warmup *= hparams.gradient_accumulation_steps
            prune = pruning(trial, run.train_steps, warmup)
            with pruning_diverged():
                result = loop.train(
                    trial_run,
                    on_evaluation=lambda step, e: prune(step, e.nats_per_token),
                )
        except HParamsError as error:
            raise optuna.TrialPruned(str(error)) from error
        if result.interrupted_by:
            raise Interrupted(signal.Signals[result.interrupted_by])
        trial.set_user_attr("result", result.to_dict())
        return result.evaluations[-1][1].nats_per_token

    return objective


def _show(value):
    return f"{value:.3g}" if isinstance(value, float) else value
