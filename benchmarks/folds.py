r"""Measures the resident memory that a fold of a k-fold loop leaves behind.

    python -m benchmarks.folds [--optimizers=adam,et2_rank1] [--folds=12]

A fold makes a model of five million parameters, trains it for two steps and drops it,
as a cross-validation does. A figure is the growth over the later folds, for what the
first three leave is made once; each optimizer is a process of its own. Linux only.
"""

import ctypes
import gc
import json
import os
import sys

from absl import flags

from benchmarks.measure import apart
from benchmarks.measure import environment
from benchmarks.measure import resident_bytes
from trainer.bin import cli

_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", "sgd,adam,et2_rank1,et2_orthogonal", "Names."
)
_FOLDS = cli.DEFINE_count("folds", 12, "Folds.", least=5)
_TRIAL = flags.DEFINE_bool("trial", False, "One optimizer: used by itself.")
_WIDTH = 1024
_WARMUP = 3


def main(argv):
    cli.no_arguments(argv)
    if _TRIAL.value:
        print(json.dumps(trial(_OPTIMIZERS.value[0])))
        return
    print(f"layers of {_WIDTH} x {_WIDTH}, {_FOLDS.value} folds, {environment()}\n")
    print("| optimizer | MB a fold |\n|---|---|")
    for name in _OPTIMIZERS.value:
        arguments = "--trial", f"--optimizers={name}", f"--folds={_FOLDS.value}"
        resident = apart("benchmarks.folds", *arguments)[_WARMUP - 1 :]
        left = (resident[-1] - resident[0]) / (len(resident) - 1)
        print(f"| {name} | {left / 1e6:.1f} |", flush=True)


def trial(name):
    """Returns the resident memory after each fold."""
    # With oneDNN TensorFlow's allocator keeps what it once had.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import keras
    import numpy as np

    from benchmarks import contestants

    x = np.ones((16, _WIDTH), "float32")
    resident = []
    for _ in range(_FOLDS.value):
        layers = [keras.layers.Dense(_WIDTH, "relu") for _ in range(5)]
        model = keras.Sequential([keras.Input((_WIDTH,)), *layers])
        model.compile(contestants.keras_optimizer(name), "mse")
        model.fit(x, x, batch_size=8, verbose=0)
        del layers, model
        keras.utils.clear_session()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free is no one's
        resident.append(resident_bytes())
    return resident


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
