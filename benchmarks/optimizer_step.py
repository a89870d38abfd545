r"""Measures time and memory of one update of each optimizer, in one process.

    python -m benchmarks.optimizer_step [--preset=transformer_23m] \
        [--optimizers=sgd,adam,et2] [--backend=jax] [--rounds=20] [--json=FILE]

The optimizers take turns, so that noise of the machine hits all alike; a figure is
the median over the rounds. Every update is one compiled program where the backend
compiles. Memory traffic is compared with the bandwidth of a plain copy, measured
here. Temporary memory is the peak of resident memory during a call (on the CPU).
"""

import json
import os
import statistics
import sys

from absl import flags

from benchmarks import contestants
from benchmarks.measure import copy_bandwidth
from benchmarks.measure import environment
from benchmarks.measure import peak_temporary_bytes
from benchmarks.measure import timed
from benchmarks.shapes import PRESETS
from trainer.bin import cli
from trainer.errors import UsageError

# Memory moves per parameter: reads and writes of full-size arrays. Ours reads the
# gradient twice and reads and writes the variable.
MOVES = {"sgd": 3, "momentum": 5, "adagrad": 5, "rmsprop": 5, "adam": 7, "lion": 5}
OURS = 4

_PRESET = flags.DEFINE_enum(
    "preset", "transformer_23m", list(PRESETS), "Shapes of the variables."
)
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    None,
    "Names, of the trainer's registry or of contestants.py. Default: all that run.",
)
_BACKEND = flags.DEFINE_enum(
    "backend",
    os.environ.get("KERAS_BACKEND", "tensorflow"),
    ["tensorflow", "jax", "torch"],
    "Backend of Keras.",
)
_ROUNDS = cli.DEFINE_count("rounds", 20, "Timed updates of each optimizer.")
_JSON = cli.DEFINE_path("json", None, "File for the figures.")


def main(argv):
    cli.no_arguments(argv)
    os.environ["KERAS_BACKEND"] = _BACKEND.value
    # With oneDNN the allocator keeps what it had: no peak could be seen.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    if _JSON.value and not os.path.isdir(os.path.dirname(_JSON.value) or "."):
        raise UsageError(f"--json={_JSON.value}: its folder does not exist")
    names = _OPTIMIZERS.value or contestants.DEFAULT + contestants.peers(_BACKEND.value)
    figures = measure(PRESETS[_PRESET.value], names, _BACKEND.value, _ROUNDS.value)
    print(f"{_PRESET.value}: {figures['parameters']:,} parameters, {environment()}")
    print(f"copy bandwidth {figures['copy_bandwidth'] / 1e9:.1f} GB/s\n")
    print(table(figures))
    if _JSON.value:
        about = {"environment": environment(), "preset": _PRESET.value}
        with open(_JSON.value, "w", encoding="utf-8") as file:
            json.dump(about | figures, file, indent=2)


def measure(shapes, names, backend, rounds):
    """Returns the figures of each optimizer: a dict that `table` shows."""
    import numpy as np

    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(s, dtype="float32") for s in shapes]
    steps, rows = {}, {}
    for name in names:
        values = [np.ones(s, "float32") for s in shapes]
        step, state_bytes = contestants.make(name, backend)(grads, values)
        rows[name] = {"compile_seconds": timed(step), "state_bytes": state_bytes}
        steps[name] = step
    times = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(timed(step))
    parameters = sum(int(np.prod(s)) for s in shapes)
    bandwidth = copy_bandwidth()
    for name, row in rows.items():
        row["milliseconds"] = 1e3 * statistics.median(times[name])
        row["temporary_bytes"] = peak_temporary_bytes(steps[name])
        moves = MOVES.get(name, OURS if name.startswith("et") else None)
        if moves:
            traffic = 4 * moves * parameters / statistics.median(times[name])
            row["share_of_copy_bandwidth"] = traffic / bandwidth
    for row in rows.values():
        for peer in {"sgd", "adam"} & set(rows):
            row[f"over_{peer}"] = row["milliseconds"] / rows[peer]["milliseconds"]
    return {
        "parameters": parameters,
        "largest_variable_bytes": 4 * max(int(np.prod(s)) for s in shapes),
        "copy_bandwidth": bandwidth,
        "optimizers": rows,
    }


def table(figures):
    """Returns the figures of `measure` as Markdown."""
    lines = [
        "| optimizer | ms | / sgd | / adam | state bytes | temporary / largest "
        "variable | first call s | of copy speed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in figures["optimizers"].items():
        temporary = r["temporary_bytes"]
        cells = [
            f"{r['milliseconds']:.1f}",
            _cell(r.get("over_sgd"), ".2f"),
            _cell(r.get("over_adam"), ".2f"),
            f"{r['state_bytes']:,}",
            _cell(
                None
                if temporary is None
                else temporary / figures["largest_variable_bytes"],
                ".2f",
            ),
            f"{r['compile_seconds']:.1f}",
            _cell(r.get("share_of_copy_bandwidth"), ".0%"),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value, form):
    return "" if value is None else format(value, form)


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
