import os
import resource
import stat
import subprocess
import sys
import threading

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


def test_a_pipe_is_written_into(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    files.write_text(pipe, "all of it")
    assert pipe.is_fifo()
    reader.join(timeout=60)
    assert read == ["all of it"] and os.listdir(tmp_path) == ["pipe"]


def test_a_device_is_written_into(tmp_path):
    """One of its own: a test that fails must not replace the machine's."""
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"x")
    except PermissionError:
        pytest.skip("devices are made by root")
    files.write_text(device, "x")
    assert device.is_char_device() and os.listdir(tmp_path) == ["null"]


def test_standard_output_keeps_what_it_has(tmp_path):
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    program = "import pathlib\nfrom trainer import files\n" + (
        f"files.write_text(pathlib.Path('{tmp_path}/stdout'), 'new')"
    )
    (tmp_path / "out").write_text("old\n")
    with open(tmp_path / "out", "ab") as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "old\nnew"


@pytest.mark.parametrize("there", [True, False])
def test_a_symlink_stays(tmp_path, there):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(folder / "file")
    if there:
        (folder / "file").write_text("old")
    files.write_text(tmp_path / "first", "new")
    assert (folder / "file").read_text() == "new"
    assert os.readlink(tmp_path / "first") == "second"
    assert os.listdir(folder) == ["file"]


@pytest.mark.parametrize("damaged", [b"", b'{"a": 1', b"\xff\xfe"])
def test_damaged_json(tmp_path, damaged):
    (tmp_path / "x.json").write_bytes(damaged)
    with pytest.raises(UsageError, match=r"x.json is damaged \(.*\): make it again"):
        files.read_json(tmp_path / "x.json", "make it again")
