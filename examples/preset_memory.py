"""Prints the optimizer state of large language models, before any of them is loaded.

    pip install --no-deps keras-hub kagglehub kagglesdk
    pip install regex rich tokenizers
    python -m examples.preset_memory

Models of KerasHub are built in a `keras.StatelessScope`: variables have a path and
a shape, and no values. It takes seconds, and 1 GB of memory for the 8B parameters of
Llama. Settings are those of the presets, whose number of parameters KerasHub knows.
"""

import math

import keras

from extreme_tensoring_tf import memory_report

PRESETS = {
    "gpt2_extra_large_en": (
        "GPT2Backbone",
        {
            "vocabulary_size": 50257,
            "num_layers": 48,
            "num_heads": 25,
            "hidden_dim": 1600,
            "intermediate_dim": 6400,
            "max_sequence_length": 1024,
        },
    ),
    "gemma_2b_en": (
        "GemmaBackbone",
        {
            "vocabulary_size": 256000,
            "num_layers": 18,
            "num_query_heads": 8,
            "num_key_value_heads": 1,
            "hidden_dim": 2048,
            "intermediate_dim": 32768,
            "head_dim": 256,
        },
    ),
    "llama3_8b_en": (
        "Llama3Backbone",
        {
            "vocabulary_size": 128256,
            "num_layers": 32,
            "num_query_heads": 32,
            "num_key_value_heads": 8,
            "hidden_dim": 4096,
            "intermediate_dim": 14336,
        },
    ),
}
OPTIMIZERS = ("adam", "adafactor", "et1", "et2", "et2_orthogonal")


def variables(preset):
    """Returns the variables of a preset, which have no values.

    Raises:
        ValueError: they are not as many numbers as KerasHub says of the preset.
    """
    import keras_hub

    name, settings = PRESETS[preset]
    backbone = getattr(keras_hub.models, name)
    with keras.StatelessScope(initialize_variables=False):
        found = backbone(**settings).trainable_variables
    parameters = sum(math.prod(variable.shape) for variable in found)
    known = backbone.presets[preset]["metadata"]["params"]
    if parameters != known:
        raise ValueError(f"{preset} has {known:,} parameters, not {parameters:,}")
    return found


def main():
    """Prints a table of MB of state beside float32 weights, and returns its rows."""
    rows = [("state, MB", "parameters", *OPTIMIZERS)]
    for preset in PRESETS:
        found = memory_report(variables(preset), OPTIMIZERS)
        parameters = sum(entry["entries"] for entry in found.variables)
        sizes = [f"{total['bytes'] / 1e6:,.2f}" for total in found.totals.values()]
        rows.append((preset, f"{parameters:,}", *sizes))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *cells in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:])]
        print(f"{name:{widths[0]}}", *cells, sep="  ")
    return rows


if __name__ == "__main__":
    main()
