r"""Curves of runs, read from TensorBoard's data, as a picture.

    python -m trainer.experiments.curves --runs=run_et2,run_adam \
        --tag=dev/perplexity_per_word --file=curves.png
"""

import pathlib

from absl import flags

from trainer.bin import runner

_RUNS = flags.DEFINE_list("runs", None, "Folders of runs.")
_TAG = flags.DEFINE_string("tag", "dev/perplexity_per_word", "What to draw.")
_FILE = flags.DEFINE_string("file", "curves.png", "Picture to write: .png, .svg, .pdf.")
_LOG = flags.DEFINE_bool("log", True, "Whether the y axis is logarithmic.")


def main(argv):
    runner.no_arguments(argv)
    runner.require(_RUNS)
    curves = {pathlib.Path(r).name: read(r, _TAG.value) for r in _RUNS.value}
    plot(curves, _TAG.value, _FILE.value, _LOG.value)
    for name, (steps, values) in curves.items():
        print(
            f"{name}: {values[-1]:.4f} at step {steps[-1]:,}, lowest {min(values):.4f}"
        )
    print(f"plot: {_FILE.value}")


def read(run, tag):
    """(steps, values) of a scalar that a run wrote.

    Raises:
        UsageError: it wrote no such scalar.
    """
    from tensorboard.backend.event_processing import event_accumulator

    from trainer.errors import UsageError

    events = event_accumulator.EventAccumulator(str(run), {"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    if tag not in tags:
        raise UsageError(f"{run} has no scalar {tag!r}. It has: {', '.join(tags)}")
    points = {e.step: e.tensor_proto.float_val[0] for e in events.Tensors(tag)}
    return list(points), list(points.values())


def plot(curves, label, file, log=True):
    """Draws {name: (steps, values)}."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, (steps, values) in curves.items():
        axes.plot(steps, values, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    if log:
        axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


run = runner.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
