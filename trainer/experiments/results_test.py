import math

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


def test_text_of_figures():
    assert report.mean_and_spread([1.0], 2) == "1.00"
    assert report.mean_and_spread([1.0, 2.0, 2.5], 2) == "1.83 ± 0.75"
    assert report.mean_and_spread([math.nan, 1.0], 1).startswith("inf")
    table = report.markdown(("a", "b"), [(1234, "x")])
    assert table == "| a | b |\n|---|---|\n| 1,234 | x |"
