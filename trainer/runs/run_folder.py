"""The folder of a run: its configuration, its vocabulary and its checkpoints.

    config.json                     what must not change within the folder
    tokenizer.model                 the vocabulary: a copy of the data's
    data.json                       the description of the data it is trained on
    flags.txt                       flags of the last start: --flagfile=flags.txt
    starts.jsonl                    every start: time, command, versions, git state
    checkpoints/model-STEP.keras    model, weights, optimizer and its state
    checkpoints/best.keras          the model that evaluated best, best.json how
    checkpoints/average.keras       the average that et-avg wrote

A folder is moved or copied as a whole: a trained model is used without the data. A
`.keras` file is a zip archive: it carries a checksum of everything in it. This module
does not import Keras.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterator

from trainer import files
from trainer.data import dataset
from trainer.data import tokenizer
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.runs import checkpoints

_REMEDY = "bring it back from a copy, or train in another output_dir"


@contextlib.contextmanager
def lock(output_dir: str | pathlib.Path) -> Iterator[None]:
    """Holds a run's folder for a block. Two runs at once would overwrite each other.

    The lock goes with the process, however that ends. A folder into which nothing was
    written goes, too.

    Raises:
        UsageError: another process holds the folder.
    """
    folder = pathlib.Path(output_dir)
    files.make_folder(folder)
    busy = f"another run is busy in {output_dir}: wait for it, or choose another"
    try:
        with files.lock(folder / ".lock", f"{busy} output_dir"):
            yield
    finally:
        with contextlib.suppress(OSError):  # it holds files, or is gone
            folder.rmdir()


def record_start(output_dir: str | pathlib.Path, flags_text: str) -> None:
    """Records how a run was started, so that it can be started again."""
    folder = pathlib.Path(output_dir)
    files.write_text(folder / "flags.txt", flags_text)
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
    text = f"{_starts_text(output_dir)}{json.dumps(start)}\n"
    files.write_text(folder / "starts.jsonl", text)


def starts(output_dir: str | pathlib.Path) -> list[dict]:
    """Returns the records of `record_start`, oldest first."""
    return [json.loads(line) for line in _starts_text(output_dir).splitlines()]


def _starts_text(output_dir):
    """Returns the text of starts.jsonl; an empty one where there is no such file."""
    path = pathlib.Path(output_dir) / "starts.jsonl"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state():
    """Returns the commit of this code, "-dirty" if changed; None outside a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    here = pathlib.Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def check(
    output_dir: str | pathlib.Path,
    config: dict,
    defaults: dict,
    description: dataset.Description,
) -> None:
    """Refuses to continue the run of a folder with other settings or other data.

    A setting that the folder's config.json lacks had its default: it came with a
    newer version. A folder without a model holds nothing to continue: every run may
    start there.

    Args:
        output_dir: folder that may hold a run.
        config: settings of the run that is to go on there, `Run.identity`.
        defaults: the same settings at their defaults.
        description: `dataset.Description` of its data.

    Raises:
        UsageError: the folder's run differs.
    """
    if not checkpoints.any_model(output_dir):
        return
    before = {"config": defaults | read_config(output_dir)}
    now = {"config": config}
    if _data(output_dir).is_file():
        before["data"] = dataclasses.asdict(
            dataset.read_description(_data(output_dir), _REMEDY)
        )
        now["data"] = dataclasses.asdict(description)
    if difference := first_difference(before, now):
        name, old, new = difference
        raise UsageError(
            f"{output_dir} holds a run with {name}={old!r}, this one has "
            f"{name}={new!r}. Continue with the same value, or choose another "
            "output_dir"
        )


def first_difference(old: dict, new: dict, prefix: str = "") -> tuple | None:
    """Returns name and values of the first setting that differs, or None.

    Args:
        old, new: settings; those of a dict within have names such as hparams.optimizer.
        prefix: of the names. "config" stays out of them.
    """
    for key in sorted(set(old) | set(new), key=str):
        a, b = old.get(key), new.get(key)
        name = str(key) if prefix in ("", "config") else f"{prefix}.{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            if difference := first_difference(a, b, name):
                return difference
        elif a != b:
            return name, a, b
    return None


def begin(
    output_dir: str | pathlib.Path,
    config: dict,
    description: dataset.Description,
    vocabulary: str | pathlib.Path,
) -> None:
    """Writes settings, vocabulary and description of the data of a folder's run.

    Args:
        output_dir: an existing folder.
        config: settings of the run.
        description: `dataset.Description` of its data.
        vocabulary: path of the data's SentencePiece model.

    Raises:
        UsageError: that file is missing, or not the one that the data was made with.
    """
    tokenizer.load(vocabulary, description.tokenizer_sha256)
    content = pathlib.Path(vocabulary).read_bytes()
    files.write_bytes(_vocabulary(output_dir), content)
    dataset.write_description(_data(output_dir), description)
    files.write_json(_config(output_dir), config)  # last: with it there is a run


def read_config(output_dir: str | pathlib.Path) -> dict:
    """Returns the settings of a folder's run; hparams that it lacks at their default.

    Raises:
        UsageError: the folder holds no run, or config.json is damaged.
    """
    path = _config(output_dir)
    if not path.is_file():
        raise UsageError(
            f"{output_dir} holds no run (no {path.name}): train one first with "
            "et-trainer"
        )
    config = files.read_json(path, _REMEDY)
    try:
        hparams = dataclasses.asdict(HParams()) | config["hparams"]
        known = {name: hparams[name] for name in HParams.__dataclass_fields__}
        HParams(**known)  # of its types, and within its bounds
        if not all(
            isinstance(config.get(name, ""), str) for name in ("problem", "model")
        ):
            raise TypeError
        return config | {"hparams": hparams}
    except (KeyError, TypeError, UsageError):
        raise UsageError(f"{path} is damaged: {_REMEDY}") from None


def read_vocabulary(
    output_dir: str | pathlib.Path,
) -> tuple[tokenizer.Tokenizer, dataset.Description]:
    """Returns the tokenizer of a run and the `Description` of its data.

    Raises:
        UsageError: one of the two is missing, or they do not belong together.
    """
    paths = _vocabulary(output_dir), _data(output_dir)
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"{path} is missing: continue the run with et-trainer, which writes "
                "it, or copy the whole folder of the run"
            )
    description = dataset.read_description(paths[1], _REMEDY)
    if tokenizer.checksum(paths[0]) != description.tokenizer_sha256:
        raise UsageError(f"{paths[0]} is not the vocabulary that {paths[1]} describes")
    return tokenizer.load(paths[0]), description


def of_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of the run that a checkpoint belongs to.

    Raises:
        UsageError: the checkpoint does not lie in the folder of a run, which says
            what the token ids mean to it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UsageError(f"there is no checkpoint {path}")
    folder = path.absolute().parent.parent
    if path.absolute().parent.name != "checkpoints" or not _data(folder).is_file():
        raise UsageError(
            f"{path} does not lie in the folder of a run, which has the vocabulary: "
            f"name it as RUN/checkpoints/{path.name}"
        )
    return folder


def _config(output_dir):
    return pathlib.Path(output_dir) / "config.json"


def _vocabulary(output_dir):
    return pathlib.Path(output_dir) / "tokenizer.model"


def _data(output_dir):
    return pathlib.Path(output_dir) / "data.json"
