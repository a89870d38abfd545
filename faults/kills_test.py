"""Programs that are killed at random moments, and the same commands again.

The end is that of programs which were never killed, bit for bit. `usr/kill_at.py`
kills inside of named calls, so that every kind of moment is met. The moments are drawn
with a seed; those in seconds are elsewhere on every machine.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from faults import runs
from trainer.bin.interruption_test import command
from trainer.bin.interruption_test import losses
from trainer.runs import checkpoints

pytestmark = pytest.mark.faults
USR_DIR = f"--usr_dir={pathlib.Path(__file__).with_name('usr')}"
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


def start(arguments, kill_at=None):
    """Runs a program; returns whether it was killed. It may not end in another way."""
    environment = os.environ | ({"KILL_AT": kill_at} if kill_at else {})
    done = subprocess.run(
        [*arguments, USR_DIR], capture_output=True, text=True, env=environment
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def program(name, *arguments):
    return [sys.executable, "-m", f"trainer.bin.{name}", *arguments]


def arrays(path):
    """{path: value} of all that a checkpoint holds."""
    model = checkpoints.load(path)
    variables = [*model.weights, *model.optimizer.variables]
    return {v.path: keras.ops.convert_to_numpy(v) for v in variables}


def check_same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], name)


def partial(folder):
    return [str(p) for p in pathlib.Path(folder).rglob("*partial-*")]


def moments(count):
    """Yields so many moments of a run, in random order, every kind among them."""
    draw = random.Random(19)
    kinds = [
        lambda: f"os:fsync:{draw.randint(1, 30)}:before",  # files, and their folders
        lambda: f"os:replace:{draw.randint(1, 15)}:{draw.choice(['before', 'after'])}",
        lambda: f"os:unlink:{draw.randint(1, 2)}:{draw.choice(['before', 'after'])}",
        lambda: f"zipfile:ZipFile.open:{draw.randint(1, 20)}:0.001",
        lambda: f"trainer.evaluation.evaluation:evaluate:1:{draw.uniform(0, 0.05):.4f}",
        lambda: f"trainer.training.loop:_train:1:{draw.uniform(0, 9):.3f}",
    ]
    # Before the first checkpoint: when the folder of the run begins.
    yield "os:replace:3:before"
    yield "os:fsync:9:before"
    for number in range(count - 2):
        yield kinds[number % len(kinds)]()


def test_a_run_that_is_killed_twenty_times(data_dir, tmp_path):
    """In checkpoints, evaluations, prunings, at the start, at any moment."""

    def run(name):
        return [
            *command(data_dir, tmp_path / name, steps=160),
            "--local_eval_frequency=10",
        ]

    assert not start(run("whole"))
    kills = sum(start(run("killed"), moment) for moment in moments(20))
    assert kills >= 18  # the rest came to the end before their moment
    start(run("killed"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("whole", "killed"):
        assert checkpoints.latest(tmp_path / name).name == "model-160.keras"
    for a in checkpoints.folder(whole).iterdir():
        b = checkpoints.folder(killed) / a.name
        if a.suffix == ".keras":
            check_same(arrays(a), arrays(b))
        else:
            assert a.read_text() == b.read_text()
    assert losses(killed) == losses(whole) != {}
    assert not partial(killed)
    assert len((killed / "starts.jsonl").read_text().splitlines()) > kills // 2


def test_data_that_is_generated_in_many_starts(data_dir, tmp_path):
    draw = random.Random(19)
    moments = [
        "trainer.data.vocabulary:train:1:0.2",
        *(f"trainer.data.dataset:encode_row:{draw.randint(1, 900)}:after",) * 2,
        "trainer.data.staging:Staging.finish:1:before",
        *(f"os:fsync:{n}:before" for n in (2, 5, 8, 11)),
        *(f"os:replace:{n}:after" for n in (1, 3, 4)),
        "trainer.data.staging:Staging._put_in_place:1:before",
        "os:replace:2:before",
        "os:unlink:1:before",
    ]
    generate = program(
        "et_datagen",
        f"--problem={PROBLEM}",
        f"--tmp_dir={data_dir / 'text'}",
        f"--data_dir={tmp_path}",
        "--max_length=32",
    )
    for round_of in (moments, reversed(moments)):  # the second over an older data set
        for moment in round_of:
            start(generate, moment)
        start(generate)
    names = {p.name for p in data_dir.iterdir()} - {"text"}
    assert {p.name for p in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (data_dir / name).read_bytes()


@pytest.fixture
def run_folder(trained, tmp_path):
    """A copy of a run's folder, with two checkpoints."""
    return runs.copied(trained, tmp_path)


@pytest.mark.skipif(not ON_TENSORFLOW, reason="a SavedModel is TensorFlow's")
def test_an_export_that_is_killed(run_folder, tmp_path):
    """Nothing, or all of it, has the name; and another export is not in its way."""
    target = tmp_path / "models" / "lm"
    export = program(
        "et_exporter", f"--output_dir={run_folder}", f"--export_dir={target}"
    )
    for moment in (
        "trainer.inference.exporting:save:1:before",
        "trainer.inference.exporting:save:1:0.5",
        "trainer.inference.model_card:text:1:after",
        "os:fsync:4:before",
        "os:replace:1:before",
    ):
        assert start(export, moment)
        assert not target.exists()
    start(export)
    assert not partial(target.parent)
    names = {p.name for p in target.iterdir()}
    assert {"saved_model.pb", "variables", "assets", "README.md"} <= names


def test_an_average_that_is_killed(run_folder):
    average = program(
        "et_avg", f"--output_dir={run_folder}", "--num_last_checkpoints=2"
    )
    path = run_folder / "checkpoints" / "average.keras"
    assert not start(average)
    whole = arrays(path)
    path.unlink()
    for moment in ("os:fsync:1:before", "os:replace:1:before"):
        assert start(average, moment)
        assert not path.exists()
    assert start(average, "os:replace:1:after")
    check_same(arrays(path), whole)
    start(average)
    check_same(arrays(path), whole)
    assert not partial(run_folder)


def test_a_sweep_that_is_killed(data_dir, tmp_path):
    """No trial that has ended is lost or run again. A killed one has no value.

    Optuna knows after a minute without a sign of life that a worker is dead, and has
    its trial tried again, if more are to come.
    """
    sweep = program(
        "et_sweep",
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={tmp_path}",
        "--hparams_set=transformer_tiny",
        "--hparams=batch_size=256,optimizer=sgd,num_hidden_layers=1",
        "--hparams_range=learning_rate_constant=0.01:1:log",
        "--train_steps=2",
        "--trials=3",
    )
    trained = "trainer.training.loop:train"
    for moment in (f"{trained}:1:before", f"{trained}:2:1.0", f"{trained}:1:after"):
        assert start(sweep, moment)
    assert not (tmp_path / "sweep.jsonl").exists()
    start(sweep)
    lines = (tmp_path / "sweep.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    states = [trial["state"] for trial in trials]
    assert states.count("COMPLETE") + states.count("PRUNED") == 3
    assert states.count("RUNNING") == 3  # the killed ones, for a minute
