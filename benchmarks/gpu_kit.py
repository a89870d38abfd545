r"""Packs all that `benchmarks.gpu` needs for a GPU machine without a network.

    python -m benchmarks.gpu_kit --data_dir=DATA --problem=PROBLEM \
        [--python_version=3.12] [--output_dir=gpu_kit]

The machine must have Linux on x86-64, that Python with pip, and JAX for its GPU; torch
and transformers are measured beside it where they are. There, `bash run.sh` measures
for at most 12 minutes and writes into `gpu_results`; its flags are those of
`benchmarks.gpu`. The folder holds wheels of the extra "gpu-kit" of setup.py, packed
rows from et-datagen, and the source.
"""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

from absl import flags

from trainer.bin import cli
from trainer.errors import UsageError
from trainer.files import partial_path
from trainer.sizes import Bytes

_DATA_DIR = cli.DEFINE_path("data_dir", None, "Folder that et-datagen wrote.")
_PROBLEM = flags.DEFINE_string("problem", None, "Name of the problem.")
_PYTHON = flags.DEFINE_string("python_version", "3.12", "Of the GPU machine.")
_OUTPUT_DIR = cli.DEFINE_path("output_dir", "gpu_kit", "New folder for the kit.")
SIZE_MAX = Bytes("60MB")
ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("benchmarks", "extreme_tensoring_tf", "trainer")
# pip takes a wheel of exactly these.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
_RUN = """#!/bin/bash
# Measures on this machine's GPU: bash run.sh [FLAGS of benchmarks.gpu]
set -e
kit=$(cd "$(dirname "$0")" && pwd)
python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade \\
    --target "$kit/site" "$kit"/wheels/*.whl
export PYTHONPATH="$kit/site:$kit/source" KERAS_BACKEND="${{KERAS_BACKEND:-jax}}"
exec python3 -m benchmarks.gpu --data_dir="$kit/data" --problem={problem} "$@"
"""


def main(argv):
    cli.no_arguments(argv)
    cli.require(_DATA_DIR, _PROBLEM)
    from trainer.data import dataset

    description = dataset.load_description(_DATA_DIR.value, _PROBLEM.value)
    output = pathlib.Path(_OUTPUT_DIR.value)
    if output.exists():
        raise UsageError(f"--output_dir={output} is there: name a new folder")
    partial = partial_path(output)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        wheels(partial / "wheels", _PYTHON.value)
        for package in PACKAGES:
            shutil.copytree(
                ROOT / package,
                partial / "source" / package,
                ignore=shutil.ignore_patterns("__pycache__", "*_test.py", "testing"),
            )
        rows(description, partial / "data")
        (partial / "run.sh").write_text(_RUN.format(problem=_PROBLEM.value))
        size = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
        if size > SIZE_MAX:
            raise UsageError(
                f"the kit has {size:,} bytes, more than {SIZE_MAX:,}: give it a "
                "problem of less text"
            )
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{output}: {size / 1e6:.1f} MB. On the GPU machine: bash {output.name}/run.sh"
    )


def wheels(folder, python_version):
    """Fills a folder with the wheels of the extra "gpu-kit", for another Python."""
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("extreme-tensoring-tf") or ()
        if 'extra == "gpu-kit"' in requirement
    ]
    platforms = [f"--platform={platform}_x86_64" for platform in _PLATFORMS]
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    foreign = [*pip, "download", "--no-deps", "--only-binary=:all:", *platforms]
    foreign += [f"--python-version={python_version}", "--implementation=cp"]
    for requirement in wanted:
        got = subprocess.run(
            [*foreign, f"--dest={folder}", requirement], capture_output=True, text=True
        )
        if got.returncode:  # no wheel at all: it is made here, if it is pure Python
            got = subprocess.run(
                [*pip, "wheel", "--no-deps", f"--wheel-dir={folder}", requirement],
                capture_output=True,
                text=True,
            )
        if got.returncode:
            raise UsageError(
                f"no wheel of {requirement} for Python {python_version}: "
                f"{got.stderr.strip().splitlines()[-1]}"
            )
        made = [w for w in folder.glob("*.whl") if not _fits(w.name, python_version)]
        if made:
            raise UsageError(
                f"there is no wheel of {requirement} for Python {python_version}, and "
                f"the one made here, {made[0].name}, would not run there"
            )


def _fits(wheel, python_version):
    """Returns whether a wheel is for all machines, or for that Python on x86-64."""
    version = "cp" + python_version.replace(".", "")
    own = wheel.endswith("x86_64.whl") and (
        f"-{version}-" in wheel or "-abi3-" in wheel
    )
    return own or wheel.endswith("-none-any.whl")


def rows(description, folder):
    """Copies the files of a data set."""
    from trainer.data import dataset

    folder.mkdir()
    paths = dataset.Paths(_DATA_DIR.value, description.problem)
    files = [paths.description, paths.tokenizer]
    for split, part in description.splits.items():
        files += [paths.rows(split, length) for length in part.rows]
    for file in files:
        shutil.copy(file, folder)


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
