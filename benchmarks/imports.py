r"""Measures what `import extreme_tensoring_tf` takes beyond `import keras`.

    python -m benchmarks.imports [--rounds=5]

Keras is imported with its backend. A round is a process of its own; the figure is the
fastest, for the first one also reads files.
"""

import subprocess
import sys

from benchmarks.measure import environment
from trainer.bin import cli

_ROUNDS = cli.DEFINE_count("rounds", 5, "Processes.")
_PROGRAM = """
import keras, time
start = time.perf_counter()
import extreme_tensoring_tf
print(time.perf_counter() - start)
"""


def main(argv):
    cli.no_arguments(argv)
    command = [sys.executable, "-c", _PROGRAM]
    seconds = [
        float(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
        for _ in range(_ROUNDS.value)
    ]
    print(f"{environment()}\n")
    print("| import | ms beyond keras |\n|---|---|")
    print(f"| extreme_tensoring_tf | {1e3 * min(seconds):.0f} |")


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
