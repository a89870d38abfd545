r"""Takes the orthogonal form apart: what each of its settings brings.

    python -m trainer.experiments.orthogonal_form --scale=cpu \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=orthogonal_form

An entry is one of `variants`, or whatever `memory_performance` takes. Rates are
tuned as `comparison` says.
"""

import dataclasses

from trainer.experiments import experiment
from trainer.experiments import language_modeling
from trainer.experiments import tradeoff
from trainer.experiments import variants

ENTRIES = (
    *tradeoff.ORTHOGONAL,
    *variants.VARIANTS,
    *variants.MOMENTUM_VARIANTS,
)
SCALES = {
    "smoke": dataclasses.replace(
        language_modeling.SMOKE, entries=("et2_orthogonal", "orthogonal_half")
    ),
    "cpu": dataclasses.replace(
        language_modeling.TINY, entries=ENTRIES, trials=3, seeds=3
    ),
    "gpu": dataclasses.replace(
        language_modeling.BASE, entries=ENTRIES, trials=3, dtype="mixed_bfloat16"
    ),
}


def conduct(scale, output_dir):
    variants.register()
    tradeoff.conduct(scale, output_dir)


run = experiment.entry_point(
    conduct, SCALES, __doc__, __name__, changes=language_modeling.define_changes()
)

if __name__ == "__main__":
    run()
