"""`keras.distribution` over eight devices: the step is that of one device (JAX)."""

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="keras.distribution is for JAX"
)

SETTINGS = {
    "rank_one": {},
    "algorithm_1": {
        "preconditioner": "geometric_mean",
        "beta_2": None,
        "clip_threshold": None,
    },
    "momentum": {"beta_1": 0.9},
    "packed": {"beta_1": 0.9, "momentum_dtype": "packed"},
    "orthogonal": {"orthogonalize": True, "tensor_dims": {"embedding": ("et2", 1)}},
    "global_clipnorm": {"global_clipnorm": 0.5, "weight_decay": 0.01},
    "accumulation": {"gradient_accumulation_steps": 2},
    "literal_epsilon": {
        "preconditioner": "geometric_mean",
        "epsilon_placement": "product",
        "clip_threshold": None,
    },
}
_EXACT = {"rtol": 1e-4, "atol": 2e-6}
# A sum over devices in another order rounds another way at random.
TOLERANCES = {"packed": {"rtol": 2.0**-15, "atol": 1e-2}}
# Rules that match inside a name match the names of slots, too.
RULES = {
    ".*embeddings.*": (None, "model"),
    ".*kernel.*": (None, "model"),
    ".*bias.*": ("model",),
}


def distribution(name):
    """Returns None, DataParallel, or ModelParallel over a mesh such as "2x4"."""
    if name == "one device":
        return None
    if name == "data":
        devices = keras.distribution.list_devices()
        return keras.distribution.DataParallel(devices=devices)
    shape = tuple(map(int, name.split("x")))
    mesh = keras.distribution.DeviceMesh(
        shape, ["batch", "model"], keras.distribution.list_devices()
    )
    layouts = keras.distribution.LayoutMap(mesh)
    for rule, axes in RULES.items():
        layouts[rule] = axes
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


@pytest.fixture
def distributed():
    """Returns a function that sets the distribution of a name."""
    yield lambda name: keras.distribution.set_distribution(distribution(name))
    keras.distribution.set_distribution(None)


def fitted(path=None, **kwargs):
    """Returns a small model after four steps, and the optimizer's state after them."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 40, (64, 8)).astype("int32")
    if path:
        model = keras.models.load_model(path)
    else:
        model = keras.Sequential(
            [
                keras.Input((8,), dtype="int32"),
                keras.layers.Embedding(40, 16),
                keras.layers.Flatten(),
                keras.layers.Dense(24, "relu"),
                keras.layers.Dense(8),
            ]
        )
        model.compile(ExtremeTensoring(0.01, **kwargs), "mse")
    model.fit(ids, np.eye(8)[ids[:, 0] % 8], batch_size=16, shuffle=False, verbose=0)
    return model


def values(variables):
    return [np.asarray(keras.ops.convert_to_numpy(v)) for v in variables]


@pytest.mark.parametrize("topology", ["data", "2x4", "1x8"])
@pytest.mark.parametrize("form", SETTINGS)
def test_weights_and_state_are_those_of_one_device(distributed, form, topology):
    expected = fitted(**SETTINGS[form])
    distributed(topology)
    found = fitted(**SETTINGS[form])
    for kind in ("weights", "optimizer.variables"):
        pairs = [
            (v.path, a, b)
            for v, a, b in zip(
                _of(expected, kind),
                values(_of(expected, kind)),
                values(_of(found, kind)),
            )
        ]
        for path, a, b in pairs:
            tolerance = TOLERANCES.get(form, _EXACT)
            np.testing.assert_allclose(a, b, **tolerance, err_msg=path)


def _of(model, kind):
    return model.weights if kind == "weights" else model.optimizer.variables


@pytest.mark.parametrize("before, after", [("2x4", "one device"), ("data", "1x8")])
def test_a_model_saved_under_one_topology_goes_on_under_another(
    distributed, tmp_path, before, after
):
    path = tmp_path / "model.keras"
    fitted(beta_1=0.9).save(path)
    expected = fitted(path)
    distributed(before)
    fitted(beta_1=0.9).save(path)
    distributed(after)
    found = fitted(path)
    for a, b in zip(values(expected.weights), values(found.weights)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)


def test_slots_are_whole_on_every_device_and_momentum_lies_as_its_variable(distributed):
    distributed("2x4")
    model = fitted(beta_1=0.9)
    kernel = model.layers[-1].kernel
    slots = {v.path: v for v in model.optimizer.variables}
    statistics = [v for path, v in slots.items() if "statistic" in path]
    name = f"{kernel.path.replace('/', '_')}_momentum"
    momentum = [v for path, v in slots.items() if name in path]
    assert statistics and all(v.value.sharding.is_fully_replicated for v in statistics)
    assert [v.value.sharding for v in momentum] == [kernel.value.sharding]
