"""Makes an experiment a program: flags, settings by scale, a folder, a total time."""

import dataclasses
import pathlib
import sys
import time

from absl import flags

from trainer.bin import cli

flags.disclaim_key_flags()  # they are flags of the module that calls `entry_point`


@dataclasses.dataclass(frozen=True)
class Scale:
    """Holds the settings of one size of an experiment."""

    entries: tuple  # what is compared: names of optimizers, mostly
    train_steps: int
    experiment: str = ""  # its name, which `entry_point` gives
    trials: int = 1  # values of c for each entry, see `comparison`
    seeds: int = 1
    tmp_dir: str | None = None  # folder of the raw data


def entry_point(
    conduct, scales, usage, module, default="smoke", needs_data=True, changes=()
):
    """Returns the program of an experiment: `conduct(scale, output_dir)` and its flags.

    Args:
        conduct: runs what is not finished, writes and prints tables and plots.
        scales: {name: Scale}.
        usage: text that --help prints before the flags.
        module: name of the module of the experiment.
        default: name of the scale that runs if none is given.
        needs_data: whether scales without a tmp_dir want --tmp_dir.
        changes: more flags that change fields of the scale; --hparams adds to them.
    """
    which = flags.DEFINE_enum("scale", default, list(scales), "Which settings.")
    output_dir = cli.DEFINE_path(
        "output_dir", None, "Folder of the results. Default: EXPERIMENT_SCALE_output."
    )
    changes = [
        *changes,
        flags.DEFINE_list("entries", None, "Names to compare, comma-separated."),
        cli.DEFINE_count("train_steps", None, "Steps of each run."),
        cli.DEFINE_count("trials", None, "Values of c for each entry."),
        cli.DEFINE_count("seeds", None, "Runs of each entry with its best c."),
        cli.DEFINE_path("tmp_dir", None, "Folder of the raw data."),
    ]

    def main(argv):
        cli.no_arguments(argv)
        given = {f.name: f.value for f in changes if f.value is not None}
        scale = scales[which.value]
        if "hparams" in given:
            given["hparams"] = scale.hparams + "," + given["hparams"]
        spec = sys.modules[module].__spec__  # whose name is not __main__
        name = (spec.name if spec else module).rpartition(".")[2]
        scale = dataclasses.replace(scale, experiment=name, **given)
        if needs_data and not (scale.tmp_dir or getattr(scale, "data_dir", None)):
            cli.require(changes[-1])
        started = time.time()
        folder = pathlib.Path(output_dir.value or f"{name}_{which.value}_output")
        conduct(scale, folder)
        print(f"total: {time.time() - started:.0f} s")

    return cli.entry_point(main, usage, module)
