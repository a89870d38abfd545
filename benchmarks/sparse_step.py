r"""Measures a sparse update of an embedding beside the dense one, for growing tables.

    python -m benchmarks.sparse_step [--touched=1000] [--rows=32768,1000000]

TensorFlow only: the other backends have no sparse gradients. The two take turns in
one process; a figure is the median over the rounds.
"""

import statistics
import sys

from benchmarks.measure import environment
from benchmarks.measure import timed
from trainer import progress
from trainer.bin import cli

_TOUCHED = cli.DEFINE_count("touched", 1000, "Rows with a gradient.")
_ROWS = cli.DEFINE_counts("rows", "32768,1000000", "Rows of the tables.")
_WIDTH = cli.DEFINE_count("width", 64, "Columns.")
_ROUNDS = cli.DEFINE_count("rounds", 30, "Timed updates of each.")


def main(argv):
    cli.no_arguments(argv)
    import numpy as np
    import tensorflow as tf

    from extreme_tensoring_tf import ExtremeTensoring
    from trainer.optim.catalog import ALGORITHM_1

    rng = np.random.default_rng(0)
    steps = {}
    for rows in map(int, _ROWS.value):
        shape = (rows, _WIDTH.value)
        values = rng.normal(size=(_TOUCHED.value, _WIDTH.value)).astype("float32")
        ids = rng.integers(0, rows, _TOUCHED.value)
        for form in ("sparse", "dense"):
            gradient = tf.IndexedSlices(tf.constant(values), tf.constant(ids), shape)
            if form == "dense":
                gradient = tf.convert_to_tensor(gradient)
            steps[rows, form] = _step(
                ExtremeTensoring(0.1, **ALGORITHM_1), gradient, shape
            )
            steps[rows, form]()  # traces and compiles
    times = {key: [] for key in steps}
    for _ in progress.over(range(_ROUNDS.value), unit="round"):
        for key, step in steps.items():
            times[key].append(1e3 * timed(step))
    print(f"{_TOUCHED.value} rows of {_WIDTH.value} touched, {environment()}")
    print("| rows | sparse ms | dense ms | dense / sparse |\n|---|---|---|---|")
    for rows in map(int, _ROWS.value):
        sparse = statistics.median(times[rows, "sparse"])
        dense = statistics.median(times[rows, "dense"])
        print(f"| {rows:,} | {sparse:.2f} | {dense:.2f} | {dense / sparse:.1f} |")


def _step(optimizer, gradient, shape):
    import keras
    import tensorflow as tf

    variable = keras.Variable(tf.ones(shape))
    optimizer.build([variable])

    @tf.function
    def update():
        optimizer.apply([gradient], [variable])
        # Not the variable: after a scatter, reading it would copy it whole.
        return optimizer.iterations + 0

    return lambda: update().numpy()


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    sys.exit(run())
