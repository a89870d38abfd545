"""Names the optimizers that are measured, for each backend.

Ours and Keras' own come from the trainer's registry, from the variants of the
experiments, or are named here; Optax and torch optimizers join on the backend they
belong to, where they are installed.
"""

import dataclasses
import importlib.util

from benchmarks.steps import keras_step
from benchmarks.steps import optax_step
from benchmarks.steps import torch_step

RATE = 1e-3
# What a variant adds to an optimizer of the trainer's registry.
_VARIANTS = {
    "et2_bare": ("et2", {"skip_nonfinite": False}),
    "et2_guarded": ("et2", {"global_clipnorm": 1.0, "weight_decay": 0.01}),
    "et2_rank1_unclipped": ("et2_rank1", {"clip_threshold": None}),
}
_KERAS = {
    "adadelta": "Adadelta",
    "adamax": "Adamax",
    "adamw": "AdamW",
    "ftrl": "Ftrl",
    "lamb": "Lamb",
    "muon": "Muon",
    "nadam": "Nadam",
}
DEFAULT = (
    "sgd,momentum,adagrad,rmsprop,adam,adamw,adamax,nadam,adadelta,ftrl,lamb,muon,lion,"
    "adafactor,et1,et2,et3,etinf,et2_bare,et2_guarded,et2_rank1,et2_rank1_unclipped,"
    "et2_orthogonal,et2_orthogonal_heads"
).split(",")


def peers(backend):
    """Returns the names of the optimizers from other libraries that run here."""
    return list(_of_library(backend))


def make(name, backend):
    """Returns a function of (grads, values) that gives a step: see `steps.py`.

    With "_in_program" after its name, ours is a part of one XLA program.
    """
    table = _of_library(backend)
    if name in table:
        return table[name]
    name, in_program, _ = name.partition("_in_program")
    return keras_step(keras_optimizer(name), in_program=bool(in_program))


def _of_library(backend):
    """Returns the optimizers of the library that a backend belongs to."""
    return {"jax": _optax, "torch": _torch}.get(backend, dict)()


def keras_optimizer(name, hparams=None):
    """Returns a Keras optimizer, ours or Keras' own, at a small rate.

    Args:
        name: of the optimizer.
        hparams: `HParams` of the model, whose heads some go by. Default: those of
            `transformer_base`.
    """
    import keras

    from trainer.experiments import variants
    from trainer.hparams import HParams
    from trainer.optim import catalog

    if name in _KERAS:
        return getattr(keras.optimizers, _KERAS[name])(RATE)
    variants.register()
    base, extra = _VARIANTS.get(name, (name, {}))
    hparams = dataclasses.replace(
        hparams or HParams(), optimizer=base, learning_rate_constant=RATE
    )
    made = catalog.create(hparams, [])
    return made.from_config(made.get_config() | extra)


def _installed(module):
    return importlib.util.find_spec(module) is not None


def _optax():
    if not _installed("optax"):
        return {}
    import optax

    return {
        "optax_sgd": optax_step(optax.sgd(RATE)),
        "optax_adam": optax_step(optax.adam(RATE)),
        "optax_adafactor": optax_step(optax.adafactor(RATE)),
        "optax_sm3": optax_step(optax.sm3(RATE)),
        "optax_lion": optax_step(optax.lion(RATE)),
    }


def _torch():
    if not _installed("torch"):
        return {}
    import torch

    table = {
        "torch_sgd": torch_step(lambda p: torch.optim.SGD(p, RATE)),
        "torch_adamw_fused": torch_step(
            lambda p: torch.optim.AdamW(p, RATE, fused=True)
        ),
        "torch_adafactor": torch_step(lambda p: torch.optim.Adafactor(p, RATE)),
    }
    if _installed("galore_torch"):
        table["galore_adamw"] = torch_step(_low_rank("galore_torch", "GaLoreAdamW"))
    if _installed("apollo_torch"):
        table["apollo_adamw"] = torch_step(_low_rank("apollo_torch", "APOLLOAdamW"))
    # 8-bit Adam: bitsandbytes and torchao step on a GPU only.
    if torch.cuda.is_available() and _installed("bitsandbytes"):
        import bitsandbytes

        table["bitsandbytes_adam8bit"] = torch_step(
            lambda p: bitsandbytes.optim.Adam8bit(p, RATE)
        )
    if torch.cuda.is_available() and _installed("torchao"):
        from torchao.optim import AdamW8bit

        table["torchao_adamw8bit"] = torch_step(lambda p: AdamW8bit(p, RATE))
    return table


def _low_rank(module, name):
    """Returns what makes GaLore or APOLLO: matrices at rank 128, vectors by Adam."""

    def make_optimizer(parameters):
        optimizer = getattr(importlib.import_module(module), name)
        low_rank = {
            "params": [p for p in parameters if p.ndim == 2],
            "rank": 128,
            "update_proj_gap": 200,
            "scale": 0.25 if "GaLore" in name else 1.0,
            "proj_type": "std",
        }
        if "APOLLO" in name:
            low_rank |= {"proj": "random", "scale_type": "channel"}
        rest = {"params": [p for p in parameters if p.ndim != 2]}
        return optimizer([rest, low_rank], lr=RATE)

    return make_optimizer
