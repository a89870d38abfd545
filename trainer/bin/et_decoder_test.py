"""et-decoder on the model of the session."""

import unicodedata

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


def test_a_folder_that_is_not_there_is_refused_before_the_work(data_dir, tmp_path):
    status, out, err = call(
        "et_decoder",
        f"--output_dir={tmp_path}",
        f"--data_dir={data_dir}",
        f"--decode_to_file={tmp_path}/none/out.txt",
    )
    assert (status, out) == (1, "")
    assert err.endswith("none/out.txt: its folder is not there\n")
