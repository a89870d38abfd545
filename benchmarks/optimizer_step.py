r"""Time of one optimizer update, beside Keras' own optimizers, in one process.

    python -m benchmarks.optimizer_step [--preset=transformer_23m] \
        [--optimizers=sgd,adam,et2] [--rounds=20] [--json=FILE]

The optimizers take turns, so that noise of the machine hits all alike; a figure is
the median over the rounds. On TensorFlow every update is one function compiled by
XLA. Memory traffic is compared with the bandwidth of a plain copy, measured here.
"""

import json
import statistics
import sys

from absl import flags

from benchmarks.measure import copy_bandwidth
from benchmarks.measure import environment
from benchmarks.measure import timed
from trainer.bin import runner


def transformer(layers, hidden, filter_size, vocab_size):
    shapes = [(vocab_size, hidden)]
    for _ in range(layers):
        shapes += [(hidden, hidden)] * 4
        shapes += [(hidden, filter_size), (filter_size,)]
        shapes += [(filter_size, hidden), (hidden,)]
        shapes += [(hidden,)] * 4
    return [*shapes, (hidden,), (hidden,)]


PRESETS = {
    "transformer_23m": transformer(6, 512, 2048, 8192),
    "gpt2_124m": transformer(12, 768, 3072, 50257),
    "embedding_1m": [(1_000_000, 64)],
}
# Memory moves per parameter: reads and writes of full-size arrays.
MOVES = {"sgd": 3, "momentum": 5, "adagrad": 5, "adam": 7, "lion": 5}
OURS = 4  # the gradient twice, the variable read and written

_PRESET = flags.DEFINE_enum(
    "preset", "transformer_23m", list(PRESETS), "Shapes of the variables."
)
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    "sgd,momentum,adagrad,adam,adafactor,lion,et1,et2,et3,etinf,et2_rank1",
    "Names of the trainer's optimizers.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Timed updates of each optimizer.")
_JSON = flags.DEFINE_string("json", None, "File for the figures.")


def main(argv):
    runner.no_arguments(argv)
    import keras
    import numpy as np

    from trainer import optimizers
    from trainer import training
    from trainer.hparams import HParams

    shapes = PRESETS[_PRESET.value]
    rng = np.random.default_rng(0)
    grads = [
        keras.ops.convert_to_tensor(rng.normal(size=s).astype("float32"))
        for s in shapes
    ]
    steps, rows = {}, {}
    for name in _OPTIMIZERS.value:
        hparams = HParams(optimizer=name, learning_rate_constant=1e-3)
        optimizer = optimizers.create(hparams)
        variables = [keras.Variable(np.ones(s, "float32")) for s in shapes]
        optimizer.build(variables)
        steps[name] = compiled_step(optimizer, grads, variables)
        rows[name] = {
            "compile_seconds": timed(steps[name]),
            "state_bytes": 4 * training.optimizer_state_scalars(optimizer),
        }
    times = {name: [] for name in steps}
    for _ in range(_ROUNDS.value):
        for name, step in steps.items():
            times[name].append(timed(step))
    parameters = sum(int(np.prod(s)) for s in shapes)
    bandwidth = copy_bandwidth()
    for name, row in rows.items():
        row["milliseconds"] = 1e3 * statistics.median(times[name])
        moves = MOVES.get(name, OURS if name.startswith("et") else None)
        if moves:
            traffic = 4 * moves * parameters / statistics.median(times[name])
            row["share_of_copy_bandwidth"] = traffic / bandwidth
    for row in rows.values():
        for peer in ("sgd", "adam"):
            if peer in rows:
                row[f"over_{peer}"] = row["milliseconds"] / rows[peer]["milliseconds"]
    print(f"{_PRESET.value}: {parameters:,} parameters, {environment()}")
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    print(table(rows))
    if _JSON.value:
        figures = {"environment": environment(), "preset": _PRESET.value}
        with open(_JSON.value, "w", encoding="utf-8") as file:
            json.dump(figures | {"optimizers": rows}, file, indent=2)


def compiled_step(optimizer, grads, variables):
    """A function that takes one update and waits for it."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def update():
            optimizer.apply(grads, variables)

        def step():
            update()
            variables[-1].value.numpy()

    elif backend == "jax":
        import jax

        update = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))
        state = [
            [v.value for v in optimizer.variables],
            [v.value for v in variables],
        ]

        def step():
            values, slots = update(state[0], grads, state[1])
            state[:] = slots, values
            jax.block_until_ready(values)

    else:

        def step():
            optimizer.apply(grads, variables)

    return step


def table(rows):
    lines = [
        "| optimizer | ms | / sgd | / adam | state bytes | compile s | of copy speed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in rows.items():
        share = r.get("share_of_copy_bandwidth")
        lines.append(
            f"| {name} | {r['milliseconds']:.1f} "
            f"| {r.get('over_sgd', float('nan')):.2f} "
            f"| {r.get('over_adam', float('nan')):.2f} | {r['state_bytes']:,} "
            f"| {r['compile_seconds']:.1f} | {f'{share:.0%}' if share else ''} |"
        )
    return "\n".join(lines)


run = runner.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
