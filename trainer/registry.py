"""Named problems, models, hparams sets and optimizers.

A module registers a function or class with a decorator, under its own name:

    @registry.optimizers.register
    def adam(learning_rate, hparams): ...
"""

import importlib

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


problems = Registry("problem", ["trainer.problems"])
models = Registry("model", ["trainer.transformer"])
hparams_sets = Registry("hparams set", ["trainer.hparams"])
optimizers = Registry("optimizer", ["trainer.optimizers"])
