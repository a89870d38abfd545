r"""Finds the largest Transformer whose training step fits in a given memory.

    python -m benchmarks.memory [--budget=4GB] [--optimizers=adam,adafactor,et2]
        [--gpu=h200.txtpb]

A trial is a process of its own that builds the model, takes two real steps with `fit`
and reports the most memory that it had: of the GPU where there is one, else resident
memory, TensorFlow's own 0.6 GB included (Linux only). Memory grows alike with every
layer, so two small models tell how many layers to try.

With --gpu a step is compiled for a GPU that is not here, and not run: see
`benchmarks.gpu_programs`. Its peak is that of the program.
"""

import json
import math
import os
import sys

from absl import flags

from benchmarks import measure
from benchmarks import tables
from trainer import progress
from trainer.bin import cli

_BUDGET = cli.DEFINE_size("budget", "4GB", "Resident memory: 4GB, 800MB.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers", "adam,adafactor,et2,et2_orthogonal", "Names."
)
_HIDDEN = cli.DEFINE_count("hidden_size", 1024, "Width of the model.")
_VOCAB = cli.DEFINE_count("vocab_size", 32768, "Tokens of the vocabulary.")
_LAYERS = cli.DEFINE_count("most_layers", 64, "Layers that are tried at most.")
_TRIAL = cli.DEFINE_count("trial", 0, "Layers of one trial: used by itself.", least=0)
_GPU = cli.DEFINE_path("gpu", None, "Description of a GPU, of OpenXLA's.")
_JSON = flags.DEFINE_bool("json", False, "Print the figures as JSON, too.")
_LENGTH = 64


def main(argv):
    cli.no_arguments(argv)
    if _GPU.value:
        os.environ.update(measure.FOR_GPU)  # here, and in every trial
    if _TRIAL.value:
        print(json.dumps(trial(_OPTIMIZERS.value[0], _TRIAL.value)))
        return
    names = progress.over(_OPTIMIZERS.value, unit="optimizer")
    rows = [(name, *largest(name, _BUDGET.value)) for name in names]
    compiled = f", compiled for {_GPU.value}" if _GPU.value else ""
    print(
        f"{_BUDGET.value / 1e9:g} GB, width {_HIDDEN.value}, {_VOCAB.value:,} subwords"
        f", one row of {_LENGTH} tokens, {measure.environment()}{compiled}\n\n"
        + tables.largest(rows)
    )
    if _JSON.value:
        for name, layers, figures in rows:
            cli.print_json({"optimizer": name, "layers": layers, **figures})


def largest(name, budget):
    """Returns the most layers that fit, and the figures of that trial."""
    peaks, figures = {}, {}  # by layers
    more = [f"--gpu={_GPU.value}"] if _GPU.value else []
    fits, too_many = 0, _LAYERS.value + 1
    while too_many - fits > 1:
        layers = min(max(_guess(peaks, budget), fits + 1), too_many - 1)
        try:
            tried = measure.apart(
                "benchmarks.memory",
                f"--trial={layers}",
                f"--optimizers={name}",
                f"--hidden_size={_HIDDEN.value}",
                f"--vocab_size={_VOCAB.value}",
                *more,
            )
        except measure.Failed as error:
            if not error.lacked_memory:
                raise
            tried = {}
        if tried:
            peaks[layers] = tried["peak"]
        if tried and tried["peak"] <= budget:
            fits, figures = layers, tried
        else:  # too large, or killed for lack of memory
            too_many = layers
        progress.write(f"{name}: {layers} layers, {tried}")
    return fits, figures


def _guess(peaks, budget):
    """Returns the layers whose peak is the budget, by the two largest models tried."""
    if len(peaks) < 2:
        return 2 * len(peaks) + 2
    (few, low), (many, high) = sorted(peaks.items())[-2:]
    by_layer = max((high - low) / (many - few), 1)
    return many + math.floor((budget - high) / by_layer)


def trial(name, layers):
    """Returns parameters and peak memory of a model that takes two steps."""
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
    if _GPU.value:
        program = measure.step_for_gpu(trained, rows[:1], _GPU.value)
        peak = program.memory_analysis().peak_memory_in_bytes
        return {"parameters": model.count_params(), "peak": peak}
    trained.fit(rows, rows, batch_size=1, verbose=0)
    peak = measure.device_peak_bytes() or measure.peak_resident_bytes()
    return {"parameters": model.count_params(), "peak": peak}


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
