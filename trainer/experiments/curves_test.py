import pytest

from trainer.errors import UsageError
from trainer.experiments import curves


def test_curves_of_a_run(trained, tmp_path):
    run = trained.path.parent.parent
    steps, values = curves.read(run, "dev/perplexity_per_word")
    assert steps == [60] and values[0] > 1
    steps, _ = curves.read(run, "train/loss")
    assert steps == [20, 40, 60]
    curves.plot({"a": (steps, [3.0, 2.0, 1.0])}, "loss", tmp_path / "c.svg")
    assert (tmp_path / "c.svg").stat().st_size > 1000
    with pytest.raises(UsageError, match="no scalar 'dev/loss'. It has: .*train/loss"):
        curves.read(run, "dev/loss")
