"""BUILD files agree with the sources: every file has a target, and imports are deps."""

import importlib.metadata

import pytest

from bazel import build_files


@pytest.mark.parametrize("folder", build_files.sources(), ids=str)
def test_build_file_is_what_would_be_written(folder):
    text = (build_files.ROOT / folder / "BUILD").read_text("utf-8")
    assert text == build_files.build_file(folder), "python -m bazel.build_files"


def test_no_build_file_is_left_without_sources():
    folders = [f for f in build_files.FOLDERS if (build_files.ROOT / f).is_dir()]
    found = {
        file.parent.relative_to(build_files.ROOT)
        for folder in folders
        for file in (build_files.ROOT / folder).rglob("BUILD")
    }
    assert found <= set(build_files.sources())


def test_every_requirement_is_a_distribution_that_is_installed():
    deps = set()
    for files in build_files.sources().values():
        for file in files:
            deps |= {d for d in build_files.target(file)[1] if ":" not in d}
    assert {"absl-py", "keras", "numpy", "pillow", "pytest"} <= deps
    for name in deps:
        importlib.metadata.distribution(name)


@pytest.fixture
def tree(tmp_path):
    """A tree of packages: trainer/a, trainer/b with an __init__, trainer/c without."""
    texts = {
        "conftest.py": "import numpy\n",
        "setup.py": "import setuptools\n",
        "trainer/__init__.py": "",
        "trainer/a.py": "",
        "trainer/conftest.py": "import keras\n",
        "trainer/b/__init__.py": "from trainer.b import inner\n",
        "trainer/b/inner.py": "X = 1\n",
    }
    for name, text in texts.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text or ("" if "__init__" in name else "Y = 1\n"))
    return tmp_path


@pytest.mark.parametrize(
    "line, deps",
    [
        ("import os.path, numpy.linalg", {"numpy"}),
        ("import jax", set()),  # optional
        ("import PIL.Image", {"pillow"}),
        ("from ml_dtypes import bfloat16", {"ml-dtypes"}),
        ("import trainer.b.inner as i", {"//trainer/b:inner"}),
        ("from trainer.b import inner", {"//trainer/b:inner"}),
        ("from trainer.b.inner import X", {"//trainer/b:inner"}),
        ("from trainer.b import *", {"//trainer/b:b"}),
        ("from trainer import a", {"//trainer:a"}),
        ("import trainer", set()),  # an empty file
        ("def f():\n    from trainer import a", {"//trainer:a"}),
        ("if False:\n    import trainer.b", {"//trainer/b:b"}),
        ("RUN = 'import keras; from trainer import a'", {"//trainer:a"}),
        ("SAID = 'we import keras'", set()),
    ],
)
def test_an_import_is_a_dep(tree, line, deps):
    file = tree / "trainer" / "own.py"
    file.write_text(line)
    assert build_files.target(file, tree) == ("py_library", deps)
    test = tree / "trainer" / "own_test.py"
    test.write_text(line)
    fixtures = {"//:conftest", "//trainer:conftest", "pytest"}
    assert build_files.target(test, tree) == ("pytest_test", deps | fixtures)


def test_a_program_depends_on_what_is_registered(tree):
    file = tree / "trainer" / "own.py"
    main = '\nif __name__ == "__main__":\n    pass\n'
    file.write_text("from trainer import a" + main)
    assert build_files.target(file, tree) == (
        "py_binary",
        {"//trainer:a", "//trainer:registered"},
    )
    file.write_text("import numpy" + main)
    assert build_files.target(file, tree) == ("py_binary", {"numpy"})


def test_a_relative_import_is_refused(tree):
    file = tree / "trainer" / "own.py"
    file.write_text("from . import a")
    with pytest.raises(ValueError, match=r"own.py:1: name the package"):
        build_files.target(file, tree)


def test_only_files_with_code_have_a_target(tree):
    names = {str(k): [f.name for f in v] for k, v in build_files.sources(tree).items()}
    assert names == {
        ".": ["conftest.py"],
        "trainer": ["a.py", "conftest.py"],
        "trainer/b": ["__init__.py", "inner.py"],
    }
