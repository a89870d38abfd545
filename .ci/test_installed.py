"""Tests the package that is installed, not the checkout: see [tool.tox] in pyproject.

    python .ci/test_installed.py FOLDER PATH... [-- OPTION...]

Tests stand beside the modules that they test, and the wheel has none. They are copied
to where the wheel was installed, beside its modules, of which none is replaced. What
they share goes to FOLDER, in which pytest runs. A PATH is a file or folder of tests,
such as `trainer/optim`; after -- stand options of pytest.
"""

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("extreme_tensoring_tf", "trainer")
SHARED = ("conftest.py", "pyproject.toml", "benchmarks", "testdata")


def main():
    folder, *words = sys.argv[1:]
    paths = words[: words.index("--")] if "--" in words else words
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, folder / name, dirs_exist_ok=True)
        else:
            shutil.copy(CHECKOUT / name, folder)
    site = add_tests()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
    ]
    command += [f"--config-file={folder / 'pyproject.toml'}", f"--rootdir={site}"]
    command += [*(str(site / path) for path in paths), *words[len(paths) + 1 :]]
    # Programs that tests start find what tests share, too.
    environment = os.environ | {"PYTHONPATH": str(folder)}
    sys.exit(subprocess.run(command, cwd=folder, env=environment).returncode)


def add_tests():
    """Copies tests beside the installed modules, and returns the folder of both."""
    distribution = importlib.metadata.distribution("extreme-tensoring-tf")
    installed = {pathlib.Path(file.locate()).resolve() for file in distribution.files}
    site = pathlib.Path(distribution.locate_file("")).resolve()
    for package in PACKAGES:
        if site / package / "__init__.py" not in installed:
            sys.exit(f"{package} is not in {site}: install the wheel there first")
        for file in (CHECKOUT / package).rglob("*.py"):
            target = site / file.relative_to(CHECKOUT)
            if is_of_tests(file) and target not in installed:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
    return site


def is_of_tests(file):
    return (
        file.name.endswith("_test.py")
        or file.name == "conftest.py"
        or file.parent.name == "testing"
    )


if __name__ == "__main__":
    main()
