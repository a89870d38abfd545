r"""Measures a training step inside `model.fit` for each optimizer, in one process.

    python -m benchmarks.fit_step [--hparams_set=transformer_small] \
        [--optimizers=sgd,adam,et2] [--rounds=8] [--steps=10]

The trainer's language model on random rows, compiled as a user would: `compile` at
its defaults. The optimizers take turns, each with a new model; a figure is the
fastest turn.
"""

import sys

from absl import flags

from benchmarks.measure import batched
from benchmarks.measure import environment
from benchmarks.measure import timed
from trainer import progress
from trainer.bin import cli
from trainer.errors import UsageError

_HPARAMS_SET = flags.DEFINE_string("hparams_set", "transformer_small", "Model.")
_HPARAMS = flags.DEFINE_string("hparams", "", "Changes: name=value,name=value.")
_OPTIMIZERS = flags.DEFINE_list("optimizers", "sgd,adam,et1,et2,et3", "Names.")
_ROUNDS = cli.DEFINE_count("rounds", 8, "Turns of each optimizer.")
_STEPS = cli.DEFINE_count("steps", 10, "Steps of a turn.")
_TOKENS = cli.DEFINE_count("batch_size", 1024, "Tokens of a step.", least=256)
_VOCAB = cli.DEFINE_count("vocab_size", 8192, "Tokens of the vocabulary.")
_LENGTH = 256


def main(argv):
    cli.no_arguments(argv)
    if _TOKENS.value % _LENGTH:
        raise UsageError(
            f"--batch_size={_TOKENS.value} holds no whole rows of {_LENGTH}"
        )
    import keras
    import numpy as np

    from benchmarks import contestants
    from trainer import registry

    hparams = registry.hparams_sets.get(_HPARAMS_SET.value)().override(_HPARAMS.value)
    shape = (_TOKENS.value // _LENGTH, _LENGTH)
    rows = np.random.default_rng(0).integers(2, _VOCAB.value, shape, "int32")
    batches = np.concatenate([rows] * _STEPS.value)
    times = {name: [] for name in _OPTIMIZERS.value}
    for name in progress.over(_OPTIMIZERS.value * _ROUNDS.value, unit="turn"):
        keras.utils.clear_session()
        model = registry.models.get("transformer_lm")(hparams, _VOCAB.value, _LENGTH)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(contestants.keras_optimizer(name, hparams), loss)

        def turn(data, model=model):
            model.fit(batched(data, data, shape[0]), shuffle=False, verbose=0)

        turn(rows)  # traces and compiles
        times[name].append(1e3 * timed(lambda: turn(batches)) / _STEPS.value)
    name = f"{_HPARAMS_SET.value} {_HPARAMS.value}".strip()
    print(
        f"{name}, {model.count_params():,} parameters, "
        f"{len(model.trainable_variables)} variables, {_TOKENS.value} tokens a step, "
        f"{environment()}\n"
    )
    peer = "adam" if "adam" in times else next(iter(times))
    print(f"| optimizer | ms a step | / {peer} |\n|---|---|---|")
    for name, figures in times.items():
        ratio = min(figures) / min(times[peer])
        print(f"| {name} | {min(figures):.1f} | {ratio:.3f} |")


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
