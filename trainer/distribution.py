"""Spreads a run over devices: the rows of its batches, or its model, too.

On JAX `keras.distribution` does it: what is made after `spread` lies on all devices, of
all processes, and all code is that of one device. On TensorFlow the model stays where
one device has it, and the others compute with copies: `models/towers.py`.

This module imports neither Keras nor a backend before it is asked for something that
needs them.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from trainer import processes
from trainer import registry
from trainer.errors import UsageError
from trainer.hparams import HParams

STRATEGIES = ("none", "data", "model")
BATCH, MODEL = "batch", "model"  # axes of the mesh

_towers: tuple[str, ...] = ()  # names of devices, where there are several


def begin(
    strategy: str,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of a run; `spread` over their devices comes next.

    Args:
        strategy: one of `STRATEGIES`.
        coordinator, num_processes, process_id: as `processes.join` takes them.

    Raises:
        UsageError: they do not fit each other or the backend, or the others cannot be
            reached.
    """
    import keras

    if keras.backend.backend() == "torch":
        raise UsageError(
            "models of the trainer train on TensorFlow and JAX, and the backend is "
            "torch: set KERAS_BACKEND. The optimizer works on torch, in `fit` and in "
            "loops of your own"
        )
    several = (coordinator, num_processes, process_id) != (None, None, None)
    _check(strategy, keras.backend.backend(), several)
    processes.join(coordinator, num_processes, process_id)


def _check(strategy, backend, several):
    if strategy not in STRATEGIES:
        raise UsageError(
            f"strategy must be one of {', '.join(STRATEGIES)}. Got {strategy}"
        )
    if strategy == "none":
        if several:
            raise UsageError(
                "--coordinator, --num_processes and --process_id are of a run on "
                "several processes: give --strategy=data, too"
            )
        return
    if backend != "jax" and (strategy == "model" or several):
        what = "--coordinator" if several else "--strategy=model"
        raise UsageError(
            f"{what} works on JAX, and the backend is {backend}: install jax and set "
            "KERAS_BACKEND=jax; --strategy=data works on all GPUs of one host"
        )
    if several and strategy == "model":
        raise UsageError(
            "--strategy=model is for one process: Keras cannot save variables whose "
            "parts lie in several. Give --strategy=data, or one process for all devices"
        )


def spread(
    strategy: str,
    model: str,
    hparams: HParams,
    vocab_size: int,
    model_devices: int | None = None,
) -> None:
    """Spreads what is made from now on over all devices, of all processes.

    Args:
        strategy: one of `STRATEGIES`.
        model: name of the model; "model" takes the layout of that name.
        hparams: of the model.
        vocab_size: of its data.
        model_devices: devices that share a copy of the model; they divide those of
            the process. Defaults to all.

    Raises:
        UsageError: the model has no layout, or cannot be cut into so many parts, or
            is not cut at all.
    """
    global _towers
    _towers = ()
    if model_devices is not None and strategy != "model":
        raise UsageError(
            f"--model_devices={model_devices} says how many devices share one model: "
            "give --strategy=model, too"
        )
    if strategy == "none":
        return
    import keras

    if keras.backend.backend() == "tensorflow":
        found = _tensorflow_devices()
        _towers = found if len(found) > 1 else ()
        return
    devices = keras.distribution.list_devices()
    if strategy == "data":
        # A process reads its own rows.
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        )
        return
    parts = model_devices or len(devices)
    if len(devices) % parts:
        raise UsageError(
            f"--model_devices={parts} must divide the {len(devices)} devices of this "
            "process"
        )
    layout = registry.layouts.get(model)(hparams, vocab_size, parts)
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // parts, parts), [BATCH, MODEL], devices
    )
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, axes in layout.items():
        layouts[pattern] = axes
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name=BATCH)
    )


def _tensorflow_devices():
    """Returns the names of all GPUs; where there is none, of what the CPU is cut into.

    The first one of them is where TensorFlow puts variables.
    """
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return tuple(device.name for device in tf.config.list_logical_devices(kind))


def replicas() -> int:
    """Returns the number of parts that devices cut a batch into; 1 on one device."""
    return len(_towers) or groups()


def groups() -> int:
    """Returns the number of parts in what a model is called with."""
    import keras

    distribution = keras.distribution.distribution()
    return distribution.num_model_replicas if distribution else 1


def devices() -> int:
    """Returns the number of devices that a run is spread over, of all processes."""
    import keras

    distribution = keras.distribution.distribution()
    return distribution.device_mesh.devices.size if distribution else replicas()


def towers() -> tuple[str, ...]:
    """Returns the names of the devices that compute on TensorFlow; () for one alone."""
    return _towers


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """Has variables made for one device, in a block that not all processes enter.

    Making one that is spread takes all of them, and Keras makes an optimizer, to look
    at it, while it saves another one.
    """
    if processes.part()[1] == 1:
        yield
        return
    import keras

    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)


def distribute(rows: Any) -> Any:
    """Returns the batch of all processes, of which `rows` are those of this one."""
    import jax
    import keras

    layout = keras.distribution.distribution().get_data_layout(rows.shape)
    return jax.make_array_from_process_local_data(layout.backend_layout, rows)


def own_rows(array: Any) -> Any:
    """Returns the rows of an array over all devices that lie in this process."""
    import numpy as np

    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
