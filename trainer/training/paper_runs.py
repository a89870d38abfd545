"""Projects what runs of the paper's size take, from a speed of arithmetic.

The paper trains `transformer_base` and the same with twice the layers for 500,000
steps, on rows of 256 tokens. `transformer_big` is beside them here.

Source: arXiv 1902.04620, Section 5.
"""

import dataclasses

from trainer import hparams
from trainer.training import flops

STEPS = 500_000
LENGTH = 256
VOCAB_SIZE = 2**15
_BASE = hparams.transformer_base()
MODELS = {
    "base": _BASE,
    "doubled": dataclasses.replace(
        _BASE, num_hidden_layers=2 * _BASE.num_hidden_layers
    ),
    "big": hparams.transformer_big(),
}


def weights(model: hparams.HParams, vocab_size: int = VOCAB_SIZE) -> int:
    """Returns the entries of the matrices of a model, its embedding counted once."""
    width, filters = model.hidden_size, model.filter_size
    layer = 4 * width * width + 2 * width * filters
    return vocab_size * width + model.num_hidden_layers * layer


def flops_per_token(model: hparams.HParams, vocab_size: int = VOCAB_SIZE) -> float:
    """Returns the operations of a training step, by token: see `flops.per_token`."""
    return flops.of_weights(weights(model, vocab_size), model, LENGTH)


def hours(model: hparams.HParams, flops_per_second: float) -> float:
    """Returns the time of the paper's steps, evaluations not counted."""
    tokens = STEPS * model.batch_size
    return tokens * flops_per_token(model) / flops_per_second / 3600


def report(flops_per_second: float) -> str:
    """Returns a line of hours for each of the paper's models, at a speed."""
    times = [f"{n} {hours(m, flops_per_second):,.1f} h" for n, m in MODELS.items()]
    return f"paper's {STEPS:,} steps at this speed: {', '.join(times)}"
