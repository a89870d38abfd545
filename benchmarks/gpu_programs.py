r"""Compiles training steps for a GPU that is not here: what they start, and memory.

    pip install 'jax[cuda13]'
    curl -LO https://raw.githubusercontent.com/openxla/xla/main/xla/backends/gpu/\
target_config/specs/h200.txtpb
    python -m benchmarks.gpu_programs --gpu=h200.txtpb [--optimizers=adam,et2]

XLA compiles for a GPU by its description, a file of OpenXLA's; nothing runs. A step of
a small model takes as long as it takes to start its kernels, so their number says what
an update costs beside another one. The kernels of products and of attention are not
those of a run: XLA tries some out where there is a GPU. Memory is the peak of the
program, weights and state included.
"""

import json
import os
import pathlib
import re
import sys

from absl import flags

from benchmarks import measure
from benchmarks import tables
from trainer import progress
from trainer.bin import cli
from trainer.errors import UsageError
from trainer.experiments.language_modeling import NO_REGULARIZATION

_GPU = cli.DEFINE_path("gpu", None, "Description of a GPU, of OpenXLA's.")
_OPTIMIZERS = flags.DEFINE_list(
    "optimizers",
    "sgd,adam,muon,et1,et2,et3,et2_rank1,et2_orthogonal_half,"
    "et2_orthogonal_momentum_half",
    "Names.",
)
_HPARAMS_SET = flags.DEFINE_string("hparams_set", "transformer_base", "Model.")
_TOKENS = cli.DEFINE_count("batch_size", 16384, "Tokens a step, in rows of 256.")
_VOCAB = cli.DEFINE_count("vocab_size", 8192, "Tokens of the vocabulary.")
_DTYPE = flags.DEFINE_string("dtype", "mixed_bfloat16", "Policy.")
_TRIAL = flags.DEFINE_string("trial", None, "One optimizer: used by itself.")
_LENGTH = 256


def main(argv):
    cli.no_arguments(argv)
    cli.require(_GPU)
    if not pathlib.Path(_GPU.value).is_file():
        raise UsageError(f"--gpu={_GPU.value} is no file: its first lines say which")
    os.environ.update(measure.FOR_GPU)  # here, and in every trial
    if _TRIAL.value:
        print(json.dumps(trial(_TRIAL.value)))
        return
    flags_of_all = (_GPU, _HPARAMS_SET, _TOKENS, _VOCAB, _DTYPE)
    given = [f"--{flag.name}={flag.value}" for flag in flags_of_all]
    found = {
        name: measure.apart("benchmarks.gpu_programs", f"--trial={name}", *given)
        for name in progress.over(_OPTIMIZERS.value, unit="optimizer")
    }
    print(
        f"{_HPARAMS_SET.value}, {_TOKENS.value:,} tokens a step, {_VOCAB.value:,} "
        f"subwords, {_DTYPE.value}; compiled for {_GPU.value}, "
        f"{measure.environment()}\n\n{tables.programs(found)}"
    )


def trial(name):
    """Returns the figures of the program of one optimizer's step."""
    import dataclasses

    import keras
    import numpy as np

    from trainer import registry
    from trainer.experiments import variants
    from trainer.models import language_model
    from trainer.optim import catalog
    from trainer.optim import optimizer_state

    variants.register()
    keras.config.set_dtype_policy(_DTYPE.value)
    hparams = registry.hparams_sets.get(_HPARAMS_SET.value)()
    hparams = hparams.override(NO_REGULARIZATION)
    hparams = dataclasses.replace(hparams, optimizer=name)
    model = registry.models.get("transformer_lm")(hparams, _VOCAB.value, _LENGTH)
    trained = language_model.training_model(model, 0.0, _TOKENS.value)
    trained.compile(catalog.create(hparams, model.trainable_variables))
    rows = np.ones((_TOKENS.value // _LENGTH, _LENGTH), "int32")
    program = measure.step_for_gpu(trained, rows, _GPU.value)
    return {
        "kernels": kernels(program.as_text()),
        "peak_bytes": program.memory_analysis().peak_memory_in_bytes,
        "state_scalars": optimizer_state.state_scalars(trained.optimizer),
    }


def kernels(text):
    """Returns how many kernels and copies a program starts; a loop counts as one.

    Args:
        text: of the program, as XLA writes it.
    """
    entry = text[text.index("\nENTRY ") :]
    started = ("fusion", "copy", "custom-call", "while", "sort", "scatter")
    return sum(
        len(re.findall(rf"= (?:\([^)]*\)|\S+) {kind}\(", entry)) for kind in started
    )


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
