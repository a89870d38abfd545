r"""Runs the benchmarks and rewrites the tables of `docs/benchmarks.md`.

    python -m benchmarks [--only=optimizer_step,sparse_step]

A table stands between `<!-- NAME -->` and `<!-- end -->`; what a benchmark prints
replaces it, with the command that printed it.
"""

import os
import pathlib
import re
import subprocess
import sys

from absl import flags

from trainer import progress
from trainer.bin import cli
from trainer.errors import UsageError
from trainer.errors import unknown

COMMANDS = {
    "optimizer_step": "-m benchmarks.optimizer_step --rounds=25",
    "in_program": "-m benchmarks.optimizer_step "
    "--optimizers=sgd,adam,et2,et2_in_program,et2_rank1,et2_rank1_in_program",
    "optimizer_step_300": "-m benchmarks.optimizer_step "
    "--preset=transformer_300_variables --optimizers=sgd,adam,et1,et2,et3",
    "optimizer_step_1e6": "-m benchmarks.optimizer_step --preset=1e6 "
    "--optimizers=sgd,adam,et2",
    "optimizer_step_1e7": "-m benchmarks.optimizer_step --preset=1e7 "
    "--optimizers=sgd,adam,et2",
    "optimizer_step_1e8": "-m benchmarks.optimizer_step --preset=1e8 "
    "--optimizers=sgd,adam,et2",
    "optimizer_step_1e9": "-m benchmarks.optimizer_step --preset=1e9 --rounds=5 "
    "--optimizers=et2",
    "sparse_step": "-m benchmarks.sparse_step",
    "fit_step": "-m benchmarks.fit_step --hparams_set=transformer_base "
    "--batch_size=512 --rounds=5 --steps=4 --optimizers=sgd,adam,et2,et2_rank1",
    "first_fit": "-m benchmarks.first_fit",
    "fit_memory": "-m benchmarks.fit_memory",
    "folds": "-m benchmarks.folds",
    "imports": "-m benchmarks.imports",
    # What orthogonal steps cost: their share of a training step.
    "orthogonal_step": "-m benchmarks.fit_step --hparams_set=transformer_base "
    "--batch_size=4096 --vocab_size=32768 --rounds=5 --steps=1 "
    "--optimizers=sgd,et2_orthogonal,et2_orthogonal_momentum",
    "trainer_throughput": "-m benchmarks.trainer_throughput --rounds=2",
    "memory": "-m benchmarks.memory",
    "decoding": "-m benchmarks.decoding",
}
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "benchmarks.md"
_ONLY = flags.DEFINE_list("only", list(COMMANDS), "Benchmarks to run.")


def main(argv):
    cli.no_arguments(argv)
    for name in _ONLY.value:
        if name not in COMMANDS:
            raise unknown("benchmark", name, COMMANDS)
    for number, name in enumerate(_ONLY.value, start=1):
        command = COMMANDS[name]
        progress.write(f"benchmark {number} of {len(_ONLY.value)}: python {command}")
        printed = subprocess.run(
            [sys.executable, *command.split()],
            stdout=subprocess.PIPE,
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
            check=True,
            text=True,
        ).stdout
        print(printed)
        write(name, f"`python {command}`: {printed.strip()}")


def write(name, text):
    """Replaces one table of the page."""
    page = PAGE.read_text()
    pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    if not re.search(pattern, page, re.DOTALL):
        raise UsageError(f"{PAGE} has no table <!-- {name} -->")
    page = re.sub(pattern, lambda m: m[1] + text + "\n" + m[2], page, flags=re.DOTALL)
    PAGE.write_text(page)


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
