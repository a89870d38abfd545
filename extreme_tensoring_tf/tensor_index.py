"""Which short axes a variable is indexed by: shape + level or rule -> dims.

This is the one place that decides dims. It is pure Python: the optimizer, the
memory report and the planner all call it, so they cannot disagree.
"""

import dataclasses
import functools
import math
import numbers
import re
import warnings
from typing import Any


@dataclasses.dataclass(frozen=True)
class Fold:
    """An axis of `size` indices, seen as a row-major grid of shorter axes.

    `parts` are the axes of the grid, the slowest first; their product is at
    least `size`, and the cells past `size` are padding. A fold without parts is
    a leaf: it keeps one statistic per index, or, with `kept=False`, none.
    """

    size: int
    parts: tuple["Fold", ...] = ()
    kept: bool = True

    @property
    def dims(self) -> tuple[int, ...]:
        """Lengths of the statistics this axis keeps, in order."""
        if self.parts:
            return sum((part.dims for part in self.parts), ())
        return (self.size,) if self.kept else ()

    @property
    def cells(self) -> int:
        """Cells of the grid, padding included."""
        return math.prod(part.size for part in self.parts) or self.size


@dataclasses.dataclass(frozen=True)
class TensorIndex:
    """A tensor index of one variable, laid over a matrix view of it.

    Two reductions of the squared gradient, over the rows and over the columns of
    the view, hold every statistic of the index: see `preconditioner.py`.
    """

    rows: Fold
    cols: Fold
    labels: tuple[str, ...]  # one per dim: which axis of the variable it is

    @property
    def view(self) -> tuple[int, int]:
        """Shape of the matrix view (a row-major reshape of the variable)."""
        return self.rows.size, self.cols.size

    @property
    def dims(self) -> tuple[int, ...]:
        """Lengths of the statistics. (1,) where the whole variable shares one."""
        return self.rows.dims + self.cols.dims or (1,)

    @property
    def state_size(self) -> int:
        return sum(self.dims)


def tensor_index(shape, level) -> tuple[int, ...]:
    """Dimensions of the tensor index that `level` gives to a variable.

    Level 1 keeps the axes of the variable. Each further level splits every
    factor n once more, into (a, n/a) with a the largest divisor of n not above
    sqrt(n). Where that pair is lopsided,

        a + n/a > 2 * (r + ceil(n / r))   with r = floor(sqrt(n)),

    the pair is (r, ceil(n / r)) and the axis is padded. Factors of 1 carry no
    information and are dropped. `"inf"` is one scalar for the whole variable.

    Args:
        shape: shape of the variable, a tuple of positive integers.
        level: 1, 2, 3, ... or "inf".

    Returns:
        A tuple of integers. The optimizer keeps their sum as float32 scalars.

    Raises:
        ValueError: a dimension or the level is not what is described here.

    Example:
        >>> tensor_index((2000, 512), 2)
        (40, 50, 16, 32)

    Source: extreme tensoring, arXiv 1902.04620, Section 3 (tensor indices); the
    padding rule is this project's.
    """
    return index_from_level(shape, level).dims


def check_level(level):
    """Returns `level`, a positive integer or "inf", or raises a ValueError."""
    if isinstance(level, str) and level == "inf":
        return level
    is_integer = isinstance(level, numbers.Integral) and not isinstance(level, bool)
    if is_integer and int(level) > 0:
        return int(level)
    raise ValueError(
        f'`level` must be 1, 2, 3, ... or "inf". Received: level={level!r}'
    )


def _check_shape(shape):
    shape = tuple(shape)
    if any(isinstance(n, bool) or int(n) != n or n < 1 for n in shape):
        raise ValueError(
            "A tensor index needs a shape of positive integers. "
            f"Received: shape={shape}"
        )
    return tuple(int(n) for n in shape)


def _split(n):
    root = math.isqrt(n)
    a = next(a for a in range(root, 0, -1) if n % a == 0)
    padded = (root, math.ceil(n / root))
    return padded if a + n // a > 2 * sum(padded) else (a, n // a)


def _fold(n, splits):
    if n == 1:
        return Fold(1, kept=False)
    if splits == 0:
        return Fold(n)
    a, b = _split(n)
    if a == 1:  # a small prime: further levels leave it as it is
        return Fold(n)
    return Fold(n, (_fold(a, splits - 1), _fold(b, splits - 1)))


@functools.cache
def _index_from_level(shape, level):
    if level == "inf":
        rows = Fold(math.prod(shape[:-1]), kept=False)
        cols = Fold(shape[-1] if shape else 1, kept=False)
        return TensorIndex(rows, cols, ("all",))
    return _index_from_folds([_fold(n, level - 1) for n in shape])


def index_from_level(shape, level) -> TensorIndex:
    """The `TensorIndex` behind `tensor_index`."""
    return _index_from_level(_check_shape(shape), check_level(level))


def _index_from_folds(folds):
    """Index of a variable with one fold per axis: rows are all axes but the last."""
    labels = tuple(
        f"axis{axis}" if len(fold.dims) == 1 else f"axis{axis}_part{part}"
        for axis, fold in enumerate(folds)
        for part in range(len(fold.dims))
    ) or ("all",)
    if len(folds) == 1 and folds[0].cells == folds[0].size and folds[0].parts:
        # A folded vector is a matrix: its factors are then short vectors too.
        return TensorIndex(*_halves(folds[0].parts), labels)
    *leading, last = folds or [Fold(1, kept=False)]
    return TensorIndex(_join(leading), last, labels)


def _join(folds):
    if len(folds) == 1:
        return folds[0]
    return Fold(math.prod(f.size for f in folds), tuple(folds), kept=bool(folds))


def _halves(folds):
    """Cuts a list of folds where the two products are closest."""
    cut = min(
        range(len(folds)),
        key=lambda k: (
            math.prod(f.size for f in folds[:k]) + math.prod(f.size for f in folds[k:])
        ),
    )
    return _join(folds[:cut]), _join(folds[cut:])


def index_from_dims(shape, dims: Any) -> TensorIndex:
    """The `TensorIndex` that a rule of `tensor_dims` describes.

    Args:
        shape: shape of the variable.
        dims: one of
            - a level: 1, 2, 3, ... or "inf";
            - flat dims whose product is the size of the variable; they need not
              line up with its axes (Algorithm 1 allows any index);
            - nested dims, one entry per axis: an integer or a tuple. The product
              of an entry may exceed its axis by less than one slice of its first
              dim (padding). The entry 1 drops the axis: it keeps no statistic.

    Raises:
        ValueError: the dims do not fit the shape.
    """
    shape = _check_shape(shape)
    if isinstance(dims, numbers.Integral | str):
        return index_from_level(shape, dims)
    dims = tuple(tuple(d) if isinstance(d, list) else d for d in dims)
    for d in dims:
        _check_shape(d if isinstance(d, tuple) else (d,))
    nested = any(isinstance(d, tuple) for d in dims)
    per_axis = len(dims) == len(shape) and all(
        d in (1, n) for d, n in zip(dims, shape, strict=True)
    )
    if nested or per_axis:
        if len(dims) != len(shape):
            raise ValueError(
                f"nested dims {dims} have {len(dims)} entries for the "
                f"{len(shape)} axes of shape {shape}: give one entry per axis"
            )
        return _index_from_folds(
            [_axis_fold(n, d) for n, d in zip(shape, dims, strict=True)]
        )
    if math.prod(dims) != math.prod(shape):
        raise ValueError(
            f"the product of dims {dims} is {math.prod(dims)}, but shape {shape} "
            f"has {math.prod(shape)} entries"
        )
    lengths = [int(d) for d in dims]
    leaves = tuple(Fold(d, kept=d > 1) for d in lengths)
    labels = tuple(f"dim{i}" for i, d in enumerate(lengths) if d > 1) or ("all",)
    grouped = _group_by_axes(shape, leaves)
    if grouped is not None:
        index = _index_from_folds(grouped)
        return dataclasses.replace(index, labels=labels)
    return TensorIndex(*_halves(leaves), labels)


def _axis_fold(n, dims):
    dims = dims if isinstance(dims, tuple) else (dims,)
    if dims == (1,):
        return Fold(n, kept=False)
    cells = math.prod(dims)
    if not n <= cells < n + cells // dims[0]:
        raise ValueError(
            f"dims {dims} hold {cells} cells for an axis of {n}: the product "
            f"must be at least {n}, and less than one slice of the first dim more"
        )
    if len(dims) == 1:
        return Fold(n, kept=n > 1)
    return Fold(n, tuple(Fold(d, kept=d > 1) for d in dims))


def _group_by_axes(shape, leaves):
    """One fold per axis if runs of `leaves` multiply to the axes, else None."""
    leaves, folds = list(leaves), []
    for n in shape:
        run = []
        while math.prod(f.size for f in run) < n:
            run.append(leaves.pop(0))
        if math.prod(f.size for f in run) != n:
            return None
        folds.append(_join([f for f in run if f.kept] or [Fold(1, kept=False)]))
    return folds


# A variable without entries has nothing to keep but, like every variable, one scalar.
_EMPTY = TensorIndex(Fold(0, kept=False), Fold(1, kept=False), ("all",))


def resolve(variables, level, tensor_dims=None) -> list[TensorIndex]:
    """Returns one index per variable: of `level`, unless `tensor_dims` says otherwise.

    Args:
        variables: list of (path, shape). Paths may be equal.
        level: 1, 2, 3, ... or "inf".
        tensor_dims: None; a dict of a regular expression, searched in the path, to
            dims as `index_from_dims` takes them; or a list of such dims, one per
            variable, None for `level`.

    Raises:
        ValueError: a pattern is invalid, two patterns claim one variable, a list
            has another length, or the dims do not fit.

    Warns:
        UserWarning: a pattern matches no variable. It may be meant for layers that
            are frozen now.
    """
    if isinstance(tensor_dims, list | tuple):
        if len(tensor_dims) != len(variables):
            raise ValueError(
                f"`tensor_dims` is a list of {len(tensor_dims)} entries for "
                f"{len(variables)} variables: give one entry per variable"
            )
        rules = [
            (f"entry {position}", dims) for position, dims in enumerate(tensor_dims)
        ]
    else:
        rules = _matching_rules(variables, tensor_dims or {})
    return [
        _resolve_one(path, shape, level, *rule)
        for (path, shape), rule in zip(variables, rules, strict=True)
    ]


def _matching_rules(variables, tensor_dims):
    """Returns per variable the (pattern, dims) that claim it, or (None, None)."""
    paths = [path for path, _ in variables]
    claims = [[] for _ in paths]
    for pattern, dims in tensor_dims.items():
        try:
            matched = [i for i, path in enumerate(paths) if re.search(pattern, path)]
        except re.error as error:
            raise ValueError(
                f"`tensor_dims` pattern {pattern!r} is not a regular "
                f"expression: {error}"
            ) from None
        if not matched:
            warnings.warn(
                f"`tensor_dims` pattern {pattern!r} (dims {dims}) matches no trainable "
                f"variable. The variables are: {paths}",
                stacklevel=2,
            )
        for i in matched:
            claims[i].append((pattern, dims))
    for (path, shape), rules in zip(variables, claims):
        if len(rules) > 1:
            patterns = [pattern for pattern, _ in rules]
            raise ValueError(
                f"variable {path!r} of shape {tuple(shape)} is claimed by more "
                f"than one `tensor_dims` pattern: {patterns}. Make them disjoint."
            )
    return [rules[0] if rules else (None, None) for rules in claims]


def _resolve_one(path, shape, level, rule, dims):
    """Returns the index of one variable; errors name the variable and its rule."""
    if 0 in shape:
        return _EMPTY
    if dims is None:
        return index_from_level(shape, level)
    try:
        return index_from_dims(shape, dims)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"`tensor_dims` rule {rule!r}: {dims} does not fit variable {path!r} of "
            f"shape {tuple(shape)}: {error}"
        ) from None
