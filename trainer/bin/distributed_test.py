"""Runs of several processes: ended by signals and kills, continued by fewer (JAX)."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

from trainer.bin import interruption_test
from trainer.runs import checkpoints

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="keras.distribution is for JAX"
)


def devices(number):
    """Returns the environment of a process of so many devices."""
    flags = f"--xla_force_host_platform_device_count={number}"
    return os.environ | {"XLA_FLAGS": flags}


def start(arguments, processes):
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
            env=devices(2),
        )
        for number in range(processes)
    ]


def gently(arguments):
    """Returns a command with 24 rows a step, for 6, 4 and 2 devices.

    Its rate is one at which differences of rounding hardly grow.
    """
    slower = {
        "batch_size=256": "batch_size=768",
        "warmup_steps=10": "warmup_steps=10,learning_rate_constant=0.001",
    }
    return [
        re.sub("|".join(slower), lambda found: slower[found[0]], argument)
        for argument in arguments
    ]


def ended(processes):
    """Returns (status, standard output, standard error) of each."""
    found = [process.communicate(timeout=600) for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, found)]


def test_a_run_of_three_processes_goes_on_in_two_and_in_one(data_dir, tmp_path):
    """A signal to one ends all, after the same step; one is killed, the others end.

    One process of four devices that share the model, too, ends the run: its
    checkpoint is that of a run on one device, for every program that reads it.
    """
    whole, parts = (
        gently(interruption_test.command(data_dir, tmp_path / name, 40))
        for name in ("whole", "parts")
    )
    subprocess.run(whole, check=True)
    for name, step, number in (("SIGTERM", 3, 3), ("SIGKILL", 15, 2)):
        processes = start(parts, number)
        path = tmp_path / "parts" / "checkpoints" / f"model-{step}.keras"
        interruption_test.wait_for(path, processes[0])
        processes[1].send_signal(getattr(signal, name))
        first, second, *others = found = ended(processes)
        assert "Traceback (most" not in "".join(err for _, _, err in found)
        if name == "SIGTERM":
            assert {status for status, _, _ in found} == {128 + signal.SIGTERM}
            assert "interrupted by SIGTERM: the same command continues" in first[1]
            for _, out, _ in (second, *others):
                assert "step" not in out  # they leave the report to the first
        else:
            assert second[0] == -signal.SIGKILL
            # Ours, where a sum over devices fails before JAX hears of the loss.
            ours = first[0] == 1 and "process 0 of 2 has lost another one" in first[2]
            theirs = first[0] == -signal.SIGABRT and "another task died" in first[2]
            assert ours or theirs, first
    shared = [*parts, "--strategy=model", "--model_devices=2"]
    subprocess.run(shared, check=True, env=devices(4))
    models = [
        checkpoints.load(checkpoints.latest(tmp_path / name))
        for name in ("whole", "parts")
    ]
    for a, b in zip(*(m.weights for m in models)):
        if "seed" not in a.path:
            # A step moves weights by some 1e-3.
            np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-4)
    starts = (tmp_path / "parts" / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 3  # of the first process alone
    names = ("whole", "parts")
    evaluated = [
        json.loads(told("et_eval", tmp_path / name, f"--data_dir={data_dir}", "--json"))
        for name in names
    ]
    assert evaluated[0]["tokens"] == evaluated[1]["tokens"] > 0
    assert evaluated[0]["nats"] == pytest.approx(evaluated[1]["nats"], rel=1e-5)
    greedy = ("--temperature=0", "--decode_length=8")
    assert told("et_decoder", tmp_path / names[0], *greedy) == told(
        "et_decoder", tmp_path / names[1], *greedy
    )
    export = tmp_path / "export"
    told("et_exporter", tmp_path / "parts", "--format=keras", f"--export_dir={export}")
    assert list(export.glob("*.keras"))


def told(program, output_dir, *flags):
    """Returns what a program prints of a run."""
    command = [sys.executable, "-m", f"trainer.bin.{program}", *flags]
    done = subprocess.run(
        [*command, f"--output_dir={output_dir}"],
        input="the\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_first_process_refuses_ends_all_with_its_reason(data_dir, tmp_path):
    before = interruption_test.command(data_dir, tmp_path, 1, optimizer="sgd")
    subprocess.run(before, check=True)
    other = interruption_test.command(data_dir, tmp_path, 2, optimizer="adam")
    for status, out, err in ended(start(other, 2)):
        assert status == 1, out
        assert "holds a run with hparams.optimizer='sgd'" in err
        assert "Traceback (most" not in err
