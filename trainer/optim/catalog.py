"""Optimizers by name, each with the rate constant that goes with it.

An entry takes (learning_rate, hparams), as in Tensor2Tensor, and returns a Keras
optimizer. c, the constant of the `inverse_sqrt` schedule, was tuned per optimizer:
`python -m trainer.experiments.memory_performance`.
"""

import keras

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.planner import plan
from trainer import registry
from trainer.errors import UsageError
from trainer.optim.peers import adam_family
from trainer.optim.peers import factored
from trainer.optim.peers import low_rank


def _register(name, learning_rate_constant, factory, of_model=None, **kwargs):
    """`of_model`: None, or a function of hparams that returns more arguments."""

    def make(learning_rate, hparams):
        accumulated = hparams.gradient_accumulation_steps
        return factory(
            learning_rate,
            weight_decay=hparams.weight_decay or None,
            global_clipnorm=hparams.clip_grad_norm or None,
            gradient_accumulation_steps=accumulated if accumulated > 1 else None,
            use_ema=hparams.ema_momentum > 0,
            ema_momentum=hparams.ema_momentum or 0.99,
            name=name,
            **kwargs,
            **(of_model(hparams) if of_model else {}),
        )

    make.learning_rate_constant = learning_rate_constant
    registry.optimizers.register(make, name)


_register("sgd", 10.0, keras.optimizers.SGD)
_register("momentum", 1.0, keras.optimizers.SGD, momentum=0.9)
# Keras starts AdaGrad's sums at 0.1, far above a gradient's square here, which
# would make it SGD. The paper's algorithm starts at 0.
_register(
    "adagrad",
    1.56,
    keras.optimizers.Adagrad,
    initial_accumulator_value=0.0,
    epsilon=1e-12,
)
_register("rmsprop", 0.03, keras.optimizers.RMSprop)
_ADAM = {"beta_2": 0.997, "epsilon": 1e-9}
_register("adam", 0.09, keras.optimizers.Adam, **_ADAM)
_register("adafactor", 0.52, keras.optimizers.Adafactor, relative_step=False)
_register("lion", 0.003, keras.optimizers.Lion)
_register("muon", 0.09, keras.optimizers.Muon, adam_weight_decay=0.0)
_register("sm3", 1.0, factored.SM3)
_register("came", 0.0167, factored.CAME)
_register("smmf", 0.15, factored.SMMF)
_register("slim_adam", 0.09, adam_family.SlimAdam, **_ADAM)
_register("adam_8bit", 0.09, adam_family.Adam8bit, **_ADAM)
_register(
    "adam_mini",
    0.09,
    adam_family.AdamMini,
    lambda hparams: {"num_heads": hparams.num_heads},
    **_ADAM,
)
_register(
    "galore",
    0.18,
    low_rank.GaLore,
    lambda hparams: {"rank": hparams.hidden_size // 4},  # as its authors
    beta_2=0.997,
)
_register("apollo_mini", 0.09, low_rank.APOLLO, beta_2=0.997)
_RANK_ONE = {"preconditioner": "rank_one", "beta_2": 0.99, "clip_threshold": 1.0}
# How often a token occurs sets the scale of its row, which level 2 folds away.
_ROWS = {"tensor_dims": {"embedding": 1}}
_SHORT = {"beta_2": 0.9}
# Suffix of the name -> arguments, and the constant c of each level. Algorithm 1 with
# "sum", the letter of the paper, makes the rate of a variable fall with its size, so
# biases would learn some 30 times faster than embeddings here. "mean" is the same
# algorithm but for one constant a variable, and one c fits all.
_FORMS = {
    "": ({"statistic": "mean"}, {1: 1.0, 2: 1.0, 3: 0.577, "inf": 0.333}),
    "_sum": ({"statistic": "sum"}, {1: 6.0, 2: 12.0, 3: 20.0, "inf": 40.0}),
    "_ema": ({"statistic": "mean", "beta_2": 0.99}, {1: 0.1, 2: 0.0333, 3: 0.0333}),
    "_rank1": (_RANK_ONE, {1: 0.1, 2: 0.1, 3: 0.1}),
    "_rank1_noclip": (_RANK_ONE | {"clip_threshold": None}, {1: 0.1, 2: 0.1, 3: 0.1}),
    "_rank1_sums": ({"preconditioner": "rank_one"}, {2: 0.333}),
    "_rank1_momentum": (_RANK_ONE | {"beta_1": 0.9}, {2: 0.1}),
    "_rank1_rows": (_RANK_ONE | _ROWS, {2: 0.1, "inf": 0.1}),
    # An average over ten steps, not a hundred: better where training is short.
    "_rank1_short": (_RANK_ONE | _SHORT, {2: 0.1}),
    "_rank1_rows_short": (_RANK_ONE | _ROWS | _SHORT, {2: 0.1}),
}
for _suffix, (_arguments, _constants) in _FORMS.items():
    for _level, _constant in _constants.items():
        _register(
            f"et{_level}{_suffix}",
            _constant,
            ExtremeTensoring,
            level=_level,
            epsilon=1e-12,
            **_arguments,
        )


def create(hparams, variables):
    """The optimizer that `hparams` name, with its schedule.

    Args:
        hparams: `HParams`.
        variables: of the model; a budget of state is planned over these.

    Raises:
        UsageError: a name is unknown, or the optimizer takes no budget.
    """
    make = registry.optimizers.get(hparams.optimizer)
    constant = hparams.learning_rate_constant or make.learning_rate_constant
    schedule = registry.schedules.get(hparams.learning_rate_schedule)
    optimizer = make(schedule(hparams, constant), hparams)
    if hparams.optimizer_state_budget:
        return _within(optimizer, variables, hparams.optimizer_state_budget)
    return optimizer


def _within(optimizer, variables, budget):
    """The same, but with dims that fit a budget of bytes."""
    if not isinstance(optimizer, ExtremeTensoring):
        raise UsageError(
            f"optimizer_state_budget={budget:g} is for ET optimizers (--hparams="
            f"optimizer=et2_rank1, for one); {optimizer.name} keeps what it keeps"
        )
    try:
        dims = plan([(v.path, tuple(v.shape)) for v in variables], int(budget))
    except ValueError as error:
        raise UsageError(f"optimizer_state_budget: {error}") from error
    return ExtremeTensoring.from_config(optimizer.get_config() | {"tensor_dims": dims})
