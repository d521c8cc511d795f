"""NumPy arrays and MATLAB files, in memory maps; what a table becomes."""

import io
import math
import shutil
import struct
import tempfile
import zipfile
import zlib

import numpy as np

from pipeline.errors import UserError, said
from recording.reader_files import overlaps, same_size

MAX_LEADS = 1024
ARRAY_NAMES = ("signal", "x", "ecg")
RATE_NAMES = ("fs", "fs_hz", "sampling_rate", "sample_rate")
MAX_NUMBER_BYTES = 2**12
MAX_MAT_BYTES = 2**28
MAX_PACKED = 100            # an ECG is packed to a tenth
FREE_BYTES = 2**28          # that an archive may unpack to, however small it is


class Array:
    """A (rows, columns) array in a memory map, of which some columns are leads.

    factors: of each lead to mV, None: not known; columns: of the leads, None: all; pieces:
    [(first sample, sample behind it, first row)] where samples between the rows are lost. Raises
    UserError where fs_hz is None: neither the file nor the user gives it.
    """

    start = None
    size = 0  # in bytes, of a file that others may change

    def __init__(self, path, array, fs_hz, leads, factors, columns=None, pieces=None):
        if fs_hz is None:
            raise UserError(
                f"{path}: does not say its sampling rate, nor has it a column of evenly spaced "
                "times. Give the rate in Hz with --fs, for example --fs 250.")

        self.path = path
        self.array = array
        self.fs_hz = fs_hz
        self.pieces = pieces or [(0, len(array), 0)]
        self.n_samples = self.pieces[-1][1]
        self.leads = leads
        self.columns = range(len(leads)) if columns is None else columns
        self.factors = factors
        self.calibrated = [factor is not None for factor in factors]
        self.units = ["mV" if known else "" for known in self.calibrated]

    def read(self, k, start, stop):
        # what is in memory has no file that others could cut
        if self.size:
            same_size(self.path, self.size)
        result = np.full(stop - start, np.nan)
        column = self.array[:, self.columns[k]]
        for where, row, low, high in overlaps(self.pieces, start, stop):
            result[where] = column[row + low:row + high]
        return result * (self.factors[k] or 1.0)


# --- NumPy --------------------------------------------------------------------------------------

def open_npy(path, fs_hz):
    """A plain array of numbers, (samples,) or (samples, leads): never unpickled, never copied."""
    source = open_array(path, path, fs_hz)
    source.size = path.stat().st_size
    return source


def open_npz(path, fs_hz):
    """The array `signal`, `x` or `ecg` of an archive, or its only one, unpacked for the time.

    A number `fs`, as numpy.savez(path, signal=signal, fs=250) writes it, is the rate in Hz.
    """
    # an archive may be compressed; its folder goes at once, the map of the array stays
    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                rates = [f"{name}.npy" for name in RATE_NAMES if f"{name}.npy" in names]
                wanted = [f"{name}.npy" for name in ARRAY_NAMES if f"{name}.npy" in names]
                others = [name for name in names if name not in rates]
                if not wanted and len(others) != 1:
                    raise ValueError(f"{len(others)} arrays; expected one, or one named "
                                     f"{', '.join(ARRAY_NAMES)}")
                wanted = (wanted or others)[0]

                # what an archive unpacks to is its own claim, and never more than that is written
                size = archive.getinfo(wanted).file_size
                packed = path.stat().st_size
                if size > max(FREE_BYTES, MAX_PACKED * packed):
                    raise UserError(f"{path}: {packed:,} bytes that would unpack to {size:,}; no "
                                    f"signal is packed {MAX_PACKED} times. Save it with "
                                    "numpy.save.")
                free = shutil.disk_usage(folder).free
                if size > free / 2:
                    raise UserError(f"{path}: would unpack to {size:,} bytes, of {free:,} that are "
                                    "free. Save it with numpy.save, or let TMPDIR name another "
                                    "folder.")
                if rates and fs_hz is None:
                    with archive.open(rates[0]) as file:
                        fs_hz = _only_number(file.read(MAX_NUMBER_BYTES))
                unpacked = archive.extract(wanted, folder)
        except (OSError, UserError):
            raise  # a full disk is no fault of the archive
        except Exception as error:  # the reader of a damaged archive raises anything
            raise _not_an_array(path, error) from error
        return open_array(path, unpacked, fs_hz)


def _only_number(raw):
    """The number in the bytes of a .npy file with nothing else in it."""
    array = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
    return float(array.reshape(()))


def open_array(path, file, fs_hz):
    """The Array in a .npy file; path: of the recording, for errors."""
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # the reader of a damaged header raises anything
        raise _not_an_array(path, error) from error

    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise _not_an_array(path, f"{array.dtype} of shape {array.shape}")
    if array.ndim == 1:
        array = array[:, None]  # (samples, 1)

    # leads in rows would be read as many leads of few samples
    samples, leads = array.shape
    if leads > min(samples, MAX_LEADS):
        raise UserError(f"{path}: an array of shape {array.shape}; expected (samples,) or "
                        "(samples, leads). Transpose or split it.")
    return Array(path, array, fs_hz, [""] * leads, [None] * leads)


def _not_an_array(path, error):
    return UserError(f"{path}: damaged or no plain array of numbers ({said(error)}). Save the "
                     "signal again with numpy.save, not as a pickle.")


# --- MATLAB -------------------------------------------------------------------------------------

def open_mat(path, fs_hz):
    """The matrix `val` of a MATLAB file, as PhysioNet exports it, or its only one: (leads, samples)
    or (samples, leads), in units that only a header beside it would say."""
    import scipy.io

    size = path.stat().st_size
    remedy = "Save the matrix again with save(..., '-v7'), or export the recording as EDF or CSV."
    if size > MAX_MAT_BYTES:
        raise UserError(f"{path}: {size:,} bytes; a MATLAB file is read whole, expected at most "
                        f"{MAX_MAT_BYTES:,}. Split it, or export it as EDF.")
    try:
        _check_packed(path)
        known = {name: shape for name, shape, _ in scipy.io.whosmat(path)}
        wanted = [name for name in ("val", *ARRAY_NAMES) if name in known]
        if not wanted and len(known) != 1:
            raise ValueError(f"{len(known)} matrices; expected one, or one named val")
        name = (wanted or list(known))[0]
        rates = [other for other in RATE_NAMES if known.get(other) == (1, 1)]
        if math.prod(known[name]) > MAX_MAT_BYTES:
            raise ValueError(f"a matrix of shape {known[name]}")

        read = scipy.io.loadmat(path, variable_names=[name, *rates])
        array = np.asarray(read[name])
        if rates and fs_hz is None:
            fs_hz = float(read[rates[0]].reshape(()))
    except Exception as error:  # the reader of a damaged file raises anything
        if getattr(error, "errno", None):
            raise  # the disk's
        raise UserError(f"{path}: damaged or no MATLAB file up to version 7 ({said(error)}). "
                        f"{remedy}") from error

    if array.ndim != 2 or array.dtype.kind not in "iuf" or min(array.shape) > MAX_LEADS:
        raise UserError(f"{path}: {array.dtype} of shape {array.shape}; expected a matrix of "
                        f"numbers, (leads, samples). {remedy}")
    if array.shape[0] < array.shape[1]:
        array = array.T  # (samples, leads)
    leads = array.shape[1]
    return Array(path, array, fs_hz, [""] * leads, [None] * leads)


def _check_packed(path):
    """Raise ValueError where the packed elements of a MATLAB file unpack to too much."""
    with open(path, "rb") as file:
        if not file.read(128).startswith(b"MATLAB 5.0"):
            return

        # type 15: packed by zlib; others have the size that they say
        unpacked = 0
        while tag := file.read(8):
            kind, size = struct.unpack("<II", tag)
            data = file.read(min(size, MAX_MAT_BYTES))
            if kind != 15:
                continue
            unpacker = zlib.decompressobj()
            while data and not unpacker.eof:
                unpacked += len(unpacker.decompress(data, 2**20))
                data = unpacker.unconsumed_tail
                if unpacked > MAX_MAT_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_MAT_BYTES:,} bytes")
