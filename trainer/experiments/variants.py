"""Names variants of the orthogonal form, which experiments take as optimizers."""

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
    "orthogonal_half": {"rms_rate": 0.5},
    "orthogonal_double": {"rms_rate": 2.0},
    "orthogonal_beta_2_0.5": {"beta_2": 0.5},
    "orthogonal_beta_2_0.99": {"beta_2": 0.99},
    # That of `et2_orthogonal_momentum` as arrays of its own.
    "orthogonal_momentum": {"beta_1": 0.9, "rms_rate": 0.25},
    "orthogonal_embedding_too": {
        "orthogonalize": ["kernel", "embedding"],
        "tensor_dims": None,
    },
    "orthogonal_embedding_scalar": {"tensor_dims": None},
}


def register():
    """Makes the variants names of optimizers."""
    from extreme_tensoring_tf import ExtremeTensoring
    from trainer.optim import catalog

    constant = language_modeling.known_constant("et2_orthogonal")
    for name, changes in VARIANTS.items():
        form = catalog.ORTHOGONAL | changes
        catalog.register(name, constant, ExtremeTensoring, **form)
