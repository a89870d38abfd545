r"""et-avg: the average of a run's last checkpoints, as a model of its own.

    et-avg --output_dir=run --num_last_checkpoints=5
    et-eval --output_dir=run --data_dir=data \
        --checkpoint_path=run/checkpoints/average.keras
"""

from absl import flags

from trainer.bin import runner

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.")
_COUNT = flags.DEFINE_integer(
    "num_last_checkpoints", 5, "How many of the newest checkpoints to average."
)


def main(argv):
    runner.no_arguments(argv)
    runner.require(_OUTPUT_DIR)
    runner.require_positive(_COUNT)
    from trainer import run_folder
    from trainer.errors import UsageError

    run_folder.read_config(_OUTPUT_DIR.value)
    paths = run_folder.last_checkpoints(_OUTPUT_DIR.value, _COUNT.value)
    if len(paths) < _COUNT.value:
        raise UsageError(
            f"{_OUTPUT_DIR.value} holds {len(paths)} checkpoints, not {_COUNT.value}: "
            "train with a larger --keep_checkpoint_max, or average fewer"
        )
    import numpy as np
    from keras import ops

    from trainer import optimizer_state

    sums = None
    for path in paths:
        model = run_folder.load_checkpoint(path)
        with optimizer_state.averaged_weights(model):
            weights = [
                np.asarray(ops.convert_to_numpy(v), "float64")
                for v in model.trainable_variables
            ]
        sums = weights if sums is None else [a + b for a, b in zip(sums, weights)]
    averages = [total / len(paths) for total in sums]
    optimizer_state.set_averaged_weights(model, averages)
    written = run_folder.save_model(model, _OUTPUT_DIR.value, "average.keras")
    print(f"{written}: the average of {', '.join(p.name for p in paths)}")


run = runner.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
