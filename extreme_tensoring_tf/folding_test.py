"""Folds against coordinates that are counted index by index."""

import numpy as np
import pytest
from keras import ops

from extreme_tensoring_tf import folding
from extreme_tensoring_tf.tensor_index import Fold

LEAF = Fold(5)
EVEN = Fold(12, (Fold(3), Fold(4)))
PADDED = Fold(19, (Fold(4), Fold(5)))
DROPPED = Fold(6, (Fold(2, kept=False), Fold(3)))
NESTED = Fold(47, (Fold(6, (Fold(2), Fold(3))), Fold(8, (Fold(2), Fold(4)))))
THREE = Fold(30, (Fold(2), Fold(3, kept=False), Fold(5)))
NOTHING = Fold(4, kept=False)
FOLDS = [LEAF, EVEN, PADDED, DROPPED, NESTED, THREE, NOTHING]


def coordinates(fold):
    """Per dim of the fold, the coordinate of every index of its axis."""

    def of(indices, fold):
        if not fold.parts:
            return [indices] if fold.kept else []
        grid = np.unravel_index(indices, [part.size for part in fold.parts])
        return sum((of(i, part) for i, part in zip(grid, fold.parts)), [])

    return of(np.arange(fold.size), fold)


def array(x):
    return np.stack([ops.convert_to_numpy(row) for row in x])


@pytest.mark.parametrize("convert", [np.asarray, ops.convert_to_tensor])
@pytest.mark.parametrize("fold", FOLDS, ids=str)
def test_sums_over_slices(fold, convert):
    vectors = np.random.default_rng(0).normal(size=(2, fold.size)).astype("float32")
    found = folding.slice_sums(convert(vectors), fold)
    assert [tuple(s.shape) for s in found] == [(2, dim) for dim in fold.dims]
    for sums, where, dim in zip(found, coordinates(fold), fold.dims):
        expected = [np.bincount(where, v, minlength=dim) for v in vectors]
        np.testing.assert_allclose(array(sums), expected, rtol=1e-5, atol=1e-6)
        assert isinstance(sums, np.ndarray) or convert is not np.asarray


@pytest.mark.parametrize("convert", [np.asarray, ops.convert_to_tensor])
@pytest.mark.parametrize("fold", FOLDS, ids=str)
def test_outer_sums(fold, convert):
    rng = np.random.default_rng(1)
    terms = [rng.normal(size=(2, dim)).astype("float32") for dim in fold.dims]
    found = folding.outer_sum(map(convert, terms), fold)
    if not fold.dims:
        assert found is None
        return
    where = coordinates(fold)
    expected = sum(term[:, place] for term, place in zip(terms, where))
    assert tuple(found.shape) == (2, fold.size)
    np.testing.assert_allclose(array(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fold", FOLDS, ids=str)
def test_some_indices(fold):
    ids = np.array([fold.size - 1, 0, fold.size // 2, 0])
    where = [place[ids] for place in coordinates(fold)]
    rng = np.random.default_rng(2)
    values = rng.normal(size=4).astype("float32")
    indices = ops.convert_to_tensor(ids, "int32")
    found = folding.slice_sums_at(ops.convert_to_tensor(values), indices, fold)
    assert len(found) == len(fold.dims)
    for sums, place, dim in zip(found, where, fold.dims):
        expected = np.bincount(place, values, minlength=dim)
        np.testing.assert_allclose(array(sums), expected, rtol=1e-5, atol=1e-6)
    terms = [rng.normal(size=dim).astype("float32") for dim in fold.dims]
    found = folding.outer_sum_at(map(ops.convert_to_tensor, terms), indices, fold)
    if not fold.dims:
        assert found is None
        return
    expected = sum(term[place] for term, place in zip(terms, where))
    np.testing.assert_allclose(array(found), expected, rtol=1e-5, atol=1e-6)
