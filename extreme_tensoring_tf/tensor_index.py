"""The short axes by which a variable is indexed: shape + level -> dims.

`tensor_rules.py` adds the rules of users. The two alone decide dims. They are pure
Python: the optimizer, the memory report and the planner call them, so that these
cannot disagree.
"""

import dataclasses
import functools
import math
import numbers

_LARGEST = 2**40  # of an axis: that of a prime is divided by all up to its root


@dataclasses.dataclass(frozen=True)
class Fold:
    """A `Fold` is an axis of `size` indices, seen as a row-major grid of shorter axes.

    `parts` are the axes of the grid, the slowest first; their product is at
    least `size`, and the cells past `size` are padding. A fold without parts is
    a leaf: it keeps one statistic per index, or, with `kept=False`, none.
    """

    size: int
    parts: tuple["Fold", ...] = ()
    kept: bool = True

    @property
    def dims(self) -> tuple[int, ...]:
        """Returns the lengths of the statistics that this axis keeps, in order."""
        if self.parts:
            return sum((part.dims for part in self.parts), ())
        return (self.size,) if self.kept else ()

    @property
    def cells(self) -> int:
        """Returns the number of cells of the grid, padding included."""
        return math.prod(part.size for part in self.parts) or self.size


@dataclasses.dataclass(frozen=True)
class TensorIndex:
    """A `TensorIndex` lays the index of one variable over a matrix view of it.

    Two reductions of the squared gradient, over the rows and over the columns of
    the view, hold every statistic of the index: see `preconditioner.py`.
    """

    rows: Fold
    cols: Fold
    labels: tuple[str, ...]  # one per dim: which axis of the variable it is

    @property
    def view(self) -> tuple[int, int]:
        """Returns the shape of the matrix view, a row-major reshape of the variable."""
        return self.rows.size, self.cols.size

    @property
    def dims(self) -> tuple[int, ...]:
        """Returns the lengths of the statistics; (1,) where all entries share one."""
        return self.rows.dims + self.cols.dims or (1,)

    @property
    def state_size(self) -> int:
        """Returns the number of scalars of the statistics."""
        return sum(self.dims)


def tensor_index(shape, level) -> tuple[int, ...]:
    """Returns the dimensions of the tensor index that `level` gives to a variable.

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


def check_level(level) -> int | str:
    """Returns `level`, a positive integer or "inf", or raises a ValueError."""
    if isinstance(level, str) and level == "inf":
        return level
    is_integer = isinstance(level, numbers.Integral) and not isinstance(level, bool)
    if is_integer and int(level) > 0:
        return int(level)
    raise ValueError(
        f'`level` must be 1, 2, 3, ... or "inf". Received: level={level!r}'
    )


def check_shape(shape) -> tuple[int, ...]:
    """Returns a shape of positive integers, or raises a ValueError."""
    shape = tuple(shape)
    if any(isinstance(n, bool) or not 1 <= n < _LARGEST or n % 1 for n in shape):
        raise ValueError(
            "A tensor index needs a shape of positive integers below 2**40. "
            f"Received: shape={shape}"
        )
    return tuple(int(n) for n in shape)


def _split(n):
    """Returns the two factors of n, which are padded where they would be lopsided."""
    root = math.isqrt(n)
    a = next(a for a in range(root, 0, -1) if n % a == 0)
    padded = (root, math.ceil(n / root))
    return padded if a + n // a > 2 * sum(padded) else (a, n // a)


def fold_axis(n, level) -> Fold:
    """Returns the fold that a level gives to an axis of length n."""
    level = check_level(level)
    return Fold(n, kept=False) if isinstance(level, str) else _fold(n, level - 1)


def _fold(n, splits):
    """Returns the fold of an axis of length n whose factors are split so many times."""
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
    return index_from_folds([_fold(n, level - 1) for n in shape])


def index_from_level(shape, level) -> TensorIndex:
    """Returns the `TensorIndex` behind `tensor_index`."""
    return _index_from_level(check_shape(shape), check_level(level))


def index_from_folds(folds: list[Fold]) -> TensorIndex:
    """Returns the index of one fold per axis: the rows are all axes but the last."""
    labels = tuple(
        f"axis{axis}" if len(fold.dims) == 1 else f"axis{axis}_part{part}"
        for axis, fold in enumerate(folds)
        for part in range(len(fold.dims))
    ) or ("all",)
    if len(folds) == 1 and folds[0].cells == folds[0].size and folds[0].parts:
        # A folded vector is a matrix: its factors are then short vectors too.
        return TensorIndex(*halves(folds[0].parts), labels)
    *leading, last = folds or [Fold(1, kept=False)]
    return TensorIndex(join(leading), last, labels)


def join(folds) -> Fold:
    """Returns the fold whose parts are these folds, or the one there is."""
    if len(folds) == 1:
        return folds[0]
    return Fold(math.prod(f.size for f in folds), tuple(folds), kept=bool(folds))


def halves(folds) -> tuple[Fold, Fold]:
    """Returns two folds: a list of folds, cut where the two products are closest."""
    cut = min(
        range(len(folds)),
        key=lambda k: (
            math.prod(f.size for f in folds[:k]) + math.prod(f.size for f in folds[k:])
        ),
    )
    return join(folds[:cut]), join(folds[cut:])
