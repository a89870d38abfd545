"""Prints what runs of the paper's size take on cards: an estimate.

    python -m benchmarks.paper_scale

The speed is the share of a card's peak that one of them was measured to reach. Older
cards need float16 in place of bfloat16, and reach another share.
"""

import sys

from absl import flags

from benchmarks import tables
from trainer.bin import cli

# Dense products of 16-bit floats, FLOP/s, by the vendor's data sheets.
CARDS = {"V100": 125e12, "A100": 312e12, "H100": 989e12}
# Of the `transformer_base` whose speed is given.
SUBWORDS = 8192
# docs/benchmarks.md, "On a GPU": et2_orthogonal_half, 16,384 tokens a step.
_SPEED = cli.DEFINE_number(
    "tokens_per_second", 1_471_404, f"Of transformer_base, {SUBWORDS} subwords."
)
_CARD = flags.DEFINE_enum("card", "H100", list(CARDS), "That was measured.")
# Bytes a weight, its gradient and its state take in float32. et2_orthogonal keeps a few
# hundred scalars in all.
BYTES = {"adam": 16, "et2_orthogonal": 8}


def main(argv):
    cli.no_arguments(argv)
    from trainer.training import paper_runs

    base = paper_runs.MODELS["base"]
    measured = _SPEED.value * paper_runs.flops_per_token(base, SUBWORDS)
    share = measured / CARDS[_CARD.value]
    print(f"At {share:.1%} of a card's peak:\n\n{tables.paper(share, CARDS, BYTES)}")


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
