r"""et-exporter: writes a trained model for use elsewhere.

    et-exporter --output_dir=run --data_dir=data --export_dir=models/lm/1

The SavedModel has the signatures score, next_token_logits and generate, the
vocabulary in assets/ and a model card, README.md. It runs where there is
TensorFlow alone.
"""

import os
import shlex
import sys

from absl import flags

from trainer import paths
from trainer.bin import cli

_OUTPUT_DIR = cli.DEFINE_path(
    "output_dir", None, "Folder of the run: its newest checkpoint."
)
_CHECKPOINT_PATH = cli.DEFINE_path(
    "checkpoint_path", None, "A checkpoint, in place of the newest."
)
_DATA_DIR = cli.DEFINE_path(
    "data_dir", None, "Folder that et-datagen wrote. Without it nothing is evaluated."
)
_EXPORT_DIR = cli.DEFINE_path("export_dir", None, "Folder to make.")
_FORMAT = flags.DEFINE_enum(
    "format", "saved_model", ["saved_model", "keras", "onnx"], "What to write."
)
_SPLITS = flags.DEFINE_list(
    "eval_splits", ["dev"], "Splits whose perplexity the model card gives."
)
_EVAL_STEPS = cli.DEFINE_count(
    "eval_steps", 0, "Batches of each to evaluate; 0: all.", least=0
)


def main(argv):
    cli.no_arguments(argv)
    cli.require(_OUTPUT_DIR, _EXPORT_DIR)
    if not _DATA_DIR.value:
        why = "without --data_dir, the folder of what is evaluated"
        cli.refuse((_SPLITS, _EVAL_STEPS), why)
    from trainer.runs import run_folder

    # Refused before Keras is imported.
    run_folder.read_config(_OUTPUT_DIR.value)
    paths.check_new_folder(_EXPORT_DIR.value, f"--export_dir={_EXPORT_DIR.value}")
    from trainer.data import batches
    from trainer.evaluation import evaluation
    from trainer.inference import exporting
    from trainer.runs import trained_model

    exporting.check(_EXPORT_DIR.value, _FORMAT.value)
    trained = trained_model.load(_OUTPUT_DIR.value, _CHECKPOINT_PATH.value)
    exporting.check(_EXPORT_DIR.value, _FORMAT.value, trained.model)
    evaluations = {}
    if _DATA_DIR.value:
        description = trained.check_data(_DATA_DIR.value)
        for split in _SPLITS.value:  # each, before the work on the first
            batches.buckets(_DATA_DIR.value, description, split)
        evaluations = {
            split: evaluation.evaluate_model(
                trained.model,
                _DATA_DIR.value,
                description,
                split,
                trained.batch_size,
                _EVAL_STEPS.value,
                label=split,
            )
            for split in _SPLITS.value
        }
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    path = exporting.export(
        trained, _EXPORT_DIR.value, _FORMAT.value, evaluations, command
    )
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    print(f"{path}: {_FORMAT.value}, {size / 1e6:,.1f} MB, from {trained.path}")
    return 0


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
