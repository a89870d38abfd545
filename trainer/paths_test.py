import contextlib
import os

import pytest

from trainer import files
from trainer import paths
from trainer.errors import UsageError


def test_paths_without_a_name(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path / "a")
    assert paths.named(".") == tmp_path / "a"
    assert paths.named("b") == tmp_path / "a" / "b"
    assert paths.named("b/..") == tmp_path / "a"
    assert paths.named("../link/..") == tmp_path / "a"  # the folder that it points into
    assert paths.named("../link") == tmp_path / "a" / ".." / "link"  # keeps its name
    assert files.partial_path(paths.named("..")).name == f"partial-{tmp_path.name}"


@contextlib.contextmanager
def as_nobody(monkeypatch):
    """Root may write everywhere: `access` answers as it does to others."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        yield


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "none" / "x")
    os.mkfifo(tmp_path / "pipe")
    for path, reason in (
        (tmp_path, "--x=y is a folder: name a file"),
        (tmp_path / "none" / "x", "--x=y: its folder is not there"),
        (tmp_path / "file" / "x", "--x=y: its folder is not there"),
        (tmp_path / "dangling", "--x=y: its folder is not there"),
    ):
        with pytest.raises(UsageError, match=reason):
            paths.check_file(path, "--x=y")
    with pytest.raises(UsageError, match="--x=y cannot be made: .*/file is no folder"):
        paths.check_folder(tmp_path / "file" / "x", "--x=y")
    for path in ("file", "new", "pipe"):
        paths.check_file(tmp_path / path, "--x=y")
    paths.check_folder(tmp_path / "new" / "newer", "--x=y")
    with as_nobody(monkeypatch):
        for path in ("file", "new", "pipe"):
            with pytest.raises(UsageError, match="--x=y cannot be .*Permission denied"):
                paths.check_file(tmp_path / path, "--x=y")
        with pytest.raises(UsageError, match="--x=y cannot be .*Permission denied"):
            paths.check_folder(tmp_path / "new" / "newer", "--x=y")
