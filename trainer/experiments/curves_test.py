import pytest

from trainer.errors import UsageError
from trainer.experiments import curves
from trainer.experiments import report


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
