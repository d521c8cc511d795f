"""Nearest neighbours by large matrix products: in 34 dimensions a tree visits nearly every
reference all the same.
"""

import numpy as np

from pipeline.runtime import in_threads, slices

BLOCK = 128         # queries in one matrix of distances, which stays in the cache: 1 MB
PAIRS = 100_000     # pairs measured again at a time: of copies all may be the nearest
GROUPS = 3          # of `upper_limit`, at least so many times the values it is about ...
OF_A_GROUP = 32     # ... and at most so many values in one


def neighbours(references, queries, k):
    """(distances (n, k), indices (n, k)) of the k nearest references (r, d) to queries (n, d),
    Euclidean, nearest first; of all references where they are fewer.

    A product gives |q|^2 - 2 q r + |r|^2, whose rounding grows with the lengths of q and r and may
    exceed a small distance. What it may be wrong by is bounded (Higham 2002, Accuracy and Stability
    of Numerical Algorithms, section 3.1): all that may be among the k nearest are measured again.
    """
    k = min(k, len(references))
    # rounding is least around the middle
    middle = references.mean(axis=0)
    known, asked = references - middle, queries - middle
    length = np.sqrt((asked ** 2).sum(axis=1)) + np.sqrt((known ** 2).sum(axis=1).max())
    wrong = np.finfo(known.dtype).eps * (known.shape[1] + 4) * length ** 2

    distance = np.empty((len(queries), k))
    index = np.empty((len(queries), k), int)

    def of(part, away):
        limit = upper_limit(away, k - 1) + wrong[part]
        row, column = np.divmod(np.flatnonzero(away <= limit[:, None]), len(references))
        square = np.empty(len(row))
        for some in slices(len(row), PAIRS):
            away = queries[part][row[some]].astype(float) - references[column[some]]
            square[some] = (away ** 2).sum(axis=1)

        # each row's own, nearest first
        order = np.lexsort((square, row))
        nearest = order[np.searchsorted(row, np.arange(len(limit)))[:, None] + np.arange(k)]
        distance[part] = np.sqrt(square[nearest])
        index[part] = column[nearest]

    for_blocks(of, known, asked)
    return distance, index


def upper_limit(values, k):
    """(m,) a value that at least k + 1 of each row of values (m, r) are not above, near the (k +
    1)th smallest.
    """
    m, r = values.shape
    groups = min(max(GROUPS * (k + 1), r // OF_A_GROUP), r)
    size = r // groups

    # so many groups of a row have a smallest value up to it
    smallest = values[:, :size * groups].reshape(m, size, groups).min(axis=1)
    return np.partition(smallest, k, axis=1)[:, k]


def kth_smallest(values, k):
    """(m,) of each row of values (m, r) the one that k are smaller than; half the time of a
    partition of all.
    """
    m, r = values.shape
    row, column = np.divmod(np.flatnonzero(values <= upper_limit(values, k)[:, None]), r)

    # what is left of each row, from its first column on
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(m))[row]
    left = np.full((m, place.max(initial=k) + 1), np.inf, values.dtype)
    left[row, place] = values[row, column]
    return np.partition(left, k, axis=1)[:, k]


def for_blocks(function, known, queries):
    """Call function(part, away) of each BLOCK of queries (m, d): its slice, and its squared
    distances (BLOCK, r) to known (r, d), each less the square of the query's length.
    """
    squares = (known ** 2).sum(axis=1)

    def call(part):
        # as one matrix product: |q|^2 - 2 q r + |r|^2
        away = (-2 * queries[part]) @ known.T
        away += squares
        function(part, away)

    in_threads(call, slices(len(queries), BLOCK))
