"""The folder of a run: its configuration and its checkpoints.

    config.json                     what must not change within the folder
    checkpoints/model-STEP.keras    model, weights, optimizer and its state

Imports Keras only where a checkpoint is loaded.
"""

import json
import pathlib
import re

from trainer.errors import UsageError
from trainer.files import write_atomically

_NAME = re.compile(r"model-(\d+)\.keras")


def _by_step(output_dir):
    files = (pathlib.Path(output_dir) / "checkpoints").glob("model-*.keras")
    matches = [(_NAME.fullmatch(f.name), f) for f in files]
    return sorted((int(m.group(1)), f) for m, f in matches if m)


def latest_checkpoint(output_dir):
    """Path of the newest checkpoint of a run, or None."""
    found = _by_step(output_dir)
    return found[-1][1] if found else None


def save_checkpoint(model, output_dir, step, keep):
    """Writes a checkpoint aside, renames it, and drops all but `keep`."""
    folder = pathlib.Path(output_dir) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model-{step}.keras"
    write_atomically(path, model.save)
    for _, old in _by_step(output_dir)[:-keep]:
        old.unlink()
    return path


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
                raise UsageError(
                    f"{output_dir} holds a run with {key}={before.get(key)!r}, "
                    f"this one has {key}={config.get(key)!r}. Continue with the "
                    "same value, or choose another --output_dir."
                )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def read_config(output_dir):
    path = _config_path(output_dir)
    if not path.is_file():
        raise UsageError(
            f"{output_dir} holds no run (no {path.name}): train one first with "
            "et-trainer"
        )
    return json.loads(path.read_text())
