r"""et-sweep: searches hyperparameters for the lowest loss on the dev split.

    et-sweep --problem=languagemodel_lm1b32k_packed --data_dir=data \
        --output_dir=sweep --trials=20 --workers=2 --train_steps=10000 \
        --hparams_range="learning_rate_constant=0.01:10:log,optimizer=et2|adam"

The study is OUTPUT_DIR/sweep.db (SQLite). The same command goes on with it;
other settings take another --study. A trial that is worse than the median of
those before it at the same step is ended early.
"""

import pathlib
import sys

from absl import flags

from trainer.bin import cli
from trainer.bin import run_flags
from trainer.bin import workers
from trainer.errors import Interrupted
from trainer.errors import UsageError

_RUN = run_flags.RunFlags()
_RANGES: cli.Holder = flags.DEFINE_string(
    "hparams_range", None, "Ranges: name=a|b,name=LOW:HIGH or :log."
)
_OUTPUT_DIR = cli.DEFINE_path("output_dir", None, "Folder of the study.")
_STUDY = flags.DEFINE_string("study", "sweep", "Name of the study in its file.")
_TRAIN_STEPS = cli.DEFINE_count("train_steps", 10_000, "Steps of a trial.")
_EVAL_FREQUENCY = cli.DEFINE_count(
    "local_eval_frequency", 1000, "Steps between evaluations, where trials are ended."
)
_TRIALS = cli.DEFINE_count("trials", 20, "Trials of the study, earlier ones counted.")
_WORKERS = cli.DEFINE_count("workers", 1, "Trials that run at the same time.")
_WORKER = cli.DEFINE_count("worker", 0, "Internal: which of them this is.", least=0)
_SEED = cli.DEFINE_seed(
    "Seed of the trials' initialization and data, and of the search."
)


def main(argv):
    cli.no_arguments(argv)
    from trainer import files
    from trainer.training import ranges
    from trainer.training import sweep

    check_study(_STUDY.value)
    hparams = _RUN.hparams()
    _RUN.require(_OUTPUT_DIR, _RANGES)
    searched = ranges.parse(_RANGES.value)
    description = _RUN.check_data(hparams)
    ranges.check(
        searched, hparams, lambda h: description.tokens_per_batch(h.batch_size)
    )
    settings = _RUN.run(
        hparams,
        train_steps=_TRAIN_STEPS.value,
        random_seed=_SEED.value,
        local_eval_frequency=_EVAL_FREQUENCY.value,
    )
    folder = pathlib.Path(_OUTPUT_DIR.value)
    files.make_folder(folder)
    try:
        with workers.signals_raised(), sweep.storage_errors(folder / "sweep.db"):
            return search(settings, searched, description, folder)
    except Interrupted as end:
        if not _WORKER.value:
            print(f"{end}: the same command continues")
        return 128 + end.signal


def check_study(name):
    """Refuses a name that its file in the folder of the study cannot have."""
    file = f"{name}.jsonl"
    if not name or pathlib.PurePath(file).name != file:
        raise UsageError(f"--study={name} names a file: give a word, without /")


def search(settings, searched, description, folder):
    """Runs the trials, with other workers, and reports on all of them."""
    from trainer import files
    from trainer.training import sweep

    if _WORKER.value:
        workers.end_with_parent()
    study = sweep.create_study(
        folder / "sweep.db",
        _STUDY.value,
        (_SEED.value + _WORKER.value) % (cli.SEED_MAX + 1),
        settings=sweep.settings_of(settings, searched, description),
    )
    # This process is a worker, too.
    commands = [
        [sys.executable, "-m", "trainer.bin.et_sweep", *sys.argv[1:]]
        + ["--workers=1", f"--worker={number}"]
        for number in range(1, _WORKERS.value)
    ]
    with workers.started(commands) as others:
        objective = sweep.training_objective(settings, searched)
        sweep.optimize(study, objective, _TRIALS.value, report=report)
    if _WORKER.value:
        return 0
    failures = workers.failures(others)
    for failure in failures:
        print(f"{failure}: the others went on", file=sys.stderr)
    records = [
        {"state": trial.state.name, "value": trial.value, "params": trial.params}
        | trial.user_attrs
        for trial in study.trials
    ]
    files.write_text(
        folder / f"{_STUDY.value}.jsonl",
        "".join(f"{cli.json_text(record)}\n" for record in records),
    )
    best = sweep.best_trial(study)
    print(f"best of {len(study.trials)} trials: {show(best)}")
    print(f"--hparams={','.join(f'{k}={v}' for k, v in best.params.items())}")
    return 1 if failures else 0


def report(trial):
    print(show(trial), file=sys.stderr)


def show(trial):
    params = ", ".join(f"{k}={v}" for k, v in trial.params.items())
    value = trial.value
    nats = f"{value:.4f} nats per token" if value is not None else "no value"
    reason = trial.user_attrs.get("reason")
    return f"trial {trial.number}, {trial.state.name.lower()}: {nats}, {params}" + (
        f" ({reason})" if reason else ""
    )


_SELDOM = (
    "model",
    "eval_steps",
    "dtype",
    "study",
    "worker",
    "local_eval_frequency",
    "random_seed",
)
run = cli.entry_point(main, __doc__, __name__, _SELDOM)

if __name__ == "__main__":
    run()
