r"""et-plan: the optimizer memory of a model, and the finest state within a budget.

    et-plan MODEL.keras --budget=64KB
    et-plan --shapes=50257x768,768x3072,768 --budget=64KB
    et-plan --shapes=32000x4096,128*4096x4096,96*4096x11008 --devices=8

The plan says for each variable which vectors are kept; a run has it with
--hparams=optimizer=et2_rank1,optimizer_state_budget=64KB. With --devices the
table says what each of several holds and sends a step, beside Adam with ZeRO-1
and with FSDP.
"""

import os
import pathlib
import re

from absl import flags

from trainer.bin import cli
from trainer.errors import UsageError

_SHAPES = flags.DEFINE_list(
    "shapes", None, "Shapes in place of a model: 50257x768,512; 24*512 is 24 of them."
)
_BUDGET = cli.DEFINE_size(
    "budget", None, "Bytes for the optimizer's state: 4096, 64KB, 1.5MB."
)
_ORTHOGONALIZE = flags.DEFINE_bool(
    "orthogonalize", False, "Whether the plan keeps nothing for kernels (a model's)."
)
_DEVICES = cli.DEFINE_count(
    "devices", None, "Print what each of so many devices holds and sends."
)
# Of the table of devices.
_OPTIMIZERS = ("sgd", "adam", "et2", "et2_orthogonal")


def main(argv):
    if _ORTHOGONALIZE.value and _BUDGET.value is None:
        raise UsageError("--orthogonalize is of the plan: give --budget, too")
    if _BUDGET.value is not None and _DEVICES.value is not None:
        raise UsageError("give either --budget or --devices")
    if len(argv) > 2 or (len(argv) == 2) == (_SHAPES.value is not None):
        raise UsageError("give either one MODEL.keras or --shapes. See --help.")
    if _SHAPES.value is None:
        variables = load(os.path.expanduser(argv[1]))
    else:
        shapes = [shape for text in _SHAPES.value for shape in parse_shapes(text)]
        variables = placeholders(shapes)
    from extreme_tensoring_tf import memory_report

    if _DEVICES.value is not None:
        from trainer.optim import device_memory

        # Shapes alone do not say which of them are kernels.
        known = _OPTIMIZERS[: None if _SHAPES.value is None else -1]
        print(device_memory.table(memory_report(variables, known), _DEVICES.value))
        return
    report = str(memory_report(variables))
    if _BUDGET.value is not None:
        report += f"\n\n{plan(variables, _BUDGET.value, _ORTHOGONALIZE.value)}"
    print(report)


def plan(variables, budget, orthogonalize=False):
    """Returns a table of the dims that fit a budget, and of their size.

    Args:
        variables: have a path or a name, a shape and a dtype.
        budget: bytes.
        orthogonalize: whether kernels are orthogonalized, and keep nothing.
    """
    from extreme_tensoring_tf import ExtremeTensoring
    from extreme_tensoring_tf import memory_report

    try:
        planned = ExtremeTensoring.for_budget(
            variables, budget, orthogonalize=orthogonalize, name="plan"
        )
    except ValueError as error:
        raise UsageError(f"--budget: {error}") from None
    report = memory_report(variables, [planned])
    size = report.totals[planned.name]["bytes"]
    return f"{report}\n{budget:,} bytes hold this plan: it takes {size:,}"


def parse_shapes(text):
    """Returns [(50257, 768)] for "50257x768", and two of it for "2*50257x768"."""
    if not re.fullmatch(r"([1-9]\d{0,4}\*)?[1-9]\d{0,9}(x[1-9]\d{0,9})*", text):
        raise UsageError(
            f"--shapes item {text!r} is not like 50257x768, numbers of 1 and more"
        )
    count, _, shape = text.rpartition("*")
    return [tuple(map(int, shape.split("x")))] * int(count or 1)


def placeholders(shapes):
    """Returns what stands for variables of these shapes."""
    if not shapes:
        raise UsageError("--shapes holds no shape: give some, as in 50257x768,512")
    import keras

    return [
        keras.KerasTensor(shape, name=f"variable_{number}")
        for number, shape in enumerate(shapes)
    ]


def load(path):
    """Returns the trainable variables of a saved model."""
    if not pathlib.Path(path).is_file():
        raise UsageError(f"there is no file {path}")
    from trainer.runs import checkpoints

    variables = checkpoints.load(path).trainable_variables
    if not variables:
        raise UsageError(
            f"the model of {path} has no variable that is trained: it is frozen, has "
            "none, or was saved before it was built"
        )
    return variables


run = cli.entry_point(main, __doc__, __name__)

if __name__ == "__main__":
    run()
