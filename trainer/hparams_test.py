import pytest

from trainer import registry
from trainer.errors import UsageError


def base():
    return registry.hparams_sets.get("transformer_base")()


def test_sets_are_tensor2tensors():
    sizes = {
        name: (h.num_hidden_layers, h.hidden_size, h.filter_size, h.num_heads)
        for name in registry.hparams_sets.names()
        if "et_gbw" not in name
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
        ("batch_size=2.5", "batch_size must be of type int. Received"),
        ("label_smoothing=high", "label_smoothing must be of type float"),
        ("batchsize=1", "unknown hparam 'batchsize'. Known: num_hidden_layers"),
        ("batch_size", "not of the form name=value"),
        ("batch_size=0", "batch_size must be >= 1"),
        ("attention_dropout=1", r"attention_dropout must be in \[0, 1\)"),
        ("weight_decay=-1", "weight_decay must be >= 0"),
    ],
)
def test_wrong_override(text, message):
    with pytest.raises(UsageError, match=message):
        base().override(text)


def test_unknown_names():
    with pytest.raises(UsageError, match="unknown hparams set 'huge'. Known: "):
        registry.hparams_sets.get("huge")
    with pytest.raises(UsageError, match="languagemodel_lm1b32k_packed"):
        registry.problems.get("ptb")


def test_a_name_is_registered_once():
    table = registry.Registry("thing", [])
    table.register(base)
    with pytest.raises(UsageError, match="thing 'base' is registered twice"):
        table.register(base)
