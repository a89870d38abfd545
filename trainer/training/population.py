"""Trains many runs of one optimizer at once, as one program: JAX only.

The members of a population differ in their rates and seeds alone. So one program,
compiled once and mapped over them (`jax.vmap`), takes a step of all: a small model
fills a GPU only together with many others.
"""

import dataclasses
import time
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainer import progress
from trainer import registry
from trainer.data import batches
from trainer.data import dataset
from trainer.errors import UsageError
from trainer.evaluation import evaluation
from trainer.models import language_model
from trainer.optim import optimizer_state
from trainer.training import building
from trainer.training.run import Run


@dataclasses.dataclass(frozen=True)
class Member:
    """Names what a run of a population has of its own."""

    learning_rate_constant: float
    learning_rate_warmup_steps: int
    random_seed: int


class Population:
    """Holds runs that are trained together; on the device only while they are.

    A member takes the steps that `loop.train` takes with its rate and its seed: from
    the same weights, by the same batches. There is no dropout: noise would be shared.

    Args:
        run: `Run` of all members; theirs is what `Member` names. Nothing is written.
        members: `Member`s.

    Attributes:
        members: as given.
        parameters, state_scalars: of one member.

    Raises:
        UsageError: the run is one that needs `loop.train`.
    """

    def __init__(self, run: Run, members: Sequence[Member]):
        description = dataset.load_description(run.data_dir, run.problem)
        _check(run, description)
        self.members = list(members)
        self._run = run
        self._split = description.splits["dev"]
        self._tokens = description.tokens_per_batch(run.hparams.batch_size)
        self._buckets = {
            split: batches.buckets(run.data_dir, description, split)
            for split in ("train", "dev")
        }
        self._seeds = sorted({m.random_seed for m in members})
        # A rate that is a number is a variable of the optimizer: an input of a step.
        constant = dataclasses.replace(
            run.hparams, learning_rate_schedule="constant", learning_rate_constant=1.0
        )
        models = [
            building.build(
                dataclasses.replace(run, hparams=constant, random_seed=seed),
                description,
            )
            for seed in self._seeds
        ]
        self.parameters = models[0].count_params()
        self.state_scalars = optimizer_state.state_scalars(models[0].optimizer)
        which = [self._seeds.index(m.random_seed) for m in members]
        self._which = np.array(which, "int32")
        states = [_state(model) for model in models]
        self._states = jax.tree.map(lambda *each: np.stack(each)[which], *states)
        rows = (self._tokens // description.max_length, description.max_length)
        self._trace(models[0], jax.ShapeDtypeStruct(rows, "int32"))

    def _trace(self, model, rows):
        """Traces the programs of a step and of a score of one batch."""
        step, nats = _step(model, self._run, self._tokens), _nats(model, self._tokens)
        of_seeds = jax.ShapeDtypeStruct((len(self._seeds), *rows.shape), rows.dtype)
        rates = jax.ShapeDtypeStruct(self._which.shape, "float32")

        def steps(states, rows, which, rates):
            def of_member(state, number, rate):
                return step(state, rows[number], rate)

            return jax.vmap(of_member)(states, which, rates)

        self._step = jax.jit(steps, donate_argnums=0).lower(
            self._states, of_seeds, self._which, rates
        )
        self._nats = jax.jit(jax.vmap(nats, (0, None))).lower(self._states, rows)

    def compile(self) -> None:
        """Compiles the programs; threads may do so for several populations."""
        self._step, self._nats = self._step.compile(), self._nats.compile()

    def perplexity_per_word(self, nats_per_token: float) -> float:
        """Returns the perplexity that goes with a loss on the dev split."""
        split = self._split
        nats = nats_per_token * split.tokens
        return evaluation.exp(nats / (split.words + split.sentences))

    def train(
        self, on_evaluation: Callable[[int, np.ndarray], Any], label: str = ""
    ) -> float:
        """Trains all members, and returns the seconds that it took.

        Args:
            on_evaluation: called with step and nats per token on the dev split, one
                number a member, every `local_eval_frequency` steps and at the end.
            label: of the progress.
        """
        run, started = self._run, time.monotonic()
        states = jax.device_put(self._states)
        rates = np.stack([_rates(run, m) for m in self.members], axis=1)
        streams = [
            batches.training_batches(self._buckets["train"], self._tokens, seed)
            for seed in self._seeds
        ]
        for number in progress.over(range(run.train_steps), label):
            rows = np.stack([next(stream)[0] for stream in streams])
            states = self._step(states, rows, self._which, rates[number])
            step = number + 1
            if step % run.local_eval_frequency == 0 or step == run.train_steps:
                on_evaluation(step, self._evaluate(states))
        return time.monotonic() - started

    def _evaluate(self, states):
        total = np.zeros(len(self.members))
        for _, rows in batches.EvaluationBatches(self._buckets["dev"], self._tokens):
            total += np.asarray(self._nats(states, rows))
        return total / self._split.tokens


def _check(run, description):
    if not description.packed:
        raise UsageError(
            f"runs that are trained together take rows of one length, and those of "
            f"{run.problem} differ: choose a packed problem"
        )
    hparams = run.hparams
    dropout = (
        hparams.layer_prepostprocess_dropout,
        hparams.attention_dropout,
        hparams.relu_dropout,
    )
    if any(dropout):
        raise UsageError("runs that are trained together have no dropout: set it to 0")
    if run.dtype == "mixed_float16" or hparams.gradient_accumulation_steps > 1:
        raise UsageError(
            "runs that are trained together take steps of one batch, in float32 or "
            "mixed_bfloat16"
        )


def _state(model):
    """Returns weights, optimizer's variables and others of a model, as arrays."""
    groups = (
        model.trainable_variables,
        model.optimizer.variables,
        model.non_trainable_variables,
    )
    return tuple([np.asarray(v.value) for v in group] for group in groups)


def _step(model, run, tokens):
    """Returns the function of (state, rows, rate) that takes a step of one member."""
    trained = language_model.training_model(model, run.hparams.label_smoothing, tokens)
    optimizer = model.optimizer

    def step(state, rows, rate):
        weights, kept, others = state

        def loss_of(weights):
            loss, _ = trained.stateless_call(weights, others, rows, training=True)
            return loss

        kept = [
            rate if variable is optimizer._learning_rate else value
            for variable, value in zip(optimizer.variables, kept)
        ]
        gradients = jax.grad(loss_of)(weights)
        weights, kept = optimizer.stateless_apply(kept, gradients, weights)
        return weights, kept, others

    return step


def _nats(model, tokens):
    """Returns the function of (state, rows) that sums the nats of a batch."""
    scoring = language_model.scoring_model(model, tokens)
    optimizer = model.optimizer

    def nats(state, rows):
        weights, kept, others = state
        if optimizer.use_ema:
            places = [id(v) for v in optimizer.variables]
            averages = optimizer._model_variables_moving_average
            weights = [kept[places.index(id(v))] for v in averages]
        (scores, _), _ = scoring.stateless_call(weights, others, rows)
        return jnp.sum(scores)

    return nats


def _rates(run, member):
    """Returns the rate of every step of a member."""
    hparams = dataclasses.replace(
        run.hparams, learning_rate_warmup_steps=member.learning_rate_warmup_steps
    )
    schedule = registry.schedules.get(hparams.learning_rate_schedule)(
        hparams, member.learning_rate_constant
    )
    if not callable(schedule):
        return np.full(run.train_steps, schedule, "float32")
    return np.asarray(jax.vmap(schedule)(jnp.arange(run.train_steps)))
