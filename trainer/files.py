"""Writes files that are whole or absent, and reads them."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable

from trainer.errors import UsageError

_PARTIAL = "partial-"


def write_atomically(path: pathlib.Path, write: Callable[[pathlib.Path], object]):
    """Calls `write(partial)` with a path beside `path`, then renames it.

    A kill in between leaves the old file, or none, under the final name; a failure
    leaves no partial file either. The suffix stays, for writers that choose a format
    by it.
    """
    with removed_on_failure(path):
        write(partial_path(path))
        finish(path)


def write_json(path: pathlib.Path, value):
    """Writes `value` as JSON, atomically."""
    text = json.dumps(value, indent=2) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def read_json(path: pathlib.Path, remedy: str):
    """Returns the value of a JSON file that `write_json` wrote.

    Raises:
        UsageError: the file is damaged; the message ends with `remedy`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise UsageError(f"{path} is damaged ({error}): {remedy}") from None


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path under which a file is written before it has its name."""
    return path.with_name(f"{_PARTIAL}{path.name}")


def is_partial(path: pathlib.Path) -> bool:
    """Returns whether a path is one of `partial_path`: a kill may leave the file."""
    return path.name.startswith(_PARTIAL)


def finish(path: pathlib.Path):
    """Gives a file that was written to `partial_path(path)` its name."""
    partial = partial_path(path)
    with open(partial, "rb") as file:  # on the disk before it has its name
        os.fsync(file.fileno())
    os.replace(partial, path)


@contextlib.contextmanager
def removed_on_failure(path: pathlib.Path):
    """Deletes `partial_path(path)` if the block ends with an exception.

    An OSError of the system that names no file, as a full disk's, is given the path.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(OSError):  # the block's own error says more
            partial_path(path).unlink()
        raise
