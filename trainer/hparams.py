"""Defines the hyperparameters, with type, default and meaning, and sets of them."""

import dataclasses
import math
import typing

from trainer import registry
from trainer.errors import HParamsError
from trainer.errors import UsageError
from trainer.errors import unknown
from trainer.sizes import Bytes

_TYPES = {int: "a whole number", float: "a number", str: "text", Bytes: "a size"}


@dataclasses.dataclass(frozen=True)
class HParams:
    """Hyperparameters of a model and its training. Names are Tensor2Tensor's."""

    num_hidden_layers: int = 6
    hidden_size: int = 512
    filter_size: int = 2048  # width of the feed-forward layer
    num_heads: int = 8
    layer_prepostprocess_dropout: float = 0.1  # on embeddings and sub-layers
    attention_dropout: float = 0.1  # on attention weights
    relu_dropout: float = 0.1  # inside the feed-forward layer
    label_smoothing: float = 0.1
    batch_size: int = 4096  # tokens a step, padding counted
    optimizer: str = "et2_orthogonal_momentum"
    # Of ET optimizers, as in 64KB; 0: what their level takes.
    optimizer_state_budget: Bytes = Bytes(0)
    # c of the schedule; 0: the optimizer's, for this width.
    learning_rate_constant: float = 0.0
    learning_rate_schedule: str = "inverse_sqrt"
    learning_rate_warmup_steps: int = 10_000
    learning_rate_decay_steps: int = 250_000  # of the schedules that end
    gradient_accumulation_steps: int = 1  # batches an update averages
    ema_momentum: float = 0.0  # of averaged weights, which are evaluated; 0: none
    clip_grad_norm: float = 0.0  # global norm; 0: none
    weight_decay: float = 0.0  # decoupled; 0: none

    def override(self, assignments: str) -> "HParams":
        """Returns these with the changes "name=value,name=value".

        Raises:
            UsageError: a name is unknown, or a value is not of its type or bounds.
        """
        fields = typing.get_type_hints(HParams)
        changes = {}
        for item in filter(None, assignments.split(",")):
            name, separator, text = item.partition("=")
            name, text = name.strip(), text.strip()
            if not separator:
                raise UsageError(
                    f"--hparams item {item!r} is not of the form name=value"
                )
            if name not in fields:
                raise unknown("hparam", name, fields)
            try:
                changes[name] = fields[name](text)
            except ValueError as error:
                raise UsageError(
                    f"hparam {name} must be {_TYPES[fields[name]]}. "
                    f"Received: {name}={text!r} ({error})"
                ) from None
        return dataclasses.replace(self, **changes)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            name = field.name
            if field.type is int and not 1 <= value < 2**31:
                raise HParamsError(f"hparam {name} must be in [1, 2**31). Got {value}")
            rate = "dropout" in name or name in ("label_smoothing", "ema_momentum")
            if rate and not 0 <= value < 1:
                raise HParamsError(f"hparam {name} must be in [0, 1). Got {value}")
            if field.type is float and not 0 <= value < math.inf:
                raise HParamsError(
                    f"hparam {name} must be a number, 0 or more. Got {value}"
                )
        if self.hidden_size % (2 * self.num_heads):
            raise HParamsError(
                "hidden_size must be a multiple of 2 * num_heads. Received: "
                f"hidden_size={self.hidden_size}, num_heads={self.num_heads}"
            )


@registry.hparams_sets.register
def transformer_base():
    """Returns Tensor2Tensor's transformer_base (v3).

    With rows of 256 tokens and 500,000 steps it is the paper's run.
    """
    return HParams()


@registry.hparams_sets.register
def transformer_big():
    """Returns Tensor2Tensor's transformer_big."""
    return HParams(
        hidden_size=1024,
        filter_size=4096,
        num_heads=16,
        layer_prepostprocess_dropout=0.3,
    )


@registry.hparams_sets.register
def transformer_small():
    """Returns a small model: 2 layers of width 256."""
    return HParams(num_hidden_layers=2, hidden_size=256, filter_size=1024, num_heads=4)


@registry.hparams_sets.register
def transformer_tiny():
    """Returns a tiny model, for tests and trials: 2 layers of width 128."""
    return HParams(num_hidden_layers=2, hidden_size=128, filter_size=512, num_heads=4)
