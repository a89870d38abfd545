r"""Trains one model on a GPU, and prints its speed and memory as a line of JSON.

    python -m benchmarks.gpu_training --data_dir=DATA --problem=PROBLEM \
        --optimizer=adam --hparams_set=transformer_base --hparams=batch_size=16384 \
        --dtype=mixed_bfloat16 --train_steps=80

The run is `loop.train` itself. The speed is that of up to 56 steps, after those that
compile and those whose batches were read while it waited for its turn.
`benchmarks.gpu` calls this for its parts.
"""

import dataclasses
import sys
import time

from absl import flags

from trainer.bin import cli

_DATA_DIR = cli.DEFINE_path("data_dir", None, "Folder that et-datagen wrote.")
_PROBLEM = flags.DEFINE_string("problem", None, "Name of the problem.")
_OPTIMIZER = flags.DEFINE_string("optimizer", "et2_orthogonal", "Name.")
_HPARAMS_SET = flags.DEFINE_string("hparams_set", "transformer_base", "Model.")
_HPARAMS = flags.DEFINE_string("hparams", "", "Changes: name=value,name=value.")
_DTYPE = flags.DEFINE_string("dtype", "mixed_bfloat16", "Policy.")
_STEPS = cli.DEFINE_count("train_steps", 80, "Steps.", least=32)
_WAIT = flags.DEFINE_bool("wait", False, "Internal: wait for a turn before timing.")
_PROFILE = cli.DEFINE_path("profile", None, "Folder for a trace of two steps: JAX.")
# Steps that compile, those whose batches Keras holds on the device already, and those
# that are timed, at most.
_WARMUP, _ON_DEVICE, _TIMED = 4, 2, 56


def main(argv):
    cli.no_arguments(argv)
    cli.require(_DATA_DIR, _PROBLEM)
    cli.print_json(train())


def train():
    """Trains, and returns the figures."""
    import keras

    from benchmarks import measure
    from trainer import registry
    from trainer.data import batches
    from trainer.experiments import variants
    from trainer.training import flops
    from trainer.training import loop
    from trainer.training.run import Run

    class Stopwatch(keras.callbacks.Callback):
        """Times the steps after those that compile, and reads the peak of memory."""

        seconds = possible = peak = None

        def on_train_batch_end(self, batch, logs=None):
            step = batch + 1
            if step == _WARMUP:
                _wait_for(logs)
                if _WAIT.value:
                    measure.wait_for_turn()
                    dtype = keras.dtype_policies.get(_DTYPE.value).compute_dtype
                    self.possible = flops.of_matrix_product(dtype)
            if step == first:
                _wait_for(logs)
                self.began = time.perf_counter()
            if step == first + timed:
                _wait_for(logs)
                self.seconds = time.perf_counter() - self.began
                self.peak = measure.device_peak_bytes()
                if _PROFILE.value:
                    self.trace = measure.traced(_PROFILE.value)
                    self.trace.__enter__()
            if step == first + timed + 2 and _PROFILE.value:
                _wait_for(logs)
                self.trace.__exit__(None, None, None)
            if step == _STEPS.value:
                self.model.stop_training = True

    variants.register()
    hparams = registry.hparams_sets.get(_HPARAMS_SET.value)().override(_HPARAMS.value)
    hparams = dataclasses.replace(hparams, optimizer=_OPTIMIZER.value)
    stopwatch = Stopwatch()
    first = _WARMUP + _ON_DEVICE + batches.PREFETCHED
    timed = min(_TIMED, _STEPS.value - first - 2)

    result = loop.train(
        Run(
            problem=_PROBLEM.value,
            data_dir=_DATA_DIR.value,
            hparams=hparams,
            # A run that ends before its last step is not evaluated.
            train_steps=_STEPS.value + 1,
            dtype=_DTYPE.value,
            xla_compile="true",
            local_eval_frequency=_STEPS.value + 1,
            label=_OPTIMIZER.value,
        ),
        extra_callbacks=[stopwatch],
    )
    return {
        "optimizer": _OPTIMIZER.value,
        "tokens_per_second": timed * hparams.batch_size / stopwatch.seconds,
        "flops_of_matrix_product": stopwatch.possible,
        "flops_per_token": result.flops_per_second / result.tokens_per_second,
        "device_peak_bytes": stopwatch.peak,
        "environment": measure.environment(),
        "parameters": result.model.count_params(),
        "state_scalars": result.state_scalars,
    }


def _wait_for(logs):
    """Waits until a step is done."""
    import keras

    keras.ops.convert_to_numpy(logs["loss"])


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
