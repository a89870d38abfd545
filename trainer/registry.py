"""Named problems, models, hparams sets, optimizers and learning-rate schedules.

A module registers a function or class with a decorator, under its own name:

    @registry.optimizers.register
    def adam(learning_rate, hparams): ...
"""

import importlib
import importlib.util
import pathlib
import sys

from trainer.errors import UsageError


class Registry:
    """A table of names; the modules that fill it are imported on first use."""

    def __init__(self, kind, modules):
        self.kind = kind
        self._modules = modules
        self._entries = {}

    def register(self, entry, name=None):
        """Adds `entry` under `name` (its own by default). Usable as a decorator."""
        name = name or entry.__name__
        if name in self._entries:
            raise UsageError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def names(self):
        for module in self._modules:
            importlib.import_module(module)
        return sorted(self._entries)

    def get(self, name):
        names = self.names()
        if name not in self._entries:
            raise UsageError(f"unknown {self.kind} {name!r}. Known: {', '.join(names)}")
        return self._entries[name]


problems = Registry("problem", ["trainer.data.problems"])
models = Registry("model", ["trainer.models.transformer"])
hparams_sets = Registry("hparams set", ["trainer.hparams"])
optimizers = Registry("optimizer", ["trainer.optim.catalog"])
schedules = Registry("schedule", ["trainer.optim.schedules"])
ALL = (problems, models, hparams_sets, optimizers, schedules)


def import_usr_dir(folder):
    """Imports a folder's `__init__.py` or modules, which register the user's own."""
    folder = pathlib.Path(folder)
    files = [folder / "__init__.py"]
    if not files[0].is_file():
        files = sorted(folder.glob("*.py"))
    if not files:
        raise UsageError(f"--usr_dir={folder} holds no Python file")
    sys.path.insert(0, str(folder.parent.resolve()))
    for file in files:
        spec = importlib.util.spec_from_file_location(
            folder.name if file.stem == "__init__" else file.stem,
            file,
            submodule_search_locations=[str(folder)],
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


def listing():
    """Every name that is registered, by kind."""
    return "\n".join(
        f"{r.kind}s:\n" + "".join(f"  {name}\n" for name in r.names()) for r in ALL
    )
