"""The console scripts: each binary, or one line that says which package it lacks.

pip installs the scripts with the optimizer, for an extra cannot have scripts of its
own. Imports nothing that the optimizer alone does not need.
"""

import importlib
import sys


def _script(name):
    def run():
        try:
            importlib.import_module(f"trainer.bin.{name}").run()
        except ModuleNotFoundError as error:
            sys.exit(
                f"error: {name.replace('_', '-')} needs the package {error.name!r}: "
                "pip install 'extreme-tensoring-tf[trainer,cpu]' (or gpu or jax in "
                "place of cpu)"
            )

    return run


et_avg = _script("et_avg")
et_datagen = _script("et_datagen")
et_decoder = _script("et_decoder")
et_eval = _script("et_eval")
et_exporter = _script("et_exporter")
et_plan = _script("et_plan")
et_sweep = _script("et_sweep")
et_trainer = _script("et_trainer")
