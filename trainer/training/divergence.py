"""Says why a run whose loss was not finite has ended, and names the way back."""

from trainer.errors import UsageError
from trainer.runs import checkpoints
from trainer.training.run import Run


class Diverged(UsageError):
    """Says that loss or weights of a run were not finite: it ended, nothing saved."""


def error(run: Run, step: int, reason: str, learning_rate: float) -> Diverged:
    """Returns the error of a run that diverged.

    The message names the settings that are likely at fault, and the checkpoint to go
    back to.

    Args:
        run: `Run`.
        step: the first one of those up to the last whose loss was not finite.
        reason: `RunState.reason`.
        learning_rate: of the last step.
    """
    h = run.hparams
    suspects = {
        "learning_rate_constant": f"{h.learning_rate_constant:g}"
        if h.learning_rate_constant
        else "that of the optimizer",
        "learning_rate_schedule": h.learning_rate_schedule,
        "learning_rate_warmup_steps": h.learning_rate_warmup_steps,
        "optimizer": h.optimizer,
        "clip_grad_norm": f"{h.clip_grad_norm:g}",
        "dtype": run.dtype,
    }
    settings = ", ".join(f"{name}={value}" for name, value in suspects.items())
    return Diverged(
        f"the run diverged: from step {step} on, {reason}. "
        f"Likely at fault is the learning rate, {learning_rate:g} at the end, or one "
        f"of these: {settings}. {_way_back(run)}"
    )


def _way_back(run):
    if not run.output_dir:
        return "Try a lower rate or a longer warm-up"
    best = checkpoints.folder(run.output_dir) / "best.keras"
    newest = checkpoints.latest(run.output_dir) or (best if best.exists() else None)
    if newest is None:
        return (
            "Nothing was saved: start again in this output_dir, with a lower rate or a "
            "longer warm-up"
        )
    return (
        f"Nothing was saved since {newest}: to go on from there, start a run with a "
        f"lower rate in another output_dir, and with warm_start_from={newest}"
    )
