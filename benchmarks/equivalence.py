"""Compares runs over several devices and processes with the run on one device.

    KERAS_BACKEND=jax python -m benchmarks.equivalence [--optimizers=adam,et2]
        [--dtypes=float32] [--settings=clipping,remat] [--steps=20]

Each setting is trained by `loop.train`, on the same rows, over 1, 2, 4 and 8 devices of
one process and 1 and 4 of each of two. The table has the largest difference between
weights and those of one device. The devices are a CPU's, as many as are asked for.
Status 1: a difference is above --tolerance.
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
# (devices of a process, processes); the first is what the others are compared with.
TOPOLOGIES = [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (4, 2)]
PROBLEM = "languagemodel_lm1b2k_packed"


def settings(options):
    """Returns (name, arguments of a `Run`) of every row of the table."""
    chosen = (options.optimizers, options.dtypes, options.settings)
    rows = itertools.product(*(names.split(",") for names in chosen))
    return [(f"{o}.{dtype}.{variant}", o, dtype, variant) for o, dtype, variant in rows]


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
        layer_prepostprocess_dropout=0.1,
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
    import keras

    from trainer import distribution

    several = options.num_processes > 1
    distribution.begin(
        "data",
        f"127.0.0.1:{options.port}" if several else None,
        options.num_processes if several else None,
        options.process_id if several else None,
    )
    everything = keras.distribution.list_devices()
    for devices, processes in TOPOLOGIES:
        if processes != options.num_processes or (
            several and devices * processes != len(everything)
        ):
            continue
        spread = None
        if devices * processes > 1:
            spread = keras.distribution.DataParallel(
                devices=everything[: devices * processes], auto_shard_dataset=False
            )
        for name, *setting in settings(options):
            keras.backend.clear_session()  # of the distribution, too
            keras.distribution.set_distribution(spread)
            weights = train(options, *setting)
            if distribution.is_first():
                path = pathlib.Path(options.folder)
                np.save(path / f"{name}.{devices}x{processes}.npy", weights)
    distribution.leave(0)


def start(options, devices, processes):
    """Trains every setting in processes of so many devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmarks.equivalence",
                *(f"--{k}={v}" for k, v in vars(options).items() if v is not None),
                f"--num_processes={processes}",
                f"--process_id={number}",
                f"--port={port}",
            ],
            env={**os.environ, "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    errors = [process.communicate()[1] for process in started]
    if any(process.returncode for process in started):
        sys.exit(f"a process of {devices} devices failed:\n{errors[0]}")


def report(options):
    """Prints the table, and returns the largest difference of all."""
    heads = [f"{d}x{p}" for d, p in TOPOLOGIES[1:]]
    print("| optimizer | dtype | setting | " + " | ".join(heads) + " |")
    print("|---" * (3 + len(heads)) + "|")
    largest = 0.0
    for name, *setting in settings(options):

        def weights(devices, processes, name=name):
            path = pathlib.Path(options.folder)
            return np.load(path / f"{name}.{devices}x{processes}.npy")

        one = weights(*TOPOLOGIES[0])
        found = [float(np.abs(weights(*t) - one).max()) for t in TOPOLOGIES[1:]]
        largest = max(largest, *found)
        cells = [*setting, *(f"{x:.1e}" for x in found)]
        print(f"| {' | '.join(cells)} |")
    return largest


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizers", default="et2_orthogonal,et2_rank1_short,adam")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--settings", default=",".join(VARIANTS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--folder", help="of weights; one that goes by default")
    parser.add_argument("--data_dir", help="made of testdata by default")
    parser.add_argument("--num_processes", type=int)
    parser.add_argument("--process_id", type=int)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.num_processes:
        return work(options)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = options.folder or folder
        if options.data_dir is None:
            options.data_dir = make_data(pathlib.Path(folder) / "data")
        # One process of eight devices trains on some of them, too.
        topologies = [(8, 1), *((d, p) for d, p in TOPOLOGIES if p > 1)]
        for devices, processes in progress.over(topologies, unit="topology"):
            start(options, devices, processes)
        largest = report(options)
    print(f"largest difference: {largest:.1e}")
    return int(not largest <= options.tolerance)


def make_data(folder):
    """Writes rows of 32 tokens made of testdata's corpus, and returns their folder."""
    from testdata import generate
    from trainer import registry
    from trainer.data import datagen

    generate.write_corpus(folder / "text", train_sentences=(1500, 500), dev=200)
    problem = registry.problems.get(PROBLEM)
    datagen.generate(problem, folder / "text", folder, max_length=32)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
