"""Checkpoints of a run: saved whole or not at all, found, read again."""

import contextlib
import errno
import math
import pathlib
import re
import sys
import zipfile
import zlib
from typing import Any
from typing import NamedTuple

from trainer import distribution
from trainer import processes
from trainer.errors import UsageError
from trainer.files import is_partial
from trainer.files import make_folder
from trainer.files import read_json
from trainer.files import remove_partial
from trainer.files import write_atomically
from trainer.files import write_json

_NAME = re.compile(r"model-(\d+)\.keras")


class Best(NamedTuple):
    """Says how the model that evaluated best was found: the content of best.json."""

    step: int
    nats_per_token: float
    eval_steps: int  # batches of the evaluation; 0: the whole split
    later: list[int] = []  # steps of the evaluations since, none of them better


class NotFinite(UsageError):
    """Says that a model has weights that are inf or nan: it is not saved or used."""


def folder(output_dir: str | pathlib.Path) -> pathlib.Path:
    """Returns the path of a run's folder of checkpoints."""
    return pathlib.Path(output_dir) / "checkpoints"


def any_model(output_dir: str | pathlib.Path) -> bool:
    """Returns whether a run has saved a model: a checkpoint, the best, an average."""
    return not all(is_partial(path) for path in folder(output_dir).glob("*.keras"))


def _by_step(output_dir):
    """Returns (step, path) of every checkpoint, oldest first."""
    matches = [
        (_NAME.fullmatch(f.name), f) for f in folder(output_dir).glob("model-*.keras")
    ]
    return sorted((int(m.group(1)), f) for m, f in matches if m)


def latest(output_dir: str | pathlib.Path) -> pathlib.Path | None:
    """Returns the path of the newest checkpoint of a run that is whole.

    None means that the run has saved none.

    Raises:
        UsageError: there are checkpoints, and none is whole. A run that began anew
            would in the end have written over what may yet be saved of them.
    """
    found = [path for _, path in reversed(_by_step(output_dir))]
    for path in found:
        if is_whole(path):
            return path
        print(f"{path} is damaged: the one before is used", file=sys.stderr)
    if found:
        raise UsageError(
            f"all {len(found)} checkpoints in {folder(output_dir)} are damaged, none "
            "was deleted: bring one back from a copy, or train in another output_dir, "
            "from an older model with warm_start_from"
        )
    return None


def step_of(path: pathlib.Path) -> int:
    """Returns the step of a checkpoint, which its name holds."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named as checkpoints are: model-STEP.keras")
    return int(match.group(1))


def is_whole(path: pathlib.Path) -> bool:
    """Returns whether all of a checkpoint has the checksums it was written with.

    Raises:
        UsageError: it cannot be read, which says nothing of what is in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError):
        return False
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # of places that the archive names
            return False
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. A run goes on from the newest "
            "checkpoint: mend that, or move the file away"
        ) from error


def last(output_dir: str | pathlib.Path, count: int) -> list[pathlib.Path]:
    """Returns the paths of the newest `count` checkpoints, oldest first."""
    return [path for _, path in _by_step(output_dir)[-count:]]


def save(model, output_dir: str | pathlib.Path, step: int) -> pathlib.Path:
    """Saves the checkpoint of a step, as `save_model` does. Returns its path."""
    return save_model(model, output_dir, f"model-{step}.keras")


def keep_newest(output_dir: str | pathlib.Path, count: int, step: int) -> None:
    """Drops all checkpoints of a run up to a step but the newest `count`.

    Those of later steps are damaged, if there are any, and do not count: the run has
    gone on from one before them.
    """
    up_to = [path for at, path in _by_step(output_dir) if at <= step]
    for old in up_to[:-count]:
        drop(old)


def drop(path: pathlib.Path) -> None:
    """Deletes a checkpoint; of several processes, the first one does."""
    if processes.is_first():
        path.unlink()


def clear(output_dir: str | pathlib.Path) -> None:
    """Deletes what a kill has left of checkpoints that were being written."""
    for pattern in ("model-*", "best.*"):
        remove_partial(folder(output_dir), pattern)


def save_best(model, output_dir: str | pathlib.Path, best: Best) -> None:
    """Saves the model that evaluated best so far, and how it did."""
    save_model(model, output_dir, "best.keras")
    record_best(output_dir, best)


def record_best(output_dir: str | pathlib.Path, best: Best) -> None:
    """Writes what is known of the model that was saved as the best."""
    path = folder(output_dir) / "best.json"
    if processes.is_first():
        with _one_line_errors(path):
            write_json(path, best._asdict())


def save_model(model, output_dir: str | pathlib.Path, name: str) -> pathlib.Path:
    """Saves a model with its optimizer under a name beside the checkpoints.

    Every model of a run is written here: weights, optimizer and its state, in one
    `.keras` file that is whole or absent. Of several processes, which all come here,
    the first one writes.

    Returns:
        The path of the file.

    Raises:
        NotFinite: the model's weights are not finite.
        UsageError: the file could not be written.
    """
    path = folder(output_dir) / name
    _check_finite(model, path)
    if not processes.is_first():
        return path
    if not path.parent.parent.is_dir():
        raise UsageError(
            f"{output_dir} is no folder any more: it was moved or removed, or its disk "
            "is not mounted, since the run began"
        )
    with _one_line_errors(path), distribution.suspended():
        make_folder(path.parent)
        write_atomically(path, model.save, size(model))
    return path


def size(model) -> int:
    """Returns the bytes of a model's arrays and of its optimizer's, if it has one."""
    import numpy as np

    optimizer = getattr(model, "optimizer", None)
    variables = [*model.weights, *(optimizer.variables if optimizer else ())]
    return sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)


@contextlib.contextmanager
def _one_line_errors(path):
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} could not be written: {error.strerror or error}. The files before "
            "it are whole: mend that, and the same command goes on from them"
        ) from error


def best(output_dir: str | pathlib.Path) -> Best | None:
    """Returns how the best model so far was found, or None where none is kept.

    Raises:
        UsageError: best.json is damaged.
    """
    path = folder(output_dir) / "best.json"
    if not (path.is_file() and path.with_suffix(".keras").is_file()):
        return None
    remedy = "delete it, and the next evaluation counts as the best"
    figures = read_json(path, remedy)
    try:
        return Best(
            int(figures["step"]),
            float(figures["nats_per_token"]),
            int(figures["eval_steps"]),
            [int(step) for step in figures["later"]],
        )
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged: {remedy}") from None


def load(path: str | pathlib.Path) -> Any:
    """Returns the model of a checkpoint, with its optimizer and the state of that.

    Raises:
        NotFinite: the model's weights are not finite.
        UsageError: the file is missing, damaged or no checkpoint, or names classes
            that are not registered.
    """
    import keras

    # Loading needs the classes that a checkpoint names.
    from trainer.models import transformer  # noqa: F401
    from trainer.optim import catalog  # noqa: F401

    if not zipfile.is_zipfile(path):
        raise UsageError(
            f"{path} cannot be loaded as a checkpoint: it is missing, damaged or no "
            ".keras file"
        )
    try:
        model = keras.saving.load_model(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise UsageError(f"{path} is damaged: {error}") from None
    except TypeError as error:
        unknown = re.search(r"Could not locate \w+ '[^']*'", str(error))
        raise UsageError(
            f"{path} cannot be loaded: {unknown[0] if unknown else error}. Import the "
            "module that registers it first: with --usr_dir, for one"
        ) from None
    except Exception as error:  # whatever a library makes of a file of anything
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{path} cannot be loaded as a checkpoint: {reason}"
        ) from error
    _check_finite(model, path)
    return model


def _check_finite(model, path):
    import numpy as np
    from keras import ops

    for v in model.trainable_variables:
        if not np.isfinite(ops.convert_to_numpy(v)).all():
            raise NotFinite(
                f"{path}: the weights in {v.path} are not finite, the run that made "
                "them has diverged. Use a checkpoint from before"
            )
