"""What the peers take gradients for."""

from keras import ops


def dense(gradient, shape):
    """Returns a gradient as a float32 array of the shape of its variable.

    On TensorFlow that of an embedding is sparse, and may hold a row several times: its
    square is none of the sum. Of others the shape may be unknown.
    """
    return ops.reshape(ops.cast(gradient, "float32"), shape)
