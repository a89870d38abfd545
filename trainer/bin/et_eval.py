r"""et-eval: how well a trained model predicts a split, all of it by default.

et-eval --output_dir=run --data_dir=data
"""

from absl import flags

from trainer.bin import runner

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the run; its newest checkpoint is used."
)
_CHECKPOINT_PATH = flags.DEFINE_string(
    "checkpoint_path", None, "A checkpoint, in place of the newest."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder that et-datagen wrote.")
_PROBLEM = flags.DEFINE_string(
    "problem", None, "Name of the problem. Default: the one trained on."
)
_SPLIT = flags.DEFINE_enum("split", "dev", ["train", "dev", "test"], "What to score.")
_EVAL_STEPS = flags.DEFINE_integer(
    "eval_steps", 0, "Batches to score; 0 covers the whole split."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead.")


def main(argv):
    runner.no_arguments(argv)
    runner.require(_OUTPUT_DIR, _DATA_DIR)
    from trainer import run_folder
    from trainer.errors import UsageError

    config = run_folder.read_config(_OUTPUT_DIR.value)
    path = _CHECKPOINT_PATH.value or run_folder.latest_checkpoint(_OUTPUT_DIR.value)
    if path is None:
        raise UsageError(f"{_OUTPUT_DIR.value} holds no checkpoint yet")
    from trainer import evaluation

    result = evaluation.evaluate_checkpoint(
        path,
        data_dir=_DATA_DIR.value,
        problem=_PROBLEM.value or config["problem"],
        split=_SPLIT.value,
        tokens_per_batch=config["hparams"]["batch_size"],
        max_batches=_EVAL_STEPS.value,
    )
    if _JSON.value:
        import json

        print(json.dumps(result.to_dict()))
    else:
        print(f"{path}, {_SPLIT.value} split\n{result}")


run = runner.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
