r"""et-plan: the optimizer memory of a model, and the level that fits a budget.

et-plan MODEL.keras --budget=64KB
et-plan --shapes=50257x768,768x3072,768 --budget=64KB
"""

import re

from absl import flags

from trainer.bin import cli
from trainer.errors import UsageError
from trainer.sizes import parse_bytes

_SHAPES = flags.DEFINE_list(
    "shapes", None, "Shapes in place of a model: 50257x768,512."
)
_BUDGET = flags.DEFINE_string(
    "budget", None, "Bytes for the optimizer's state: 4096, 64KB, 1.5MB."
)


def main(argv):
    if len(argv) > 2 or (len(argv) == 2) == bool(_SHAPES.value):
        raise UsageError("give either one MODEL.keras or --shapes. See --help.")
    budget = None if _BUDGET.value is None else parse_bytes("--budget", _BUDGET.value)
    if _SHAPES.value:
        variables = [parse_shape(text) for text in _SHAPES.value]
    else:
        variables = load(argv[1])
    from extreme_tensoring_tf import memory_report
    from extreme_tensoring_tf.tensor_index import index_from_level

    report = memory_report(variables)
    print(report)
    if budget is None:
        return
    shapes = [v["shape"] for v in report.variables]
    level, size = 1, None
    while True:
        before, size = (
            size,
            4 * sum(index_from_level(s, level).state_size for s in shapes),
        )
        if size <= budget:
            print(f"level {level} fits {budget:,} bytes: it takes {size:,}")
            return
        if size == before:
            break
        level += 1
    least = 4 * len(shapes)
    if least <= budget:
        print(f'level "inf" fits {budget:,} bytes: it takes {least:,}')
        return
    raise UsageError(f"no level fits {budget:,} bytes: the least is {least:,}")


def parse_shape(text):
    if not re.fullmatch(r"\d+(x\d+)*", text):
        raise UsageError(f"--shapes item {text!r} is not like 50257x768")
    return tuple(int(n) for n in text.split("x"))


def load(path):
    """Trainable variables of a saved model."""
    import pathlib

    if not pathlib.Path(path).is_file():
        raise UsageError(f"there is no file {path}")
    from trainer.runs import checkpoints

    return checkpoints.load(path).trainable_variables


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
