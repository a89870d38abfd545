"""The dims that rules of `tensor_dims` give to variables, by path or by place."""

import dataclasses
import itertools
import math
import numbers
import re
from typing import Any

from extreme_tensoring_tf.matrix_view import MatrixView
from extreme_tensoring_tf.matrix_view import matrix_view
from extreme_tensoring_tf.matrix_view import orthogonalized
from extreme_tensoring_tf.paths import matching
from extreme_tensoring_tf.tensor_index import Fold
from extreme_tensoring_tf.tensor_index import TensorIndex
from extreme_tensoring_tf.tensor_index import check_shape
from extreme_tensoring_tf.tensor_index import fold_axis
from extreme_tensoring_tf.tensor_index import halves
from extreme_tensoring_tf.tensor_index import index_from_folds
from extreme_tensoring_tf.tensor_index import index_from_level
from extreme_tensoring_tf.tensor_index import join

# The tables of Keras' embeddings. Forms have a rule for them in every model, whether
# there are any or not, and for matrices alone.
EMBEDDINGS = "(^|/)embeddings$"


def index_from_dims(shape, dims: Any) -> TensorIndex:
    """Returns the `TensorIndex` that a rule of `tensor_dims` describes.

    Args:
        shape: shape of the variable.
        dims: one of
            - a level: 1, 2, 3, ... or "inf";
            - flat dims whose product is the size of the variable; they need not
              line up with its axes (Algorithm 1 allows any index);
            - nested dims, one entry per axis: an integer, a tuple, or "et1", "et2",
              ..., the dims that a level gives to this axis. The product of an entry
              may exceed its axis by less than one slice of its first dim (padding).
              The entry 1, or "etinf", drops the axis: it keeps no statistic.

    Raises:
        ValueError: the dims do not fit the shape.
    """
    shape = check_shape(shape)
    if isinstance(dims, numbers.Integral | str):
        return index_from_level(shape, dims)
    dims = tuple(tuple(d) if isinstance(d, list) else d for d in dims)
    for d in dims:
        if not isinstance(d, str):
            check_shape(d if isinstance(d, tuple) else (d,))
    nested = any(isinstance(d, tuple | str) for d in dims)
    per_axis = len(dims) == len(shape) and all(
        d in (1, n) for d, n in zip(dims, shape, strict=True)
    )
    if nested or per_axis:
        if len(dims) != len(shape):
            raise ValueError(
                f"nested dims {dims} have {len(dims)} entries for the "
                f"{len(shape)} axes of shape {shape}: give one entry per axis"
            )
        return index_from_folds(
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
        index = index_from_folds(grouped)
        return dataclasses.replace(index, labels=labels)
    return TensorIndex(*halves(leaves), labels)


def _axis_fold(n, dims):
    """Returns the fold of an axis of length n by an entry of nested dims."""
    if isinstance(dims, str):
        match = re.fullmatch(r"et(inf|[1-9]\d*)", dims)
        if not match:
            raise ValueError(
                f'the entry {dims!r} of nested dims is not "et1", "et2", ..., '
                '"etinf", an integer or a tuple'
            )
        level = match.group(1)
        return fold_axis(n, level if level == "inf" else int(level))
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
    """Returns one fold per axis if runs of `leaves` multiply to the axes, else None."""
    leaves, folds = list(leaves), []
    for n in shape:
        run = []
        while math.prod(f.size for f in run) < n:
            run.append(leaves.pop(0))
        if math.prod(f.size for f in run) != n:
            return None
        folds.append(join([f for f in run if f.kept] or [Fold(1, kept=False)]))
    return folds


# A variable without entries has nothing to keep but, like every variable, one scalar.
_EMPTY = TensorIndex(Fold(0, kept=False), Fold(1, kept=False), ("all",))


def check_tensor_dims(tensor_dims) -> dict | list | tuple | None:
    """Returns `tensor_dims`, None if there are no rules; or raises a ValueError."""
    if tensor_dims is None or isinstance(tensor_dims, dict | list | tuple):
        return tensor_dims or None
    raise ValueError(
        "`tensor_dims` must be None, a dict of regular expressions over variable paths "
        f"to dims, or a list of dims. Received: tensor_dims={tensor_dims!r}"
    )


def resolve(
    variables, level, tensor_dims=None, orthogonalize=None
) -> list[TensorIndex | MatrixView]:
    """Returns one index per variable: of `level`, unless `tensor_dims` says otherwise.

    Args:
        variables: list of (path, shape). Paths may be equal.
        level: 1, 2, 3, ... or "inf".
        tensor_dims: None; a dict of a regular expression, searched in the path, to
            dims as `index_from_dims` takes them; or a list of such dims, one per
            variable, None for `level`.
        orthogonalize: as `matrix_view.orthogonalized` takes it. A variable that it
            names keeps no statistics: it gets a `MatrixView`, and the patterns of
            `tensor_dims` do not see it.

    Raises:
        ValueError: a pattern is invalid, two patterns claim one variable, a list
            has another length, or the dims do not fit.

    Warns:
        UserWarning: a pattern other than `EMBEDDINGS` matches no variable. It may be
            meant for layers that are frozen now.
    """
    matrices = orthogonalized(variables, orthogonalize)
    if any(matrices):
        rest = [not matrix for matrix in matrices]
        if isinstance(tensor_dims, list | tuple) and len(tensor_dims) == len(rest):
            tensor_dims = list(itertools.compress(tensor_dims, rest))
        kept = list(itertools.compress(variables, rest))
        indices = iter(resolve(kept, level, tensor_dims))
        return [
            matrix_view(shape) if matrix else next(indices)
            for (_, shape), matrix in zip(variables, matrices, strict=True)
        ]
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
        warns = pattern != EMBEDDINGS
        found = matching("tensor_dims", pattern, paths, f" (dims {dims})", warns)
        for (_, shape), claim, claimed in zip(variables, claims, found):
            if claimed and (pattern != EMBEDDINGS or len(shape) == 2):
                claim.append((pattern, dims))
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
