import dataclasses
import json

import pytest

from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams
from trainer.sizes import Bytes


def test_a_budget_has_the_spelling_of_flags():
    """It stays a number of bytes in config.json, and is read from there."""
    changed = base().override("optimizer_state_budget=1.5KB")
    assert changed.optimizer_state_budget == 1500
    kept = json.loads(json.dumps(dataclasses.asdict(changed)))
    assert kept["optimizer_state_budget"] == 1500
    assert HParams(**kept) == changed


def base():
    return registry.hparams_sets.get("transformer_base")()


def test_sets_are_tensor2tensors():
    sizes = {
        name: (h.num_hidden_layers, h.hidden_size, h.filter_size, h.num_heads)
        for name in registry.hparams_sets.names()
        for h in [registry.hparams_sets.get(name)()]
    }
    assert sizes == {
        "transformer_big": (6, 1024, 4096, 16),
        "transformer_base": (6, 512, 2048, 8),
        "transformer_small": (2, 256, 1024, 4),
        "transformer_tiny": (2, 128, 512, 4),
    }


def test_override():
    changed = base().override("batch_size=2048, optimizer=adam,label_smoothing=0")
    assert (changed.batch_size, changed.optimizer) == (2048, "adam")
    assert changed.label_smoothing == 0.0
    assert base().override("") == base()


@pytest.mark.parametrize(
    "text, message",
    [
        ("batch_size=2.5", "batch_size must be a whole number. Received: batch_size="),
        ("label_smoothing=high", "label_smoothing must be a number. Received"),
        ("optimizer_state_budget=much", "must be a size. Received: .* such as 4096"),
        ("optimizer_state_budget=-1", "must be a size. Received"),
        ("learning_rate_constant=nan", "must be a number, 0 or more. Got nan"),
        ("weight_decay=inf", "must be a number, 0 or more. Got inf"),
        ("attention_dropout=nan", r"must be in \[0, 1\). Got nan"),
        ("clip_grad_norm=-inf", "must be a number, 0 or more. Got -inf"),
        ("num_heads=0", r"num_heads must be in \[1, 2\*\*31\). Got 0"),
        ("batch_size=9999999999", r"batch_size must be in \[1, 2\*\*31\)"),
        ("batchsize=1", r"unknown hparam 'batchsize'. Did you mean batch_size\?"),
        ("batch_size", "not of the form name=value"),
        ("batch_size=0", r"batch_size must be in \[1, 2\*\*31\). Got 0"),
        ("attention_dropout=1", r"attention_dropout must be in \[0, 1\)"),
        ("weight_decay=-1", "weight_decay must be a number, 0 or more. Got -1"),
    ],
)
def test_wrong_override(text, message):
    with pytest.raises(UsageError, match=message):
        base().override(text)


@pytest.mark.parametrize(
    "text, size",
    [("4096", 4096), ("64KB", 64_000), ("1.5 MB", 1_500_000), ("2gb", 2 * 10**9)],
)
def test_sizes(text, size):
    assert Bytes(text) == Bytes(size) == size
    for wrong in (text + "x", "-" + text, "nan", "", "KB", "1e3"):
        with pytest.raises(ValueError, match="is not a size such as 4096"):
            Bytes(wrong)
