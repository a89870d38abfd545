import pathlib
import subprocess
import sys

import pytest

from trainer.errors import UsageError
from trainer.experiments import curves
from trainer.experiments import report

ROOT = pathlib.Path(__file__).parents[2]


def test_curves_of_a_run(trained, tmp_path):
    run = trained.path.parent.parent
    [(step, value)] = curves.read(run, "dev/perplexity_per_word")
    assert step == 60 and value > 1
    points = curves.read(run, "train/loss")
    assert [step for step, _ in points] == [20, 40, 60]
    report.curves_plot(tmp_path / "c", {"a": points}, "step", "loss", log_y=True)
    assert (tmp_path / "c.svg").stat().st_size > 1000
    with pytest.raises(UsageError, match="no scalar 'dev/loss'. It has: .*train/loss"):
        curves.read(run, "dev/loss")


def test_runs_of_equal_names_are_told_apart():
    assert curves.names(["old/adam", "new/et2"]) == ["adam", "et2"]
    assert curves.names(["old/adam", "new/adam"]) == ["old/adam", "new/adam"]


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "c.svg").mkdir()
    for file, reason in (
        (".", " is a folder: name a file"),
        (f"{tmp_path}/c", f": {tmp_path}/c.svg is a folder: name a file"),
        (f"{tmp_path}/none/c.png", ": its folder is not there"),
        ("/dev/null", " is no file: two are written, NAME.png and NAME.svg"),
    ):
        command = [sys.executable, "-m", "trainer.experiments.curves"]
        command += [f"--runs={tmp_path}", f"--file={file}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert done.stderr == f"error: --file={file}{reason}\n"
