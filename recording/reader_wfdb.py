"""WFDB records, any stretch of any lead: formats 8 to 524, several files and segments.

The samples are decoded by the wfdb package, below `wfdb.rdrecord`, whose own reading of the header
fails a user's recording (wfdb 4.3.1): it takes 250 Hz for a rate it cannot read (`rec 1 nan`), V
for µV and gain 200 for "not calibrated" (gain 0), cannot read a part of a record whose header
gives no length or names the files of its signals in turn, begins format 8 anew at every part, and
allocates the skew that a header claims. So the header is read here, strictly.
"""

import math
import re
from datetime import datetime

import numpy as np
import soundfile
from wfdb.io._signal import BIT_RES, BYTES_PER_SAMPLE, COMPRESSED_FMTS, _rd_dat_signals

from pipeline.errors import UserError
from recording.reader_files import FILE_NAME, NUMBER, WFDB_RECORD, beside, to_mv

MAX_HEADER_BYTES = 8 * 2**20    # the longest multi-segment headers of MIMIC have 0.2 MB
BLOCK_SAMPLES = 2**18           # of all leads together that are decoded at once
MAX_FRAME = 2**20
DEFAULT_FS_HZ = 250.0           # what the WFDB library takes where the header says nothing
DEFAULT_GAIN = 200.0            # likewise, per mV; such a lead is not calibrated
GAIN_LIMITS = (1e-9, 1e12)

# FILE FORMATxPER_FRAME:SKEW+OFFSET GAIN(BASELINE)/UNITS BITS ZERO FIRST CHECKSUM BLOCK NAME
SIGNAL_LINE = re.compile(
    r"(?P<file>\S+)\s+(?P<format>\d{1,4})(x(?P<per_frame>\d{1,6}))?(:(?P<skew>\d{1,12}))?"
    rf"(\+(?P<offset>\d{{1,15}}))?(\s+(?P<gain>{NUMBER})(\((?P<baseline>[-+]?\d{{1,12}})\))?"
    r"(/(?P<units>\S+))?(\s+\S+(\s+(?P<zero>[-+]?\d{1,12})(\s+(?P<first>[-+]?\d{1,9})"
    r"(\s+\S+(\s+\S+(\s+(?P<name>.*))?)?)?)?)?)?)?")
SEGMENT_LINE = re.compile(r"(\S+)\s+(\d{1,15})")


def header_lines(path):
    """Lines of a WFDB header without comments and empty ones."""
    size = path.stat().st_size
    if size > MAX_HEADER_BYTES:
        raise UserError(f"{path}: {size:,} bytes are no WFDB header; expected at most "
                        f"{MAX_HEADER_BYTES:,}. Copy it again.")
    return split_header(path.read_bytes())


def split_header(raw):
    """The same of a header's content (bytes)."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = (line.strip() for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line and not line.startswith("#")]


def named_files(lines):
    """Names of the files that a header's lines name: of its signals, or its segments' headers."""
    match = WFDB_RECORD.match(lines[0]) if lines else None
    suffix = ".hea" if match and match[2] else ""
    names = dict.fromkeys(line.split()[0] for line in lines[1:])
    return [name + suffix for name in names
            if re.fullmatch(FILE_NAME, name) and name not in (".", "..", "~")]


def _wrong_line(path, what, line):
    return UserError(f"{path}: {what} in a WFDB header: {line[:80]!r}. Correct the header or copy "
                     "it again.")


class _Header:
    """The record line of a WFDB header, and the lines after it."""

    def __init__(self, file):
        self.file = file
        lines = header_lines(file) or [""]
        match = WFDB_RECORD.fullmatch(lines[0])
        if match is None:
            raise _wrong_line(file, "no record line", lines[0])
        _, segments, signals, fs_hz, samples, when = match.groups()

        self.has_segments = segments is not None
        self.n_signals = int(signals)
        self.fs_hz = float(fs_hz or DEFAULT_FS_HZ)
        self.n_samples = int(samples or 0)  # 0: as many as the file holds
        self.start = _start(when or "")
        self.lines = lines[1:]

        promised = int(segments or signals)
        if len(self.lines) != promised:
            raise _wrong_line(file, f"{len(self.lines)} lines where {promised} are promised",
                              lines[0])


def _start(text):
    """datetime from `13:05:00 24/12/2001`, None where either is missing or impossible."""
    for form in ("%H:%M:%S %d/%m/%Y", "%H:%M:%S.%f %d/%m/%Y"):
        try:
            return datetime.strptime(" ".join(text.split()), form)
        except ValueError:
            continue
    return None


class _Signal:
    """One signal line of a WFDB header."""

    def __init__(self, file, line):
        match = SIGNAL_LINE.fullmatch(line)
        if match is None:
            raise _wrong_line(file, "no signal line", line)
        self.file = match["file"]
        self.format = str(int(match["format"]))
        self.per_frame = int(match["per_frame"] or 0) or 1
        self.skew = int(match["skew"] or 0)
        self.offset = int(match["offset"] or 0)
        self.first = int(match["first"] or 0)
        self.baseline = int(match["baseline"] or match["zero"] or 0)
        self.name = match["name"] or ""

        if self.format not in BIT_RES and self.file != "~":
            raise UserError(f"{file}: samples in format {self.format}; expected one of "
                            f"{', '.join(BIT_RES)}. Convert the recording with WFDB's xform.")
        gain = float(match["gain"] or 0)
        if gain and not GAIN_LIMITS[0] <= abs(gain) <= GAIN_LIMITS[1]:
            raise UserError(f"{file}: a gain of {match['gain']} in {line[:80]!r}; expected ADC "
                            "units per physical unit, 0 for none. Correct the header.")

        units = match["units"] or "mV"
        mv = to_mv(units)
        self.units = units if mv is None else "mV"
        self.calibrated = bool(gain) and mv is not None
        self.scale = (mv or 1.0) / (gain or DEFAULT_GAIN)

        # format 8 stores differences and has no value that means missing
        bits = BIT_RES.get(self.format)
        self.missing = math.nan if self.format == "8" else -2 ** (bits - 1) if bits else None


class _SignalFile:
    """The signals that one file of a WFDB record holds, interleaved frame by frame."""

    def __init__(self, header, name, signals, promised):
        self.file = beside(header, name)
        self.signals = signals
        self.format = signals[0].format
        self.offset = signals[0].offset
        if any((s.format, s.offset) != (self.format, self.offset) for s in signals):
            raise UserError(f"{header}: {name} in different formats or from different bytes; "
                            "expected one of each for a file. Correct the header.")
        self.frame = sum(s.per_frame for s in signals)
        if self.frame > MAX_FRAME:
            raise UserError(f"{header}: {self.frame:,} samples a frame; expected at most "
                            f"{MAX_FRAME:,}. Correct the header.")

        held = self._held()
        if held < promised:
            raise UserError(f"{self.file}: holds {held:,} of the {promised:,} samples that "
                            f"{header.name} promises. Copy it again, or correct the header.")
        self.n_samples = promised or held
        self.step = max(1, BLOCK_SAMPLES // self.frame)
        self.firsts = [[s.first for s in signals]]  # values before each block, for format 8
        if self.n_samples:
            self._decode(0, 1, 0)  # a file in another format than the header says is found here

    def _held(self):
        """Frames that the file can hold."""
        if self.format in COMPRESSED_FMTS:
            try:
                frames = soundfile.info(str(self.file)).frames
            except RuntimeError as error:
                raise UserError(f"{self.file}: no FLAC file as format {self.format} needs "
                                f"({error}). Copy it again.") from error
            return max(frames - self.offset, 0) // self.signals[0].per_frame

        # whole numbers: 2 samples of format 212 share 3 bytes, 3 of format 310 share 4
        twelfths = round(12 * BYTES_PER_SAMPLE[self.format])
        return max(self.file.stat().st_size - self.offset, 0) * 12 // twelfths // self.frame

    def _decode(self, low, high, block):
        """Stored numbers from frame low to high of each signal: [(high - low) * per_frame]."""
        try:
            return _rd_dat_signals(
                file_name=self.file.name, dir_name=str(self.file.parent), pn_dir=None,
                fmt=self.format, n_sig=len(self.signals), sig_len=self.n_samples,
                byte_offset=self.offset, samps_per_frame=[s.per_frame for s in self.signals],
                skew=[0] * len(self.signals), init_value=self.firsts[block],
                sampfrom=low, sampto=high)
        except Exception as error:  # the decoder of a damaged file raises anything
            raise UserError(f"{self.file}: samples {low} to {high} cannot be read in format "
                            f"{self.format} ({error}). It has become shorter or is damaged. "
                            "Copy it again.") from error

    def _know_value_before(self, block):
        """Format 8 stores differences: add up those of all blocks before, once."""
        while len(self.firsts) <= block:
            last = len(self.firsts) - 1
            values = self._decode(last * self.step, (last + 1) * self.step, last)
            self.firsts.append([int(signal[-1]) for signal in values])

    def read(self, k, start, stop):
        """(stop - start,) float64 of signal k in its own units, missing samples NaN."""
        signal = self.signals[k]
        result = np.full(stop - start, np.nan)
        start += signal.skew
        stop = min(stop + signal.skew, self.n_samples)

        for low in range(start // self.step * self.step, stop, self.step):
            high = min(low + self.step, stop)
            block = 0
            begin = max(low, start)
            if self.format == "8":
                block = low // self.step
                self._know_value_before(block)
                begin = low
            values = self._decode(begin, high, block)[k].reshape(-1, signal.per_frame)

            # the mean of a frame is that of the samples it has
            valid = values != signal.missing
            total = np.where(valid, values, 0).sum(axis=1, dtype=float)
            with np.errstate(invalid="ignore"):
                mean = total / valid.sum(axis=1)
            mean = mean[max(low, start) - begin:]
            result[high - start - len(mean):high - start] = mean

        return (result - signal.baseline) * signal.scale


class _Segment:
    """A WFDB record of one piece."""

    def __init__(self, header, promised=0):
        if header.has_segments:
            raise UserError(f"{header.file}: a segment that has segments of its own. Leave the "
                            "recording out.")
        self.header = header
        self.signals = [_Signal(header.file, line) for line in header.lines]
        self.n_samples = header.n_samples or promised
        self.places = []

        groups = {}
        for signal in self.signals:
            groups.setdefault(signal.file, []).append(signal)
        if set(groups) == {"~"}:
            return  # the layout of a record of segments: signals without samples

        files = {}
        for name, signals in groups.items():
            files[name] = _SignalFile(header.file, name, signals, self.n_samples)
            self.n_samples = self.n_samples or files[name].n_samples
        for signal in self.signals:
            self.places.append((files[signal.file], groups[signal.file].index(signal)))

    def read(self, k, start, stop):
        file, place = self.places[k]
        return file.read(place, start, stop)


class Wfdb:
    """A WFDB record, of one piece or of segments with gaps."""

    def __init__(self, path, _):
        header = _Header(path.resolve())
        self.header = header
        self.fs_hz = header.fs_hz
        self.start = header.start
        self.n_samples = 0
        self.pieces = []  # (segment, its first sample, {lead: its signal in the segment})
        if header.has_segments:
            self._join_segments()
        else:
            segment = _Segment(header)
            if segment.signals and not segment.places:
                raise UserError(f"{path}: the layout of a multi-segment record, without samples. "
                                "Name the record's own header.")
            self.leads = [signal.name for signal in segment.signals]
            self._append(segment, segment.n_samples, dict(enumerate(range(len(self.leads)))))

        self.units = []
        self.calibrated = []
        for k, name in enumerate(self.leads):
            signals = [piece.signals[where[k]] for piece, _, where in self.pieces if k in where]
            units = sorted({signal.units for signal in signals})
            if len(units) > 1:
                raise UserError(f"{header.file}: lead {name} in {' and '.join(units)}; expected "
                                "one unit. Correct the headers of its segments.")
            self.units.append(units[0] if units else "")
            self.calibrated.append(bool(units) and all(s.calibrated for s in signals))

    def _append(self, segment, length, where):
        self.pieces.append((segment, self.n_samples, where))
        self.n_samples += length

    def _join_segments(self):
        """Append the segments one after the other; leads are found by name if there is a layout."""
        header = self.header
        lines = []
        for line in header.lines:
            match = SEGMENT_LINE.fullmatch(line)
            if match is None:
                raise _wrong_line(header.file, "no segment line", line)
            lines.append((match[1], int(match[2])))
        if not lines:
            raise UserError(f"{header.file}: a multi-segment record without segments. Leave the "
                            "recording out.")

        known = {}
        layout = self._segment(known, *lines.pop(0)) if lines[0][1] == 0 else None
        self.leads = [signal.name for signal in layout.signals] if layout else None
        for name, length in lines:
            if name == "~" or length == 0:
                self.n_samples += length
                continue
            segment = self._segment(known, name, length)
            names = [signal.name for signal in segment.signals]
            if self.leads is None:
                self.leads = names
            where = {k: names.index(lead) for k, lead in enumerate(self.leads) if lead in names}
            if layout is None:
                where = dict(enumerate(range(len(names))))
                if len(names) != len(self.leads):
                    raise UserError(f"{segment.header.file}: {len(names)} signals, the other "
                                    f"segments have {len(self.leads)}. Correct the headers.")
            self._append(segment, length, where)

        found = len(self.leads or ())
        if found != header.n_signals:
            raise UserError(f"{header.file}: {found} signals in its segments, the header promises "
                            f"{header.n_signals}. Correct the header.")
        if header.n_samples and header.n_samples != self.n_samples:
            raise UserError(f"{header.file}: segments of {self.n_samples:,} samples together, the "
                            f"header promises {header.n_samples:,}. Correct the header.")

    def _segment(self, known, name, length):
        """The segment of a name, opened once; UserError if it does not fit the record."""
        header = self.header
        if name not in known:
            file = beside(header.file, name + ".hea")
            known[name] = _Segment(_Header(file), length)
        segment = known[name]
        held = segment.n_samples if segment.places else 0
        if held < length:
            raise UserError(f"{segment.header.file}: {held:,} samples, {header.file.name} promises "
                            f"{length:,}. Copy it again, or correct the header.")
        if segment.header.fs_hz != header.fs_hz:
            raise UserError(f"{segment.header.file}: sampled at {segment.header.fs_hz:g} Hz, "
                            f"{header.file.name} says {header.fs_hz:g}. Correct the headers.")
        return segment

    def read(self, k, start, stop):
        result = np.full(stop - start, np.nan)
        ends = [first for _, first, _ in self.pieces[1:]] + [self.n_samples]
        for (segment, first, where), end in zip(self.pieces, ends):
            low = max(start, first)
            high = min(stop, end, first + segment.n_samples)
            if low < high and k in where:
                result[low - start:high - start] = segment.read(where[k], low - first, high - first)
        return result
