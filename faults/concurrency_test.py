"""Two of one thing at a time: one works, the other says so or waits; nothing is mixed.

Two trainers in one folder are in trainer/bin/interruption_test.py.
"""

import os
import signal
import subprocess
import sys
import time

import pytest

from conftest import PROBLEM
from faults.kills_test import partial
from faults.kills_test import program
from trainer import files
from trainer import registry
from trainer.data import datagen
from trainer.data import staging
from trainer.errors import UsageError
from trainer.inference import exporting
from trainer.training import sweep


def test_a_lock_is_gone_with_its_holder(tmp_path):
    """Not with its file, which a kill leaves behind."""
    path = tmp_path / "x.lock"
    hold = "import sys, pathlib\nfrom trainer import files\n"
    hold += "with files.lock(pathlib.Path(sys.argv[1]), 'busy'):\n"
    hold += "    print('held', flush=True)\n    sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="^busy$"), files.lock(path, "busy"):
            pass
        holder.kill()
    assert path.exists()
    with files.lock(path, "busy"):
        pass
    assert not path.exists()


def test_two_data_sets_at_once(data_dir, tmp_path):
    with staging.opened(tmp_path, PROBLEM, {}) as first:
        first.paths.tokenizer.write_text("of the first")
        with pytest.raises(UsageError, match=f"et-datagen is busy with {PROBLEM} in"):
            datagen.generate(
                registry.problems.get(PROBLEM), data_dir / "text", tmp_path, 32
            )
        assert first.paths.tokenizer.read_text() == "of the first"


def test_two_exports_at_once(trained, tmp_path):
    target = tmp_path / "models" / "lm"
    target.parent.mkdir()
    with files.lock(target.with_name("lm.lock"), ""):
        files.partial_path(target).mkdir()
        with pytest.raises(UsageError, match=f"another export to {target} is under wa"):
            exporting.export(trained, target, "keras")
    exporting.export(trained, target, "keras")
    assert [p.name for p in target.parent.iterdir()] == ["lm"]


@pytest.mark.faults
def test_two_programs_that_generate(data_dir, tmp_path):
    generate = program(
        "et_datagen",
        f"--problem={PROBLEM}",
        f"--tmp_dir={data_dir / 'text'}",
        f"--data_dir={tmp_path}",
        "--max_length=32",
    )
    both = [
        subprocess.Popen(generate, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    for process in both:
        _, err = process.communicate()
        assert process.returncode == 0 or b"is busy with" in err, err
    assert 0 in [process.returncode for process in both]
    names = {p.name for p in data_dir.iterdir()} - {"text"}
    assert {p.name for p in tmp_path.iterdir()} == names and not partial(tmp_path)
    for name in names:
        assert (tmp_path / name).read_bytes() == (data_dir / name).read_bytes()


_WORKER = """
import sys, time
from trainer.training import sweep

first = [{"x": i / 8} for i in range(4)]
study = sweep.create_study(sys.argv[1], "s", int(sys.argv[2]), first)

def objective(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    print("trial", flush=True)
    time.sleep(float(sys.argv[3]))
    return x

sweep.optimize(study, objective, trials=30)
"""


@pytest.mark.faults
def test_a_sweep_of_four_workers_of_which_two_die(tmp_path):
    """Thirty trials end, those that died are tried again, none is in there twice.

    Optuna takes a worker for dead a minute after its last sign of life.
    """
    path = tmp_path / "sweep.db"
    sweep.create_study(path, "s")

    def start(number, seconds):
        return subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(path), str(number), str(seconds)],
            stdout=subprocess.PIPE,
        )

    dying = [start(number, 600) for number in (0, 1)]
    for process in dying:
        assert process.stdout.readline() == b"trial\n"
        time.sleep(2)  # Optuna knows of a trial's death by a sign of life before it
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    killed = [t.params["x"] for t in sweep.create_study(path, "s").trials if t.params]
    assert len(killed) == 2
    time.sleep(65)
    for process in [start(number, 0.2) for number in (2, 3)]:
        process.communicate()
        assert process.returncode == 0
    trials = sweep.create_study(path, "s").trials
    states = [trial.state.name for trial in trials]
    assert 30 <= states.count("COMPLETE") <= 31  # two workers may begin the last one
    assert states.count("FAIL") == 2 and "RUNNING" not in states
    ended = [t.params["x"] for t in trials if t.state.name == "COMPLETE"]
    for x in (*killed, *(i / 8 for i in range(4))):
        assert ended.count(x) == 1
    assert len({trial.number for trial in trials}) == len(trials)
