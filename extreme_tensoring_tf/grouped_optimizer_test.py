"""What a step is given: Keras' internals, lists of gradients, dtypes, devices."""

import ast
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.grouped_optimizer import KERAS_PRIVATES

only_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own habit"
)


def ones(shape, dtype="float32"):
    return keras.Variable(np.ones(shape), dtype=dtype)


def value(x):
    return np.asarray(ops.convert_to_numpy(x), "float64")


def built_by_keras():
    optimizer = keras.optimizers.SGD()
    optimizer.build([ones((3,))])
    return optimizer


@pytest.mark.parametrize("name", KERAS_PRIVATES)
def test_keras_has_the_private_names_that_are_used(name):
    assert hasattr(built_by_keras(), name), (
        f"Keras {keras.__version__} has no `Optimizer.{name}`, which ExtremeTensoring "
        f"uses ({KERAS_PRIVATES[name]}): mend grouped_optimizer.py, or take another "
        "version of Keras"
    )


def test_the_list_of_private_names_is_complete():
    """It holds what the package defines, reads or names that Keras' optimizer has."""
    used = set()
    for path in pathlib.Path(__file__).parent.glob("*.py"):
        if path.name.endswith("_test.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            used |= {
                getattr(node, "attr", None),
                getattr(node, "name", None),
                getattr(node, "value", None) if type(node) is ast.Constant else None,
            }
    names = {n for n in dir(built_by_keras()) if n.startswith("_") and n[1] != "_"}
    assert used & names == set(KERAS_PRIVATES)


def test_variables_and_gradients_may_be_generators():
    variables = [ones((3,)), ones((2, 2))]
    gradients = (ops.ones(v.shape) for v in variables)
    ExtremeTensoring(0.1).apply(gradients, (v for v in variables))
    for variable in variables:
        np.testing.assert_allclose(value(variable), 0.9, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_gradients_as_variables(count):
    variables = [ones((3,)), ones((3,))]
    optimizer = ExtremeTensoring(0.1)
    gradients = [ops.ones((3,))] * count
    with pytest.raises(ValueError, match=f"{count} gradients .* for 2 variables"):
        optimizer.apply(gradients, variables)
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply(gradients)
    optimizer.build(variables)
    with pytest.raises(ValueError, match=f"Received a list of {count} gradients"):
        optimizer.apply(gradients)
    for variable in variables:
        np.testing.assert_array_equal(value(variable), 1)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_dtypes_of_gradients_and_rates_may_change(jit_compile):
    variable, optimizer = ones((3, 4)), ExtremeTensoring(0.1, jit_compile=jit_compile)
    for dtype, rate in (
        ("float16", 0.1),
        ("float32", lambda: 0.2),
        ("float32", lambda: np.float64(0.1)),
    ):
        optimizer.learning_rate = rate
        optimizer.apply([ops.ones((3, 4), dtype)], [variable])
    np.testing.assert_allclose(value(variable), 0.6, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX has no float64")
@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_clipping_of_variables_of_two_dtypes(clipping):
    """Both are of norm 4: each is clipped to 1/4, or together to 1/sqrt(32)."""
    variables = [ones((16,)), ones((4, 4), "float64")]
    optimizer = ExtremeTensoring.algorithm_1(
        1.0, level="inf", jit_compile=False, statistic="mean", **{clipping: 1.0}
    )
    norm = keras.Variable(0.0)
    optimizer.report_gradient_norm(norm)
    optimizer.apply([ops.ones(v.shape, v.dtype) for v in variables], variables)
    np.testing.assert_allclose(value(norm), np.sqrt(32), rtol=1e-6)
    factor = 0.25 if clipping == "clipnorm" else 32**-0.5
    for variable, (statistic,) in zip(variables, optimizer._slots.statistics):
        np.testing.assert_allclose(value(variable), 0.0, atol=1e-6)
        np.testing.assert_allclose(value(statistic), 16 * factor**2, rtol=1e-6)


@pytest.mark.parametrize("clipping", ["clipnorm", "global_clipnorm"])
def test_a_bound_that_is_not_positive_clips_nothing_as_in_keras(clipping):
    for make in (keras.optimizers.SGD, ExtremeTensoring):
        variable = ones((3,))
        make(0.1, **{clipping: -1.0}).apply([ops.ones((3,))], [variable])
        np.testing.assert_allclose(value(variable), 0.9, rtol=1e-6)


@pytest.mark.parametrize("clipping", [{}, {"global_clipnorm": 1.0}])
def test_a_step_of_variables_without_entries(clipping):
    empty, optimizer = ones((0, 5)), ExtremeTensoring(0.1, **clipping)
    assert optimizer.skipped_updates == {}
    optimizer.apply([ops.zeros((0, 5))], [empty])
    assert int(optimizer.iterations) == 1


@only_tensorflow
def test_variables_on_two_devices():
    import tensorflow as tf

    variables = []
    for device in ("CPU:0", "CPU:1"):
        with tf.device(device):
            variables.append(ones((3, 4)))
    ExtremeTensoring(0.1).apply([tf.ones((3, 4))] * 2, variables)
    for variable in variables:
        np.testing.assert_allclose(value(variable), 0.9, rtol=1e-6)
