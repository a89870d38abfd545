r"""et-trainer: trains a language model, or continues from its last checkpoint.

    et-trainer --problem=languagemodel_lm1b32k_packed --data_dir=data \
        --hparams_set=transformer_base --hparams=optimizer=et2 \
        --output_dir=run --train_steps=500000
"""

import dataclasses
import signal
import sys

from absl import flags

from trainer import distribution
from trainer import processes
from trainer.bin import cli
from trainer.bin import run_flags
from trainer.bin import streams

_RUN = run_flags.RunFlags()
_OUTPUT_DIR = cli.DEFINE_path(
    "output_dir", None, "Folder for checkpoints and summaries."
)
_TRAIN_STEPS = cli.DEFINE_count(
    "train_steps", 250_000, "Step to stop at, earlier runs counted."
)
_EVAL_FREQUENCY = cli.DEFINE_count(
    "local_eval_frequency", 1000, "Steps between evaluations."
)
_CHECKPOINT_FREQUENCY = cli.DEFINE_count(
    "save_checkpoints_steps", 1000, "Steps between checkpoints."
)
_KEEP = cli.DEFINE_count("keep_checkpoint_max", 3, "Checkpoints kept, the newest ones.")
_SEED = cli.DEFINE_seed("Seed of the initialization and of the data's order.")
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    False,
    "Same command, same bits (CPU, float32): slower. JAX has them without it.",
)
_WARM_START = cli.DEFINE_path(
    "warm_start_from", None, "Checkpoint whose weights a new run starts from."
)
_EARLY_STOPPING = cli.DEFINE_count(
    "early_stopping_evaluations",
    0,
    "End after that many evaluations in a row without a better one; 0: never.",
    least=0,
)
_NONFINITE_STEPS = cli.DEFINE_count(
    "nonfinite_steps",
    5,
    "Steps in a row with a loss that is inf or nan that end a run as diverged.",
)
_CHECK = flags.DEFINE_bool(
    "check",
    False,
    "Do all that the run would do, a few steps of it, and print what the whole needs.",
)
_REGISTRY_HELP = flags.DEFINE_bool(
    "registry_help", False, "Print every registered name, and end."
)
_PRINT_HPARAMS = flags.DEFINE_bool(
    "print_hparams", False, "Print the hyperparameters of this run, and end."
)
_REMAT = flags.DEFINE_bool(
    "remat", False, "Compute the blocks again for the gradient: slower, less memory."
)
_PROFILE = flags.DEFINE_list(
    "profile", None, "FIRST,LAST step to trace for TensorBoard's profiler."
)
_XLA_COMPILE = flags.DEFINE_enum(
    "xla_compile",
    "auto",
    ["auto", "true", "false"],
    "XLA for the whole step. The optimizer has its own, always on.",
)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "none",
    distribution.STRATEGIES,
    "What devices share: none, the rows of a batch, or, on JAX, the model.",
)
_MODEL_DEVICES = cli.DEFINE_count(
    "model_devices",
    None,
    "Devices that share a copy of the model with --strategy=model. Default: all.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0 of several; auto under Slurm, Open MPI and TPU pods.",
)
_NUM_PROCESSES = cli.DEFINE_count("num_processes", None, "Processes of the run.")
_PROCESS_ID = cli.DEFINE_count(
    "process_id", None, "Number of this process, from 0.", least=0
)


def main(argv):
    cli.no_arguments(argv)
    from trainer import registry

    if _REGISTRY_HELP.value:
        print(registry.listing())
        return 0
    # What can be wrong is found before Keras is imported.
    hparams = _RUN.hparams()
    if _PRINT_HPARAMS.value:
        for name, value in dataclasses.asdict(hparams).items():
            print(f"{name}={value}")
        return 0
    if _CHECK.value:
        cli.refuse((_PROFILE,), "with --check, which leaves nothing behind")
    profile = profile_steps(_PROFILE.value, _TRAIN_STEPS.value)
    _RUN.require(_OUTPUT_DIR)
    vocab_size = _RUN.check_data(hparams).vocab_size
    distribution.begin(
        _STRATEGY.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )

    def joined():
        sys.exit(train(hparams, vocab_size, profile))

    status = streams.guarded(joined)
    processes.leave(status)
    return status


def train(hparams, vocab_size, profile):
    """Trains as the flags say, and returns the exit status."""
    from trainer.errors import UsageError
    from trainer.runs import run_folder
    from trainer.training import check
    from trainer.training import flops
    from trainer.training import loop

    distribution.spread(
        _STRATEGY.value, _RUN.model, hparams, vocab_size, _MODEL_DEVICES.value
    )
    settings = _RUN.run(
        hparams,
        output_dir=_OUTPUT_DIR.value,
        train_steps=_TRAIN_STEPS.value,
        random_seed=_SEED.value,
        xla_compile=_XLA_COMPILE.value,
        local_eval_frequency=_EVAL_FREQUENCY.value,
        save_checkpoints_steps=_CHECKPOINT_FREQUENCY.value,
        keep_checkpoint_max=_KEEP.value,
        nonfinite_steps=_NONFINITE_STEPS.value,
        deterministic=_DETERMINISTIC.value,
        warm_start_from=_WARM_START.value,
        early_stopping_evaluations=_EARLY_STOPPING.value,
        remat=_REMAT.value,
        profile=profile,
    )
    if _CHECK.value:
        if processes.part()[1] > 1:
            raise UsageError("--check is for one process")
        print(check.check(settings))
        return 0
    if done := processes.from_first(lambda: loop.finished(settings)):
        report(done)
        return 0
    result = loop.train(
        settings,
        on_start=lambda: run_folder.record_start(
            _OUTPUT_DIR.value, cli.flags_text(__name__)
        ),
    )
    report(result)
    if not result.interrupted_by:  # who ends it waits for no matrix products
        report(flops.report(result.flops_per_second, settings.dtype))
    report(f"checkpoint: {result.checkpoint}")
    if result.interrupted_by:
        report(f"interrupted by {result.interrupted_by}: the same command continues")
        return 128 + signal.Signals[result.interrupted_by]
    return 0


def report(text):
    """Prints a text; of several processes, the first one does."""
    if processes.is_first():
        print(text)


def profile_steps(items, train_steps):
    """Returns (5, 9) for ["5", "9"], and None where the flag is not given."""
    from trainer.errors import UsageError

    if items is None:
        return None
    try:
        first, last = map(int, items)
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise UsageError(
            f"--profile={','.join(items)} is not FIRST,LAST with 1 <= FIRST <= LAST"
        )
    if last > train_steps:
        raise UsageError(
            f"--profile={first},{last} lies past the end, --train_steps={train_steps}: "
            f"choose LAST <= {train_steps}"
        )
    return first, last


_SELDOM = (
    "model",
    "eval_steps",
    "dtype",
    "keep_checkpoint_max",
    "random_seed",
    "deterministic",
    "warm_start_from",
    "early_stopping_evaluations",
    "nonfinite_steps",
    "remat",
    "profile",
    "xla_compile",
    # Of several devices and hosts: docs/distributed.md.
    "model_devices",
    "coordinator",
    "num_processes",
    "process_id",
)
run = cli.entry_point(main, __doc__, __name__, _SELDOM)

if __name__ == "__main__":
    run()
