import math

import pytest

from trainer.errors import UsageError
from trainer.experiments import memory_performance
from trainer.experiments import report
from trainer.experiments import results


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


def test_an_entry_may_have_a_budget():
    """It is spelled as in flags and hparams."""
    assert memory_performance.split("et2_rank1:64KB") == ("et2_rank1", 64_000)
    assert memory_performance.split("et2_rank1:4096") == ("et2_rank1", 4096)
    assert memory_performance.split("adam") == ("adam", 0)
    for wrong in ("et2:", "et2:much", "et2:-4"):
        with pytest.raises(UsageError, match=f"entry '{wrong}': .* is not a size such"):
            memory_performance.split(wrong)


def test_text_of_figures():
    assert report.mean_and_spread([1.0], 2) == "1.00"
    assert report.mean_and_spread([1.0, 2.0, 2.5], 2) == "1.83 ± 0.75"
    assert report.mean_and_spread([math.nan, 1.0], 1).startswith("inf")
    table = report.markdown(("a", "b"), [(1234, "x")])
    assert table == "| a | b |\n|---|---|\n| 1,234 | x |"
