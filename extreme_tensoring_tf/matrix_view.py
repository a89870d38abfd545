"""Which variables are orthogonalized, and as which matrices.

Pure Python, like `tensor_index.py`: the optimizer, the memory report and the planner
ask here, so that these cannot disagree.
"""

import dataclasses
import math
import warnings

from extreme_tensoring_tf.paths import matching


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """A variable as a matrix, of whose gradient a step takes the polar factor.

    It stands where other variables have a `TensorIndex`, and keeps no statistics.
    """

    view: tuple[int, int]  # a row-major reshape of the variable

    dims = ()
    labels = ()
    state_size = 0


def matrix_view(shape) -> MatrixView:
    """Returns the view that splits the axes of a variable into rows and columns.

    The leading axes are the rows, the others the columns; of all such splits it is
    the one nearest to a square, the latest of two. So

        (512, 2048)      a dense kernel                  512 x 2048
        (3, 3, 64, 128)  a convolution                   576 x 128
        (768, 12, 64)    queries, keys and values        768 x 768
        (12, 64, 768)    the output of attention         768 x 768

    Args:
        shape: of two or more axes.
    """
    splits = [
        (math.prod(shape[:axis]), math.prod(shape[axis:]))
        for axis in range(len(shape) - 1, 0, -1)
    ]
    return MatrixView(max(splits, key=lambda split: min(split) / max(split)))


def check_orthogonalize(orthogonalize) -> bool | list[str] | None:
    """Returns `orthogonalize`, its patterns as a list; or raises a ValueError."""
    if orthogonalize is None or isinstance(orthogonalize, bool):
        return orthogonalize
    if isinstance(orthogonalize, str):
        return [orthogonalize]
    if isinstance(orthogonalize, list | tuple | set):
        patterns = list(orthogonalize)
        if all(isinstance(pattern, str) for pattern in patterns):
            return patterns
    raise ValueError(
        "`orthogonalize` must be None, True, or a list of regular expressions over "
        f"variable paths. Received: orthogonalize={orthogonalize!r}"
    )


def orthogonalized(variables, orthogonalize) -> list[bool]:
    """Returns for every variable whether it is orthogonalized.

    Args:
        variables: list of (path, shape).
        orthogonalize: None or False for none; True for every kernel: a variable of
            two or more axes whose own name, the last part of its path, contains
            "kernel". Keras names the matrices of its layers so, and the tables of
            its embeddings "embeddings". Or a list of regular expressions, searched
            in the path: each names variables of two or more axes.

    Raises:
        ValueError: a pattern is invalid, or matches vectors alone.

    Warns:
        UserWarning: nothing is matched by a pattern. It may be meant for layers that
            are frozen now. Or there are matrices, and True finds no kernel among them.
    """
    orthogonalize = check_orthogonalize(orthogonalize)
    if not orthogonalize:
        return [False] * len(variables)
    is_matrix = [len(shape) > 1 and 0 not in shape for _, shape in variables]
    if orthogonalize is True:
        names = [path.rpartition("/")[2] for path, _ in variables]
        chosen = [m and "kernel" in name for m, name in zip(is_matrix, names)]
        others = [n for n, m in zip(names, is_matrix) if m and "embedding" not in n]
        if others and not any(chosen):
            warnings.warn(
                "`orthogonalize=True` found no matrix whose name contains 'kernel', "
                f"but {len(others)} others, {others[0]!r} for one: none is "
                "orthogonalized. Give regular expressions over their paths instead",
                stacklevel=2,
            )
        return chosen
    chosen = [False] * len(variables)
    for pattern in orthogonalize:
        matched = matching("orthogonalize", pattern, [path for path, _ in variables])
        if any(matched) and not any(a and b for a, b in zip(matched, is_matrix)):
            path, shape = variables[matched.index(True)]
            raise ValueError(
                f"`orthogonalize` pattern {pattern!r} matches {path!r} of shape "
                f"{tuple(shape)}, but no matrix: only variables of two or more axes "
                "have a polar factor"
            )
        chosen = [c or (m and i) for c, m, i in zip(chosen, matched, is_matrix)]
    return chosen
