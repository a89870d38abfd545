"""Writes files and folders that are whole or absent, locks them, and reads them."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator

from trainer.errors import UsageError
from trainer.paths import followed
from trainer.paths import is_stream
from trainer.paths import named

_PARTIAL = "partial-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(
    path: pathlib.Path,
    write: Callable[[pathlib.Path], object],
    size: int | None = None,
):
    """Calls `write(partial)` with a path beside `path`, then renames it.

    A kill in between leaves the old file, or none, under the final name; a failure
    leaves no partial file either. The suffix stays, for writers that choose a format
    by it. Of a symlink the file that it points to is written. A path that is no regular
    file (`is_stream`) is not replaced: what was written aside is copied into it.

    Args:
        path: of the file.
        write: function of the path to write to.
        size: bytes of the file, for the error of a full disk; None: not known.
    """
    needed = None if size is None else lambda: size
    if is_stream(path):
        with errors_named(path, needed):
            _write_into(path, write)
        return
    path = followed(path)
    with removed_on_failure(path, needed):
        write(partial_path(path))
        finish(path)


def _write_into(stream, write):
    """Copies what `write` writes into a device or a pipe, when all of it is there."""
    with tempfile.TemporaryDirectory() as folder:
        whole = pathlib.Path(folder) / stream.name
        write(whole)
        # Appended: the stream may be a file that the shell has opened with ">>".
        with open(whole, "rb") as source, open(stream, "ab") as target:
            shutil.copyfileobj(source, target)


def write_bytes(path: pathlib.Path, content: bytes):
    """Writes a file of this content, atomically."""
    write_atomically(path, lambda partial: partial.write_bytes(content), len(content))


def write_text(path: pathlib.Path, text: str):
    """Writes a text file in UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: pathlib.Path, value):
    """Writes `value` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path, remedy: str):
    """Returns the value of a JSON file that `write_json` wrote.

    Raises:
        UsageError: the file is damaged; the message ends with `remedy`.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON or of UTF-8
        raise UsageError(f"{path} is damaged ({error}): {remedy}") from None


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path under which a file is written before it has its name."""
    path = named(path)
    return path.with_name(f"{_PARTIAL}{path.name}")


def is_partial(path: pathlib.Path) -> bool:
    """Returns whether a path is one of `partial_path`: a kill may leave the file."""
    return path.name.startswith(_PARTIAL)


def remove_partial(folder: pathlib.Path, pattern: str):
    """Deletes what kills have left in a folder, of files whose names match."""
    for path in folder.glob(f"{_PARTIAL}{pattern}"):
        path.unlink()


def finish(path: pathlib.Path):
    """Gives what was written to `partial_path(path)`, a file or a folder, its name.

    All of it is on the disk before it has the name, and the name is when this returns.
    """
    move(partial_path(path), path)


def move(source: pathlib.Path, target: pathlib.Path):
    """Renames a file, or a folder with all in it, that lies on the same disk.

    Its content is on the disk before, and the new name when this returns.
    """
    for path in [*source.rglob("*"), source]:
        if not path.is_symlink():
            sync(path)
    os.replace(source, target)
    sync(target.parent)


def sync(path: pathlib.Path):
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of systems that sync no folders
            raise
    finally:
        os.close(descriptor)


def make_folder(path: pathlib.Path):
    """Makes a folder and those it lies in, unless they are there, on the disk, too."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextlib.contextmanager
def removed_on_failure(
    path: pathlib.Path, needed: Callable[[], float] | None = None
) -> Iterator[None]:
    """Deletes `partial_path(path)`, file or folder, if the block raises an exception.

    Args: see `errors_named`.
    """
    partial = partial_path(path)
    with errors_named(path, needed):
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the block's own error says more
                if partial.is_dir():
                    shutil.rmtree(partial)
                else:
                    partial.unlink()
            raise


@contextlib.contextmanager
def errors_named(
    path: pathlib.Path, needed: Callable[[], float] | None = None
) -> Iterator[None]:
    """Gives an OSError of the system that names no file, as a full disk's, the path.

    That of a full disk says, too, how much space is needed.

    Args:
        path: of what the block writes.
        needed: function that returns the bytes that it takes; None: not known.
    """
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            error.filename = str(path)
        if error.errno in _NO_SPACE:
            with contextlib.suppress(OSError):
                free = shutil.disk_usage(path.parent).free
                takes = f"it takes {needed():,.0f} bytes, " if needed else ""
                error.strerror = f"{error.strerror}: {takes}{free:,} are free"
        raise


def system_reason(error: OSError) -> str:
    """Returns the text of an OSError: the path it is about, and the reason."""
    paths = [os.fsdecode(p) for p in (error.filename, error.filename2) if p]
    return ": ".join([*paths, error.strerror or str(error)])


@contextlib.contextmanager
def system_errors(path: pathlib.Path, *kinds: type[Exception]) -> Iterator[None]:
    """Makes a library's errors, which have only text, the OSErrors that they were.

    Args:
        path: of what the block writes.
        *kinds: classes of the errors.
    """
    try:
        yield
    except kinds as error:
        codes = [c for c in errno.errorcode if os.strerror(c) in str(error)]
        if not codes:
            raise
        raise OSError(codes[0], os.strerror(codes[0]), str(path)) from None


@contextlib.contextmanager
def lock(path: pathlib.Path, busy: str | None) -> Iterator[None]:
    """Holds a file that tells other processes to stay away, for a block.

    The lock goes with the process, however that ends; after a kill the file stays and
    locks nothing.

    Args:
        path: of the file, in a folder that is there.
        busy: text of the error; None: waits.

    Raises:
        UsageError: another process holds it, and there is a text.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "w"))
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            except BlockingIOError:
                raise UsageError(busy) from None
            if _is_still(path, file):
                break
            # Who held it has deleted it in the meantime.
            file = stack.enter_context(open(path, "w"))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # its folder may be gone
                path.unlink()


def _is_still(path, file):
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
