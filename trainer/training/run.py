"""What a training run is made of, and what it ends with."""

import dataclasses

import keras

from trainer.hparams import HParams
from trainer.optim import optimizer_state


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is made of. The flags of et-trainer fill it."""

    problem: str
    data_dir: str
    hparams: HParams
    train_steps: int
    output_dir: str | None = None  # None: nothing is written
    model: str = "transformer_lm"
    seed: int = 0
    jit_compile: str = "auto"  # of the model; the optimizer has its own
    dtype: str = "float32"  # or mixed_bfloat16, mixed_float16
    deterministic: bool = False  # the same bits from the same run, slower
    warm_start_from: str | None = None  # checkpoint whose weights a new run takes
    patience: int = 0  # evaluations without a better one that end it; 0: no end
    eval_frequency: int = 1000
    eval_batches: int = 0  # 0: the whole split
    checkpoint_frequency: int = 1000
    checkpoints_kept: int = 3
    remat: bool = False  # compute blocks again for the gradient: less memory
    profile: tuple | None = None  # (first, last) step to trace for TensorBoard
    label: str = ""  # of the progress bar

    def identity(self):
        """Returns the settings that must not change within one output_dir."""
        names = ("problem", "model", "seed", "dtype", "warm_start_from")
        return {n: getattr(self, n) for n in names} | {
            "hparams": dataclasses.asdict(self.hparams)
        }

    def default_identity(self):
        """Returns `identity()` of a run that sets nothing but problem and data."""
        return Run(self.problem, self.data_dir, HParams(), 1).identity()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run ended with."""

    model: keras.Model
    steps: int
    seconds: float  # training alone: the evaluations are not in it
    tokens_per_second: float
    train_loss: float  # of the last step
    flops_per_second: float  # see `flops.per_token`
    evaluations: list  # (step, Evaluation)
    state_scalars: int
    checkpoint: str | None  # path of the last one
    interrupted_by: str | None = None  # SIGINT or SIGTERM

    def to_dict(self):
        """Figures, for a record of the run."""
        names = ("steps", "seconds", "tokens_per_second", "train_loss", "state_scalars")
        return {name: getattr(self, name) for name in names} | {
            "parameters": self.model.count_params(),
            "dev": self.evaluations[-1][1].to_dict(),
            "curve": [(step, e.nats_per_token) for step, e in self.evaluations],
        }

    def __str__(self):
        optimizer = optimizer_state.inner(self.model.optimizer).name
        lines = [
            f"step {self.steps:,}, optimizer {optimizer} with {self.state_scalars:,} "
            f"state scalars for {self.model.count_params():,} parameters",
            f"{self.seconds:.1f} s, {self.tokens_per_second:,.0f} tokens/s, "
            f"last training loss {self.train_loss:.4f}",
        ]
        if self.evaluations:
            lines.append(str(self.evaluations[-1][1]))
        return "\n".join(lines)
