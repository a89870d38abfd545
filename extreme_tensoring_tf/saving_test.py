"""Files of a model trained with ExtremeTensoring, where it is and where it is not."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1] * X[:, 1:2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    model.compile(optimizer=ExtremeTensoring(0.1), loss="mse")
    model.fit(X, Y, epochs=2, shuffle=False, verbose=0)
    folder = tmp_path_factory.mktemp("saved")
    model.save(folder / "model.keras")
    if keras.backend.backend() == "tensorflow":
        model.export(folder / "saved_model", verbose=False)
    predictions = model.predict(X, verbose=0)
    model.fit(X, Y, epochs=1, shuffle=False, verbose=0)
    return folder, predictions, model.get_weights()


def elsewhere(code, path, *more):
    """The JSON that code prints where our package, and `more`, are not installed."""
    blocked = """
import importlib.machinery, json, sys
import numpy as np

class NotInstalled:
    names = {"extreme_tensoring_tf", *sys.argv[2:]}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(spec.name)

sys.meta_path.insert(0, NotInstalled())
x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
"""
    process = subprocess.run(
        [sys.executable, "-c", blocked + code, str(path), *more],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def test_with_the_optimizer_training_goes_on(trained):
    folder, predictions, later = trained
    model = keras.saving.load_model(folder / "model.keras")
    np.testing.assert_allclose(model.predict(X, verbose=0), predictions, rtol=1e-6)
    model.fit(X, Y, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), later):
        np.testing.assert_array_equal(a, b)


def test_without_the_optimizer_another_one_goes_on(trained):
    folder, predictions, _ = trained
    model = keras.saving.load_model(folder / "model.keras", compile=False)
    np.testing.assert_allclose(model.predict(X, verbose=0), predictions, rtol=1e-6)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


def test_keras_file_predicts_where_we_are_not_installed(trained):
    folder, predictions, _ = trained
    found = elsewhere(
        """
import keras
model = keras.saving.load_model(sys.argv[1], compile=False)
print(json.dumps(model.predict(x, verbose=0).tolist()))
""",
        folder / "model.keras",
    )
    np.testing.assert_allclose(found, predictions, rtol=1e-5)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel is TensorFlow's"
)
def test_saved_model_predicts_with_tensorflow_alone(trained):
    folder, predictions, _ = trained
    found = elsewhere(
        """
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
print(json.dumps(model.serve(x).numpy().tolist()))
""",
        folder / "saved_model",
        "keras",
    )
    np.testing.assert_allclose(found, predictions, rtol=1e-5)
