"""Spreads a run over devices and processes, by `keras.distribution`."""


def replicas() -> int:
    """Returns the number of parts that devices cut a batch into; 1 on one device."""
    import keras

    distribution = keras.distribution.distribution()
    return distribution.num_model_replicas if distribution else 1
