"""Tries all that a run does, before it is started for days: et-trainer --check."""

import dataclasses
import pathlib
import resource
import sys
import tempfile
import time

import keras

from extreme_tensoring_tf.variables import has_accelerator
from trainer.data import dataset
from trainer.runs import checkpoints
from trainer.training import building
from trainer.training import flops
from trainer.training import loop
from trainer.training import paper_runs
from trainer.training.run import Run

_STEPS = 4  # the first compiles and is not timed


def check(run: Run) -> str:
    """Takes a few steps of a run in a folder of its own, and projects the whole.

    The check reads the data, builds, compiles, steps, evaluates one batch, writes a
    checkpoint and restores it. Nothing is left behind, and `run.output_dir` is not
    touched.

    Returns:
        Text: parameters, optimizer state, memory, time and disk.

    Raises:
        UsageError: the run itself would be refused, or diverges.
        KeyboardInterrupt: a signal ended the steps.
    """
    if run.output_dir:
        loop.check_folder(run)
    building.check_schedule(run)
    with tempfile.TemporaryDirectory() as folder:
        trial = dataclasses.replace(
            run,
            output_dir=folder,
            train_steps=_STEPS,
            eval_steps=1,
            local_eval_frequency=_STEPS,
            save_checkpoints_steps=_STEPS,
            label="check",
        )
        result = loop.train(trial)
        if result.interrupted_by:
            raise KeyboardInterrupt
        # Before another model is there.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        parameters = result.model.count_params()
        iterations = int(result.model.optimizer.iterations)
        result = dataclasses.replace(result, model=None)
        keras.backend.clear_session(free_memory=True)
        start = time.perf_counter()
        path = pathlib.Path(str(result.checkpoint))
        restored = checkpoints.load(path)
        restoring = time.perf_counter() - start
        if int(restored.optimizer.iterations) != iterations:
            raise AssertionError("the checkpoint that was written is not what is read")
        size = path.stat().st_size
    description = dataset.load_description(run.data_dir, run.problem)
    tokens = description.tokens_per_batch(run.hparams.batch_size)
    train_tokens = description.splits["train"].cells
    hours = run.train_steps * tokens / result.tokens_per_second / 3600
    files = run.keep_checkpoint_max + 2  # the best one, and one that is being written
    peak *= 1 if sys.platform == "darwin" else 1024
    host = " of the host" if has_accelerator() else ""
    rows = (
        "all rows have one length"
        if description.packed
        else "rows differ in length: a length compiles when it first comes, which is "
        "in speed and time here; the longest may not have come, and takes more memory"
    )
    return "\n".join(
        [
            f"parameters       {parameters:,}",
            f"optimizer state  {result.state_scalars:,} scalars",
            f"memory           {peak / 1e9:.2f} GB{host} at the peak of this check",
            f"rows             {rows}",
            f"speed            {result.tokens_per_second:,.0f} tokens/s",
            flops.report(result.flops_per_second, run.dtype),
            f"time             {hours:,.2f} hours for {run.train_steps:,} steps, "
            f"{run.train_steps * tokens / train_tokens:,.2f} passes over the data, "
            "evaluations not counted",
            paper_runs.report(result.flops_per_second),
            f"disk             {files * size / 1e6:,.1f} MB for {files} checkpoints",
            f"a checkpoint was written and restored in {restoring:.1f} s: all is well",
        ]
    )
