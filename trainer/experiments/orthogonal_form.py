r"""Takes the orthogonal form apart: what each of its settings brings.

    python -m trainer.experiments.orthogonal_form --scale=cpu \
        --tmp_dir=FOLDER_OF_THE_UNPACKED_ARCHIVE --output_dir=orthogonal_form

An entry is a variant named here, or whatever `memory_performance` takes. Rates are
tuned as `comparison` says.
"""

import dataclasses

from trainer.experiments import experiment
from trainer.experiments import language_modeling
from trainer.experiments import tradeoff

# Variant -> what it changes in `et2_orthogonal`.
VARIANTS = {
    "orthogonal_matrices": {"level": 1, "tensor_dims": None},  # the rest at ET1
    "orthogonal_undamped": {"damping": 0.0, "ns_steps": 5},
    "orthogonal_damping_0.1": {"damping": 0.1, "ns_steps": 3},
    "orthogonal_damping_1": {"damping": 1.0, "ns_steps": 3},
    "orthogonal_steps_2": {"ns_steps": 2},
    "orthogonal_steps_3": {"ns_steps": 3},
    "orthogonal_steps_6": {"ns_steps": 6},
    "orthogonal_half": {"rms_rate": 0.5},
    "orthogonal_double": {"rms_rate": 2.0},
    "orthogonal_beta_2_0.5": {"beta_2": 0.5},
    "orthogonal_beta_2_0.99": {"beta_2": 0.99},
    # Steps that agree with each other add up: momentum wants them smaller.
    "orthogonal_momentum": {"beta_1": 0.9, "rms_rate": 0.25},
    "orthogonal_embedding_too": {
        "orthogonalize": ["kernel", "embedding"],
        "tensor_dims": None,
    },
    "orthogonal_embedding_scalar": {"tensor_dims": None},
}
ENTRIES = (*tradeoff.ORTHOGONAL, *VARIANTS)
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
    from extreme_tensoring_tf import ExtremeTensoring
    from trainer.optim import catalog

    constant = language_modeling.known_constant("et2_orthogonal")
    for name, changes in VARIANTS.items():
        form = catalog.ORTHOGONAL | changes
        catalog.register(name, constant, ExtremeTensoring, **form)
    tradeoff.conduct(scale, output_dir)


run = experiment.entry_point(
    conduct, SCALES, __doc__, __name__, changes=language_modeling.define_changes()
)

if __name__ == "__main__":
    run()
