"""Runs of two processes: ended by a signal or a kill, and gone on with by one (JAX)."""

import os
import signal
import socket
import subprocess

import keras
import numpy as np
import pytest

from trainer.bin import interruption_test
from trainer.runs import checkpoints

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="keras.distribution is for JAX"
)
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def start(arguments, processes=2):
    """Starts the processes of a run, each of two devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [
                *arguments,
                "--strategy=data",
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={processes}",
                f"--process_id={number}",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | DEVICES,
        )
        for number in range(processes)
    ]


def gently(arguments):
    """Returns a command at a rate at which differences of rounding do not grow."""
    warmup = "learning_rate_warmup_steps=10"
    slower = f"{warmup},learning_rate_constant=0.001"
    return [argument.replace(warmup, slower) for argument in arguments]


def ended(processes):
    """Returns (status, standard output, standard error) of each."""
    found = [process.communicate(timeout=600) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, found)]


def test_a_run_of_two_processes_goes_on_in_one(data_dir, tmp_path):
    """A signal to one ends both, after the same step; one is killed, the other ends."""
    whole, parts = (
        gently(
            interruption_test.command(data_dir, tmp_path / name, 40, optimizer="adam")
        )
        for name in ("whole", "parts")
    )
    subprocess.run(whole, check=True)
    for name, step in (("SIGTERM", 3), ("SIGKILL", 15)):
        processes = start(parts)
        path = tmp_path / "parts" / "checkpoints" / f"model-{step}.keras"
        interruption_test.wait_for(path, processes[0])
        processes[1].send_signal(getattr(signal, name))
        first, second = ended(processes)
        assert "Traceback (most" not in first[2] + second[2]
        if name == "SIGTERM":
            assert first[0] == second[0] == 128 + signal.SIGTERM
            assert "interrupted by SIGTERM: the same command continues" in first[1]
            assert "step" not in second[1]  # it leaves the report to the first
        else:
            assert second[0] == -signal.SIGKILL
            # Ours, where a sum over devices fails before JAX hears of the loss.
            ours = first[0] == 1 and "process 0 of 2 has lost another one" in first[2]
            theirs = first[0] == -signal.SIGABRT and "another task died" in first[2]
            assert ours or theirs, first
    subprocess.run(parts, check=True)
    models = [
        checkpoints.load(checkpoints.latest(tmp_path / name))
        for name in ("whole", "parts")
    ]
    for a, b in zip(*(m.weights for m in models)):
        if "seed" not in a.path:
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)
    starts = (tmp_path / "parts" / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 3  # of the first process alone


def test_what_the_first_process_refuses_ends_all_with_its_reason(data_dir, tmp_path):
    before = interruption_test.command(data_dir, tmp_path, 1, optimizer="sgd")
    subprocess.run(before, check=True)
    other = interruption_test.command(data_dir, tmp_path, 2, optimizer="adam")
    for status, out, err in ended(start(other)):
        assert status == 1, out
        assert "holds a run with hparams.optimizer='sgd'" in err
        assert "Traceback (most" not in err
