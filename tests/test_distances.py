"""Nearest neighbours against all distances in double precision."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from scoring import distances


def clusters(rng, centre, n):
    """(n, 6) around the middle and around `centre`, a thousandth as wide."""
    wide = rng.normal(size=(n // 2, 6))
    return np.concatenate([wide, centre + 1e-3 * rng.normal(size=(n - n // 2, 6))]).astype(
        np.float32)


@pytest.mark.parametrize("centre", [0, 30, 1000])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_neighbours_are_the_nearest_wherever_they_lie(k, centre):
    rng = np.random.default_rng(k)
    known, asked = clusters(rng, centre, 700), clusters(rng, centre, 300)
    distance, index = distances.neighbours(known, asked, k)
    away = cdist(known.astype(float), asked.astype(float)).T
    assert_allclose(distance, np.sort(away)[:, :k], rtol=1e-12)
    assert_array_equal(np.take_along_axis(away, index, axis=1), distance)


def test_neighbours_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    known, asked = rng.normal(size=(2, 1000, 34))
    expected, places = NearestNeighbors(algorithm="kd_tree").fit(known).kneighbors(asked, 7)
    distance, index = distances.neighbours(known, asked, 7)
    assert_allclose(distance, expected, rtol=1e-12)
    assert_array_equal(index, places)


def test_of_copies_and_of_few_references_all_are_neighbours(monkeypatch):
    monkeypatch.setattr(distances, "PAIRS", 7)
    known = np.repeat(np.float32([[0, 1], [3, 5]]), 20, axis=0)
    distance, index = distances.neighbours(known, known[:3], 20)
    assert not distance.any() and sorted(index[0]) == list(range(20))
    distance, index = distances.neighbours(known[19:21], known[:1], 10)
    assert_allclose(distance, [[0, 5]])
    assert_array_equal(index, [[0, 1]])


@pytest.mark.parametrize("r", [4, 11, 200, 503])
def test_kth_smallest_is_that_of_a_sorted_row(r):
    rng = np.random.default_rng(r)
    values = rng.normal(size=(20, r)).astype(np.float32)
    many_alike = rng.integers(0, 3, (20, r)).astype(np.float32)
    for rows in (values, many_alike):
        for k in {0, 3, r // 20, r // 5, r - 1}:
            assert_array_equal(distances.kth_smallest(rows, k), np.sort(rows)[:, k])
