"""et-datagen as a stranger uses it: in a process of its own."""

import subprocess
import sys

import pytest

from conftest import unmeasured_environment
from trainer.bin.bin_test import call

PROBLEM = "--problem=text_lines2k_packed"


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "train.txt").write_text("one two three .\nfour five .\n" * 50)
    (folder / "dev.txt").write_text("one two .\nfive .\n")
    return folder


def datagen(text, data_dir):
    return call("et_datagen", PROBLEM, f"--tmp_dir={text}", f"--data_dir={data_dir}")


@pytest.mark.parametrize("disabled", [False, True])
def test_a_log_has_plain_lines(text, tmp_path, monkeypatch, disabled):
    if disabled:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    status, out, err = datagen(text, tmp_path / "data")
    assert status == 0, err
    assert "100 sentences " in out and "sentences/s: all of lm1b takes" in out
    assert ("\ntrain: sentence 100, " in err) != disabled
    assert all(0 < len(line) < 88 for line in err.splitlines())
    assert "\r" not in err


def test_long_lines_and_many_characters(text, tmp_path):
    """Documents, one a line, and Chinese text of more characters than pieces."""
    characters = "".join(chr(0x4E00 + i % 5000) for i in range(40_000))
    (text / "train.txt").write_text(
        "".join(f"{characters[i : i + 2000]}\n" for i in range(0, 40_000, 2000))
    )
    status, out, err = datagen(text, tmp_path / "data")
    assert status == 0, err
    assert "20 sentences" in out


@pytest.mark.parametrize("fault", ["file", "folder", "bytes"])
def test_a_fault_is_one_line_and_leaves_nothing(text, tmp_path, fault):
    data_dir = tmp_path / "data"
    if fault == "file":  # in place of the folder
        data_dir.touch()
        message = f"data_dir={data_dir} cannot be written to: "
    elif fault == "folder":  # a file in place of one above it
        data_dir = text / "dev.txt" / "data"
        message = f"data_dir={data_dir} cannot be written to: Not a directory"
    else:
        (text / "dev.txt").write_bytes(b"one\nt\xffwo\n")
        message = "dev.txt is not UTF-8 text: line 2 has byte 0xff at position 2"
    before = sorted(tmp_path.rglob("*"))
    status, out, err = datagen(text, data_dir)
    assert (status, out) == (1, "")
    assert message in err and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk(text, tmp_path):
    """A bound on the size of files, in KB, stands for the disk's."""
    flags = f"{PROBLEM} --tmp_dir={text} --data_dir={tmp_path / 'data'}"
    command = f"ulimit -f 40; {sys.executable} -m trainer.bin.et_datagen {flags}"
    full = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=unmeasured_environment(),
    )
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("error: ")
    assert "-train-256.array_record: File too large" in full.stderr
    assert "Traceback" not in full.stderr
    assert not list(tmp_path.rglob("partial-*"))
    status, out, err = datagen(text, tmp_path / "data")  # goes on
    assert status == 0, err
    assert len(list((tmp_path / "data").iterdir())) == 4
