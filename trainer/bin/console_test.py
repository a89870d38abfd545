import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "missing, script, flag",
    [("absl", "et_eval", "--help"), ("keras", "et_plan", "--shapes=5")],
)
def test_a_missing_package_is_one_line(missing, script, flag):
    """The scripts are installed with the optimizer, the trainer's packages are not."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from trainer.bin.console import {script} as run\n"
        "run()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, flag], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {script.replace('_', '-')} needs the package {missing!r}: pip install "
        "'extreme-tensoring-tf[trainer,cpu]' (or gpu or jax in place of cpu)\n"
    )
