"""Registers optimizers by name, each with the rate constant that goes with it.

An entry takes (learning_rate, hparams), as in Tensor2Tensor, and returns a Keras
optimizer. c, the constant of the `inverse_sqrt` schedule, was tuned per optimizer:
`python -m trainer.experiments.memory_performance`. Twice the width halves the best c,
of Adam and of `et2_orthogonal` (docs/results.md), as Yang et al. 2021, "Tensor Programs
V", arXiv 2203.03466, derive it for Adam.
"""

import keras

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.tensor_rules import EMBEDDINGS
from trainer import registry
from trainer.errors import HParamsError
from trainer.optim import schedules
from trainer.optim.peers import adam_family
from trainer.optim.peers import factored
from trainer.optim.peers import low_rank
from trainer.optim.peers import normalized


def register(name, learning_rate_constant, optimizer, of_model=None, **arguments):
    """Registers a Keras optimizer under a name.

    Args:
        name: of the entry and of its optimizers.
        learning_rate_constant: c.
        optimizer: class or function that takes a rate and Keras' common arguments.
        of_model: None, or a function of hparams that returns more arguments.
        **arguments: more arguments.
    """

    def make(learning_rate, hparams):
        accumulated = hparams.gradient_accumulation_steps
        return optimizer(
            learning_rate,
            weight_decay=hparams.weight_decay or None,
            global_clipnorm=hparams.clip_grad_norm or None,
            gradient_accumulation_steps=accumulated if accumulated > 1 else None,
            use_ema=hparams.ema_momentum > 0,
            # Keras averages after every batch, of which an update has several.
            ema_momentum=(hparams.ema_momentum or 0.99) ** (1 / accumulated),
            name=name,
            **arguments,
            **(of_model(hparams) if of_model else {}),
        )

    registry.optimizers.register(
        name=name, learning_rate_constant=learning_rate_constant, width=TUNED_WIDTH
    )(make)


TUNED_WIDTH = 128  # hidden size of `transformer_tiny`


# Keras' own.

register("sgd", 10.0, keras.optimizers.SGD)
register("momentum", 1.0, keras.optimizers.SGD, momentum=0.9)
# Keras starts AdaGrad's sums at 0.1, far above a gradient's square here, which
# would make it SGD. The paper's algorithm starts at 0.
register(
    "adagrad",
    1.56,
    keras.optimizers.Adagrad,
    initial_accumulator_value=0.0,
    epsilon=1e-12,
)
register("rmsprop", 0.03, keras.optimizers.RMSprop)
_ADAM = {"beta_2": 0.997, "epsilon": 1e-9}
register("adam", 0.09, keras.optimizers.Adam, **_ADAM)
register("adafactor", 0.52, keras.optimizers.Adafactor, relative_step=False)
register("lion", 0.003, keras.optimizers.Lion)
register(
    "muon",
    0.09,
    keras.optimizers.Muon,
    lambda hparams: {"adam_weight_decay": hparams.weight_decay or None},  # of the rest
)

# Low-memory optimizers that came after the paper.

register("sm3", 1.0, factored.SM3)
register("came", 0.0167, factored.CAME)
register("smmf", 0.15, factored.SMMF)
register("slim_adam", 0.09, adam_family.SlimAdam, **_ADAM)
register("adam_8bit", 0.09, adam_family.Adam8bit, **_ADAM)
register(
    "adam_mini",
    0.09,
    adam_family.AdamMini,
    lambda hparams: {"num_heads": hparams.num_heads},
    **_ADAM,
)
register(
    "galore",
    0.18,
    low_rank.GaLore,
    lambda hparams: {"rank": hparams.hidden_size // 4},  # as its authors
    beta_2=0.997,
)
register("apollo_mini", 0.09, low_rank.APOLLO, beta_2=0.997)

# Those without state for hidden matrices (NorMuon has momentum), each with Adam for the
# rest, as its authors have it, and with our form for it, at one scale of matrices.
for _name, _constant, _class in (
    ("swan", 0.09, normalized.SWAN),
    ("sinkgd", 0.36, normalized.SinkGD),
    ("scale", 0.36, normalized.SCALE),
    ("racs", 0.36, normalized.RACS),
    ("normuon", 0.09, normalized.NorMuon),
):
    register(_name, _constant, _class, **_ADAM)
for _name, _class, _scale in (
    ("swan_et", normalized.SWAN, 1.0),
    ("sinkgd_et", normalized.SinkGD, 1.0),
    ("scale_et", normalized.SCALE, 10.0),
    ("racs_et", normalized.RACS, 1.0),
    ("normuon_et", normalized.NorMuon, 1.0),
):
    register(_name, 0.1, _class, rest="et", scale=_scale)

# Extreme tensoring. Every argument that makes a form is given: a name keeps its
# figures where the defaults of `ExtremeTensoring` change.

ALGORITHM_1 = {
    "preconditioner": "geometric_mean",
    "statistic": "sum",
    "beta_2": None,
    "clip_threshold": None,
}
# "sum", the letter of the paper, makes the rate of a variable fall with its size, so
# biases would learn some 30 times faster than embeddings here. "mean" is the same
# algorithm but for one constant a variable, and one c fits all.
_MEANS = ALGORITHM_1 | {"statistic": "mean"}
_RANK_ONE = {
    "preconditioner": "rank_one",
    "statistic": "sum",  # without effect: the form is on means
    "beta_2": 0.99,
    "clip_threshold": 1.0,
}
# An average over ten steps, not a hundred: better where training is short.
_SHORT = _RANK_ONE | {"beta_2": 0.9}
# How often a token occurs sets the scale of its row, which level 2 folds away.
_ROWS = {"tensor_dims": {EMBEDDINGS: 1}}

for _name, _constant, _level, _form in (
    ("et1", 1.0, 1, _MEANS),
    ("et2", 1.0, 2, _MEANS),
    ("et3", 0.577, 3, _MEANS),
    ("etinf", 0.333, "inf", _MEANS),
    ("et1_sum", 6.0, 1, ALGORITHM_1),
    ("et2_sum", 12.0, 2, ALGORITHM_1),
    ("et3_sum", 20.0, 3, ALGORITHM_1),
    ("etinf_sum", 40.0, "inf", ALGORITHM_1),
    ("et2_ema", 0.0333, 2, _MEANS | {"beta_2": 0.99}),
    ("et1_rank1", 0.1, 1, _RANK_ONE),
    ("et2_rank1", 0.1, 2, _RANK_ONE),
    ("et3_rank1", 0.1, 3, _RANK_ONE),
    ("et2_rank1_sums", 0.333, 2, _RANK_ONE | {"beta_2": None, "clip_threshold": None}),
    ("et2_rank1_rows", 0.1, 2, _RANK_ONE | _ROWS),
    # `ExtremeTensoring()`, for models whose matrices are not the bulk.
    ("et2_rank1_short", 0.1, 2, _SHORT),
    ("et2_rank1_rows_short", 0.1, 2, _SHORT | _ROWS),
):
    register(_name, _constant, ExtremeTensoring, level=_level, epsilon=1e-12, **_form)

# The orthogonal form, the default: matrices keep nothing, a vector one scalar. How
# often a token occurs sets the scale of its row in the embedding: its rows are folded,
# or kept whole.
ORTHOGONAL = _SHORT | {
    "level": "inf",
    "epsilon": 1e-12,
    "tensor_dims": {EMBEDDINGS: ["et2", 1]},
    "orthogonalize": True,
    "ns_steps": 4,
    "damping": 0.01,
    "rms_rate": 1.0,
}
_WHOLE_ROWS = {"tensor_dims": {EMBEDDINGS: ("et1", 1)}}

register("et2_orthogonal", 0.1, ExtremeTensoring, **ORTHOGONAL)
# What a GPU does in half the time.
_HALF = {"ns_dtype": "float16"}
register("et2_orthogonal_half", 0.1, ExtremeTensoring, **ORTHOGONAL | _HALF)
# Momentum for all, in the memory of the weights; that of matrices averages fewer steps.
# Steps that agree with each other add up, so those of matrices are shorter.
MOMENTUM = ORTHOGONAL | {
    "beta_1": 0.9,
    "momentum": 0.8,
    "momentum_dtype": "packed",
    "rms_rate": 0.35,
}
# `ExtremeTensoring.orthogonal()`.
register("et2_orthogonal_momentum", 0.1, ExtremeTensoring, **MOMENTUM)
register("et2_orthogonal_momentum_half", 0.1, ExtremeTensoring, **MOMENTUM | _HALF)
register("et2_orthogonal_rows", 0.1, ExtremeTensoring, **ORTHOGONAL | _WHOLE_ROWS)
register(
    "et2_orthogonal_heads",
    0.1,
    ExtremeTensoring,
    lambda hparams: {"block_size": hparams.hidden_size // hparams.num_heads},
    **ORTHOGONAL,
)


def create(hparams, variables):
    """Returns the optimizer that `hparams` name, with its schedule.

    Args:
        hparams: `HParams`.
        variables: of the model; a budget of state is planned over these.

    Raises:
        UsageError: a name is unknown.
        HParamsError: the schedule cannot be made of these hparams, or the optimizer
            takes no budget, not this one, or no accumulation.
    """
    constant = (
        hparams.learning_rate_constant
        or registry.optimizers.learning_rate_constant(
            hparams.optimizer, hparams.hidden_size
        )
    )
    rate = registry.schedules.get(hparams.learning_rate_schedule)(hparams, constant)
    batches = hparams.gradient_accumulation_steps
    if batches > 1 and schedules.is_schedule(rate):
        rate = schedules.PerUpdate(rate, batches)
    return create_at(rate, hparams, variables)


def create_at(learning_rate, hparams, variables):
    """Returns what `create` does, at a rate or a schedule of one's own."""
    optimizer = registry.optimizers.get(hparams.optimizer)(learning_rate, hparams)
    batches = hparams.gradient_accumulation_steps
    if batches > 1 and optimizer.gradient_accumulation_steps != batches:
        raise HParamsError(
            f"gradient_accumulation_steps={batches}: optimizer {optimizer.name} does "
            "not take it from the hparams. Have its entry hand it on to Keras, as "
            "trainer/optim/catalog.py does"
        )
    budget = hparams.optimizer_state_budget
    if budget and isinstance(optimizer, ExtremeTensoring) and variables:
        return _planned(optimizer, learning_rate, variables, budget)
    if budget:
        raise HParamsError(
            f"optimizer_state_budget={budget} is for ET optimizers (--hparams="
            f"optimizer=et2_rank1, for one); {optimizer.name} keeps what it keeps"
        )
    return optimizer


def _planned(optimizer, learning_rate, variables, budget):
    """Returns the same optimizer with what a budget of state buys for its rules."""
    planned_ones = ("level", "tensor_dims")
    config = {k: v for k, v in optimizer.get_config().items() if k not in planned_ones}
    config["learning_rate"] = learning_rate
    try:
        return ExtremeTensoring.for_budget(variables, budget, **config)
    except ValueError as error:
        raise HParamsError(f"hparam optimizer_state_budget: {error}") from error
