"""What every benchmark measures with, and the machine it measured on."""

import importlib.metadata
import platform
import time

import numpy as np


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def copy_bandwidth(megabytes=256, rounds=10):
    """Bytes read and written a second by a copy of a large array."""
    source = np.ones(megabytes * 2**17)
    target = np.empty_like(source)
    best = min(timed(lambda: np.copyto(target, source)) for _ in range(rounds))
    return 2 * source.nbytes / best


def environment():
    """Versions and hardware that the figures belong to."""
    import keras

    backend = keras.backend.backend()
    version = importlib.metadata.version(
        "tensorflow-cpu" if backend == "tensorflow" else backend
    )
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = [x.split(":")[1].strip() for x in lines if x.startswith("model name")]
    return (
        f"{len(models)} cores {models[0]}, keras {keras.__version__} on {backend} "
        f"{version}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
