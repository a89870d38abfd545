"""Two replicas on the CPU, for tests of TensorFlow's distribution."""

import functools


@functools.cache
def two_replicas():
    """Returns the one `tf.distribute.MirroredStrategy` of the process.

    A second one would number its collective operations from the start again, and
    TensorFlow would take them for those of the first. conftest.py splits the CPU.
    """
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
