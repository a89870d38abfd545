import os
import resource

import pytest

from trainer import files
from trainer.errors import UsageError


def test_a_failed_writer_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, [1])

    def write(partial):
        partial.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, write)
    assert os.listdir(tmp_path) == ["x.json"]
    assert files.read_json(path, "") == [1]


def test_a_full_disk_leaves_nothing(tmp_path):
    """A bound on the size of files stands for the disk's."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large: '.*/x.json'"):
            files.write_json(tmp_path / "x.json", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(NotADirectoryError):
        files.write_json(tmp_path / "x" / "y.json", 1)


@pytest.mark.parametrize("damaged", [b"", b'{"a": 1', b"\xff\xfe"])
def test_damaged_json(tmp_path, damaged):
    (tmp_path / "x.json").write_bytes(damaged)
    with pytest.raises(UsageError, match=r"x.json is damaged \(.*\): make it again"):
        files.read_json(tmp_path / "x.json", "make it again")
