"""How much memory optimizers need for a model, before training it."""

import dataclasses
import math
import re
import warnings

from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.tensor_rules import resolve
from extreme_tensoring_tf.variables import itemsize
from extreme_tensoring_tf.variables import own_momentum_dtype
from extreme_tensoring_tf.variables import statistics_dtype

DEFAULT_OPTIMIZERS = (
    "sgd",
    "momentum",
    "adagrad",
    "adam",
    "adafactor",
    "et1",
    "et2",
    "et3",
    "etinf",
    "et2_orthogonal",
)


def _adafactor(shape):
    """Returns the state scalars of Keras' Adafactor.

    Keras allocates the factors and, besides, an array of the full size. Where it does
    not factor, two placeholders stand for the factors.
    """
    if len(shape) < 2:
        return math.prod(shape) + 2
    rows, cols = shape[:-1], shape[:-2] + shape[-1:]
    return math.prod(rows) + math.prod(cols) + math.prod(shape)


# State scalars of one variable, as Keras 3.15 allocates them.
_STATE_SIZE = {
    "sgd": lambda shape: 0,
    "momentum": math.prod,
    "adagrad": math.prod,
    "rmsprop": math.prod,
    "lion": math.prod,
    "adam": lambda shape: 2 * math.prod(shape),
    "adafactor": _adafactor,
}


# Temporary arrays of the model's size that a compiled update makes; 0 for the
# others, which XLA fuses into one pass. Measured: `benchmarks.optimizer_step`.
_UPDATE_COPIES = {"lion": 1, "adafactor": 2}
# Ours makes no such array, but a few vectors over the rows and the columns. A matrix
# that is orthogonalized is copied twice, and its products of the shorter side thrice.
_UPDATE_VECTORS = 3
_ORTHOGONAL_COPIES = 2
_ORTHOGONAL_PRODUCTS = 3


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """The result of `memory_report`: `str()` is the table, `to_dict()` the numbers."""

    variables: list  # dicts: name, shape, entries, optimizers {name: {...}}
    totals: dict  # optimizer name -> {"scalars", "bytes", "update_bytes"}

    def to_dict(self) -> dict:
        """Returns all numbers, as JSON can hold them."""
        return {"variables": self.variables, "totals": self.totals}

    def __str__(self):
        names = list(self.totals)
        dims_of = next((n for n in names if n == "et2"), None) or next(
            (n for n in names if self._dims(0, n)), None
        )
        head = ["variable", "shape"]
        head += [f"dims ({dims_of})"] if dims_of else []
        rows = [head + names]
        for i, v in enumerate(self.variables):
            row = [str(v["name"]), "x".join(map(str, v["shape"])) or "scalar"]
            if dims_of:
                row.append("x".join(map(str, self._dims(i, dims_of) or ())))
            scalars = [v["optimizers"][n]["scalars"] for n in names]
            rows.append(row + [f"{s:,}" for s in scalars])
        entries = sum(v["entries"] for v in self.variables)
        blank = [""] if dims_of else []
        totals = [self.totals[n] for n in names]
        rows.append(
            ["state scalars", f"{entries:,}", *blank]
            + [f"{t['scalars']:,}" for t in totals]
        )
        for label, key in (("state", "bytes"), ("update", "update_bytes")):
            cells = [_format_bytes(t[key]) for t in totals]
            rows.append([f"{label} bytes", "", *blank, *cells])
        return _format_table(rows, left=len(head), footer=3)

    def _dims(self, i, name):
        """Returns the dims of variable i under an optimizer; None if it has none."""
        return self.variables[i]["optimizers"][name].get("dims")


def memory_report(model_or_shapes, optimizers=None) -> MemoryReport:
    """Returns the optimizer state of a model, per variable and in all.

    Args:
        model_or_shapes: a Keras model, a built optimizer, a list of variables, a
            list of shapes, or a dict of name to shape. Shapes alone are taken as
            float32. An `ExtremeTensoring` is added to the default optimizers.
        optimizers: a name or an `ExtremeTensoring`, or a list of these. Names are
            "sgd", "momentum", "adagrad", "rmsprop", "adam", "adafactor", "lion"
            (as Keras allocates them), "et1", "et2", ... and "etinf", and each of
            these with "_orthogonal" for `orthogonalize=True`, which knows a kernel by
            its name. Defaults to `DEFAULT_OPTIMIZERS`.

    Returns:
        A `MemoryReport`, in which the second optimizer of a name N is called "N#2".
        Scalars leave out counters and the learning rate. Bytes
        are of scalars: 4 each for the statistics (8 for a float64 variable), the
        variable's own width for full-size slots. Update bytes are the temporary
        memory that a step compiled by XLA takes at its peak, beside gradients,
        variables and state.

    Raises:
        ValueError: an unknown optimizer, or nothing that has a shape.

    Example:
        >>> print(memory_report([(512, 512)], ["adam", "et2"]))  # doctest: +SKIP
    """
    if optimizers is None:
        optimizers = DEFAULT_OPTIMIZERS
        if hasattr(inner(model_or_shapes), "tensor_indices"):
            optimizers = (*DEFAULT_OPTIMIZERS, model_or_shapes)
    elif isinstance(optimizers, str) or hasattr(optimizers, "get_config"):
        optimizers = [optimizers]
    named = _named_shapes(model_or_shapes)
    plans = {}
    for optimizer in optimizers:
        name, plan = _plan(optimizer, named)
        plans[_unused(name, plans)] = plan
    variables = [
        {
            "name": name,
            "shape": list(shape),
            "entries": math.prod(shape),
            "optimizers": {n: plan[i] for n, plan in plans.items()},
        }
        for i, (name, shape, _) in enumerate(named)
    ]
    totals = {name: _total(plan) for name, plan in plans.items()}
    return MemoryReport(variables, totals)


def inner(optimizer):
    """Returns the optimizer itself, inside those that scale the loss or watch."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def _unused(name, plans):
    """Returns a name, or "NAME#2" and so on where an optimizer before has it."""
    count = sum(other.partition("#")[0] == name for other in plans)
    return f"{name}#{count + 1}" if count else name


def _total(plan):
    """Returns the sums over variables of what an optimizer takes.

    Matrices that are orthogonalized, which have no dims, take their temporary memory
    one after another.
    """
    total = {k: sum(cell[k] for cell in plan) for k in plan[0] if k != "dims"}
    matrices = [cell["update_bytes"] for cell in plan if cell.get("dims") == []]
    if matrices:
        total["update_bytes"] -= sum(matrices) - max(matrices)
    return total


def _named_shapes(source):
    """Returns a list of (name, shape, dtype)."""
    for attribute in ("trainable_variables", "_trainable_variables"):
        source = getattr(source, attribute, source)  # of a model, an optimizer
    if isinstance(source, dict):
        named = [(str(k), tuple(v), "float32") for k, v in source.items()]
    else:
        named = []
        for i, item in enumerate(source):
            if hasattr(item, "shape"):
                name = getattr(item, "path", getattr(item, "name", str(i)))
                dtype = getattr(item.dtype, "name", str(item.dtype))
                named.append((name, tuple(item.shape), dtype))
            else:
                named.append((f"variable_{i}", tuple(item), "float32"))
    if not named:
        raise ValueError(
            "`memory_report` found no trainable variable. Build the model first "
            "(call it on a batch, or pass shapes)."
        )
    return named


def _plan(optimizer, named):
    """Returns an optimizer's name, and per variable its scalars, bytes and dims."""
    optimizer = inner(optimizer)
    if hasattr(optimizer, "tensor_indices"):
        indices = optimizer.tensor_indices([(name, shape) for name, shape, _ in named])
        settings = optimizer.settings()
        return optimizer.name, [
            _tensored(index, shape, dtype, settings, optimizer.momentum_dtype)
            for index, (_, shape, dtype) in zip(indices, named, strict=True)
        ]
    match = re.fullmatch(r"et(\d+|inf)(_orthogonal)?", str(optimizer))
    if match:
        level = match.group(1)
        level = level if level == "inf" else int(level)
        variables = [(name, shape) for name, shape, _ in named]
        with warnings.catch_warnings():
            # Names of kernels are not to be expected of shapes alone.
            warnings.simplefilter("ignore", UserWarning)
            orthogonalize = match.group(2) is not None
            indices = resolve(variables, level, orthogonalize=orthogonalize)
        return optimizer, [
            _tensored(index, shape, dtype)
            for index, (_, shape, dtype) in zip(indices, named)
        ]
    if optimizer not in _STATE_SIZE:
        raise ValueError(
            f"`memory_report` knows {', '.join(_STATE_SIZE)}, et1, et2, ..., "
            "etinf, et2_orthogonal and ExtremeTensoring instances; others by their "
            f"names. Received: {optimizer!r}"
        )
    plan = []
    for _, shape, dtype in named:
        width = itemsize(dtype)
        scalars = _STATE_SIZE[optimizer](shape)
        copies = _UPDATE_COPIES.get(optimizer, 0)
        temporary = copies * math.prod(shape) * width
        plan.append(
            {"scalars": scalars, "bytes": scalars * width, "update_bytes": temporary}
        )
    return optimizer, plan


def _tensored(index, shape, dtype, settings=None, momentum_dtype=None):
    """Returns the cells of one variable whose statistics follow a tensor index."""
    width, full, full_width = itemsize(statistics_dtype(dtype)), 0, 4
    if settings and settings.momentum_of(index):
        full = 1
        if not settings.packs_momentum:
            full = math.prod(shape)
            full_width = itemsize(momentum_dtype or own_momentum_dtype(dtype))
    temporary = _UPDATE_VECTORS * sum(index.view)
    if isinstance(index, MatrixView):
        temporary = _ORTHOGONAL_COPIES * math.prod(index.view)
        temporary += _ORTHOGONAL_PRODUCTS * min(index.view) ** 2
    return {
        "dims": list(index.dims),
        "scalars": index.state_size + full,
        "bytes": index.state_size * width + full * full_width,
        "update_bytes": temporary * width,
    }


def _format_bytes(count):
    if count < 1000:
        return f"{count} B"
    for unit in ("KB", "MB", "GB"):
        count /= 1000
        if count < 999.5:  # what has three digits when it is rounded
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


def _format_table(rows, left, footer):
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if c < left else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-footer], rule, *lines[-footer:]])
