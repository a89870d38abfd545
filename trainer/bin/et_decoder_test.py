"""et-decoder on the model of the session."""

import unicodedata

import pytest

from trainer.bin.bin_test import call


def test_a_sample_is_one_line(trained, data_dir):
    """Hot enough, one piece in twenty is a control character."""
    status, out, err = call(
        "et_decoder",
        f"--output_dir={trained.path.parent.parent}",
        f"--data_dir={data_dir}",
        "--temperature=100",
        "--num_samples=64",
        "--decode_length=20",
        stdin="ti\x0cbo\u2028zu\n\n",
    )
    assert status == 0, err
    *lines, end = out.split("\n")
    assert len(lines) == 128 and end == ""
    assert {unicodedata.category(c) for line in lines for c in line}.isdisjoint(
        {"Cc", "Zl", "Zp"}
    )
    assert all(line.startswith(r"ti\x0cbo\u2028zu") for line in lines[:64])
    assert any(r"\n" in line for line in lines)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("none/out.txt", ": its folder is not there"),
        ("", " is a folder: name a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    data_dir, tmp_path, name, reason
):
    status, out, err = call(
        "et_decoder",
        f"--output_dir={tmp_path}",
        f"--data_dir={data_dir}",
        f"--decode_to_file={tmp_path}/{name}",
    )
    assert (status, out) == (1, "")
    assert err.endswith(f"{tmp_path}/{name}{reason}\n")


def test_standard_output_is_a_file_like_others(trained, tmp_path):
    """By a name of its own: a test that fails must not replace the machine's."""
    (tmp_path / "stdout").symlink_to("/dev/stdout")
    status, out, err = call(
        "et_decoder",
        f"--output_dir={trained.path.parent.parent}",
        "--decode_length=4",
        f"--decode_to_file={tmp_path}/stdout",
        stdin="ti\nbo\n",
    )
    assert status == 0, err
    assert [line[:2] for line in out.splitlines()] == ["ti", "bo"]
