"""Measures time, bandwidth and memory, and names the machine."""

import concurrent.futures
import contextlib
import importlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np


def timed(function, *arguments):
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def batched(x, y, batch_size):
    """Returns arrays as a dataset whose end `fit` does not wait for; on TensorFlow."""
    import tensorflow as tf

    from trainer.data import batches

    return batches.untuned(tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size))


def apart(module, *arguments, environment=None):
    """Returns the figures that a module prints as JSON, run in a process of its own.

    Args:
        module: as `python -m` takes it.
        *arguments: of the module.
        environment: {name: value} to set.

    Raises:
        Failed: the process failed, or was killed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | (environment or {}),
    )
    if done.returncode:
        raise Failed(done.returncode, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


class Failed(Exception):
    """A process that was to measure something failed.

    Attributes:
        lacked_memory: whether memory was what it had too little of.
    """

    def __init__(self, status, printed):
        super().__init__(f"status {status}: {printed.strip()}")
        killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        words = ("out of memory", "resource_exhausted", "memoryerror", "bad_alloc")
        self.lacked_memory = killed or any(w in printed.lower() for w in words)


def peak_resident_bytes():
    """Returns the most resident memory that this process had. Linux only."""
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes():
    """Returns the resident memory that this process has now. Linux only."""
    return _memory("VmRSS")


def wait_for_turn():
    """Prints "ready", and waits for a line: others may be measured now.

    A machine with one GPU compiles many programs at a time, but times one.
    """
    print(READY, flush=True)
    sys.stdin.readline()


READY = "ready"


def traced(folder):
    """Returns a context that leaves a trace of the device in a folder (JAX), or none.

    Args:
        folder: None is no trace.
    """
    if not folder:
        return contextlib.nullcontext()
    import jax

    return jax.profiler.trace(folder)


def copy_bandwidth(megabytes=256, rounds=10):
    """Returns the bytes read and written a second by a copy of a large array.

    The array is on the GPU where JAX has one, and larger there.
    """
    if "jax" in sys.modules and sys.modules["jax"].default_backend() == "gpu":
        jax = sys.modules["jax"]
        source = jax.numpy.ones((8 * megabytes, 2**18), "float32")
        copy = jax.jit(jax.numpy.negative)  # a copy alone would be left out
        times = [timed(lambda: copy(source).block_until_ready()) for _ in range(rounds)]
        return 2 * source.nbytes / min(times)
    # Each core copies a part: NumPy lets the others run.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    source = np.ones((cores, megabytes * 2**17 // cores))
    target = np.empty_like(source)
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        best = min(
            timed(lambda: list(pool.map(np.copyto, target, source)))
            for _ in range(rounds)
        )
    return 2 * source.nbytes / best


# oneDNN's allocator keeps what it once had, and so does glibc below a threshold, which
# rises to 32 MB by itself: what is freed and taken again would be no peak.
RETURNING_MEMORY = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "MALLOC_MMAP_THRESHOLD_": str(2**20),
}


def peak_temporary_bytes(function):
    """Returns the resident memory at the peak of a call, above that of before.

    The least of three calls. Linux only: None elsewhere. It takes a process that was
    started with `RETURNING_MEMORY` in its environment.
    """
    clear = pathlib.Path("/proc/self/clear_refs")
    if not clear.exists() or device_peak_bytes() is not None:
        return None  # on a GPU the host's memory says nothing
    peaks = []
    for _ in range(3):
        clear.write_text("5")  # the peak starts anew
        before = _memory("VmRSS")
        function()
        peaks.append(max(0, _memory("VmHWM") - before))
    return min(peaks)


def step_for_gpu(trained, rows, description):
    """Returns the training step of a model, compiled for a GPU that is not here.

    In a process with the environment `FOR_GPU`, on JAX with its CUDA plugin. Without a
    GPU to try them on, XLA does not choose among kernels for a product.

    Args:
        trained: compiled Keras model; its optimizer is built here.
        rows: an array.
        description: path of the GPU's description, a `GpuTargetConfigProto`.
    """
    import jax
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name="gpu",
        topology="1x1x1",
        target_config=pathlib.Path(description).read_text("utf-8"),
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])

    def described(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    # The optimizer asks for the backend: it groups variables by the device.
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        step, arguments = _step(trained, rows)
        return step.lower(*jax.tree.map(described, arguments)).compile()


# There is no GPU to ask for its version, or to try kernels on.
FOR_GPU = {
    "KERAS_BACKEND": "jax",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}


def compiled_step(trained, rows):
    """Returns the compiled training step of a model on JAX.

    Args:
        trained: compiled Keras model; its optimizer is built here, if it is not.
        rows: an array, of all devices.
    """
    import keras

    if distribution := keras.distribution.distribution():
        layout = distribution.get_data_layout(rows.shape)
        rows = keras.distribution.distribute_tensor(rows, layout)
    step, arguments = _step(trained, rows)
    return step.lower(*arguments).compile()


def _step(trained, rows):
    """Returns the training step of a model on JAX, and its arguments."""
    import jax

    trained.optimizer.build(trained.trainable_variables)
    state = trained._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    return jax.jit(trained.train_step, donate_argnums=0), (state, (rows,))


def device_peak_bytes():
    """Returns the most memory that a GPU held in this process; None on a CPU."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        statistics = jax.devices()[0].memory_stats() or {}
        return statistics.get("peak_bytes_in_use")
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return None
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"]


def _memory(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(f"no {field} in /proc/self/status")


def environment():
    """Returns versions and hardware that the figures belong to."""
    import keras

    backend = keras.backend.backend()
    version = importlib.import_module(backend).__version__
    return (
        f"{_hardware(backend)}, keras {keras.__version__} on {backend} {version}, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )


def _hardware(backend):
    if backend == "jax":
        import jax

        if jax.default_backend() == "gpu":
            return jax.devices()[0].device_kind
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    elif backend == "tensorflow":
        import tensorflow as tf

        for device in tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_device_details(device)["device_name"]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    models = [
        line.split(":")[1].strip()
        for line in cpuinfo.read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(models)} cores {models[0] if models else platform.machine()}"
