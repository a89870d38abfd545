r"""Finds the largest Transformer whose training step fits in a given memory.

    python -m benchmarks.memory [--budget=4GB] [--optimizers=adam,adafactor,et2]

For each optimizer the number of layers is found by bisection. A trial is a process
of its own that builds the model, takes two real steps with `fit` and reports its
largest resident memory, TensorFlow's own 0.6 GB included. Linux only.
"""

import json
import os
import subprocess
import sys

from absl import flags

from benchmarks.measure import apart
from benchmarks.measure import environment
from benchmarks.measure import peak_resident_bytes
from trainer.bin import cli

_BUDGET = cli.DEFINE_size("budget", "4GB", "Resident memory: 4GB, 800MB.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", "adam,adafactor,et2,et2_orthogonal", "Names."
)
_HIDDEN = cli.DEFINE_count("hidden_size", 1024, "Width of the model.")
_VOCAB = cli.DEFINE_count("vocab_size", 32768, "Tokens of the vocabulary.")
_LAYERS = cli.DEFINE_count("most_layers", 64, "Layers that are tried at most.")
_TRIAL = cli.DEFINE_count("trial", 0, "Layers of one trial: used by itself.", least=0)
_LENGTH = 64


def main(argv):
    cli.no_arguments(argv)
    if _TRIAL.value:
        print(json.dumps(trial(_OPTIMIZERS.value[0], _TRIAL.value)))
        return
    rows = [(name, *largest(name, _BUDGET.value)) for name in _OPTIMIZERS.value]
    print(
        f"{_BUDGET.value / 1e9:g} GB of resident memory, width {_HIDDEN.value}, "
        f"{_VOCAB.value:,} subwords, one row of {_LENGTH} tokens, {environment()}\n"
    )
    print("| optimizer | layers | parameters | peak bytes |\n|---|---|---|---|")
    for name, layers, figures in rows:
        print(
            f"| {name} | {layers} | {figures.get('parameters', 0):,} "
            f"| {figures.get('peak', 0):,} |"
        )


def largest(name, budget):
    """Returns the most layers that fit, and the figures of that trial."""
    fits, figures, too_many = 0, {}, _LAYERS.value + 1
    while too_many - fits > 1:
        layers = (fits + too_many) // 2
        try:
            tried = apart(
                "benchmarks.memory",
                f"--trial={layers}",
                f"--optimizers={name}",
                f"--hidden_size={_HIDDEN.value}",
                f"--vocab_size={_VOCAB.value}",
            )
        except subprocess.CalledProcessError:
            tried = {}
        if tried and tried["peak"] <= budget:
            fits, figures = layers, tried
        else:  # too large, or killed for lack of memory
            too_many = layers
        print(f"{name}: {layers} layers, {tried}", file=sys.stderr, flush=True)
    return fits, figures


def trial(name, layers):
    """Returns parameters and peak memory of a model that took two steps."""
    # With oneDNN TensorFlow's allocator keeps what it once had.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import numpy as np

    from benchmarks import contestants
    from trainer import registry
    from trainer.hparams import HParams
    from trainer.models import language_model

    hparams = HParams(
        num_hidden_layers=layers,
        hidden_size=_HIDDEN.value,
        filter_size=4 * _HIDDEN.value,
        num_heads=_HIDDEN.value // 64,
        layer_prepostprocess_dropout=0.0,
        attention_dropout=0.0,
        relu_dropout=0.0,
    )
    model = registry.models.get("transformer_lm")(hparams, _VOCAB.value, _LENGTH)
    trained = language_model.training_model(model, 0.0, _LENGTH)
    trained.compile(contestants.keras_optimizer(name))
    rows = np.random.default_rng(0).integers(2, _VOCAB.value, (2, _LENGTH), "int32")
    trained.fit(rows, rows, batch_size=1, verbose=0)
    return {"parameters": model.count_params(), "peak": peak_resident_bytes()}


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
