"""Writing a file whole or not at all."""

import json
import os
from contextlib import contextmanager

import numpy as np


@contextmanager
def whole_file(path):
    """A temporary path beside `path` to write to; renamed to it at the end, removed on any failure.

    An interrupted or failed write leaves the old file, or none, never a half one. The folder is
    made where it is missing. Raises OSError where that, or the renaming, is refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".part-*-{path.name}"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path, value):
    """Whole or not at all; NaN becomes null."""
    with whole_file(path) as part:
        part.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
