"""What setup.py puts into the wheel."""

import pathlib
import subprocess
import sys

import pytest

import extreme_tensoring_tf

ROOT = pathlib.Path(__file__).parent


def setup(*arguments):
    command = [sys.executable, "setup.py", "-q", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_no_tests(tmp_path):
    """Neither tests nor what only they use are installed; the types are declared."""
    pytest.importorskip("setuptools")
    egg_info = "egg_info", f"--egg-base={tmp_path}"
    build = "build", f"--build-base={tmp_path}", f"--build-lib={tmp_path}/lib"
    setup(*egg_info, *build)
    built = {p.relative_to(tmp_path / "lib") for p in (tmp_path / "lib").rglob("*.*")}
    names = {str(p) for p in built}
    assert {"extreme_tensoring_tf/py.typed", "trainer/py.typed"} <= names
    assert {"trainer/bin/console.py", "trainer/optim/catalog.py"} <= names
    assert {p.parts[0] for p in built} == {"extreme_tensoring_tf", "trainer"}
    assert not [n for n in names if "test" in pathlib.Path(n).name or "testing" in n]


def test_the_version_is_in_one_place_and_in_the_changelog():
    pytest.importorskip("setuptools")
    version = setup("--version").strip()
    assert extreme_tensoring_tf.__version__ == version
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    released = [line.split()[1] for line in lines if line.startswith("## ")]
    assert version == next(r for r in released if r != "Unreleased")
