r"""Measures the seconds of a token, with the cache and by running the row again.

    python -m benchmarks.decoding [--hparams_set=transformer_small] [--rows=8] \
        [--vocab_size=8192] [--rounds=10]

Tokens are drawn, in rows of 256. Generations of one token and of 250 tell what the
first one takes, with the prompt, and what each after it takes: the cache has the size
of the whole generation from its start. Running again computes hidden states of the
whole row and logits of one token: what a step of one shape takes without a cache.
"""

import functools

from absl import flags

from trainer import progress
from trainer.bin import cli

_HPARAMS_SET = flags.DEFINE_string("hparams_set", "transformer_small", "Model.")
_ROWS = cli.DEFINE_counts("rows", ["1", "8", "32"], "Rows continued at a time.")
_VOCAB = cli.DEFINE_count("vocab_size", 8192, "Tokens of the vocabulary.")
_ROUNDS = cli.DEFINE_count("rounds", 10, "The fastest counts.")
_LENGTH = 256
_TOKENS = 250


def main(argv):
    cli.no_arguments(argv)
    import keras

    from benchmarks import measure
    from trainer import registry

    keras.utils.set_random_seed(0)
    hparams = registry.hparams_sets.get(_HPARAMS_SET.value)()
    model = registry.models.get("transformer_lm")(hparams, _VOCAB.value, _LENGTH)
    lines = []
    for rows in progress.over([int(rows) for rows in _ROWS.value], unit="size"):
        first, all_of_them = _generation(model, rows, (1, _TOKENS))
        each = (all_of_them - first) / (_TOKENS - 1)
        again = _whole_row(model, rows)
        lines.append(
            f"| {rows} | {rows * _TOKENS / all_of_them:,.0f} | {1e3 * first:.2f} | "
            f"{1e3 * each:.2f} | {1e3 * again:.2f} | {again / each:.1f} |"
        )
    print(
        f"{_HPARAMS_SET.value}, {_VOCAB.value} tokens of vocabulary, "
        f"{measure.environment()}\n"
    )
    print(
        "| rows | tokens/s | first token, ms | each after it, ms | whole row again, ms "
        "| again / cache |\n|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


def _generation(model, rows, lengths):
    """Returns the seconds of so many tokens after a prompt; lengths take turns."""
    from benchmarks.measure import timed
    from trainer.inference import decoding

    function = functools.partial(decoding.generate, temperature=1.0)
    decoders = [decoding.Decoder(model, _LENGTH, n, function) for n in lengths]
    for decoder in decoders:
        if not decoder([[5]] * rows)[:, -1].any():
            raise RuntimeError("every row ended early: give another --vocab_size")
    turns = [
        [timed(lambda: d([[5]] * rows)) for d in decoders]  # noqa: B023
        for _ in range(_ROUNDS.value)
    ]
    return [min(seconds) for seconds in zip(*turns)]


def _whole_row(model, rows):
    """Returns the seconds of a token that is computed from the whole row."""
    import keras
    import numpy as np

    from benchmarks.measure import timed

    last = keras.Model(
        model.inputs, model.embedding(model.hidden[:, -1:], reverse=True)
    )
    ids = np.full((rows, _LENGTH), 5, "int32")
    last.predict_on_batch(ids)
    return min(timed(lambda: last.predict_on_batch(ids)) for _ in range(_ROUNDS.value))


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
