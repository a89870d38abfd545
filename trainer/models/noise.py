"""Noise that is the same whenever it is drawn again."""

import keras


class Drawn(keras.random.SeedGenerator):
    """Gives Keras one seed, where it would draw another for every call.

    Args:
        seed: two integers, shape (2,).
    """

    def __init__(self, seed):
        self._seed = seed

    def next(self, ordered=True):
        return self._seed


def dropout(x, rate, seed):
    """Returns x after dropout by a seed that was drawn before.

    A block that is computed again has the same noise again.

    Args:
        x: a float tensor.
        rate: share of the entries that become 0.
        seed: two integers, shape (2,); None: no dropout.
    """
    if seed is None or not rate:
        return x
    return keras.random.dropout(x, rate, seed=Drawn(seed))
