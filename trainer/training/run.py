"""The settings of a training run, and its result."""

import dataclasses
import numbers

import keras

from extreme_tensoring_tf import memory
from trainer.errors import UsageError
from trainer.hparams import HParams

DTYPES = ("float32", "mixed_bfloat16", "mixed_float16")
XLA_COMPILE = ("auto", "true", "false")
_SEEDS = 2**32


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds the settings of a run, each under the name of its flag of et-trainer.

    Raises:
        UsageError: a value is out of its range.
    """

    problem: str
    data_dir: str
    hparams: HParams
    train_steps: int
    output_dir: str | None = None  # None: nothing is written
    model: str = "transformer_lm"
    random_seed: int = 0
    xla_compile: str = "auto"  # of the model; the optimizer has its own
    dtype: str = "float32"  # or mixed_bfloat16, mixed_float16
    # The same bits from the same run on a CPU, slower. JAX has them without it.
    deterministic: bool = False
    warm_start_from: str | None = None  # checkpoint whose weights a new run takes
    early_stopping_evaluations: int = 0  # without a better one, that end it; 0: no end
    local_eval_frequency: int = 1000  # steps
    eval_steps: int = 0  # batches of an evaluation; 0: the whole split
    save_checkpoints_steps: int = 1000
    keep_checkpoint_max: int = 3
    nonfinite_steps: int = 5  # in a row, with a loss that is not finite, that end it
    remat: bool = False  # compute blocks again for the gradient: less memory
    profile: tuple[int, int] | None = (
        None  # (first, last) step to trace for TensorBoard
    )
    label: str = ""  # of the progress bar

    def __post_init__(self):
        for name, least in (
            ("train_steps", 1),
            ("local_eval_frequency", 1),
            ("save_checkpoints_steps", 1),
            ("keep_checkpoint_max", 1),
            ("nonfinite_steps", 1),
            ("eval_steps", 0),
            ("early_stopping_evaluations", 0),
            ("random_seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise UsageError(f"{name} must be an integer >= {least}. Got {value}")
        if self.random_seed >= _SEEDS:
            raise UsageError(
                f"random_seed must be below {_SEEDS}. Got {self.random_seed}"
            )
        for name, choices in (("dtype", DTYPES), ("xla_compile", XLA_COMPILE)):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(
                    f"{name} must be one of {', '.join(choices)}. Got {value}"
                )
        if self.profile is not None:
            try:
                first, last = self.profile
                valid = 1 <= first <= last
            except (TypeError, ValueError):
                valid = False
            if not valid:
                raise UsageError(
                    "profile must be (first, last) step, 1 <= first <= last. Got "
                    f"{self.profile}"
                )

    def identity(self) -> dict:
        """Returns the settings that must not change within one output_dir."""
        names = ("problem", "model", "random_seed", "dtype", "warm_start_from")
        return {n: getattr(self, n) for n in names} | {
            "hparams": dataclasses.asdict(self.hparams)
        }

    def default_identity(self) -> dict:
        """Returns `identity()` of a run that sets nothing but problem and data."""
        return Run(self.problem, self.data_dir, HParams(), 1).identity()


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds the model and the figures that a run ended with."""

    model: keras.Model
    steps: int  # those of earlier starts counted
    seconds: float  # training alone: the evaluations are not in it
    tokens_per_second: float
    train_loss: float  # of the last step
    flops_per_second: float  # see `flops.per_token`
    evaluations: list  # (step, Evaluation)
    state_scalars: int
    checkpoint: str | None  # path of the last one
    interrupted_by: str | None = None  # SIGINT or SIGTERM

    def to_dict(self) -> dict:
        """Returns the figures, for a record of the run."""
        names = ("steps", "seconds", "tokens_per_second", "train_loss", "state_scalars")
        return {name: getattr(self, name) for name in names} | {
            "parameters": self.model.count_params(),
            "dev": self.evaluations[-1][1].to_dict(),
            "curve": [(step, e.nats_per_token) for step, e in self.evaluations],
        }

    def __str__(self):
        optimizer = memory.inner(self.model.optimizer).name
        lines = [
            f"step {self.steps:,}, optimizer {optimizer} with {self.state_scalars:,} "
            f"state scalars for {self.model.count_params():,} parameters",
            f"{self.seconds:.1f} s, {self.tokens_per_second:,.0f} tokens/s, "
            f"last training loss {self.train_loss:.4f}",
        ]
        if self.evaluations:
            lines.append(str(self.evaluations[-1][1]))
        return "\n".join(lines)
