"""The experiments at their smallest, as a stranger runs them."""

import importlib.util
import subprocess
import sys

import pytest

from conftest import TESTDATA


def call(experiment, *flags):
    command = [sys.executable, "-m", f"trainer.experiments.{experiment}", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def write_cifar10(folder):
    """An archive of the layout of `cifar10-jpeg.tar.xz`: squares of two shades."""
    import io
    import tarfile

    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    with tarfile.open(folder / "cifar10-jpeg.tar.xz", "w:xz") as tar:
        for split, count in (("train", 50), ("test", 20)):
            for label in range(10):
                for number in range(count):
                    noise = rng.integers(0, 40, (32, 32, 3))
                    image = io.BytesIO()
                    shade = (noise + 20 * label).astype("uint8")
                    Image.fromarray(shade).save(image, "jpeg")
                    path = f"{split}/class{label}/{number:04}.jpg"
                    member = tarfile.TarInfo(path)
                    member.size = image.tell()
                    image.seek(0)
                    tar.addfile(member, image)


@pytest.mark.parametrize(
    "experiment, flags, entries, plots",
    [
        (
            "convex",
            ["--train_steps=5", "--entries=adagrad,et2"],
            ["adagrad", "et2", "(L-BFGS)"],
            ["curves"],
        ),
        ("trace_ratio", ["--train_steps=2"], ["et1_sum", "etinf_sum"], ["ratios"]),
        pytest.param(
            "doubled_model",
            ["--train_steps=2"],
            ["adam", "et2_doubled"],
            ["steps", "hours"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "orthogonal_form",
            ["--train_steps=2"],
            ["et2_orthogonal", "orthogonal_half"],
            ["perplexity", "curves"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "keras_hub_gpt2",
            [],
            ["et2_orthogonal"],
            ["curves"],
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    not importlib.util.find_spec("keras_hub"), reason="no keras-hub"
                ),
            ],
        ),
        pytest.param(
            "cifar10",
            ["--train_steps=2"],
            ["sgd", "et2_orthogonal"],
            ["test_error"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tables_and_plots(tmp_path, experiment, flags, entries, plots):
    flags = [*flags, f"--output_dir={tmp_path / 'out'}", f"--tmp_dir={TESTDATA}"]
    if experiment == "cifar10":
        write_cifar10(tmp_path)
        flags[-1] = f"--tmp_dir={tmp_path}"
    done = call(experiment, *flags)
    assert done.returncode == 0, done.stderr
    assert ": step 1 of " in done.stderr
    lines = done.stdout.splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]]
    assert rows[: len(entries)] == entries
    assert (tmp_path / "out" / "results.jsonl").is_file()
    for name in plots:
        for suffix in (".png", ".svg"):
            assert (tmp_path / "out" / f"{name}{suffix}").stat().st_size > 5000


@pytest.mark.skipif(
    bool(importlib.util.find_spec("keras_hub")), reason="keras-hub is installed"
)
def test_without_keras_hub(tmp_path):
    done = call("keras_hub_gpt2", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "pip install --no-deps keras-hub" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--scale=cpu"], "--tmp_dir must be given"),
        (["--scale=huge"], "should be one of <smoke|demo|cpu|gpu|paper>"),
        (["--trials=0"], "--trials=0: 0 is not an integer in the range [1, "),
    ],
)
def test_bad_flags(tmp_path, flags, message):
    folder = tmp_path / "out"
    done = call("memory_performance", *flags, f"--output_dir={folder}")
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not folder.exists()
