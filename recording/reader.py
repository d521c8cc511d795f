"""Any recording of the user's own, one lead and one stretch at a time: WFDB, EDF, tables, NumPy.

    with open_recording("holter.edf") as recording:
        signal = recording.read(lead_index(recording, "II"), 0, 10_000)

Files are untrusted: whatever is wrong with one is a UserError, no file outside the recording's own
folder is read, and nothing is allocated because a header says so.
"""

import functools
import glob
import os
import pkgutil
import re
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.errors import UserError, said
from recording.reader_files import check_rate, regular_file
from recording.reader_header import header_lines, named_files
from recording.reader_sniff import DOUBTFUL, OF_LIBRARY, sentence, why_not

# A format is added here, and only here. An opener takes the path of a file that exists, and the
# rate in Hz that the user gave or None. It returns an object with fs_hz; leads, units and
# calibrated, each a list with one entry a lead (name or "", unit or "", whether `read` gives true
# mV); n_samples, the same for all leads; start, a datetime or None; and read(lead, start, stop),
# (stop - start,) float64, NaN where a sample is missing. For a bad file it raises UserError. Here
# they are "module:name", imported when a file is opened: each needs libraries of its own.
_EDF = "recording.reader_edf:Edf"
_TABLE = "recording.reader_table:open_table"
_DEVICE = "recording.reader_devices:open_device"
READERS = {".hea": "recording.reader_wfdb:Wfdb", ".edf": _EDF, ".bdf": _EDF,
           ".ecg": "recording.reader_ishne:Ishne", ".csv": _TABLE, ".tsv": _TABLE, ".txt": _TABLE,
           ".npy": "recording.reader_array:open_npy", ".npz": "recording.reader_array:open_npz",
           ".mat": "recording.reader_array:open_mat"} | dict.fromkeys(OF_LIBRARY, _DEVICE)
SUFFIXES = tuple(READERS)
FS_TOLERANCE = 1e-3             # --fs may differ from the file's own rate by this share of it
MAX_VALUE = 1e15                # in whatever unit: what is larger is no sample
MAX_HOURS = 366 * 24            # a header must not make us walk through gaps for ever


class Recording:
    """One recording; made by open_recording, ended by `close()` or a `with` block.

    name, path; fs_hz float; leads: names, "1", "2", ... where the file has none; calibrated:
    whether `read` gives true mV; units: of what it gives, "" where the file does not say;
    n_samples, the same for all leads; start: datetime or None.
    """

    def __init__(self, path, source):
        self.path = path
        self.name = path.stem
        self.fs_hz = float(source.fs_hz)
        self.leads = [name or str(k + 1) for k, name in enumerate(source.leads)]
        self.units = source.units
        self.calibrated = source.calibrated
        self.n_samples = source.n_samples
        self.start = source.start
        self._source = source

    def read(self, lead_index, start, stop):
        """Samples start to stop of one lead: (stop - start,) float64, in mV where `calibrated`.

        Missing samples are NaN. Takes memory for this stretch only. Raises UserError where the
        file is damaged there, ValueError for a lead or a stretch the recording does not have, or
        after `close()`.
        """
        if self._source is None:
            raise ValueError(f"{self.path}: closed")
        if not 0 <= lead_index < len(self.leads) or not 0 <= start <= stop <= self.n_samples:
            raise ValueError(f"{self.path}: no samples {start} to {stop} of lead {lead_index}; it "
                             f"has {self.n_samples} of {len(self.leads)}")

        try:
            # what is no number, or larger than numbers are, is missing below
            with np.errstate(over="ignore", invalid="ignore"):
                signal = self._source.read(int(lead_index), int(start), int(stop))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read any more ({error}). Was it moved or "
                            "changed? Copy it anew.") from error

        # the source's own array stays as it is
        signal = np.array(signal, np.float64)
        if signal.shape != (stop - start,):
            raise ValueError(f"{type(self._source).__name__}.read gave an array of shape "
                             f"{signal.shape} for samples {start} to {stop}; expected "
                             f"({stop - start},)")

        # a table or an array may hold infinity, or numbers whose square is: no filter survives them
        signal[~(np.abs(signal) <= MAX_VALUE)] = np.nan
        return signal

    def each(self, work, items, *args):
        """Yield work(recording, item, *args) of each item; ahead.py has it done by another process,
        the next while this one is dealt with.
        """
        for item in items:
            yield work(self, item, *args)

    def later(self, work, *args):
        """A function that gives work(*args); ahead.py begins with it at once."""
        return functools.partial(work, *args)

    def close(self):
        """Let go of the file; what was written for it in the temporary folder is gone."""
        self._source = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


# --- finding ------------------------------------------------------------------------------------

def find_recordings(arguments, skipped=None):
    """[Path] of the recordings that files, folders, glob patterns and WFDB record names mean.

    Each once, in the order of the arguments, sorted within each. Folders are searched with all
    below them, but not through symbolic links that lead out; segments of a multi-segment record
    are left out there. Other files that may be recordings are put into `skipped`, {path: reason}.
    Raises UserError for an argument that means no recording.
    """
    found = {}
    skipped = {} if skipped is None else skipped
    for argument in arguments:
        text = str(argument)
        try:
            paths = _matches(text, skipped)
        except (OSError, ValueError, RuntimeError, re.error) as error:
            # a NUL, a name too long, a loop of links, a bad pattern
            raise UserError(f"{text!r}: cannot be looked up ({error}). Give a file, a folder, a "
                            "glob pattern or a WFDB record.") from error

        if not paths:
            also = f" ({sentence(skipped)})" if skipped else ""
            raise UserError(f"{text!r}: no recording{also}. Give a file ({' '.join(SUFFIXES)}), a "
                            "folder with such files, a glob pattern or a WFDB record without "
                            "suffix. Convert other formats to one of these.")

        # by what links lead to, so that the same file does not come twice
        for path in paths:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _matches(text, skipped):
    """[Path] that one argument means."""
    # a file whose name looks like a pattern goes before the pattern; Path("") is the folder "."
    found = _recordings_at(Path(text), skipped) if text else []
    if found:
        return found

    # a match must lie in the folder that the pattern begins in, links followed
    root = Path(re.split(r"[*?[]", text)[0] + "*").parent.resolve()

    paths = set()
    for name in glob.glob(text, recursive=True):
        match = Path(name)
        if match.resolve().is_relative_to(root) and (
                match.is_dir() or match.suffix.lower() not in DOUBTFUL
                or _is_recording(match, skipped)):
            paths.update(_recordings_at(match, skipped))
    return _without_parts(paths)


def _recordings_at(path, skipped):
    """[Path]: those in a folder, the file itself, or the WFDB header of that name, or beside it."""
    if path.is_dir():
        return _below(path, skipped)
    header = path.with_suffix(".hea")
    if path.suffix.lower() not in READERS or path.suffix.lower() == ".mat" and header.is_file():
        named = Path(f"{path}.hea")
        path = named if named.is_file() else header
    return [path] if path.is_file() else []


def _is_recording(path, skipped):
    """Whether a file that was not named itself is to be opened; if it may be one, why not."""
    suffix = path.suffix.lower()
    if suffix in READERS and suffix not in DOUBTFUL:
        return True
    reason = why_not(path)
    if reason:
        skipped[path] = reason
    return reason == "" and suffix in READERS


def _below(folder, skipped):
    """Sorted [Path] of the recordings in a folder and below; what begins with a dot is left out."""
    paths = []

    # rglob does not enter linked folders; a linked file must lie in the folder itself
    for path in folder.rglob("*"):
        hidden = "/." in f"/{path.relative_to(folder)}"
        inside = path.is_file() and path.resolve().is_relative_to(folder.resolve())
        if hidden or not inside:
            continue

        if _is_recording(path, skipped):
            paths.append(path)
    return _without_parts(paths)


def _without_parts(paths):
    """Sorted paths less the segments and the signal files that a header among them names."""
    parts = set()
    for path in paths:
        if path.suffix.lower() == ".hea":
            # a header that cannot be read is said when the recording is opened
            with suppress(UserError, OSError):
                parts.update(path.with_name(name) for name in named_files(header_lines(path))
                             if name != path.name)
    return sorted(set(paths) - parts)


# --- opening ------------------------------------------------------------------------------------

def load_reader(path):
    """The opener of the format that a path's suffix names, its libraries imported; None for another
    suffix.
    """
    opener = READERS.get(Path(path).suffix.lower())
    return pkgutil.resolve_name(opener) if isinstance(opener, str) else opener


def open_recording(path, fs_hz=None):
    """The Recording in a file of a format in READERS; a WFDB record may be named without suffix.

    fs_hz is the sampling rate of files that do not know their own. Raises UserError for a file
    that is missing, damaged, hostile, without leads, or not sampled at 100 to 2,000 Hz, and where
    fs_hz is missing or contradicts the file.
    """
    path = Path(path)
    if not path.exists() and os.path.isfile(f"{path}.hea"):
        path = Path(f"{path}.hea")
    if fs_hz is not None:
        check_rate("--fs", fs_hz, "Give the rate of the recording in Hz.")

    try:
        file = regular_file(path)
        if path.suffix.lower() not in READERS:
            raise UserError(f"{path}: no format that is read here; expected one of "
                            f"{' '.join(SUFFIXES)}. Convert the recording to one of them.")
        if file.stat().st_size == 0:
            raise UserError(f"{path}: empty. Copy or export the recording again.")
        source = load_reader(path)(path, fs_hz)
    except UserError:
        raise
    except (OSError, RuntimeError) as error:
        # RuntimeError: a signal file in a FLAC format that is none
        raise UserError(f"{path}: cannot be read ({said(error)}). Check the file, the rights to it "
                        "and the space in the temporary folder (TMPDIR names another).") from error

    if not source.leads or not source.n_samples:
        raise UserError(f"{path}: has {len(source.leads)} leads of {source.n_samples} samples; "
                        "expected at least one. Copy or export the recording again.")

    check_rate(path, source.fs_hz, "Resample the recording, or correct the rate if it is wrong: a "
               "column of times that are not in seconds needs --fs.")
    if fs_hz is not None and abs(fs_hz - source.fs_hz) > FS_TOLERANCE * source.fs_hz:
        raise UserError(f"{path}: is sampled at {source.fs_hz:g} Hz by its own account, --fs says "
                        f"{fs_hz:g}. Leave --fs out.")

    # gaps cost no bytes: a header of one line may claim a thousand years of them
    if source.n_samples > MAX_HOURS * 3600 * source.fs_hz:
        raise UserError(f"{path}: {source.n_samples:,} samples are more than {MAX_HOURS:,} hours. "
                        "Correct the file or leave the recording out.")
    return Recording(path, source)


def lead_index(recording, wanted):
    """Index of a lead by its name, upper or lower case, or by its number from 1.

    A name goes before a number. Raises UserError that lists the leads.
    """
    text = str(wanted).strip()

    # as it is written, then in any case, then as a number: a lead may be called "2"
    leads = recording.leads
    numbers = [str(k + 1) for k in range(len(leads))]
    names = [*leads, *map(str.casefold, leads), *numbers]
    for name in (text, text.casefold()):
        if name in names:
            return names.index(name) % len(leads)

    leads = ", ".join(map("{}: {}".format, numbers[:50], leads))
    raise UserError(
        f"{recording.path}: no lead {text!r}. Give a name or a number of these: {leads}")


# --- annotations --------------------------------------------------------------------------------

def annotated_beats(path, annotator, fs_hz, symbols, remedy):
    """(time_s (k,), symbol (k,)) of the annotations that are one of `symbols`.

    They are read from the file beside a recording whose suffix is `annotator`. fs_hz: rate of the
    recording, where the annotations have none of their own. Raises UserError, ending in `remedy`,
    where the file is missing, damaged or out of order.
    """
    # here: wfdb takes half a second to load, and few recordings come with beats
    from recording.reader_wfdb import read_annotations

    base = str(path.with_suffix("") if path.suffix == ".hea" else path)
    file = f"{base}.{annotator}"

    try:
        notes = read_annotations(base, annotator)
    except Exception as error:  # the reader of a damaged file raises anything
        raise UserError(f"{file}: missing or damaged ({said(error)}); expected an annotation "
                        f"file beside the record. {remedy}") from error

    symbol = np.asarray(notes.symbol)
    beat = np.isin(symbol, list(symbols))
    time_s = notes.sample[beat] / (notes.fs or fs_hz)

    if (np.diff(time_s) < 0).any():
        raise UserError(f"{file}: annotations out of order. {remedy}")
    return time_s, symbol[beat]
