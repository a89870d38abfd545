import math

import pytest

from trainer.errors import UsageError
from trainer.experiments import comparison
from trainer.experiments import experiment
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


def test_text_of_figures():
    assert report.mean_and_spread([1.0], 2) == "1.00"
    assert report.mean_and_spread([1.0, 2.0, 2.5], 2) == "1.83 ± 0.75"
    assert report.mean_and_spread([math.nan, 1.0], 1).startswith("inf")
    table = report.markdown(("a", "b"), [(1234, "x")])
    assert table == "| a | b |\n|---|---|\n| 1,234 | x |"
