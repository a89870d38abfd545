"""Sparse gradients (`tf.IndexedSlices`) as a matrix of the rows they touch."""

import math

import tensorflow as tf


def touched_rows(gradient, index, shape, dtype):
    """The gradient of an embedding, without duplicates.

    Args:
        gradient: `tf.IndexedSlices` with k slices along axis 0, in any order,
            perhaps several of one index.
        index: the `TensorIndex` of the variable, its view one or more rows per
            slice.
        shape: shape of the variable.
        dtype: of the result.

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
    first = tf.concat([[True], ids[1:] != ids[:-1]], axis=0)
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


def is_sparse(gradient):
    return isinstance(gradient, tf.IndexedSlices)


def fits(index, shape):
    """Whether the slices of a variable are whole rows of the index's view."""
    return len(shape) > 1 and math.prod(shape[1:]) % index.view[1] == 0


def slices(matrix, slice_ids, shape):
    """Rows of the view -> `tf.IndexedSlices` to scatter into the variable."""
    values = tf.reshape(matrix, (-1, *shape[1:]))
    return tf.IndexedSlices(values, slice_ids, dense_shape=shape)
