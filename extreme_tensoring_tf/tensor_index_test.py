import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extreme_tensoring_tf import tensor_index
from extreme_tensoring_tf.tensor_index import index_from_level
from extreme_tensoring_tf.tensor_rules import EMBEDDINGS
from extreme_tensoring_tf.tensor_rules import index_from_dims
from extreme_tensoring_tf.tensor_rules import resolve

# The table of the design: shape, level, dims, state scalars.
TABLE = [
    ((512, 512), 1, (512, 512), 1024),
    ((512, 512), 2, (16, 32, 16, 32), 96),
    ((512, 512), 3, (4, 4, 4, 8, 4, 4, 4, 8), 40),
    ((512, 2048), 1, (512, 2048), 2560),
    ((512, 2048), 2, (16, 32, 32, 64), 144),
    ((512, 2048), 3, (4, 4, 4, 8, 4, 8, 8, 8), 48),
    ((2000, 512), 1, (2000, 512), 2512),
    ((2000, 512), 2, (40, 50, 16, 32), 138),
    ((2000, 512), 3, (5, 8, 5, 10, 4, 4, 4, 8), 48),
    ((512,), 1, (512,), 512),
    ((512,), 2, (16, 32), 48),
    ((512,), 3, (4, 4, 4, 8), 20),
    ((50257, 768), 1, (50257, 768), 51025),
    ((50257, 768), 2, (224, 225, 24, 32), 505),
    # padded once more, inside: 224 = 14 x 16, 225 = 15 x 15
    ((50257, 768), 3, (14, 16, 15, 15, 4, 6, 4, 8), 82),
    ((512, 512), "inf", (1,), 1),
    ((), 2, (1,), 1),
    ((1, 512), 1, (512,), 512),
    ((1, 1), 3, (1,), 1),
    ((7,), 3, (7,), 7),
    # 1 + 17 is twice 4 + 5, and no more: not padded; 1 + 37 is more than twice 6 + 7
    ((17,), 2, (17,), 17),
    ((355,), 2, (5, 71), 76),
    ((37,), 2, (6, 7), 13),
]


@pytest.mark.parametrize("shape, level, dims, size", TABLE)
def test_table(shape, level, dims, size):
    assert tensor_index(shape, level) == dims
    assert index_from_level(shape, level).state_size == size


@pytest.mark.parametrize(
    "shape, level, view, labels",
    [
        ((), 2, (1, 1), ("all",)),
        ((1, 1), 2, (1, 1), ("all",)),
        ((6, 10), "inf", (6, 10), ("all",)),
        ((6, 10), 1, (6, 10), ("axis0", "axis1")),
        ((5, 12), 2, (5, 12), ("axis0", "axis1_part0", "axis1_part1")),
        ((12,), 2, (3, 4), ("axis0_part0", "axis0_part1")),
    ],
)
def test_view_and_labels(shape, level, view, labels):
    index = index_from_level(shape, level)
    assert index.view == view
    assert index.labels == labels
    kept = index.rows.dims + index.cols.dims
    assert kept == (() if labels == ("all",) else index.dims)


@pytest.mark.parametrize("level", [0, -1, 1.5, True, "two", None])
def test_wrong_level(level):
    with pytest.raises(ValueError, match="`level` must be 1, 2, 3"):
        tensor_index((4, 4), level)


@pytest.mark.parametrize("shape", [(0, 3), (-1,), (2.5,), (2**40,)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="positive integers"):
        tensor_index(shape, 2)


@given(st.lists(st.integers(1, 3000), max_size=4), st.integers(1, 4))
def test_properties(shape, level):
    index = index_from_level(shape, level)
    size = math.prod(shape)
    # Every entry has a cell, and the view is a reshape of the variable.
    assert math.prod(index.dims) >= size
    assert math.prod(index.view) == size
    assert len(index.labels) == len(index.dims)
    assert all(d > 1 for d in index.dims) or index.dims == (1,)
    # A further level never needs more.
    assert index_from_level(shape, level + 1).state_size <= index.state_size
    # Padding is less than one slice per fold: no statistic is of padding alone.
    for fold in (index.rows, index.cols):
        check_fold(fold)


def check_fold(fold):
    if fold.parts:
        assert 0 <= fold.cells - fold.size < fold.cells // fold.parts[0].size
    for part in fold.parts:
        check_fold(part)


@pytest.mark.parametrize(
    "shape, dims, expected, view",
    [
        ((512, 512), 3, (4, 4, 4, 8, 4, 4, 4, 8), (512, 512)),
        ((512, 512), "inf", (1,), (512, 512)),
        ((512, 512), (16, 32, 512), (16, 32, 512), (512, 512)),
        ((512, 512), [[16, 32], 512], (16, 32, 512), (512, 512)),
        ((6, 10), (4, 15), (4, 15), (4, 15)),  # no axis of its own
        ((50257, 768), ((224, 225), 768), (224, 225, 768), (50257, 768)),
        ((100, 30), (100, 1), (100,), (100, 30)),  # an axis dropped
        ((100, 30), (1, (5, 6)), (5, 6), (100, 30)),
        ((100, 30), (1, 1), (1,), (100, 30)),
        ((2048, 30), ("et2", 1), (32, 64), (2048, 30)),  # a level of one axis
        ((50257, 768), ("et2", "et1"), (224, 225, 768), (50257, 768)),
        ((100, 30), ("etinf", "et3"), (5, 2, 3), (100, 30)),
        ((64,), (8, 8), (8, 8), (8, 8)),
        ((64,), (64,), (64,), (1, 64)),
    ],
)
def test_rules(shape, dims, expected, view):
    index = index_from_dims(shape, dims)
    assert index.dims == expected
    assert index.view == view
    assert len(index.labels) == len(expected)


@pytest.mark.parametrize(
    "shape, dims, message",
    [
        ((4, 6), (5, 5), r"product of dims \(5, 5\) is 25"),
        ((10,), ((5, 4),), "must be at least 10"),
        ((10,), ((3, 3),), "must be at least 10"),
        ((4, 6), ((2, 2),), "one entry per axis"),
        ((4, 6), (0, 6), "positive integers"),
        ((4, 6), ("et0", 6), "'et0' of nested dims is not"),
        ((4, 6), ("inf", 6), "'inf' of nested dims is not"),
    ],
)
def test_wrong_rules(shape, dims, message):
    with pytest.raises(ValueError, match=message):
        resolve([("dense/kernel", shape)], 2, {"kernel": dims})
    with pytest.raises(ValueError, match="dense/kernel.*of shape"):
        resolve([("dense/kernel", shape)], 2, {"kernel": dims})


def test_rules_claim_variables():
    variables = [("embedding/table", (100, 16)), ("dense/kernel", (16, 16))]
    embedding, dense = resolve(variables, 2, {"^embedding": 1})
    assert embedding.dims == (100, 16)
    assert dense.dims == (4, 4, 4, 4)
    with pytest.warns(UserWarning, match="'bias'.*matches no trainable variable"):
        assert resolve(variables, 2, {"bias": 1}) == resolve(variables, 2)
    one = [("table/embeddings", (100, 16)), ("layers/embeddings", (3, 100, 16))]
    rule = {EMBEDDINGS: ("et2", 1)}
    assert [index.dims for index in resolve(one, "inf", rule)] == [(10, 10), (1,)]
    assert resolve(variables, 2, rule) == resolve(variables, 2)  # and no warning
    with pytest.raises(ValueError, match="more than one"):
        resolve(variables, 2, {"table": 1, "embedding": 2})
    with pytest.raises(ValueError, match="not a regular expression"):
        resolve(variables, 2, {"(": 1})
