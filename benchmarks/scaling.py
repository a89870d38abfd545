"""What data parallel costs: shards and sums beside the plan, work that is repeated.

    KERAS_BACKEND=jax python -m benchmarks.scaling [--devices=8] [--optimizers=adam]
        [--cores]

Builds Transformers of two sizes over a CPU's devices, and prints for each optimizer the
bytes that a device holds of weights and of state, and the bytes that it sends a step:
2 (N - 1) / N of the operands of all sums in the compiled step, as they travel in
rings. Beside each stands what `et-plan --devices` says. "update" is the share of the
operations of a device's step that are the optimizer's: each device repeats them.

--cores trains instead with one process on one core, and with two of one core each and
the batch of both, and prints the time of a step of the two over that of the one. On a
busy machine only the ratio says something, and not much.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile

SIZES = {  # layers, hidden size, filter size, vocabulary
    "small": (2, 64, 256, 1000),
    "medium": (4, 256, 1024, 8192),
}
ROWS, LENGTH = 8, 128  # of a device
OPTIMIZERS = "sgd,adam,et2,et2_orthogonal"
_BYTES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1}


def summed_bytes(program):
    """Returns the bytes that the devices of a compiled program sum, by its text."""
    found = re.findall(r"= (\([^)]*\)|\S+) all-reduce(?:-start)?\(", program)
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", " ".join(found))
    return sum(
        _BYTES[dtype] * math.prod(map(int, filter(None, shape.split(","))))
        for dtype, shape in arrays
    )


def on_first_device(variables):
    """Returns the bytes of the shards of variables that lie on the first device."""
    return sum(v.value.addressable_shards[0].data.nbytes for v in variables)


def measured(size, optimizer):
    """Returns (compiled model, {quantity: measured}) of a step over all devices.

    The quantities are weights, state and wire, in bytes, and update, a share.
    """
    import jax
    import numpy as np

    from benchmarks.measure import compiled_step
    from trainer import distribution
    from trainer import registry
    from trainer.hparams import HParams
    from trainer.models import language_model
    from trainer.optim import catalog

    layers, hidden, filters, vocabulary = SIZES[size]
    hparams = HParams(
        num_hidden_layers=layers,
        hidden_size=hidden,
        filter_size=filters,
        num_heads=4,
        optimizer=optimizer,
    )
    distribution.spread("data", "transformer_lm", hparams, vocabulary)
    number = distribution.devices()
    model = registry.models.get("transformer_lm")(hparams, vocabulary, LENGTH)
    tokens = number * ROWS * LENGTH
    trained = language_model.training_model(model, 0.0, tokens)
    trained.compile(catalog.create(hparams, model.trainable_variables))
    program = compiled_step(trained, np.ones((number * ROWS, LENGTH), "int32"))
    weights = model.trainable_variables
    counters = r"iteration|learning_rate|counters"
    state = [v for v in trained.optimizer.variables if not re.search(counters, v.path)]
    values = [v.value for v in weights], [v.value for v in trained.optimizer.variables]
    update = jax.jit(lambda w, s: trained.optimizer.stateless_apply(s, w, w)).lower(
        *values
    )
    flops = [p.cost_analysis()["flops"] for p in (update.compile(), program)]
    way = (number - 1) / number
    return trained, {
        "weights": on_first_device(weights),
        "state": on_first_device(state),
        "wire": 2 * way * summed_bytes(program.as_text()),
        "update": flops[0] / flops[1],
    }


def report(optimizers):
    """Prints the table of both sizes."""
    import jax

    from extreme_tensoring_tf import ExtremeTensoring
    from extreme_tensoring_tf import memory_report
    from trainer.optim import device_memory

    print(
        "| parameters | optimizer | weights, plan | state, plan | wire, plan | update |"
    )
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        for optimizer in optimizers:
            trained, found = measured(size, optimizer)
            weights = trained.trainable_variables
            ours = isinstance(trained.optimizer, ExtremeTensoring)
            planned = memory_report(weights, [trained.optimizer if ours else optimizer])
            (share, *_) = device_memory.shares(planned, jax.device_count())
            cells = [
                f"{found[name]:,.0f}, {getattr(share, name):,.0f}"
                for name in ("weights", "state", "wire")
            ]
            row = [f"{trained.count_params():,}", optimizer, *cells]
            print(f"| {' | '.join(row)} | {found['update']:.1%} |")


def cores(optimizers, rounds=3):
    """Prints the seconds of a step of two processes over those of one, on a core each.

    Each process has the rows of one device: with perfect scaling the ratio is 1. The
    least of some rounds, which take turns, is taken of both.
    """
    from benchmarks import equivalence

    with tempfile.TemporaryDirectory() as folder:
        data = equivalence.make_data(f"{folder}/data")
        for optimizer in optimizers:
            best = {}
            for _ in range(rounds):
                for number in (1, 2):
                    seconds = _step_seconds(data, optimizer, number)
                    best[number] = min(seconds, best.get(number, seconds))
            print(
                f"{optimizer}: {best[1]:.3f} s a step of one process, {best[2]:.3f} of "
                f"two, {best[2] / best[1]:.2f} times as long"
            )


def _step_seconds(data, optimizer, number):
    """Returns the seconds of a step of so many processes, each on a core of its own."""
    from benchmarks import equivalence

    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(
                sys.executable,
                "-m",
                "trainer.bin.et_trainer",
                "--hparams_set=transformer_tiny",
            ),
            *(f"--problem={equivalence.PROBLEM}", f"--data_dir={data}"),
            *(f"--output_dir={folder}/run", "--train_steps=20", "--eval_steps=1"),
            f"--hparams=batch_size={number * 1024},optimizer={optimizer}",
        ]
        several = ["--strategy=data", f"--num_processes={number}"]
        several.append(f"--coordinator=127.0.0.1:{equivalence.free_port()}")
        started = [
            subprocess.Popen(
                ["taskset", "-c", str(process), *command]
                + ([*several, f"--process_id={process}"] if number > 1 else []),
                stdout=subprocess.PIPE,
                text=True,
            )
            for process in range(number)
        ]
        texts = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        sys.exit("a run has failed")
    speed = re.search(r"([\d,]+) tokens/s", texts[0])[1]
    return number * 1024 / int(speed.replace(",", ""))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--optimizers", default=OPTIMIZERS)
    parser.add_argument("--cores", action="store_true")
    options = parser.parse_args()
    if options.cores:
        return cores(options.optimizers.split(","))
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={options.devices}"
    )
    return report(options.optimizers.split(","))


if __name__ == "__main__":
    main()
