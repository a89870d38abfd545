"""Runs that are ended by signals, in processes of their own, and started again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from conftest import PROBLEM
from trainer.runs import checkpoints


def command(data_dir, output_dir, steps, every=3, optimizer="et2_rank1_short"):
    return [
        sys.executable,
        "-m",
        "trainer.bin.et_trainer",
        f"--problem={PROBLEM}",
        f"--data_dir={data_dir}",
        f"--output_dir={output_dir}",
        "--hparams_set=transformer_tiny",
        "--hparams=batch_size=256,learning_rate_warmup_steps=10,num_hidden_layers=1,"
        f"optimizer={optimizer}",
        f"--train_steps={steps}",
        f"--save_checkpoints_steps={every}",
        "--eval_steps=1",
        # JAX gives the same bits without.
        *(["--deterministic"] if keras.backend.backend() == "tensorflow" else []),
    ]


def start_and_wait_for(path, arguments):
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(path, process)
    return process


def wait_for(path, process):
    """Waits until a process has written a file."""
    end = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.02)


def losses(folder):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    found = {}
    for file in sorted(pathlib.Path(folder).glob("events*")):
        events = event_accumulator.EventAccumulator(
            str(file), size_guidance={"tensors": 0}
        )
        events.Reload()
        if "train/loss" not in events.Tags()["tensors"]:
            continue  # killed before the first summary
        for event in events.Tensors("train/loss"):
            found[event.step] = float(tensor_util.make_ndarray(event.tensor_proto))
    return found


@pytest.mark.slow  # a minute; `make test-faults` kills at 20 places
def test_killed_run_ends_as_if_never_killed(data_dir, tmp_path):
    """Weights, optimizer state, noise of dropout and losses, bit for bit."""
    steps = 41
    subprocess.run(command(data_dir, tmp_path / "whole", steps), check=True)
    killed = command(data_dir, tmp_path / "killed", steps)
    for step in (6, 21):
        path = tmp_path / "killed" / "checkpoints" / f"model-{step}.keras"
        process = start_and_wait_for(path, killed)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    subprocess.run(killed, check=True)
    whole, again = (
        checkpoints.load(checkpoints.latest(tmp_path / name))
        for name in ("whole", "killed")
    )
    for a, b in zip(
        whole.weights + whole.optimizer.variables,
        again.weights + again.optimizer.variables,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), a.path)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole") != {}
    starts = (tmp_path / "killed" / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 3 and "keras" in json.loads(starts[0])["versions"]


def test_a_signal_saves_first(data_dir, tmp_path):
    """Either signal; the run goes on from the file of flags that it left."""
    arguments = command(data_dir, tmp_path, 100_000, every=7, optimizer="adam")
    step = 0
    for name in ("SIGINT", "SIGTERM"):
        path = tmp_path / "checkpoints" / f"model-{step + 7 - step % 7}.keras"
        process = start_and_wait_for(path, arguments)
        if name == "SIGINT":
            busy = subprocess.run(arguments, capture_output=True, text=True)
            assert busy.returncode == 1 and "another run is busy in" in busy.stderr
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + getattr(signal, name), err
        assert f"interrupted by {name}: the same command continues" in out
        assert "GFLOP/s" not in out  # which takes products of large matrices
        before = step
        step = int(out.split("step ")[1].split(",")[0].replace(",", ""))
        newest = checkpoints.latest(tmp_path)
        model = checkpoints.load(newest)
        assert int(model.optimizer.iterations) == step > before + 7 - before % 7
        arguments = [*arguments[:3], f"--flagfile={tmp_path / 'flags.txt'}"]
    done = subprocess.run(
        [*arguments, f"--train_steps={step + 2}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"step {step + 2:,}, optimizer adam" in done.stdout


@pytest.mark.parametrize(
    "name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_sweep_and_its_workers(data_dir, tmp_path, name):
    arguments = [
        sys.executable,
        "-m",
        "trainer.bin.et_sweep",
        *command(data_dir, tmp_path, 1_000_000, optimizer="sgd")[3:8],
        "--hparams_range=learning_rate_constant=0.01:0.02",
        "--train_steps=1000000",
        "--workers=2",
    ]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    training = set()
    while len(training) < 2:
        line = process.stderr.readline()
        assert line, "it ended"
        if ": step " in line:
            training.add(line.partition(": step ")[0])
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=120)  # until no worker has the pipes
    assert process.returncode == 128 + getattr(signal, name), err
    assert out == f"interrupted by {name}: the same command continues\n"
    assert "Traceback" not in err
