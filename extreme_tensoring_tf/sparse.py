"""Sparse gradients (`tf.IndexedSlices`) as a matrix of the rows they touch."""

import math

import tensorflow as tf


def is_sparse(gradient) -> bool:
    """Returns whether a gradient is `tf.IndexedSlices`."""
    return isinstance(gradient, tf.IndexedSlices)


def ensure_shape(gradient, shape):
    """Returns a gradient whose shape is checked when the step runs.

    Of a sparse one the number of rows is free.
    """
    if is_sparse(gradient):
        values = tf.ensure_shape(gradient.values, (None, *shape[1:]))
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return tf.ensure_shape(gradient, shape)


def fits(index, shape) -> bool:
    """Returns whether the slices of a variable are whole rows of the index's view."""
    return len(shape) > 1 and math.prod(shape[1:]) % index.view[1] == 0


def touched_rows(gradient, index, shape, dtype):
    """Returns the gradient of an embedding without duplicates.

    Args:
        gradient: `tf.IndexedSlices` with k slices along axis 0, in any order,
            perhaps several of one index; k may be 0, or unknown when traced.
        index: the `TensorIndex` of the variable, its view one or more rows per
            slice.
        shape: shape of the variable.
        dtype: dtype of the result.

    Returns:
        slice_ids: int vector (k,), the slices touched, each once. Places left
            over by duplicates hold 0.
        row_ids: int vector, the rows of the view that these slices are.
        matrix: (rows, index.view[1]), the sum over duplicates; rows left over
            hold zeros, which change nothing.
    """
    order = tf.argsort(gradient.indices)
    ids = tf.gather(gradient.indices, order)
    values = tf.gather(tf.cast(gradient.values, dtype), order)
    first = tf.concat([tf.ones_like(ids[:1], tf.bool), ids[1:] != ids[:-1]], axis=0)
    place = tf.cumsum(tf.cast(first, tf.int32)) - 1
    count = tf.shape(ids)[0]
    slice_ids = tf.math.unsorted_segment_max(ids, place, count)
    slice_ids = tf.maximum(slice_ids, 0)  # the maximum over nothing is negative
    values = tf.math.unsorted_segment_sum(values, place, count)
    rows_per_slice = math.prod(shape[1:]) // index.view[1]
    row_ids = slice_ids[:, None] * rows_per_slice + tf.range(
        rows_per_slice, dtype=slice_ids.dtype
    )
    matrix = tf.reshape(values, (-1, index.view[1]))
    return slice_ids, tf.reshape(row_ids, (-1,)), matrix


def dense(gradient, shape, dtype):
    """Returns a sparse gradient as a tensor of the variable's shape and of a dtype.

    In that dtype duplicates are summed: a thousand of them are lost in 16 bits.
    """
    values = tf.cast(gradient.values, dtype)
    return tf.math.unsorted_segment_sum(values, gradient.indices, shape[0])


def slices(matrix, slice_ids, shape):
    """Returns rows of the view as `tf.IndexedSlices` to scatter into the variable."""
    values = tf.reshape(matrix, (-1, *shape[1:]))
    return tf.IndexedSlices(values, slice_ids, dense_shape=shape)
