"""Noise that is the same whenever it is drawn again."""

import keras


class Drawn(keras.random.SeedGenerator):
    """A seed that is given, where Keras would draw one: the same noise every time."""

    def __init__(self, seed):
        self._seed = seed

    def next(self, ordered=True):
        return self._seed


def dropout(x, rate, seed):
    """Dropout with a seed that was drawn before; None: none.

    So a block that is computed again has the same noise.
    """
    if seed is None or not rate:
        return x
    return keras.random.dropout(x, rate, seed=Drawn(seed))
