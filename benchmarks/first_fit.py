r"""Measures how long the first `fit` takes: tracing and compiling, of many shapes.

    python -m benchmarks.first_fit [--optimizers=sgd,adam,et2_rank1] [--rounds=2]

EfficientNetB0 (213 variables of 69 shapes) takes one step on eight images of 32 x 32,
compiled as a user would: `compile` at its defaults. The optimizers take turns, each
turn a process of its own; a figure is the fastest turn.
"""

import json
import sys

from absl import flags

from benchmarks.measure import apart
from benchmarks.measure import batched
from benchmarks.measure import environment
from benchmarks.measure import timed
from trainer import progress
from trainer.bin import cli

_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", "sgd,adam,et2,et2_rank1,et2_orthogonal", "Names."
)
_ROUNDS = cli.DEFINE_count("rounds", 2, "Turns of each optimizer.")
_TRIAL = flags.DEFINE_bool("trial", False, "One turn: used by itself.")


def main(argv):
    cli.no_arguments(argv)
    if _TRIAL.value:
        print(json.dumps(trial(_OPTIMIZERS.value[0])))
        return
    turns = {name: [] for name in _OPTIMIZERS.value}
    for name in progress.over(_OPTIMIZERS.value * _ROUNDS.value, unit="turn"):
        turn = apart("benchmarks.first_fit", "--trial", f"--optimizers={name}")
        turns[name].append(turn)
    print(f"EfficientNetB0, {environment()}\n")
    peer = "adam" if "adam" in turns else next(iter(turns))
    print(f"| optimizer | first fit s | / {peer} | a step after it, ms |")
    print("|---|---|---|---|")
    for name, figures in turns.items():
        first = min(f["first"] for f in figures)
        ratio = first / min(f["first"] for f in turns[peer])
        later = 1e3 * min(f["later"] for f in figures)
        print(f"| {name} | {first:.1f} | {ratio:.2f} | {later:.0f} |")


def trial(name):
    """Returns the seconds of the first fit of one step, and of a step after it."""
    import keras
    import numpy as np

    from benchmarks import contestants

    images = np.zeros((8, 32, 32, 3), "float32")
    labels = np.arange(8) % 5
    base = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=images.shape[1:], pooling="avg"
    )
    model = keras.Sequential([base, keras.layers.Dense(5)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(contestants.keras_optimizer(name), loss)

    def fit(steps=1):
        data = batched(images, labels, len(images)).repeat(steps)
        model.fit(data, shuffle=False, verbose=0)

    first = timed(fit)
    return {"first": first, "later": (timed(lambda: fit(11)) - timed(fit)) / 10}


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
