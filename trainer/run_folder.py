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
import re
import subprocess
import sys
import time
import zipfile

from trainer.errors import UsageError
from trainer.files import write_atomically

_NAME = re.compile(r"model-(\d+)\.keras")


def _by_step(output_dir):
    files = (pathlib.Path(output_dir) / "checkpoints").glob("model-*.keras")
    matches = [(_NAME.fullmatch(f.name), f) for f in files]
    return sorted((int(m.group(1)), f) for m, f in matches if m)


def latest_checkpoint(output_dir):
    """Path of the newest checkpoint of a run that is whole, or None."""
    for _, path in reversed(_by_step(output_dir)):
        if is_whole(path):
            return path
        print(f"{path} is damaged: the one before is used", file=sys.stderr)
    return None


def is_whole(path):
    """Whether every member of a checkpoint has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False


def last_checkpoints(output_dir, count):
    """Paths of the newest `count` checkpoints, oldest first."""
    return [path for _, path in _by_step(output_dir)[-count:]]


def save_checkpoint(model, output_dir, step, keep):
    """Writes a checkpoint aside, renames it, and drops all but `keep`."""
    path = save_model(model, output_dir, f"model-{step}.keras")
    for _, old in _by_step(output_dir)[:-keep]:
        old.unlink()
    return path


def save_model(model, output_dir, name):
    """Writes a model aside, then gives it its name beside the checkpoints."""
    folder = pathlib.Path(output_dir) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / name, model.save)
    return folder / name


def best(output_dir):
    """(step, nats per token) of the best model so far, or None."""
    path = pathlib.Path(output_dir) / "checkpoints" / "best.json"
    if not path.is_file():
        return None
    figures = json.loads(path.read_text())
    return figures["step"], figures["nats_per_token"]


def save_best(model, output_dir, step, nats_per_token):
    path = save_model(model, output_dir, "best.keras")
    text = json.dumps({"step": step, "nats_per_token": nats_per_token}) + "\n"
    path = path.with_suffix(".json")
    write_atomically(path, lambda partial: partial.write_text(text))


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


def load_checkpoint(path):
    """Loads a checkpoint: model, optimizer state and all."""
    import keras

    # Loading needs the classes that a checkpoint names.
    import extreme_tensoring_tf  # noqa: F401
    from trainer import losses  # noqa: F401
    from trainer import transformer  # noqa: F401

    try:
        return keras.saving.load_model(path)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not a checkpoint of ours: {error}") from None


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
