"""Any recording of the user's own, one lead and one stretch at a time: WFDB, EDF and BDF, CSV and TSV, NumPy.

    with open_recording("holter.edf") as recording:
        signal = recording.read(lead_index(recording, "II"), 0, 10_000)

Files are untrusted: whatever is wrong with one is a UserError, no file outside the recording's own
folder is read, and nothing is allocated because a header says so. The formats are decoded here:
wfdb.rdrecord parses the header again for every block, cannot read a part of format 8, takes µV for
V and a missing sample of a frame for a number; edfio reads a BDF whole. The tests hold both against this.
"""

import glob
import os
import re
from pathlib import Path

import numpy as np
import wfdb

from pipeline.errors import UserError
from recording.reader_edf import Edf
from recording.reader_files import FILE_NAME, WFDB_RECORD, check_rate, regular_file
from recording.reader_table import open_npy, open_npz, open_table
from recording.reader_wfdb import Wfdb, header_lines

FS_TOLERANCE = 1e-3             # --fs may differ from the file's own rate by this share of it
SUFFIXES = (".hea", ".edf", ".bdf", ".csv", ".tsv", ".npy", ".npz")


class Recording:
    """One recording; made by open_recording. Ends with `close()`, a `with` block, or garbage collection.

    name, path; fs_hz float; leads: names, "1", "2", ... where the file has none; calibrated: whether
    `read` gives true mV; units: of what it gives, "" where the file does not say; n_samples, the same
    for all leads; start: datetime or None. Pickling it stores the path, not the samples.
    """

    def __init__(self, path, source, fs_given_hz):
        self.path, self.name, self.fs_hz = path, path.stem, float(source.fs_hz)
        self.leads = [name or str(k + 1) for k, name in enumerate(source.leads)]
        self.units, self.calibrated = list(source.units), list(source.calibrated)
        self.n_samples, self.start = int(source.n_samples), source.start
        self._source, self._fs_given_hz = source, fs_given_hz

    def read(self, lead_index, start, stop):
        """Samples start to stop of one lead: (stop - start,) float64, in mV where `calibrated`; missing ones NaN.

        Takes memory for this stretch only. Raises UserError where the file is damaged there,
        ValueError for a lead or a stretch the recording does not have, or after `close()`.
        """
        if self._source is None:
            raise ValueError(f"{self.path}: closed")
        if not 0 <= lead_index < len(self.leads) or not 0 <= start <= stop <= self.n_samples:
            raise ValueError(f"{self.path}: no samples {start} to {stop} of lead {lead_index}; it has "
                             f"{self.n_samples} of {len(self.leads)}")
        try:
            signal = self._source.read(int(lead_index), int(start), int(stop))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read any more ({error.strerror or error}). "
                            "Was it moved or changed? Copy it anew.") from error
        signal[~np.isfinite(signal)] = np.nan
        return signal

    def close(self):
        """Let go of the file; what was written for it in the temporary folder is gone."""
        self._source = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __reduce__(self):
        return open_recording, (self.path.absolute(), self._fs_given_hz)

    def __repr__(self):
        return f"<Recording {self.name}: {len(self.leads)} leads, {self.n_samples} samples at {self.fs_hz:g} Hz>"


# --- finding ------------------------------------------------------------------------------------

def find_recordings(arguments):
    """[Path] of the recordings that files, folders, glob patterns and WFDB record names mean, each once.

    In the order of the arguments, sorted within each. Folders are searched with all below them, but
    not through symbolic links that lead out; segments of a multi-segment record are left out there.
    Raises UserError for an argument that means no recording.
    """
    found = {}
    for argument in arguments:
        try:
            paths = _matches(Path(argument), str(argument))
        except UserError:
            raise
        except (OSError, ValueError, RuntimeError, re.error) as error:
            raise UserError(f"{str(argument)!r}: cannot be looked up ({error}). Give a file, a folder, a glob "
                            "pattern or a WFDB record.") from error
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _matches(path, text):
    """[Path] that one argument means; UserError if none."""
    if not text:
        raise UserError("an empty path. Give a file, a folder, a glob pattern or a WFDB record.")
    if path.is_file():
        recording = _as_recording(path)
        if recording is None:
            raise UserError(f"{path}: no format that is read here; expected one of {' '.join(SUFFIXES)}. "
                            "Convert the recording to one of them.")
        return [recording]
    if path.is_dir():
        paths = _in_folder(path)
        if not paths:
            raise UserError(f"{path}: no recording in this folder; expected files ending in {' '.join(SUFFIXES)}. "
                            "Name the folder the recordings are in.")
        return paths
    header = Path(text + ".hea")
    if header.is_file():
        return [header]
    paths = []
    if glob.has_magic(text):
        paths = _matching_pattern(text)
    if not paths:
        raise UserError(f"{text}: no such recording. Give a file ({' '.join(SUFFIXES)}), a folder, a glob pattern "
                        "or a WFDB record without suffix.")
    return paths


def _as_recording(path):
    """The path that stands for the recording a file belongs to: itself, or the .hea beside it; None: neither."""
    if path.suffix.lower() in SUFFIXES:
        return path
    header = path.with_suffix(".hea")
    return header if header.is_file() else None


def _in_folder(folder):
    """Sorted [Path] of the recordings in a folder and below."""
    inside, paths = folder.resolve(), []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if (name.startswith(".") or _as_recording(path) != path
                    or not path.is_file() or not path.resolve().is_relative_to(inside)):
                continue
            paths.append(path)
    return _without_parts(sorted(paths))


def _matching_pattern(pattern):
    """Sorted [Path] of the recordings a glob pattern matches; matching folders are searched."""
    fixed = Path(*[part for part in _before_magic(Path(pattern).parts)]).resolve()
    paths = set()
    for name in glob.glob(pattern, recursive=True):
        path = Path(name)
        if not path.resolve().is_relative_to(fixed):
            continue
        if path.is_dir():
            paths.update(_in_folder(path))
        elif path.is_file() and _as_recording(path):
            paths.add(_as_recording(path))
    return _without_parts(sorted(paths))


def _before_magic(parts):
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _without_parts(paths):
    """paths less those that a header among them names: segments, and signal files with a suffix of our own."""
    parts = set()
    for path in paths:
        if path.suffix.lower() == ".hea":
            try:
                lines = header_lines(path)
            except (UserError, OSError):
                continue  # it is said when the recording is opened
            first = WFDB_RECORD.match(lines[0]) if lines else None
            many = first is not None and first.group(2) is not None
            names = (line.split()[0] + (".hea" if many else "") for line in lines[1:])
            parts.update(path.with_name(name) for name in names
                         if re.fullmatch(FILE_NAME, name) and name not in (".", "..", path.name))
    return [path for path in paths if path not in parts]


# --- opening ------------------------------------------------------------------------------------

def open_recording(path, fs_hz=None):
    """The Recording in a file: .hea (or a WFDB record without suffix), .edf, .bdf, .csv, .tsv, .npy, .npz.

    fs_hz is the sampling rate of files that do not know their own. Raises UserError for a file that
    is missing, damaged, hostile, without leads, or not sampled at 100 to 2,000 Hz, and where fs_hz
    is missing or contradicts the file.
    """
    path = Path(path)
    if not path.exists() and os.path.isfile(f"{path}.hea"):
        path = Path(f"{path}.hea")
    if fs_hz is not None:
        check_rate("--fs", fs_hz, "Give the rate of the recording in Hz.")
    try:
        file = regular_file(path)
        kind = path.suffix.lower()
        if kind not in READERS:
            raise UserError(f"{path}: no format that is read here; expected one of {' '.join(SUFFIXES)}. "
                            "Convert the recording to one of them.")
        if file.stat().st_size == 0:
            raise UserError(f"{path}: empty. Copy or export the recording again.")
        source = READERS[kind](path, file, fs_hz)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}). Check the file, the rights to it "
                        "and the space in the temporary folder.") from error
    if not source.leads:
        raise UserError(f"{path}: has no leads; expected at least one signal. Leave the recording out.")
    if not source.n_samples:
        raise UserError(f"{path}: has no samples. Copy or export the recording again.")
    check_rate(path, source.fs_hz, "Resample the recording, or correct the rate if it is wrong.")
    if fs_hz is not None and abs(fs_hz - source.fs_hz) > FS_TOLERANCE * source.fs_hz:
        raise UserError(f"{path}: is sampled at {source.fs_hz:g} Hz by its own account, --fs says {fs_hz:g}. "
                        "Leave --fs out.")
    return Recording(path, source, fs_hz)


def lead_index(recording, wanted):
    """Index of a lead by its name, upper or lower case, or by its number from 1; a name goes before a number.

    Raises UserError that lists the leads.
    """
    text = str(wanted).strip()
    for same in (str, str.casefold):
        for k, name in enumerate(recording.leads):
            if same(name) == same(text):
                return k
    if text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= len(recording.leads):
        return int(text) - 1
    leads = ", ".join(f"{k + 1}: {name}" for k, name in enumerate(recording.leads[:50]))
    raise UserError(f"{recording.path}: no lead {text!r}. Give a name or a number of these: {leads}")


# --- annotations --------------------------------------------------------------------------------

def annotated_beats(path, annotator, fs_hz, symbols, remedy):
    """(time_s (k,), symbol (k,)) of the annotations that are one of `symbols`, from the file beside a recording.

    fs_hz: rate of the recording, where the annotations have none of their own. Raises UserError, ending in
    `remedy`, where the file is missing, damaged or out of order.
    """
    base = str(path.with_suffix("")) if path.suffix == ".hea" else str(path)
    try:
        notes = wfdb.rdann(base, annotator)
    except FileNotFoundError as error:
        raise UserError(f"{base}.{annotator}: missing; expected an annotation file beside the record. "
                        f"{remedy}") from error
    except Exception as error:  # the reader of a damaged file raises anything
        raise UserError(f"{base}.{annotator}: not a readable annotation file ({error}). {remedy}") from error
    beat = np.isin(notes.symbol, list(symbols))
    time_s = np.asarray(notes.sample)[beat] / (notes.fs or fs_hz)
    if (np.diff(time_s) < 0).any():
        raise UserError(f"{base}.{annotator}: annotations out of order. {remedy}")
    return time_s, np.asarray(notes.symbol)[beat]


READERS = {".hea": Wfdb, ".edf": Edf, ".bdf": Edf, ".csv": open_table, ".tsv": open_table, ".npy": open_npy,
           ".npz": open_npz}
