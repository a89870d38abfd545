"""Checkpoints of a run: saved whole or not at all, found, read again."""

import json
import pathlib
import re
import sys
import zipfile

from trainer.errors import UsageError
from trainer.files import write_atomically

_NAME = re.compile(r"model-(\d+)\.keras")


def _by_step(output_dir):
    files = (pathlib.Path(output_dir) / "checkpoints").glob("model-*.keras")
    matches = [(_NAME.fullmatch(f.name), f) for f in files]
    return sorted((int(m.group(1)), f) for m, f in matches if m)


def latest(output_dir):
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


def last(output_dir, count):
    """Paths of the newest `count` checkpoints, oldest first."""
    return [path for _, path in _by_step(output_dir)[-count:]]


def save(model, output_dir, step, keep):
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


def load(path):
    """Loads a checkpoint: model, optimizer state and all."""
    import keras

    # Loading needs the classes that a checkpoint names.
    import extreme_tensoring_tf  # noqa: F401
    from trainer.models import losses  # noqa: F401
    from trainer.models import transformer  # noqa: F401

    try:
        return keras.saving.load_model(path)
    except (ValueError, OSError, TypeError) as error:
        raise UsageError(f"{path} is not a checkpoint of ours: {error}") from None
