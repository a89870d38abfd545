"""The grid of rates at its smallest, as a stranger runs it."""

import json

import keras
import pytest

from conftest import TESTDATA
from trainer.experiments.experiments_test import call

BACKEND = keras.backend.backend()
ENTRIES = ["sgd", "et2_orthogonal"]


@pytest.mark.skipif(BACKEND != "jax", reason="a grid is one program of JAX")
def test_every_point_is_run_once(tmp_path):
    folder = tmp_path / "out"
    grid = [f"--output_dir={folder}", f"--tmp_dir={TESTDATA}"]
    grid += [
        "--trials=2",
        "--seeds=1",
        "--train_steps=3",
        f"--entries={','.join(ENTRIES)}",
    ]
    done = call("rate_grid", *grid)
    assert done.returncode == 0, done.stderr
    evaluations = [line for line in done.stderr.splitlines() if line.startswith("{")]
    assert list(dict.fromkeys(json.loads(e)["name"] for e in evaluations)) == ENTRIES
    points = [
        (run["name"], run["c"], run["warmup"], run["seed"])
        for run in map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    ]
    assert len(points) == len(set(points)) == 2 * 2 * 2  # entries, c, warm-ups
    best, grid_of_losses = done.stdout.split("\n\n")[:2]
    assert [line.split(" | ")[0] for line in best.splitlines()[2:]] == [
        f"| {name}" for name in ENTRIES
    ]
    assert "| warm-up | known c | c x 0.5 | c x 1 |" in grid_of_losses
    assert (folder / "perplexity.png").stat().st_size > 5000
    again = call("rate_grid", *grid)
    assert again.returncode == 0, again.stderr
    assert "nats_per_token" not in again.stderr
    *lines, seconds = done.stdout.splitlines()
    assert again.stdout.splitlines()[:-1] == lines and "total:" in seconds


@pytest.mark.skipif(BACKEND != "jax", reason="a grid is one program of JAX")
def test_an_entry_cannot_give_what_the_grid_does(tmp_path):
    entry = "adam/learning_rate_warmup_steps=5"
    done = call("rate_grid", f"--entries={entry}", f"--output_dir={tmp_path}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"entry '{entry}' gives learning_rate_warmup_steps, which" in done.stderr


@pytest.mark.skipif(BACKEND == "jax", reason="JAX can")
def test_without_jax(tmp_path):
    done = call("rate_grid", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 1
    assert f"set KERAS_BACKEND=jax. It is {BACKEND}" in done.stderr
    assert not (tmp_path / "out").exists()
