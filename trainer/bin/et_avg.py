r"""et-avg: the average of a run's last checkpoints, as a model of its own.

    et-avg --output_dir=run
    et-eval --output_dir=run --data_dir=data \
        --checkpoint_path=run/checkpoints/average.keras
"""

from trainer.bin import cli

_OUTPUT_DIR = cli.DEFINE_path("output_dir", None, "Folder of the run.")
_COUNT = cli.DEFINE_count(
    "num_last_checkpoints",
    None,
    "How many of the newest checkpoints to average. Default: all that are kept.",
)


def main(argv):
    cli.no_arguments(argv)
    cli.require(_OUTPUT_DIR)
    from trainer import files
    from trainer.errors import UsageError
    from trainer.paths import check_file
    from trainer.runs import checkpoints
    from trainer.runs import run_folder

    run_folder.read_config(_OUTPUT_DIR.value)
    paths = checkpoints.last(_OUTPUT_DIR.value, _COUNT.value or cli.COUNT_MAX)
    if not paths:
        raise UsageError(f"{_OUTPUT_DIR.value} holds no checkpoint yet")
    if _COUNT.value is not None and len(paths) < _COUNT.value:
        raise UsageError(
            f"{_OUTPUT_DIR.value} holds {len(paths)} checkpoints, not {_COUNT.value}: "
            "train with a larger --keep_checkpoint_max, or average fewer"
        )
    target = checkpoints.folder(_OUTPUT_DIR.value) / "average.keras"
    check_file(target, str(target))
    import numpy as np
    from keras import ops

    from trainer.optim import optimizer_state

    sums: list = []
    for path in paths:
        model = checkpoints.load(path)
        with optimizer_state.averaged_weights(model):
            weights = [
                np.asarray(ops.convert_to_numpy(v), "float64")
                for v in model.trainable_variables
            ]
        sums = [a + b for a, b in zip(sums, weights)] if sums else weights
    averages = [total / len(paths) for total in sums]
    optimizer_state.set_averaged_weights(model, averages)
    lock = target.with_name("average.lock")
    with files.lock(lock, f"another et-avg writes in {lock.parent}: wait for it"):
        written = checkpoints.save_model(model, _OUTPUT_DIR.value, target.name)
    print(f"{written}: the average of {', '.join(p.name for p in paths)}")


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
