r"""Measures the bytes a parameter that training takes in `fit`.

    python -m benchmarks.fit_memory [--optimizers=sgd,adam,et2_rank1] [--layers=20,60]

The slope of the largest resident memory between two depths of a stack of Dense layers
of 1,024 columns, so that what TensorFlow itself takes does not count; once with the
step as Keras compiles it on this machine, once with `jit_compile=True`. SGD is the
bound: weights are 4 bytes, gradients at most 4 more. XLA's own memory while it
compiles is in it. A trial is a process of its own. Linux only.
"""

import json
import os
import sys

from absl import flags

from benchmarks.measure import apart
from benchmarks.measure import environment
from benchmarks.measure import peak_resident_bytes
from trainer import progress
from trainer.bin import cli
from trainer.errors import UsageError

_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", "sgd,adam,et2_rank1,et2_orthogonal", "Names."
)
_LAYERS = cli.DEFINE_counts("layers", "20,60", "The two depths.")
_TRIAL = flags.DEFINE_enum("trial", "", ["", "auto", "xla"], "Used by itself.")
_WIDTH = 1024


def main(argv):
    cli.no_arguments(argv)
    if _TRIAL.value:
        layers = int(_LAYERS.value[0])
        print(json.dumps(trial(_OPTIMIZERS.value[0], layers, _TRIAL.value)))
        return
    if len(_LAYERS.value) != 2:
        raise UsageError(f"--layers={','.join(_LAYERS.value)}: give two depths: 20,60")
    slopes = {
        name: [slope(name, how) for how in ("auto", "xla")]
        for name in progress.over(_OPTIMIZERS.value, unit="optimizer")
    }
    print(f"layers of {_WIDTH} x {_WIDTH}, {environment()}\n")
    print("| optimizer | bytes a parameter | under XLA |\n|---|---|---|")
    for name, (usual, xla) in slopes.items():
        print(f"| {name} | {usual:.1f} | {xla:.1f} |")


def slope(name, how):
    """Returns the growth of peak memory over that of parameters."""
    arguments = "benchmarks.fit_memory", f"--trial={how}", f"--optimizers={name}"
    few, many = (apart(*arguments, f"--layers={n}") for n in _LAYERS.value)
    return (many["peak"] - few["peak"]) / (many["parameters"] - few["parameters"])


def trial(name, layers, how):
    """Returns parameters and peak memory of a model that took three steps."""
    # With oneDNN TensorFlow's allocator keeps what it once had.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import keras
    import numpy as np

    from benchmarks import contestants

    model = keras.Sequential([keras.Input((_WIDTH,))])
    for _ in range(layers):
        model.add(keras.layers.Dense(_WIDTH, "relu"))
    jit_compile = True if how == "xla" else "auto"
    optimizer = contestants.keras_optimizer(name)
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    x = np.ones((24, _WIDTH), "float32")
    model.fit(x, x, batch_size=8, verbose=0)
    return {"parameters": model.count_params(), "peak": peak_resident_bytes()}


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
