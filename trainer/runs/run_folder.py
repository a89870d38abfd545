"""The folder of a run: its configuration and its checkpoints.

    config.json                     what must not change within the folder
    flags.txt                       flags of the last start: --flagfile=flags.txt
    starts.jsonl                    every start: time, command, versions, git state
    checkpoints/model-STEP.keras    model, weights, optimizer and its state
    checkpoints/best.keras          the model that evaluated best, best.json how
    checkpoints/average.keras       what et-avg wrote

A `.keras` file is a zip archive: it carries a checksum of everything in it. Imports
Keras only where a checkpoint is loaded.
"""

import contextlib
import fcntl
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import time

from trainer.errors import UsageError
from trainer.files import write_atomically


@contextlib.contextmanager
def lock(output_dir):
    """Holds a run's folder. Two runs at once would overwrite each other.

    The lock goes with the process, however that ends.
    """
    pathlib.Path(output_dir).mkdir(parents=True, exist_ok=True)
    with open(pathlib.Path(output_dir) / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another run is busy in {output_dir}: wait for it, or choose "
                "another --output_dir"
            ) from None
        yield


def record_start(output_dir, flags_text):
    """Keeps how a run was started, so that it can be started again."""
    folder = pathlib.Path(output_dir)
    write_atomically(folder / "flags.txt", lambda p: p.write_text(flags_text))
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {
            name: version
            for name in ("keras", "tensorflow-cpu", "tensorflow", "jax", "grain")
            if (version := _version(name))
        },
        "git": _git_state(),
    }
    with open(folder / "starts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(start) + "\n")


def starts(output_dir):
    """What `record_start` kept, oldest first."""
    path = pathlib.Path(output_dir) / "starts.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state():
    """Commit of this code, "-dirty" if it was changed; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    here = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _config_path(output_dir):
    return pathlib.Path(output_dir) / "config.json"


def write_config(output_dir, config):
    """Keeps the configuration of a run beside its checkpoints.

    A second run in the same folder continues the first: it must agree with it.
    """
    path = _config_path(output_dir)
    if path.is_file():
        before = json.loads(path.read_text())
        for key in sorted(set(before) | set(config)):
            if before.get(key) != config.get(key):
                name, old, new = _first_difference(
                    key, before.get(key), config.get(key)
                )
                raise UsageError(
                    f"{output_dir} holds a run with {name}={old!r}, this one has "
                    f"{name}={new!r}. Continue with the same value, or choose "
                    "another --output_dir."
                )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def _first_difference(key, old, new):
    """Name and values of what differs, inside dicts too."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name):
                return f"{key}.{name}", old.get(name), new.get(name)
    return key, old, new


def read_config(output_dir):
    path = _config_path(output_dir)
    if not path.is_file():
        raise UsageError(
            f"{output_dir} holds no run (no {path.name}): train one first with "
            "et-trainer"
        )
    return json.loads(path.read_text())
