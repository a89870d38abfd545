"""Looks at paths: what they name, and whether it can be written."""

import contextlib
import errno
import os
import pathlib
import stat

from trainer.errors import UsageError


def is_stream(path: pathlib.Path) -> bool:
    """Returns whether a path is there and is written into: replaced, it would be lost.

    That is a device or a FIFO, and the file that standard output or standard error of
    this process goes to, which may have the name /dev/stdout.
    """
    try:
        found = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(found.st_mode):
        return not stat.S_ISDIR(found.st_mode)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it is closed
            if os.path.samestat(os.fstat(descriptor), found):
                return True
    return False


def followed(path: pathlib.Path) -> pathlib.Path:
    """Returns where a symlink points to, through all of them; of others, the path."""
    return pathlib.Path(os.path.realpath(path)) if path.is_symlink() else path


def named(path: str | pathlib.Path) -> pathlib.Path:
    """Returns an absolute path, whose name and folders can be asked for.

    A path such as "." has none of its own.
    """
    path = pathlib.Path(path)
    return path.resolve() if path.name in ("", "..") else path.absolute()


def check_file(path: str | pathlib.Path, name: str):
    """Refuses a path that `write_atomically` could not write to, before the work.

    Args:
        path: of a file that is to be written, there or not.
        name: of the path in an error: --file=x.txt, for one.

    Raises:
        UsageError: it is a folder, or one that is not there or cannot be written to
            would hold it.
    """
    path = named(path)
    if path.is_dir():
        raise UsageError(f"{name} is a folder: name a file")
    if is_stream(path):
        _check_writable(path, name)
        return
    folder = followed(path).parent
    if not folder.is_dir():
        raise UsageError(f"{name}: its folder is not there")
    _check_writable(folder, name)


def check_folder(path: str | pathlib.Path, name: str):
    """Refuses a path at which no folder can be made, before the work.

    Args:
        path: of a folder that is to be made, with those it lies in.
        name: of the path in an error: --export_dir=x, for one.

    Raises:
        UsageError: what is there of the path is no folder or cannot be written to.
    """
    path = followed(named(path))
    there = next((p for p in path.parents if p.exists()), path)
    if not there.is_dir():
        raise UsageError(f"{name} cannot be made: {there} is no folder")
    _check_writable(there, name)


def check_new_folder(path: str | pathlib.Path, name: str):
    """Refuses a path at which something is, or at which no folder can be made.

    A folder that is empty may be there.

    Raises:
        UsageError: it is such a path.
    """
    path = pathlib.Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{name} is there already: name a new folder")
    check_folder(path, name)


def _check_writable(path, name):
    if os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
        return
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    reason = os.strerror(errno.EROFS if read_only else errno.EACCES)
    raise UsageError(f"{name} cannot be written: {path}: {reason}")
