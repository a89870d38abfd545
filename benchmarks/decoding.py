r"""Measures the seconds of a token, with the cache and by running the prefix again.

    python -m benchmarks.decoding [--hparams_set=transformer_small] [--rows=8] \
        [--vocab_size=8192] [--rounds=10]

One row of tokens drawn, in rows of 256. "At 10" and "at 250" are the cost of a token
when that many of 250 were generated: generations that end at 5 and at 15 tokens, or
at 240 and at 250, differ by ten of them.
Running again computes hidden states of the whole row and logits of one token.
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


def main(argv):
    cli.no_arguments(argv)
    from benchmarks import measure
    from trainer import registry

    hparams = registry.hparams_sets.get(_HPARAMS_SET.value)()
    model = registry.models.get("transformer_lm")(hparams, _VOCAB.value, _LENGTH)
    lines = []
    for rows in progress.over([int(rows) for rows in _ROWS.value], unit="size"):
        seconds = _generation(model, rows, (5, 15, 240, 250))
        early = (seconds[15] - seconds[5]) / 10
        late = (seconds[250] - seconds[240]) / 10
        mean = seconds[250] / 250
        again = _prefix(model, rows)
        lines.append(
            f"| {rows} | {rows / mean:,.0f} | {1e3 * early:.2f} | {1e3 * late:.2f} | "
            f"{late / early:.2f} | {1e3 * again:.2f} | {again / mean:.1f} |"
        )
    print(
        f"{_HPARAMS_SET.value}, {_VOCAB.value} tokens of vocabulary, "
        f"{measure.environment()}\n"
    )
    print(
        "| rows | tokens/s | ms a token at 10 | at 250 | at 250 / at 10 | "
        "prefix again, ms | again / cache |\n|---|---|---|---|---|---|---|"
    )
    print("\n".join(lines))


def _generation(model, rows, lengths):
    """Returns {length: seconds} of that many tokens after a prompt; they take turns."""
    from benchmarks.measure import timed
    from trainer.inference import decoding

    # Rows end at max_length; a row that has ended costs what the others do.
    function = functools.partial(decoding.generate, temperature=1.0)
    decoders = {
        n: decoding.Decoder(model, 1 + n, max(lengths), function) for n in lengths
    }
    turns = {n: [] for n in lengths}
    for _ in range(1 + _ROUNDS.value):
        for length, decoder in decoders.items():
            turns[length].append(timed(lambda: decoder([[5]] * rows)))  # noqa: B023
    return {length: min(seconds[1:]) for length, seconds in turns.items()}


def _prefix(model, rows):
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
