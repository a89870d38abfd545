"""Compares runs over several devices and processes with the run on one device.

    KERAS_BACKEND=jax python -m benchmarks.equivalence [--optimizers=adam,et2]
        [--dtypes=float32] [--settings=clipping,remat] [--topologies=2x1,4x2]

Each setting is trained by `loop.train`, on the same rows, over 2, 4 and 8 devices of
one process and 1 and 4 of each of two; on TensorFlow, over those of one process. The
devices are a CPU's, as many as are asked for.

The table has the largest difference between weights and those of one device, and what
is allowed: in float32 `--tolerance`, in mixed_bfloat16 twice the largest difference
that this dtype makes on one device, to the run in float32, for both runs compared
may be so far from that. Status 1: a difference is above it.
`--optimizers=all` are all that are registered. With `--folder` a table that was
interrupted goes on.
"""

import argparse
import dataclasses
import itertools
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import keras
import numpy as np

from trainer import progress

DTYPES = ("float32", "mixed_bfloat16")
VARIANTS = {
    "plain": {},
    "clipping": {"clip_grad_norm": 0.1},
    "EMA": {"ema_momentum": 0.9},
    "accumulation": {"gradient_accumulation_steps": 2},
    "remat": {},
}
ON_JAX = keras.backend.backend() == "jax"
# Devices of a process x processes. What is compared with is 1x1.
TOPOLOGIES = ("2x1", "4x1", "8x1", *(("1x2", "4x2") if ON_JAX else ()))
PROBLEM = "languagemodel_lm1b2k_packed"


def settings(options):
    """Returns (optimizer, dtype, variant) of every row of the table."""
    from trainer import registry

    optimizers = options.optimizers
    if optimizers == "all":
        optimizers = ",".join(registry.optimizers.names())
    chosen = (optimizers, options.dtypes, options.settings)
    return list(itertools.product(*(names.split(",") for names in chosen)))


def path_of(options, setting, topology):
    """Returns where the weights of a run are."""
    return pathlib.Path(options.folder) / ".".join([*setting, topology, "npy"])


def train(options, optimizer, dtype, variant):
    """Returns all weights after the steps of a run, as one vector."""
    from trainer.hparams import HParams
    from trainer.training import loop
    from trainer.training.run import Run

    hparams = HParams(
        num_hidden_layers=2,
        hidden_size=32,
        filter_size=64,
        num_heads=4,
        batch_size=512,
        # On TensorFlow each device draws noise of its own.
        layer_prepostprocess_dropout=0.1 if ON_JAX else 0.0,
        attention_dropout=0.0,
        relu_dropout=0.0,
        learning_rate_warmup_steps=100,
        optimizer=optimizer,
    )
    run = Run(
        PROBLEM,
        options.data_dir,
        dataclasses.replace(hparams, **VARIANTS[variant]),
        options.steps,
        dtype=dtype,
        remat=variant == "remat",
        local_eval_frequency=options.steps,
        eval_steps=1,
    )
    result = loop.train(run)
    if result.interrupted_by:
        raise KeyboardInterrupt
    variables = result.model.trainable_variables
    return np.concatenate([np.asarray(v).ravel() for v in variables])


def work(options):
    """Trains every setting over the devices of this process, and of others."""
    from trainer import distribution
    from trainer import processes
    from trainer.hparams import HParams

    if not ON_JAX:
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * options.devices
        tf.config.set_logical_device_configuration(cpu, parts)
    several = options.num_processes > 1
    distribution.begin(
        "data",
        f"127.0.0.1:{options.port}" if several else None,
        options.num_processes if several else None,
        options.process_id if several else None,
    )
    topology = f"{options.devices}x{options.num_processes}"
    alone = topology == "1x1"
    rows = settings(options)
    if alone:  # what mixed_bfloat16 is measured by, too
        rows = dict.fromkeys(
            s for o, d, v in rows for s in ((o, d, v), (o, DTYPES[0], v))
        )
    for setting in rows:
        path = path_of(options, setting, topology)
        if path.exists():
            continue
        keras.backend.clear_session()  # of the distribution, too
        distribution.spread("none" if alone else "data", "", HParams(), 0)
        weights = train(options, *setting)
        if processes.is_first():
            np.save(path, weights)
    processes.leave(0)


def free_port():
    """Returns a port of this host that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(options, devices, number):
    """Trains every setting in so many processes of so many devices each."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    given = vars(options) | {
        "devices": devices,
        "num_processes": number,
        "port": free_port(),
    }
    command = [sys.executable, "-m", "benchmarks.equivalence"]
    command += [
        f"--{name}={value}" for name, value in given.items() if value is not None
    ]
    started = [
        subprocess.Popen(
            [*command, f"--process_id={process}"],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(number)
    ]
    errors = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"a process of {devices} devices failed:\n{errors[0]}")


def report(options):
    """Prints the table, and returns whether all of it is as it should be."""
    topologies = options.topologies.split(",")
    print("| optimizer | dtype | setting | " + " | ".join(topologies) + " | allowed |")
    print("|---" * (4 + len(topologies)) + "|")
    good = True
    for setting in settings(options):
        one = np.load(path_of(options, setting, "1x1"))

        def from_one(setting, topology, one=one):
            other = np.load(path_of(options, setting, topology))
            return float(np.abs(other - one).max())

        found = [from_one(setting, topology) for topology in topologies]
        optimizer, dtype, variant = setting
        allowed = options.tolerance
        if dtype != DTYPES[0]:
            rounding = from_one((optimizer, DTYPES[0], variant), "1x1")
            allowed = max(allowed, 2 * rounding)
        good &= max(found) <= allowed
        cells = [*setting, *(f"{x:.1e}" for x in (*found, allowed))]
        print(f"| {' | '.join(cells)} |")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", default="et2_orthogonal,et2_rank1_short,adam")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--settings", default=",".join(VARIANTS))
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--folder", help="of weights; one that goes by default")
    parser.add_argument("--data_dir", help="made of testdata by default")
    for name in ("devices", "num_processes", "process_id", "port"):
        parser.add_argument(f"--{name}", type=int, help="of a process of the table's")
    options = parser.parse_args()
    if options.num_processes:
        return work(options)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or folder
        pathlib.Path(options.folder).mkdir(parents=True, exist_ok=True)
        if options.data_dir is None:
            options.data_dir = make_data(f"{folder}/data")
        topologies = ("1x1", *options.topologies.split(","))
        for topology in progress.over(topologies, unit="topology"):
            start(options, *map(int, topology.split("x")))
        return int(not report(options))


def make_data(folder):
    """Writes rows of 32 tokens made of testdata's corpus, and returns their folder."""
    from testdata import generate
    from trainer import registry
    from trainer.data import datagen

    folder = pathlib.Path(folder)
    generate.write_corpus(folder / "text", train_sentences=(1500, 500), dev=200)
    problem = registry.problems.get(PROBLEM)
    datagen.generate(problem, folder / "text", folder, max_length=32)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
