"""What the readers of recordings share: rates, units, and which files of the disk may be opened."""

import re
import stat
from datetime import datetime

from pipeline.errors import UserError

MIN_FS_HZ = 100
MAX_FS_HZ = 2000
MV = {"v": 1e3, "mv": 1.0, "uv": 1e-3, "µv".casefold(): 1e-3, "microv": 1e-3, "nv": 1e-6,
      "\ufffdv": 1e-3}         # µV in another encoding than UTF-8
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
FILE_NAME = re.compile(r"(?!(\.\.?|~)$)[^/\\\0]{1,255}")
WFDB_RECORD = re.compile(
    r"(\S+?)(?:/(\d{1,9}))?\s+(\d{1,9})"                      # name / segments, signals
    rf"(?:\s+({NUMBER})(?:/{NUMBER}(?:\({NUMBER}\))?)?"       # rate / counter rate (base)
    r"(?:\s+(\d{1,15})(?:\s+(.*))?)?)?")                      # samples, time and date of the start


def check_rate(where, fs_hz, remedy):
    """Raise UserError, which names `where` and ends in `remedy`, for a rate that no ECG has."""
    # false for NaN, too
    if not MIN_FS_HZ <= fs_hz <= MAX_FS_HZ:
        raise UserError(f"{where}: a sampling rate of {fs_hz:g} Hz; expected {MIN_FS_HZ} to "
                        f"{MAX_FS_HZ:,} Hz. {remedy}")


def regular_file(path):
    """The file `path` means, links followed; UserError if it is none."""
    # opening a pipe would wait for ever, a device may have no end
    try:
        file = path.resolve(strict=True)
        mode = file.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: missing. Check the path.") from None
    except (RuntimeError, ValueError) as error:
        # a loop of links, or a NUL in the name
        raise UserError(f"{path}: no usable path ({error}). Check the path.") from error

    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise UserError(f"{path}: is {kind}; expected a recording. Name a file.")
    return file


def beside(header, name):
    """The file that a header names, in its own folder or below.

    Raises UserError if it is elsewhere or no file: a header must not make us read other files.
    """
    where = f"{header}: names the file {name!r}"
    if not FILE_NAME.fullmatch(name):
        raise UserError(f"{where}; expected one in its own folder. Correct the header or leave "
                        "the recording out.")

    try:
        file = regular_file(header.parent / name)
    except (UserError, OSError) as error:
        raise UserError(
            f"{where}, which cannot be read ({error}). Copy it beside the header.") from error

    # links followed: a link may lead anywhere
    if not file.is_relative_to(header.parent):
        raise UserError(
            f"{where}, a link that leads out of the folder. Replace the link by the file.")
    return file


def to_mv(units):
    """Factor to mV of a unit of voltage, None for any other."""
    return MV.get(units.strip().casefold())


def start_of(text, pattern):
    """The datetime that a header says in a pattern of strptime, None where it says none."""
    try:
        return datetime.strptime(text, pattern)
    except ValueError:
        return None


def overlaps(pieces, start, stop):
    """Where the samples start to stop lie in pieces (first sample, sample behind it, what).

    Yields (slice of the stretch, what, first sample in the piece, sample behind it in the piece).
    """
    for begin, end, what in pieces:
        low = max(start, begin)
        high = min(stop, end)

        # a piece elsewhere, and a gap between two pieces, give nothing
        if low < high:
            yield slice(low - start, high - start), what, low - begin, high - begin


def same_size(path, size):
    """Raise UserError if a file is shorter than `size` bytes.

    Reading a memory map behind the end of its file would kill the process.
    """
    if path.stat().st_size < size:
        raise UserError(f"{path}: has become shorter while it was read. Copy it anew.")
