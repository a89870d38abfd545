import re

import keras
import pytest

from trainer.bin.bin_test import call


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("", "give either one MODEL.keras or --shapes"),
        ("{tmp}/none.keras", "there is no file {tmp}/none.keras"),
        ("~/none.keras", "there is no file {home}/none.keras"),
        ("--shapes=12by4", "'12by4' is not like 50257x768"),
        ("--shapes=0x5", "'0x5' is not like 50257x768, numbers of 1 and more"),
        ("--shapes=", "--shapes holds no shape"),
        ("--shapes=12 --budget=much", "--budget=much: much is not a size such as"),
        (
            "--shapes=12,5 --budget=4",
            "less than one scalar for each of the 2",
        ),
        ("--shapes=12 --budget=64 --devices=8", "give either --budget or --devices"),
        ("--shapes=0*12", "'0*12' is not like 50257x768"),
        ("--shapes=12 --orthogonalize", "--orthogonalize is of the plan: give --bud"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = {"tmp": tmp_path, "home": tmp_path}
    status, out, err = call("et_plan", *arguments.format(**names).split())
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert message.format(**names) in err and "Traceback" not in err


def test_a_plan_in_which_kernels_keep_nothing(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(400, 16),
            keras.layers.Dense(30),
        ]
    )
    path = tmp_path / "model.keras"
    model.save(path)
    status, out, err = call("et_plan", str(path), "--budget=1KB", "--orthogonalize")
    assert status == 0, err
    rows = [line.split() for line in out.split("\n\n")[1].splitlines()]
    (kernel,) = (row for row in rows if row and row[0].endswith("kernel"))
    assert kernel[-1] == "0"
    # The table of all optimizers has it, too.
    assert "et2_orthogonal" in out.splitlines()[0]


def test_a_model_of_which_nothing_is_trained(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    model.trainable = False
    path = tmp_path / "model.keras"
    model.save(path)
    status, out, err = call("et_plan", str(path))
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith(
        f"error: the model of {path} has no variable that is trained: it is frozen, "
    )
    assert "Traceback" not in err


def test_the_plan_names_the_dims_of_each_variable():
    """It is that of `planner.plan`: here the vector is folded, the matrix in part."""
    status, out, err = call("et_plan", "--shapes=50257x768,768", "--budget=6KB")
    assert status == 0, err
    whole, planned = out.split("\n\n")
    assert "224x225x24x32" in whole
    rows = [line.split() for line in planned.splitlines()]
    assert ["variable_0", "50257x768", "224x225x768", "1,217"] in rows
    assert rows[-1] == "6,000 bytes hold this plan: it takes".split() + ["5,092"]


def test_what_each_of_eight_devices_holds_and_sends():
    """64 MB of weights: 2 * 7/8 of them go over the wire, 3 * 7/8 with FSDP."""
    status, out, err = call("et_plan", "--shapes=16*1000x1000", "--devices=8")
    assert status == 0, err
    first, _, _, *rows = out.splitlines()
    assert first == "16,000,000 parameters in float32 on 8 devices"
    cells = {row.split("  ")[0]: re.findall(r"[\d.]+ [KMG]?B", row) for row in rows}
    assert cells["sgd"] == ["64 MB", "64 MB", "0 B", "128 MB", "112 MB"]
    assert cells["adam"] == ["64 MB", "64 MB", "128 MB", "256 MB", "112 MB"]
    assert cells["adam, ZeRO-1"] == ["64 MB", "64 MB", "16 MB", "144 MB", "112 MB"]
    assert cells["adam, FSDP"] == ["8 MB", "8 MB", "16 MB", "32 MB", "168 MB"]
    assert cells["et2"][2].endswith(" KB") and cells["et2"][4] == "112 MB"
    assert cells["et2, FSDP"][:2] == ["8 MB", "8 MB"]
    assert cells["et2, FSDP"][2] == cells["et2"][2]  # whole
