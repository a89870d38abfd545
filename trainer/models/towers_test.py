"""Gradients of towers are summed as they are: dense, by rows, or missing."""

import keras
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("towers are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from trainer.models import towers


def test_gradients_by_rows_stay_so():
    """A row that two towers have looked up counts twice."""
    slices = [
        tf.IndexedSlices(tf.constant(values), tf.constant(rows), tf.constant([4, 2]))
        for values, rows in (([[1.0, 2.0]], [3]), ([[4.0, 8.0], [1.0, 1.0]], [3, 0]))
    ]
    found = towers._sum(slices)
    assert isinstance(found, tf.IndexedSlices)
    expected = tf.add_n([tf.convert_to_tensor(s) for s in slices])
    assert tf.reduce_all(tf.convert_to_tensor(found) == expected)
    assert expected[3, 1] == 10.0


def test_a_variable_without_gradient_has_none():
    assert towers._sum([None, None]) is None
    assert towers._sum([tf.constant(1.0), tf.constant(2.0)]) == 3.0
