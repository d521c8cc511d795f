"""Rows of beats: in parts, and by record."""

import numpy as np


def slices(n, size):
    """Slices of `size` that cover n rows."""
    return [slice(start, start + size) for start in range(0, n, size)]


def rows_by_record(record):
    """{name: row numbers, rising} of the records, by name."""
    # stable: within a record the beats stay in time, which the causal scores count on
    order = np.argsort(record, kind="stable")
    names, starts = np.unique(record[order], return_index=True)
    return dict(zip(names.tolist(), np.split(order, starts[1:])))
