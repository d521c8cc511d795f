"""The files that the steps hand to each other: written whole or not at all, loaded or a clear
error."""

import glob
import json
import os
import zipfile
import zlib
from contextlib import contextmanager

import numpy as np

from pipeline.errors import UserError

# what numpy raises for damaged, foreign and pickled .npz files
UNREADABLE = (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile,
              zlib.error)


# --- writing ------------------------------------------------------------------------------------

@contextmanager
def whole_file(path):
    """A temporary path beside `path` to write to; renamed to it at the end, removed on any failure.

    An interrupted or failed write leaves the old file, or none, never a half one. The folder is
    made where it is missing. Raises OSError where that, or the renaming, is refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)

    # of a run that was killed; another one may be writing the same file just now
    for leftover in path.parent.glob(f".part-*-{glob.escape(path.name)}"):
        pid = leftover.name.split("-")[1]
        if not pid.isdecimal() or not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)

    # in the same folder: only there is a rename one step, and whole for every reader
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _is_running(pid):
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)  # asks only
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # somebody else's
    return pid != os.getpid()


def write_json(path, value):
    """Whole or not at all; NaN becomes null."""
    with whole_file(path) as part:
        part.write_text(json.dumps(without_nan(value), indent=1, allow_nan=False) + "\n")


def write_npz(path, arrays, compress=False):
    """{name: array} as one .npz, whole or not at all."""
    # an open file instead of a name: numpy would add .npz to the temporary one
    save = np.savez_compressed if compress else np.savez
    with whole_file(path) as part, open(part, "wb") as file:
        save(file, **arrays)


def without_nan(value):
    """The same JSON value with None for what is not finite."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


# --- loading ------------------------------------------------------------------------------------

def load_npz(path, command):
    """{name: array} of an .npz, never unpickled; UserError naming `command` if missing or
    damaged."""
    if not path.exists():
        raise UserError(f"{path}: missing. Make it with: {command}")

    # without pickle: a file from a stranger must not run
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except UNREADABLE as error:
        raise UserError(f"{path}: damaged or not an .npz of plain arrays ({error}). "
                        f"Make it again with: {command}") from error


def load_json(path, command):
    """The dict in a JSON file; UserError naming `command` if missing or damaged."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing. Make it with: {command}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}). Make it again with: {command}") from error

    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged (expected a dict). Make it again with: {command}")
    return value


def refuse_stale(path, why, command):
    """Raise UserError where `why` (settings.differences) names anything."""
    if why:
        raise UserError(
            f"{path}: made with other settings ({'; '.join(why)}). Make it again with: {command}")
