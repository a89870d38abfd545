r"""Draws curves of runs, read from TensorBoard's data, as a picture.

    python -m trainer.experiments.curves --runs=run_et2,run_adam \
        --tag=dev/perplexity_per_word --file=curves.png
"""

import pathlib

from absl import flags

from trainer import paths
from trainer.bin import cli
from trainer.errors import UsageError

_RUNS = cli.DEFINE_paths("runs", None, "Folders of runs.")
_TAG = flags.DEFINE_string("tag", "dev/perplexity_per_word", "What to draw.")
_FILE = cli.DEFINE_path("file", "curves.png", "Picture to write, .png and .svg.")
_LOG = flags.DEFINE_bool("log", True, "Whether the y axis is logarithmic.")


def main(argv):
    cli.no_arguments(argv)
    cli.require(_RUNS)
    picture, name = paths.named(_FILE.value), f"--file={_FILE.value}"
    paths.check_file(picture, name)
    for path in (picture.with_suffix(".png"), picture.with_suffix(".svg")):
        paths.check_file(path, f"{name}: {path}")
    if paths.is_stream(picture):
        raise UsageError(f"{name} is no file: two are written, NAME.png and NAME.svg")
    curves = {
        name: read(run, _TAG.value)
        for name, run in zip(names(_RUNS.value), _RUNS.value)
    }
    from trainer.experiments import report

    report.curves_plot(_FILE.value, curves, "step", _TAG.value, log_y=_LOG.value)
    for name, points in curves.items():
        (step, value), lowest = points[-1], min(value for _, value in points)
        print(f"{name}: {value:.4f} at step {step:,}, lowest {lowest:.4f}")
    print(f"plots: {pathlib.Path(_FILE.value).with_suffix('')}.png and .svg")


def names(runs):
    """Returns names of folders, those of the last parts of their paths that differ."""
    last = [paths.named(run).name for run in runs]
    return last if len(set(last)) == len(last) else [str(run) for run in runs]


def read(run, tag):
    """Returns [(step, value), ...] of a scalar that a run wrote.

    Raises:
        UsageError: the run wrote no such scalar.
    """
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(run), {"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    if tag not in tags:
        raise UsageError(f"{run} has no scalar {tag!r}. It has: {', '.join(tags)}")
    # A run that went on from a checkpoint wrote some steps twice: the last one holds.
    return list(
        {e.step: e.tensor_proto.float_val[0] for e in events.Tensors(tag)}.items()
    )


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
