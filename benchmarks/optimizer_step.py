r"""Measures time and memory of one update of each optimizer, in one process.

    python -m benchmarks.optimizer_step [--preset=transformer_23m] \
        [--optimizers=sgd,adam,et2] [--backend=jax] [--rounds=20] [--updates=1] \
        [--json=FILE]

The optimizers take turns, so that noise of the machine hits all alike; a figure is
the median over the rounds, each of `updates` that are waited for together. Every update
is one compiled program where the backend compiles. Memory traffic is compared with the
bandwidth of a copy by all cores, measured here. Temporary memory is what the compiler
says (JAX), or the peak of resident memory during a call on the CPU, in a process of
its own, whose allocators give back what is freed.
"""

import math
import os
import pathlib
import statistics
import sys
import time

from absl import flags

from benchmarks import contestants
from benchmarks import tables
from benchmarks.measure import RETURNING_MEMORY
from benchmarks.measure import apart
from benchmarks.measure import copy_bandwidth
from benchmarks.measure import environment
from benchmarks.measure import peak_temporary_bytes
from benchmarks.measure import timed
from benchmarks.measure import traced
from benchmarks.measure import wait_for_turn
from benchmarks.shapes import PRESETS
from trainer import files
from trainer import paths
from trainer import progress
from trainer.bin import cli

# Memory moves per parameter: reads and writes of full-size arrays. Ours reads the
# gradient twice, once more to clip, and reads and writes the variable.
MOVES = {"sgd": 3, "momentum": 5, "adagrad": 5, "rmsprop": 5, "adam": 7, "lion": 5}
MOVES |= dict.fromkeys(("et1", "et2", "et3", "etinf", "et2_bare", "et2_guarded"), 4)
MOVES |= {"et2_in_program": 4, "et2_rank1_unclipped": 4}
MOVES |= {"et2_rank1": 5, "et2_rank1_in_program": 5}

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
_UPDATES = cli.DEFINE_count("updates", 1, "Updates of a round. Many on a GPU.")
_WAIT = flags.DEFINE_bool("wait", False, "Internal: wait for a turn, print JSON.")
_TEMPORARY = flags.DEFINE_bool("temporary", False, "Internal: print peaks of memory.")
_PROFILE = cli.DEFINE_path("profile", None, "Folder for a trace of updates: JAX.")
_JSON = cli.DEFINE_path("json", None, "File for the figures.")


def main(argv):
    cli.no_arguments(argv)
    os.environ["KERAS_BACKEND"] = _BACKEND.value
    if _JSON.value:
        paths.check_file(_JSON.value, f"--json={_JSON.value}")
    names = _OPTIMIZERS.value or contestants.DEFAULT + contestants.peers(_BACKEND.value)
    shapes = PRESETS[_PRESET.value]
    if _TEMPORARY.value:
        cli.print_json(peaks(shapes, names, _BACKEND.value))
        return
    figures = measure(
        shapes,
        names,
        _BACKEND.value,
        _ROUNDS.value,
        _UPDATES.value,
        wait_for_turn if _WAIT.value else None,
    )
    about = {"environment": environment(), "preset": _PRESET.value}
    if _WAIT.value:
        cli.print_json(about | figures)
        return
    print(f"{_PRESET.value}: {figures['parameters']:,} parameters, {environment()}")
    print(f"copy bandwidth {figures['copy_bandwidth'] / 1e9:.1f} GB/s\n")
    print(tables.updates(figures))
    if _JSON.value:
        files.write_json(pathlib.Path(_JSON.value), about | figures)


def measure(shapes, names, backend, rounds, updates=1, before_timing=None):
    """Returns the figures of each optimizer: a dict that `tables.updates` shows."""
    # First, while this process holds nothing: there may be memory for one.
    found = {}
    if backend != "jax":  # whose compiler says it
        found = apart(
            "benchmarks.optimizer_step",
            "--temporary",
            f"--preset={_PRESET.value}",
            f"--optimizers={','.join(names)}",
            f"--backend={backend}",
            environment=RETURNING_MEMORY,
        )
    rows, bandwidth = timings(shapes, names, backend, rounds, updates, before_timing)
    parameters = sum(map(math.prod, shapes))
    for name, row in rows.items():
        if name in MOVES:
            traffic = 4 * MOVES[name] * parameters / (row["milliseconds"] / 1e3)
            row["share_of_copy_bandwidth"] = traffic / bandwidth
    for name, peak in found.items():
        rows[name]["temporary_bytes"] = peak
    return {
        "parameters": parameters,
        "largest_variable_bytes": 4 * max(map(math.prod, shapes)),
        "copy_bandwidth": bandwidth,
        "optimizers": rows,
    }


def timings(shapes, names, backend, rounds, updates, before_timing):
    """Returns {optimizer: its figures but for peaks}, and the bandwidth of a copy."""
    contestants.keras_optimizer("sgd")  # imports Keras, which is no part of a call
    grads, values = arrays(shapes)
    steps, rows = {}, {}
    for name in progress.over(names, "compile", "optimizer"):
        began = time.perf_counter()
        step = contestants.make(name, backend)(grads, values)
        step.run(1)
        rows[name] = {
            "compile_seconds": time.perf_counter() - began,
            "state_bytes": step.state_bytes,
            "temporary_bytes": step.temporary_bytes,
        }
        steps[name] = step
    if before_timing:
        before_timing()
    times = {name: [] for name in steps}
    for _ in progress.over(range(rounds), unit="round"):
        for name, step in steps.items():
            times[name].append(timed(step.run, updates) / updates)
    for name, row in rows.items():
        row["milliseconds"] = 1e3 * statistics.median(times[name])
    with traced(_PROFILE.value):
        for step in steps.values():
            step.run(1)
    return rows, copy_bandwidth()


def arrays(shapes):
    """Returns gradients and values of variables: two lists of arrays."""
    import numpy as np

    rng = np.random.default_rng(0)
    grads = [rng.standard_normal(s, dtype="float32") for s in shapes]
    return grads, [np.ones(s, "float32") for s in shapes]


def peaks(shapes, names, backend):
    """Returns {optimizer: bytes} that an update has for a while."""
    found = {}
    for name in names:
        step = contestants.make(name, backend)(*arrays(shapes))
        step.run(1)
        found[name] = peak_temporary_bytes(lambda: step.run(1))  # noqa: B023
    return found


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
