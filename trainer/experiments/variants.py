"""Names variants of the orthogonal forms, which experiments take as optimizers."""

import functools

from trainer.experiments import language_modeling

_COLUMNS = {"embedding": ("et2", "et1")}
# Variant -> what it changes in `et2_orthogonal`.
VARIANTS = {
    # What is no matrix: all of it at ET1; its vectors whole; the embedding's columns
    # whole, its rows folded; both of these.
    "orthogonal_matrices": {"level": 1, "tensor_dims": None},
    "orthogonal_matrices_slow": {"level": 1, "tensor_dims": None, "beta_2": 0.99},
    "orthogonal_vectors": {"level": 1},
    "orthogonal_columns": {"tensor_dims": _COLUMNS},
    "orthogonal_columns_vectors": {"level": 1, "tensor_dims": _COLUMNS},
    "orthogonal_undamped": {"damping": 0.0, "ns_steps": 5},
    "orthogonal_damping_0.1": {"damping": 0.1, "ns_steps": 3},
    "orthogonal_damping_1": {"damping": 1.0, "ns_steps": 3},
    "orthogonal_steps_2": {"ns_steps": 2},
    "orthogonal_steps_3": {"ns_steps": 3},
    "orthogonal_steps_6": {"ns_steps": 6},
    "orthogonal_blocks_32": {"block_size": 32},
    "orthogonal_blocks_64": {"block_size": 64},
    "orthogonal_half": {"rms_rate": 0.5},
    "orthogonal_double": {"rms_rate": 2.0},
    "orthogonal_beta_2_0.5": {"beta_2": 0.5},
    "orthogonal_beta_2_0.99": {"beta_2": 0.99},
    "orthogonal_embedding_too": {
        "orthogonalize": ["kernel", "embedding"],
        "tensor_dims": None,
    },
    "orthogonal_embedding_scalar": {"tensor_dims": None},
}
# Variant -> what it changes in `et2_orthogonal_momentum`.
MOMENTUM_VARIANTS = {
    # Momentum of matrices, and the length of their steps with it.
    "momentum_0": {"momentum": 0.0, "rms_rate": 1.0},
    "momentum_0.5": {"momentum": 0.5, "rms_rate": 0.6},
    "momentum_0.9": {"momentum": 0.9, "rms_rate": 0.25},
    "momentum_0.9_short": {"momentum": 0.9, "rms_rate": 0.15},
    "momentum_0.9_long": {"momentum": 0.9, "rms_rate": 0.4},
    "momentum_all_0.8": {"beta_1": 0.8},
    # In arrays of its own.
    "momentum_arrays": {"momentum_dtype": None},
    # As of `VARIANTS`.
    "momentum_matrices": {"level": 1, "tensor_dims": None},
    "momentum_rows": {"tensor_dims": {"embedding": ("et1", 1)}},
    "momentum_columns": {"tensor_dims": _COLUMNS},
    "momentum_undamped": {"damping": 0.0, "ns_steps": 5},
    "momentum_steps_3": {"ns_steps": 3},
    "momentum_steps_3_half": {"ns_steps": 3, "ns_dtype": "float16"},
}


@functools.cache
def register():
    """Makes the variants names of optimizers, once."""
    from extreme_tensoring_tf import ExtremeTensoring
    from trainer.optim import catalog

    constant = language_modeling.known_constant("et2_orthogonal")
    for form, variants in (
        (catalog.ORTHOGONAL, VARIANTS),
        (catalog.MOMENTUM, MOMENTUM_VARIANTS),
    ):
        for name, changes in variants.items():
            catalog.register(name, constant, ExtremeTensoring, **form | changes)
