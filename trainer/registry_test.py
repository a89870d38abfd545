import subprocess
import sys
import textwrap

import pytest

from trainer import registry
from trainer.errors import UsageError


@pytest.fixture
def usr_dir(tmp_path, monkeypatch):
    """A folder for the user's files. What it registers goes with the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for table in registry.ALL:
        table.names()
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    folder = tmp_path / "usr"
    folder.mkdir()
    return folder


def test_the_documented_example(usr_dir):
    """What the docstring shows is registered, and trains."""
    import keras
    import numpy as np

    from trainer.optim import catalog

    _, _, example = registry.__doc__.partition("may do so:\n")
    (usr_dir / "documented_example.py").write_text(textwrap.dedent(example))
    registry.import_usr_dir(str(usr_dir))
    hparams = registry.hparams_sets.get("transformer_nesterov")()
    assert registry.optimizers.learning_rate_constant("nesterov") == 0.1
    optimizer = catalog.create(hparams.override("learning_rate_schedule=constant"), [])
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer.apply([keras.ops.ones(3)], [variable])
    np.testing.assert_allclose(variable, 1 - 0.1 * 1.9, rtol=1e-6)


@pytest.mark.parametrize(
    "text, message",
    [
        ("import trainer\n1 / 0\n", "{file}:2: ZeroDivisionError: division by zero"),
        ("def f(:\n", "{file}:1: SyntaxError: invalid syntax"),
        ("\nimport not_there\n", "{file}:2: ModuleNotFoundError: No module named"),
        (
            "from trainer import registry\n"
            "@registry.models.register\n"
            "def transformer_lm(): ...\n",
            "{file}:2: model 'transformer_lm' is registered twice",
        ),
        (
            "from trainer import registry\n"
            "@registry.optimizers.register\n"
            "def mine(learning_rate, hparams): ...\n",
            "{file}:2: an optimizer is registered with its rate constant: "
            "@registry.optimizers.register(learning_rate_constant=0.1)",
        ),
        ("import json\njson.loads('{')\n", "{file}:2: JSONDecodeError: "),
    ],
)
def test_an_error_in_a_users_file_has_its_line(usr_dir, text, message):
    registry.models.names()
    file = usr_dir / "failing_module.py"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        registry.import_usr_dir(str(usr_dir))
    assert str(error.value).startswith(message.format(file=file))


@pytest.mark.parametrize("name", ["random", "keras", "sys"])
def test_a_users_file_hides_no_module(usr_dir, name):
    (usr_dir / f"{name}.py").touch()
    with pytest.raises(UsageError, match=f"{name}.py has the name of the module"):
        registry.import_usr_dir(str(usr_dir))


def test_files_import_each_other_and_packages_their_modules(tmp_path):
    """Each file runs once; so it is in a process that a program spawns."""
    flat, package = tmp_path / "flat", tmp_path / "my_package"
    for folder in (flat, package):
        folder.mkdir()
    (flat / "a_first.py").write_text("import b_second\n")
    (flat / "b_second.py").write_text("print('b')\nVALUE = 3\n")
    (package / "__init__.py").write_text("from my_package import inner\n")
    (package / "inner.py").write_text("print('inner')\n")
    script = f"""
import concurrent.futures, multiprocessing
from trainer import registry

def value():
    import b_second
    return b_second.VALUE

if __name__ == "__main__":
    registry.import_usr_dir({str(flat)!r})
    registry.import_usr_dir({str(package)!r})
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        print(pool.submit(value).result())
"""
    (tmp_path / "program.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.splitlines() == ["b", "inner", "b", "3"], done.stderr


def test_a_folder_without_files(tmp_path):
    with pytest.raises(UsageError, match="holds no Python file"):
        registry.import_usr_dir(str(tmp_path / "none"))


def test_unknown_names():
    with pytest.raises(UsageError, match="unknown hparams set 'huge'. Known: "):
        registry.hparams_sets.get("huge")
    with pytest.raises(
        UsageError, match=r"unknown optimizer 'et9'\. Did you mean et\d\? Known: "
    ):
        registry.optimizers.learning_rate_constant("et9")
    with pytest.raises(UsageError, match="languagemodel_lm1b32k_packed"):
        registry.problems.get("ptb")


def test_a_name_is_registered_once():
    table = registry.Registry("thing", [])
    table.register(test_unknown_names, "one")
    with pytest.raises(UsageError, match="thing 'one' is registered twice"):
        table.register(test_unknown_names, "one")
