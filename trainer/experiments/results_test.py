import dataclasses
import math

import pytest

import conftest
from trainer.errors import UsageError
from trainer.experiments import comparison
from trainer.experiments import experiment
from trainer.experiments import language_modeling
from trainer.experiments import report
from trainer.experiments import results
from trainer.experiments import tradeoff


def test_a_finished_run_is_found_and_half_a_line_is_not(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    first = results.Results(path).run({"name": "a"}, lambda: {"loss": 1.0})
    with open(path, "a") as file:
        file.write('{"name": "b", "lo')
    found = results.Results(path)
    assert found.run({"name": "a"}, lambda: 1 / 0) == first
    assert found.run({"name": "b"}, lambda: {"loss": 2.0})["loss"] == 2.0
    assert found.run({"name": "b"}, lambda: 1 / 0)["loss"] == 2.0


def test_a_run_that_diverged_is_json_and_nan_again(tmp_path):
    path = tmp_path / "results.jsonl"
    figures = {"loss": math.inf, "curve": [(1, 2.0), (2, math.nan)], "note": "x"}
    new = results.Results(path).run({"name": "a"}, lambda: figures)
    text = path.read_text()
    assert text == '{"name": "a", "loss": null, "curve": [[1, 2.0], [2, null]], ' + (
        '"note": "x"}\n'
    )
    (found,) = results.Results(path)
    for record in (new, found):
        assert math.isnan(record["loss"]) and math.isnan(record["curve"][1][1])
        assert record["note"] == "x"


def test_an_entry_may_have_hyperparameters_of_its_own():
    """They are spelled as in --hparams."""
    known = tradeoff.known_constant
    assert known("et2_rank1/optimizer_state_budget=64KB") == known("et2_rank1") > 0
    assert known("adam/learning_rate_constant=0.03") == 0.03
    assert known("adam", "learning_rate_constant=0.03") == 0.03
    assert tradeoff.assignments("adam/weight_decay=0.1/batch_size=64") == (
        "optimizer=adam,weight_decay=0.1,batch_size=64"
    )
    for wrong, message in (
        ("et2/optimizer_state_budget=much", "must be a size"),
        ("et2/warmup=3", "unknown hparam 'warmup'"),
        ("et9", "unknown optimizer 'et9'"),
    ):
        with pytest.raises(UsageError, match=message):
            tradeoff.known_constant(wrong)


class TuningRuns:
    """Runs whose loss has its least at a power of two times 0.1."""

    def __init__(self, best):
        self.best, self.tried = best, []

    def __call__(self, name, constant, seed, on_evaluation):
        power = round(math.log2(constant / 0.1))
        self.tried.append((power, seed))
        return {"loss": abs(power - self.best), "c": constant}


@pytest.mark.parametrize(
    "best, tried",
    [
        (0, [0, -1, 1, -2, 2]),
        (2, [0, -1, 1, -2, 2, 3]),  # the best is at no edge
        (3, [0, -1, 1, -2, 2, 3, 4]),
        (4, [0, -1, 1, -2, 2, 3, 4, 5]),
        (-4, [0, -1, 1, -2, 2, -3, -4, -5]),
        (99, [0, -1, 1, -2, 2, 3, 4, 5, 6, 7]),  # twice five, and no more
    ],
)
def test_rates_are_tuned_until_the_best_is_at_no_edge(tmp_path, best, tried):
    scale = experiment.Scale(entries=(), train_steps=1, trials=5, seeds=2)
    for again in (False, True):  # a second time from what is on file
        train = TuningRuns(best)
        compared = comparison.Comparison(
            tmp_path, {"length": 1}, scale, lambda name: 0.1, train
        )
        first, second = compared.records("adam")
        chosen = tried[-1] if best == 99 else best
        assert first["c"] == second["c"] == pytest.approx(0.1 * 2.0**chosen)
        expected = [(power, 0) for power in tried] + [(chosen, 1)]
        assert train.tried == ([] if again else expected)


@pytest.mark.parametrize("best, cut_off", [(5, 4), (-5, -4), (0, 1)])
def test_a_search_that_was_cut_off_goes_on_as_it_would_have(tmp_path, best, cut_off):
    """By Ctrl-C in the middle of a trial, and once more by a kill."""
    import optuna

    scale = experiment.Scale(entries=(), train_steps=1, trials=5)
    whole = TuningRuns(best)
    arguments = {"length": 1}, scale, lambda name: 0.1
    comparison.Comparison(tmp_path / "whole", *arguments, whole).records("adam")

    class CutOff(TuningRuns):
        def __call__(self, name, constant, seed, on_evaluation):
            record = super().__call__(name, constant, seed, on_evaluation)
            if self.tried[-1][0] == cut_off:
                raise KeyboardInterrupt
            return record

    with pytest.raises(KeyboardInterrupt):
        first = CutOff(best)
        comparison.Comparison(tmp_path / "cut", *arguments, first).records("adam")
    # What a kill leaves: a trial that is under way for ever.
    (name,) = optuna.get_all_study_names(f"sqlite:///{tmp_path}/cut/sweep.db")
    optuna.load_study(
        storage=f"sqlite:///{tmp_path}/cut/sweep.db", study_name=name
    ).ask()
    rest = TuningRuns(best)
    (record,) = comparison.Comparison(tmp_path / "cut", *arguments, rest).records(
        "adam"
    )
    assert record["c"] == pytest.approx(0.1 * 2.0**best)
    assert sorted(first.tried[:-1] + rest.tried) == sorted(whole.tried)


def test_a_seed_that_diverges_is_a_row_of_the_table(tmp_path):
    from trainer.training import divergence

    def train(name, constant, seed, on_evaluation):
        if seed or name == "sgd":
            raise divergence.Diverged("diverged at step 3")
        figures = {"nats_per_token": 2.0, "perplexity_per_word": 9.0}
        return {"loss": 2.0, "dev": figures, "seconds": 1.0} | {
            "state_scalars": 5,
            "parameters": 50,
        }

    scale = experiment.Scale(entries=(), train_steps=1, seeds=2)
    compared = comparison.Comparison(tmp_path, {}, scale, lambda name: 0.1, train)
    finished = {name: compared.records(name) for name in ("sgd", "adam")}
    sgd, adam = tradeoff.table(finished).splitlines()[2:]
    assert sgd == "| sgd | 0.1 |  |  | diverged |  |  |"
    assert adam.startswith("| adam | 0.1 | 5 | 10% | inf")


def test_runs_of_other_text_are_other_runs(tmp_path):
    """The text is looked at before anything is trained."""
    scale = dataclasses.replace(language_modeling.SMOKE, tmp_dir=str(conftest.TESTDATA))
    runs = language_modeling.Runs(scale, tmp_path / "out")
    again = language_modeling.Runs(scale, tmp_path / "out")
    assert again.settings() == runs.settings()
    (tmp_path / "copy").mkdir()
    for changes, message in (
        ({"tmp_dir": str(tmp_path / "copy")}, "was made with --tmp_dir="),
        ({"max_length": 32}, "was made with --max_length=64, this start has 32"),
    ):
        with pytest.raises(UsageError, match=message):
            language_modeling.Runs(
                dataclasses.replace(scale, **changes), tmp_path / "out"
            )
    given = dataclasses.replace(scale, data_dir=runs.data_dir, tmp_dir=None)
    assert language_modeling.Runs(given, tmp_path / "new").settings() == runs.settings()


def test_text_of_figures():
    assert report.mean_and_spread([1.0], 2) == "1.00"
    assert report.mean_and_spread([1.0, 2.0, 2.5], 2) == "1.83 ± 0.75"
    assert report.mean_and_spread([math.nan, 1.0], 1).startswith("inf")
    table = report.markdown(("a", "b"), [(1234, "x")])
    assert table == "| a | b |\n|---|---|\n| 1,234 | x |"
