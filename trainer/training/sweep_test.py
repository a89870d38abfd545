import dataclasses
import math
import re

import optuna
import pytest

from conftest import PROBLEM
from trainer import files
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.sizes import Bytes
from trainer.training import divergence
from trainer.training import ranges
from trainer.training import sweep
from trainer.training.ranges import Range
from trainer.training.run import Run

HPARAMS = HParams(
    num_hidden_layers=1,
    hidden_size=16,
    filter_size=32,
    num_heads=2,
    batch_size=256,
    optimizer="adam",
    learning_rate_warmup_steps=5,
)


def test_a_study_finds_the_better_rate_and_goes_on(data_dir, tmp_path):
    run = Run(PROBLEM, str(data_dir), HPARAMS, 12, local_eval_frequency=4)
    searched = {"learning_rate_constant": Range(choices=(0.0001, 1.0))}
    first = [{"learning_rate_constant": rate} for rate in (0.0001, 1.0)]
    ended = []

    def study():
        return sweep.create_study(tmp_path / "sweep.db", "rates", first=first)

    rates = sweep.training_objective(run, searched)
    sweep.optimize(study(), rates, trials=1, report=ended.append)
    sweep.optimize(study(), rates, trials=2, report=ended.append)
    sweep.optimize(study(), rates, trials=2, report=ended.append)  # all done
    assert [trial.params for trial in ended] == first
    best = study().best_trial
    assert best.params == {"learning_rate_constant": 1.0}
    result = best.user_attrs["result"]
    assert result["dev"]["nats_per_token"] == best.value
    assert [step for step, _ in result["curve"]] == [4, 8, 12]
    assert result["state_scalars"] > 0


def test_an_interrupted_first_trial_is_tried_again(tmp_path):
    first = [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]

    def optimize(objective):
        study = sweep.create_study(tmp_path / "sweep.db", "interrupted", first=first)
        sweep.optimize(study, objective, trials=3)
        return study

    def interrupted(trial):
        if trial.suggest_float("x", 0.0, 10.0) == 2.0:
            raise KeyboardInterrupt
        return trial.params["x"]

    with pytest.raises(KeyboardInterrupt):
        optimize(interrupted)
    study = optimize(lambda trial: trial.suggest_float("x", 0.0, 10.0))
    values = sorted(t.value for t in study.trials if t.value is not None)
    assert values == [1.0, 2.0, 3.0]


def test_trials_worse_than_the_median_end_early(tmp_path):
    study = sweep.create_study(tmp_path / "sweep.db", "pruned")

    def objective(trial):
        loss = trial.suggest_float("loss", 0.0, 10.0)
        prune = sweep.pruning(trial, last_step=3)
        for step in (1, 2, 3):
            prune(step, loss if loss < 9 else math.nan)
        return loss

    study.enqueue_trial({"loss": 9.5})
    sweep.optimize(study, objective, trials=1)
    with pytest.raises(UsageError, match="none of the 1 trials of 'pruned' ended"):
        sweep.best_trial(study)
    for loss in (1.0, 2.0, 3.0, 2.0, 4.0):
        study.enqueue_trial({"loss": loss})
    sweep.optimize(study, objective, trials=6)
    states = [trial.state.name for trial in study.trials]
    assert states == ["PRUNED"] + ["COMPLETE"] * 4 + ["PRUNED"]
    assert not study.trials[0].intermediate_values  # diverged
    assert list(study.trials[5].intermediate_values) == [1]  # worse than the median


def test_a_pruned_trial_is_not_the_best_one(tmp_path):
    """Optuna gives it the last value before it was pruned."""
    study = sweep.create_study(tmp_path / "sweep.db", "pruned")

    def objective(trial):
        prune = sweep.pruning(trial, last_step=9)
        prune(1, 3.0)
        prune(2, math.inf if trial.number < 2 else 4.0)
        return 4.0

    sweep.optimize(study, objective, trials=2)
    assert [trial.value for trial in study.trials] == [3.0, 3.0]
    message = "none of the 2 trials .* the last one because: diverged at step 2. Search"
    with pytest.raises(UsageError, match=message):
        sweep.best_trial(study)
    sweep.optimize(study, objective, trials=3)
    assert sweep.best_trial(study).number == 2


def test_a_study_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / "a?b#c%20d{e}"
    folder.mkdir()
    for _ in range(2):
        sweep.create_study(folder / "sweep.db", "s", first=[{"x": 1.0}])
    assert [path.name for path in folder.iterdir()] == ["sweep.db"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert len(sweep.create_study(folder / "sweep.db", "s").trials) == 1


def test_tables_are_made_by_one_worker_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "sweep.db"
    begin = optuna.storages.RDBStorage.__init__
    made = []

    def make(*args, **kwargs):
        with pytest.raises(UsageError, match="held"):
            with files.lock(tmp_path / "sweep.db.lock", busy="held"):
                pass
        made.append(path)
        begin(*args, **kwargs)

    monkeypatch.setattr(optuna.storages.RDBStorage, "__init__", make)
    sweep.create_study(path, "s")
    assert made == [path]


def test_a_run_that_diverges_between_evaluations_ends_its_trial(tmp_path):
    study = sweep.create_study(tmp_path / "sweep.db", "diverged")

    def objective(trial):
        with sweep.pruning_diverged():
            raise divergence.Diverged("the run diverged")

    sweep.optimize(study, objective, trials=1)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


def test_hparams_that_cannot_be_trained_together_end_their_trial_alone(
    data_dir, tmp_path
):
    """Those of the model, of the data and of the optimizer; the search goes on."""
    budget = Bytes("64KB")
    run = Run(PROBLEM, str(data_dir), HPARAMS, 1, eval_steps=1)
    searched = {
        "num_heads": Range(choices=(2, 3)),
        "batch_size": Range(choices=(16, 256, 2**30)),
        "optimizer_state_budget": Range(choices=(0, budget)),
    }
    base = {"num_heads": 2, "batch_size": 256, "optimizer_state_budget": 0}
    wrong = [
        {"num_heads": 3},
        {"batch_size": 16},
        {"batch_size": 2**30},
        {"optimizer_state_budget": budget},
    ]
    study = sweep.create_study(
        tmp_path / "sweep.db", "mixed", first=[base | w for w in [*wrong, {}]]
    )
    ended = []
    sweep.optimize(study, sweep.training_objective(run, searched), 5, ended.append)
    assert [t.state.name for t in ended] == ["PRUNED"] * 4 + ["COMPLETE"]
    for trial, reason in zip(
        ended,
        (
            "num_heads=3",
            "smaller than one row of 32",
            "larger than the training data",
            "optimizer_state_budget=64000 is for ET optimizers",
        ),
    ):
        assert reason in trial.user_attrs["reason"]


def test_an_error_of_every_trial_ends_the_search(tmp_path):
    run = Run(PROBLEM, str(tmp_path / "none"), HPARAMS, 1)
    searched = {"num_heads": Range(choices=(1, 2))}
    study = sweep.create_study(tmp_path / "sweep.db", "no data")
    with pytest.raises(UsageError, match="none is not a folder"):
        sweep.optimize(study, sweep.training_objective(run, searched), 2)


@pytest.fixture
def settings(data_dir):
    """A function of changes to a run and its ranges: the settings of a study."""
    description = dataset.load_description(data_dir, PROBLEM)

    def make(text="optimizer=et2|adam", data=None, **changes):
        run = Run(PROBLEM, str(data_dir), HPARAMS, 12)
        return sweep.settings_of(
            dataclasses.replace(run, **changes),
            ranges.parse(text),
            dataclasses.replace(description, **data or {}),
        )

    return make


def study_of(path, settings, trials=0):
    study = sweep.create_study(path / "sweep.db", "s", settings=settings)
    sweep.optimize(study, lambda trial: 1.0, trials)
    return study


@pytest.mark.parametrize(
    "text, changes, difference",
    [
        ("optimizer=et2|adam|sgd", {}, ("hparams.optimizer", "et2|adam", None)),
        ("optimizer=adam|et2", {}, ("hparams.optimizer", "et2|adam", None)),
        ("weight_decay=0:1", {}, ("hparams.optimizer", "et2|adam", "adam")),
        (
            "optimizer=et2|adam",
            {"hparams": dataclasses.replace(HPARAMS, batch_size=512)},
            ("hparams.batch_size", 256, 512),
        ),
        ("optimizer=et2|adam", {"train_steps": 13}, ("train_steps", 12, 13)),
        ("optimizer=et2|adam", {"eval_steps": 1}, ("eval_steps", 0, 1)),
        ("optimizer=et2|adam", {"random_seed": 1}, ("random_seed", 0, 1)),
        (
            "optimizer=et2|adam",
            {"data": {"max_length": 64}},
            ("data.max_length", 32, 64),
        ),
    ],
)
def test_a_study_of_other_settings_is_refused(
    settings, tmp_path, text, changes, difference
):
    study_of(tmp_path, settings(), trials=1)
    name, old, new = difference
    new = text.partition("=")[2] if new is None else new
    message = (
        f"sweep.db holds study 's' with {name}={old!r}, this start has "
        f"{name}={new!r}. Continue with the same value, or choose another --study=NAME"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        study_of(tmp_path, settings(text, **changes))
    assert len(study_of(tmp_path, settings(), trials=2).trials) == 2


def test_settings_that_a_study_goes_on_with(settings, tmp_path):
    """Of hparams that a range replaces; and one that came with a newer version."""
    study_of(tmp_path, settings(), trials=1)
    sgd = dataclasses.replace(HPARAMS, optimizer="sgd")
    study = study_of(tmp_path, settings(hparams=sgd))
    older = settings()
    del older["hparams"]["ema_momentum"]  # it came later, with a default
    study.set_user_attr("settings", older)
    study_of(tmp_path, settings())
    averaged = dataclasses.replace(HPARAMS, ema_momentum=0.5)
    with pytest.raises(UsageError, match=r"hparams\.ema_momentum=0\.0, this"):
        study_of(tmp_path, settings(hparams=averaged))


def test_a_study_of_an_older_version_goes_on_and_has_settings_then(settings, tmp_path):
    study_of(tmp_path, None, trials=1)
    study_of(tmp_path, settings())
    with pytest.raises(UsageError, match="train_steps=12, this start has train_st"):
        study_of(tmp_path, settings(train_steps=13))
