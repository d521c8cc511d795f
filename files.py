"""Writing a file whole or not at all."""

import os
from contextlib import contextmanager


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
