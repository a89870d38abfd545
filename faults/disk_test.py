"""Every writer on a disk that is full, read-only or gone. Mounting takes root."""

import contextlib
import os
import shutil
import signal
import subprocess

import keras
import pytest

from conftest import PROBLEM
from faults import runs
from faults.kills_test import partial
from faults.kills_test import program
from trainer.bin.interruption_test import command
from trainer.bin.interruption_test import start_and_wait_for
from trainer.runs import checkpoints

pytestmark = pytest.mark.faults


def mount(folder, *options):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    """An empty disk of its own; a test gives it its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "-o", "size=64m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def full_but_for(disk, size):
    """Leaves so many bytes of the disk free."""
    filler = disk / "filler"
    os.sync()
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - size)
    try:
        yield
    finally:
        filler.unlink()


def run(arguments):
    done = subprocess.run(arguments, capture_output=True, text=True, stdin=None)
    return done.returncode, done.stdout, done.stderr


def one_line(arguments, *parts):
    """Checks that a program ends with one line of error, which has these parts."""
    status, _, err = run(arguments)
    last = err.splitlines()[-1]
    assert status == 1 and last.startswith("error: "), err
    assert "Traceback" not in err
    for part in parts:
        assert part in last
    return last


def free_is_named(line):
    """Checks the words of a full disk: what is needed and what is there."""
    assert "No space left on device: it takes " in line
    needed, free = line.split("it takes ")[1].split(" are free")[0].split(" bytes, ")
    assert 0 <= int(free.replace(",", "")) < int(needed.replace(",", ""))


@pytest.fixture
def run_folder(trained, disk):
    """A finished run on the disk, with two checkpoints."""
    return runs.copied(trained, disk)


def writers(run_folder, data_dir):
    """{name: command} of programs that write on the disk of a run."""
    disk = run_folder.parent
    of_run = f"--output_dir={run_folder}"
    prompts = data_dir / "text" / "prompts.txt"
    prompts.write_text("ti\n" * 20)
    return {
        "avg": program("et_avg", of_run, "--num_last_checkpoints=2"),
        "decoder": program(
            "et_decoder",
            of_run,
            f"--decode_from_file={prompts}",
            f"--decode_to_file={disk / 'out.txt'}",
            "--decode_length=4",
        ),
        "datagen": program(
            "et_datagen",
            f"--problem={PROBLEM}",
            f"--tmp_dir={data_dir / 'text'}",
            f"--data_dir={disk / 'data'}",
            "--max_length=32",
        ),
        "trainer": command(data_dir, disk / "new", steps=30),
        "keras export": program(
            "et_exporter", of_run, "--format=keras", f"--export_dir={disk / 'k'}"
        ),
        "sweep": program(
            "et_sweep",
            f"--problem={PROBLEM}",
            f"--data_dir={data_dir}",
            f"--output_dir={disk / 'sweep'}",
            "--hparams_set=transformer_tiny",
            "--hparams=batch_size=256,optimizer=sgd,num_hidden_layers=1",
            "--hparams_range=learning_rate_constant=0.01:1:log",
            "--train_steps=1",
            "--trials=1",
        ),
    } | (
        {
            "export": program(
                "et_exporter", of_run, f"--export_dir={disk / 'models' / 'lm'}"
            )
        }
        if keras.backend.backend() == "tensorflow"
        else {}
    )


# Bytes that are free: no program has enough of them.
ROOM = {"avg": 40_000, "datagen": 200_000, "trainer": 400_000}
ROOM |= {"keras export": 40_000, "export": 40_000, "decoder": 0, "sweep": 8_192}


@pytest.mark.parametrize("name", ROOM)
def test_a_full_disk(run_folder, data_dir, name):
    """One line says what is needed; nothing is lost, and with room it goes on."""
    disk = run_folder.parent
    if name not in (commands := writers(run_folder, data_dir)):
        pytest.skip("a SavedModel is TensorFlow's")
    before = runs.contents(run_folder)
    with full_but_for(disk, ROOM[name]):
        line = one_line(commands[name])
        if name == "sweep":
            assert "disk is full" in line or "No space left" in line
        else:
            free_is_named(line)
        assert not partial(disk)
    assert {p: p.read_bytes() for p in before} == before
    status, _, err = run(commands[name])
    assert status == 0, err
    assert not partial(disk)


def test_checkpoints_fill_the_disk(disk, data_dir):
    """The older ones stay, and the run goes on from the newest when there is room."""
    remount(disk, "size=3m")
    train = [*command(data_dir, disk / "run", steps=30), "--keep_checkpoint_max=9"]
    line = one_line(train, ".keras could not be written", "The files before it are wh")
    free_is_named(line)
    kept = checkpoints.last(disk / "run", 99)
    assert kept and all(map(checkpoints.is_whole, kept))
    assert not partial(disk)
    remount(disk, "size=64m")
    status, out, err = run(train)
    assert status == 0 and "step 30" in out, err
    starts = (disk / "run" / "starts.jsonl").read_text().splitlines()
    assert len(starts) == 2


def test_summaries_fill_the_disk(disk, data_dir):
    """TensorBoard's events, which a run writes most often of all."""
    train = command(data_dir, disk / "run", steps=100_000, every=50_000)
    process = start_and_wait_for(disk / "run" / "starts.jsonl", train)
    with full_but_for(disk, 4096):
        _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err
    assert "events.out.tfevents" in err.splitlines()[-1]
    assert "No space left on device" in err.splitlines()[-1]


def test_a_disk_that_is_read_only(run_folder, data_dir):
    commands = writers(run_folder, data_dir)
    commands["trainer"] = command(data_dir, run_folder.parent / "new", steps=30)
    before = runs.contents(run_folder.parent)
    remount(run_folder.parent, "ro")
    for name, arguments in commands.items():
        line = one_line(arguments)
        assert "ead-only" in line or name == "sweep" and "unable to open" in line, line
    remount(run_folder.parent, "rw")
    assert runs.contents(run_folder.parent) == before


def test_a_folder_that_is_removed_under_a_run(tmp_path, data_dir):
    """It is not made again: its disk may have been unmounted."""
    train = command(data_dir, tmp_path / "run", steps=100_000)
    path = tmp_path / "run" / "checkpoints" / "model-3.keras"
    process = start_and_wait_for(path, train)
    os.kill(process.pid, signal.SIGSTOP)
    shutil.rmtree(tmp_path / "run")
    os.kill(process.pid, signal.SIGCONT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in err
    assert f"{tmp_path / 'run'} is no folder any more" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_data_that_is_removed_under_a_run(tmp_path, data_dir):
    """The open files stay as they were; the next start says what is missing."""
    shutil.copytree(data_dir, tmp_path / "data")
    train = command(tmp_path / "data", tmp_path / "run", steps=100_000)
    path = tmp_path / "run" / "checkpoints" / "model-3.keras"
    process = start_and_wait_for(path, train)
    shutil.rmtree(tmp_path / "data")
    start_at = checkpoints.latest(tmp_path / "run")
    while checkpoints.latest(tmp_path / "run") == start_at:
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 143, err
    one_line(train, "data is not a folder")
