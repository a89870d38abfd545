"""A sparse gradient gives the result of the dense one."""

import keras
import numpy as np
import pytest

from extreme_tensoring_tf import ExtremeTensoring
from extreme_tensoring_tf.preconditioner_test import FORMS
from extreme_tensoring_tf.preconditioner_test import LEVELS

if keras.backend.backend() != "tensorflow":
    pytest.skip("only TensorFlow has sparse gradients", allow_module_level=True)

import tensorflow as tf

SHAPES = [(19, 12), (40, 3, 4), (30,)]


def sparse_gradients(shape, steps, touched=9):
    """IndexedSlices with duplicates, in no order; the last step touches one row."""
    rng = np.random.default_rng(0)
    for step in range(steps):
        count = touched if step < steps - 1 else 1
        indices = rng.integers(0, shape[0], count)
        values = rng.normal(size=(count, *shape[1:])).astype("float32")
        yield tf.IndexedSlices(values, indices, dense_shape=shape)


@pytest.mark.parametrize(
    "level, form",
    [
        pytest.param(
            level,
            form,
            marks=[] if level == 2 or form == "everything" else [pytest.mark.slow],
        )
        for level in LEVELS
        for form in FORMS
    ],
)
def test_sparse_is_dense(level, form):
    for shape in SHAPES:
        values = np.random.default_rng(1).normal(size=shape)
        results = []
        for densify in (tf.convert_to_tensor, lambda g: g):
            variable = keras.Variable(values, dtype="float32")
            optimizer = ExtremeTensoring.algorithm_1(
                0.1, level=level, jit_compile=False, **FORMS[form]
            )
            for g in sparse_gradients(shape, steps=4):
                optimizer.apply([densify(g)], [variable])
            results.append([variable, *optimizer.variables])
        for dense, sparse in zip(*results):
            np.testing.assert_allclose(
                dense.numpy(), sparse.numpy(), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_duplicates_are_summed_in_the_dtype_of_the_statistics(dtype):
    """In bfloat16 a sum of ones ends at 256, in float16 one of 1,000 above 65,504."""
    size = 1.0 if dtype == "bfloat16" else 1000.0
    statistics = []
    for values in (tf.fill((1000, 4), size), tf.fill((1, 4), 1000 * size)):
        variable = keras.Variable(np.ones((5, 4)), dtype=dtype)
        optimizer = ExtremeTensoring.algorithm_1(0.1, level=1, jit_compile=False)
        kind = dtype if len(values) > 1 else "float32"
        gradient = tf.IndexedSlices(
            tf.cast(values, kind), tf.zeros(len(values), tf.int32), dense_shape=(5, 4)
        )
        optimizer.apply([gradient], [variable])
        statistics.append(optimizer._slots.statistics[0][0].numpy())
    assert statistics[1][0] > 0
    assert statistics[0][0] == pytest.approx(statistics[1][0])


def test_untouched_rows_are_not_written():
    variable = keras.Variable(np.ones((100, 8)), dtype="float32")
    optimizer = ExtremeTensoring(0.1)
    optimizer.apply(
        [tf.IndexedSlices(tf.ones((3, 8)), [5, 7, 5], dense_shape=(100, 8))],
        [variable],
    )
    changed = np.flatnonzero((variable.numpy() != 1).any(axis=1))
    assert changed.tolist() == [5, 7]


def test_nonfinite_slice_is_skipped():
    variable = keras.Variable(np.ones((10, 4)), dtype="float32", name="table")
    optimizer = ExtremeTensoring(0.1)
    values = tf.constant([[1.0, 2, 3, 4], [1, np.inf, 1, 1]])
    optimizer.apply([tf.IndexedSlices(values, [1, 2], dense_shape=(10, 4))], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.ones((10, 4)))
    assert optimizer.skipped_updates == {"table": 1}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sparse_is_dense_in_short_dtypes(dtype):
    """Its gradient is the sum in float32."""
    values = np.random.default_rng(1).normal(size=(19, 12))
    results = []

    def summed(g):
        wide = tf.cast(g.values, "float32")
        return tf.convert_to_tensor(tf.IndexedSlices(wide, g.indices, g.dense_shape))

    for densify in (summed, lambda g: g):
        variable = keras.Variable(values, dtype=dtype)
        optimizer = ExtremeTensoring(0.1, jit_compile=False)
        for g in sparse_gradients((19, 12), steps=3):
            g = tf.IndexedSlices(tf.cast(g.values, dtype), g.indices, g.dense_shape)
            optimizer.apply([densify(g)], [variable])
        results.append(tf.cast(variable.value, "float32").numpy())
    np.testing.assert_array_equal(*results)
    assert (results[0] != tf.cast(tf.cast(values, dtype), "float32").numpy()).any()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_embedding_and_dense_layers_together(jit_compile):
    """Sparse and dense gradients mixed in fit, against the all-dense model."""

    def model():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((5,), dtype="int32"),
                keras.layers.Embedding(50, 8),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
        optimizer = ExtremeTensoring.algorithm_1(
            0.3, statistic="mean", jit_compile=jit_compile
        )
        model.compile(optimizer=optimizer, loss="mse")
        return model

    x = np.random.default_rng(0).integers(0, 50, (64, 5))
    y = (x[:, :1] % 7).astype("float32")
    fitted, by_hand = model(), model()
    fitted.fit(x, y, batch_size=64, epochs=3, verbose=0)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = by_hand.compute_loss(x, y, by_hand(x))
        grads = tape.gradient(loss, by_hand.trainable_variables)
        assert isinstance(grads[0], tf.IndexedSlices)
        grads = [tf.convert_to_tensor(g) for g in grads]
        by_hand.optimizer.apply(grads, by_hand.trainable_variables)
    for a, b in zip(fitted.variables, by_hand.variables):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
