"""Named problems, models, hparams sets, optimizers, schedules and layouts.

A module registers a function or a class with a decorator, under its own name. In a
folder that `--usr_dir` names, every Python file may do so:

    import keras

    from trainer import registry
    from trainer.hparams import HParams

    @registry.optimizers.register(learning_rate_constant=0.1)
    def nesterov(learning_rate, hparams):
        return keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True)

    @registry.hparams_sets.register
    def transformer_nesterov():
        return HParams(optimizer="nesterov")
"""

import importlib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

from trainer.errors import UsageError
from trainer.errors import unknown


class Registry:
    """Keeps a table of names. The modules that fill it are imported on first use."""

    def __init__(self, kind: str, modules: list[str]):
        self.kind = kind
        self._modules = modules
        self._entries: dict[str, Any] = {}

    def register(self, entry: Any, name: str | None = None) -> Any:
        """Adds `entry` under `name` (its own by default), and returns it: a decorator.

        Raises:
            UsageError: the name is taken.
        """
        key: str = name or entry.__name__
        if key in self._entries:
            raise UsageError(f"{self.kind} {key!r} is registered twice")
        self._entries[key] = entry
        return entry

    def names(self) -> list[str]:
        """Returns all names in alphabetical order."""
        for module in self._modules:
            importlib.import_module(module)
        return sorted(self._entries)

    def get(self, name: str) -> Any:
        """Returns the entry of a name.

        Raises:
            UsageError: nothing has that name.
        """
        names = self.names()
        if name not in self._entries:
            raise unknown(self.kind, name, names)
        return self._entries[name]


class OptimizerRegistry(Registry):
    """Keeps a table of optimizers, each with the rate constant c that goes with it."""

    def __init__(self, modules: list[str]):
        super().__init__("optimizer", modules)
        self._constants: dict[str, tuple[float, int | None]] = {}

    def register(
        self,
        entry: Any = None,
        name: str | None = None,
        *,
        learning_rate_constant: float | None = None,
        width: int | None = None,
    ) -> Callable:
        """Returns a decorator that adds a function of (learning_rate, hparams).

        Args:
            entry: nothing; it is here for the error of a decorator without arguments.
            name: of the optimizer. Defaults to the function's.
            learning_rate_constant: c of the schedule where the hparams give none.
            width: hidden size of the model for which c was tuned. Wider ones take
                c * width / hidden size. None: c is for all.

        Raises:
            UsageError: the constant is missing, or the name is taken.
        """
        if entry is not None or learning_rate_constant is None:
            raise UsageError(
                "an optimizer is registered with its rate constant: "
                "@registry.optimizers.register(learning_rate_constant=0.1)"
            )

        constant = learning_rate_constant

        def add(make):
            super(OptimizerRegistry, self).register(make, name)
            self._constants[name or make.__name__] = constant, width
            return make

        return add

    def learning_rate_constant(self, name: str, hidden_size: int = 0) -> float:
        """Returns c of an optimizer, for a model of a hidden size.

        Args:
            name: of the optimizer.
            hidden_size: 0 is that for which c was tuned.

        Raises:
            UsageError: nothing has that name.
        """
        self.get(name)
        constant, width = self._constants[name]
        return constant * min(1.0, width / hidden_size if width and hidden_size else 1)


problems = Registry("problem", ["trainer.data.problems"])
models = Registry("model", ["trainer.models.transformer"])
hparams_sets = Registry("hparams set", ["trainer.hparams"])
optimizers = OptimizerRegistry(["trainer.optim.catalog"])
schedules = Registry("schedule", ["trainer.optim.schedules"])
# Of models that devices share: functions of (hparams, vocab_size, devices).
layouts = Registry("layout", ["trainer.models.transformer"])
ALL = (problems, models, hparams_sets, optimizers, schedules, layouts)


def import_usr_dir(folder: str) -> None:
    """Imports a folder, which registers the user's own: a package, or all its modules.

    Raises:
        UsageError: the folder holds no Python file, a file fails, or a file has the
            name of a module that is installed.
    """
    path = pathlib.Path(folder).resolve()
    package = path / "__init__.py"
    if package.is_file():
        modules, place = {path.name: package}, path.parent
    else:
        modules, place = {file.stem: file for file in sorted(path.glob("*.py"))}, path
    if not modules:
        raise UsageError(f"--usr_dir={folder} holds no Python file")
    for name, file in modules.items():
        _check_name(name, file)
    # A path and no more: a process that this one spawns finds the modules, too.
    sys.path.insert(0, str(place))
    for name, file in modules.items():
        try:
            importlib.import_module(name)
        except Exception as error:
            raise UsageError(f"{_place(error, path, file)}: {_text(error)}") from error


def _check_name(name, file):
    """Refuses a file that would be imported in place of another module."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a dot in the name, or a module without a spec
        return
    if found and found.origin and pathlib.Path(found.origin).resolve() != file:
        raise UsageError(
            f"{file} has the name of the module {name} of {found.origin}: rename it"
        )


def _place(error, folder, file):
    """Returns FILE:LINE of the user's line that failed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if pathlib.Path(f.filename).is_relative_to(folder)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(file)


def _text(error):
    if isinstance(error, UsageError):
        return str(error)
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"{type(error).__name__}: {text}"


def listing() -> str:
    """Returns every name that is registered, by kind."""
    return "\n".join(
        f"{r.kind}s:\n" + "".join(f"  {name}\n" for name in r.names()) for r in ALL
    )
