"""WFDB records, any stretch of any lead: formats 8 to 524, several files and segments, frames of several samples."""

import math
import re
from datetime import datetime

import numpy as np

from pipeline.errors import UserError
from recording.reader_files import BLOCK_SAMPLES, NUMBER, WFDB_RECORD, beside, to_mv

MAX_HEADER_BYTES = 8 * 2**20    # the longest multi-segment headers of MIMIC have 0.2 MB
# Format of WFDB samples -> (value that means missing, numpy type where samples are whole bytes)
WFDB_FORMATS = {8: (None, "<i1"), 16: (-2**15, "<i2"), 24: (-2**23, None), 32: (-2**31, "<i4"), 61: (-2**15, ">i2"),
                80: (-2**7, "u1"), 160: (-2**15, "<u2"), 212: (-2**11, None), 310: (-2**9, None), 311: (-2**9, None),
                508: (-2**7, None), 516: (-2**15, None), 524: (-2**23, None)}
FLAC_BITS = {508: 8, 516: 16, 524: 24}
SUBTYPE_BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}
WFDB_FORMAT = re.compile(r"(\d{1,4})(?:x(\d{1,6}))?(?::(\d{1,12}))?(?:\+(\d{1,15}))?")
WFDB_GAIN = re.compile(rf"({NUMBER})(?:\(([-+]?\d{{1,12}})\))?(?:/(\S+))?")


def header_lines(path):
    """Lines of a WFDB header without comments and empty ones."""
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are no WFDB header; expected at most "
                        f"{MAX_HEADER_BYTES:,}. Copy it again.")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    lines = (line.strip() for line in re.split(r"[\r\n]+", text))
    return [line for line in lines if line and not line.startswith("#")]


def _not_wfdb(path, what, line):
    return UserError(f"{path}: {what} in a WFDB header: {line[:80]!r}. Correct the header or copy it again.")


class _Header:
    """The record line of a WFDB header, and the lines after it."""

    def __init__(self, file):
        self.file = file
        lines = header_lines(file)
        match = WFDB_RECORD.fullmatch(lines[0]) if lines else None
        if match is None:
            raise _not_wfdb(file, "no record line", lines[0] if lines else "")
        _, segments, signals, fs_hz, samples, when = match.groups()
        self.segments = None if segments is None else int(segments)
        self.n_signals = int(signals)
        self.fs_hz = 250.0 if fs_hz is None else float(fs_hz)  # the default of the WFDB library
        self.n_samples = int(samples or 0) or None
        self.start = _wfdb_start(when or "")
        self.lines = lines[1:]
        expected = self.n_signals if self.segments is None else self.segments
        if len(self.lines) != expected:
            raise _not_wfdb(file, f"{len(self.lines)} lines where {expected} are promised", lines[0])


def _wfdb_start(text):
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
        fields = line.split(None, 8)
        form = WFDB_FORMAT.fullmatch(fields[1]) if len(fields) > 1 else None
        gain = WFDB_GAIN.fullmatch(fields[2]) if len(fields) > 2 else WFDB_GAIN.fullmatch("0")
        if form is None or gain is None:
            raise _not_wfdb(file, "no signal line", line)
        number, per_frame, skew, offset = (int(text) if text else 0 for text in form.groups())
        if number not in WFDB_FORMATS and fields[0] != "~":
            raise UserError(f"{file}: samples in format {number}; expected one of {', '.join(map(str, WFDB_FORMATS))}. "
                            "Convert the recording with WFDB's xform.")
        self.file_name, self.format, self.skew, self.offset = fields[0], number, skew, offset
        self.per_frame = per_frame or 1
        gain_value = float(gain.group(1))
        if not math.isfinite(gain_value) or gain_value and not 1e-9 <= abs(gain_value) <= 1e12:
            raise UserError(f"{file}: a gain of {gain.group(1)} in {line[:80]!r}; expected ADC units per physical "
                            "unit, 0 for none. Correct the header.")
        zero, first = (self._whole(file, fields, k, line) for k in (4, 5))
        self.first = first or 0
        self.baseline = int(gain.group(2)) if gain.group(2) else zero or 0
        self.units = gain.group(3) or "mV"
        self.name = fields[8].strip() if len(fields) > 8 else ""
        mv = to_mv(self.units)
        self.calibrated = bool(gain_value) and mv is not None
        self.scale = (mv or 1.0) / (gain_value or 200.0)  # 200 per mV is WFDB's default for no gain
        if mv is not None:
            self.units = "mV"

    @staticmethod
    def _whole(file, fields, k, line):
        if len(fields) <= k:
            return None
        if not re.fullmatch(r"[-+]?\d{1,12}", fields[k]):
            raise _not_wfdb(file, f"{fields[k][:20]!r} for a whole number", line)
        return int(fields[k])


def _bytes_of(form, samples):
    """Bytes that so many samples of a WFDB format fill."""
    whole, rest = divmod(samples, 3)
    if form in (310, 311):
        return 4 * whole + (0, 2, 4 if form == 310 else 3)[rest]
    return {212: samples + (samples + 1) // 2, 24: 3 * samples, 16: 2 * samples, 61: 2 * samples,
            160: 2 * samples, 32: 4 * samples}.get(form, samples)


def decode(form, raw, samples):
    """(samples,) whole numbers from the bytes of a WFDB format; bytes beyond the last are ignored."""
    kind = WFDB_FORMATS[form][1]
    if kind:
        values = np.frombuffer(raw, kind, samples)
        return values.astype(np.int32) - {80: 2**7, 160: 2**15}.get(form, 0)
    if form == 24:
        padded = np.zeros((samples, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8, 3 * samples).reshape(-1, 3)
        return padded.view("<i4")[:, 0] >> 8
    if form == 212:
        b = np.frombuffer(raw + b"\0" * (-len(raw) % 3), np.uint8).reshape(-1, 3).astype(np.int32)
        values = np.stack([b[:, 0] | (b[:, 1] & 0x0F) << 8, b[:, 2] | (b[:, 1] & 0xF0) << 4], axis=1)
        return ((values.ravel()[:samples] ^ 0x800) - 0x800)
    words = np.frombuffer(raw + b"\0" * (-len(raw) % 4), "<u4").astype(np.int64)
    if form == 310:
        values = [words >> 1 & 0x7FF, words >> 17 & 0x7FF, words >> 11 & 0x1F | (words >> 27 & 0x1F) << 5]
    else:
        values = [words, words >> 10, words >> 20]
    values = np.stack([value & 0x3FF for value in values], axis=1).ravel()[:samples]
    return (values ^ 0x200) - 0x200


class _SignalFile:
    """The signals that one .dat of a WFDB record holds, interleaved frame by frame."""

    def __init__(self, header, name, signals, n_samples):
        self.header, self.file, self.signals = header, beside(header, name), signals
        self.form, self.offset = signals[0].format, signals[0].offset
        if any((s.format, s.offset) != (self.form, self.offset) for s in signals):
            raise UserError(f"{header}: {name} in different formats or from different bytes; expected one of each "
                            "for a file. Correct the header.")
        self.frame = sum(s.per_frame for s in signals)
        if self.frame > 2**20:
            raise UserError(f"{header}: {self.frame:,} samples a frame; expected at most {2**20:,}. "
                            "Correct the header.")
        self.starts = np.cumsum([0] + [s.per_frame for s in signals])
        self.known = {}
        self.n_samples = self._length(n_samples)

    def _length(self, promised):
        """Frames: as promised, if the file can hold them; all it has where nothing is promised."""
        if self.form in FLAC_BITS:
            with self._flac() as flac:
                held = max(flac.frames - self.offset, 0) // self.signals[0].per_frame
        else:
            size = self.file.stat().st_size - self.offset
            held = max(size, 0) * {212: 2, 310: 3, 311: 3}.get(self.form, 1) // self.frame \
                // {212: 3, 310: 4, 311: 4}.get(self.form, _bytes_of(self.form, 1))
            if promised and _bytes_of(self.form, promised * self.frame) <= size:
                held = promised
        if promised and held < promised:
            raise UserError(f"{self.file}: holds {held:,} of the {promised:,} samples that {self.header.name} "
                            "promises. Copy it again, or correct the header.")
        return promised or held

    def _flac(self):
        import soundfile  # needs a library of the system, and few recordings are compressed
        try:
            flac = soundfile.SoundFile(str(self.file))
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self.file}: no FLAC file as format {self.form} needs ({error}). "
                            "Copy it again.") from error
        bits, per_frame = SUBTYPE_BITS.get(flac.subtype, 99), {s.per_frame for s in self.signals}
        if (flac.format != "FLAC" or bits > FLAC_BITS[self.form] or flac.channels != len(self.signals)
                or len(per_frame) > 1):
            flac.close()
            raise UserError(f"{self.file}: {flac.format} {flac.subtype} with {flac.channels} channels does not fit the "
                            f"{len(self.signals)} signals in format {self.form} of {self.header.name}. "
                            "Correct the header.")
        return flac

    def _frames(self, k, start, stop):
        """(stop - start, per_frame) whole numbers as stored of signal k."""
        per_frame = self.signals[k].per_frame
        if self.form in FLAC_BITS:
            with self._flac() as flac:
                try:
                    flac.seek(start * per_frame + self.offset)
                    values = flac.read((stop - start) * per_frame, dtype="int32", always_2d=True)[:, k]
                except (RuntimeError, ValueError) as error:
                    raise UserError(f"{self.file}: damaged between samples {start} and {stop} ({error}). "
                                    "Copy it again.") from error
                values = values >> (32 - SUBTYPE_BITS[flac.subtype])
        else:
            aligned = start // 6 * 6  # 2 samples share 3 bytes, 3 share 4: from here whole bytes, whatever the frame
            samples = (stop - aligned) * self.frame
            with open(self.file, "rb") as file:
                file.seek(self.offset + _bytes_of(self.form, aligned * self.frame))
                raw = file.read(_bytes_of(self.form, samples))
            if len(raw) < _bytes_of(self.form, samples):
                raise UserError(f"{self.file}: has become shorter while it was read. Copy it anew.")
            frames = decode(self.form, raw, samples).reshape(-1, self.frame)[start - aligned:]
            values = frames[:, self.starts[k]:self.starts[k + 1]]
        if values.size != (stop - start) * per_frame:
            raise UserError(f"{self.file}: ends between samples {start} and {stop}. Copy it again.")
        return values.reshape(-1, per_frame)

    def _blocks(self, start, stop):
        step = max(1, BLOCK_SAMPLES // self.frame)
        return ((at, min(at + step, stop)) for at in range(start, stop, step))

    def _value_before(self, k, start):
        """Value of signal k before frame `start` in format 8, which stores differences only."""
        at, value = self.known.get(k, (0, self.signals[k].first))
        if at > start:
            at, value = 0, self.signals[k].first
        for low, high in self._blocks(at, start):
            value += int(self._frames(k, low, high).sum())
        self.known[k] = start, value
        return value

    def read(self, k, start, stop):
        """(stop - start,) float64 of signal k in its own units: frames averaged, skew undone, missing ones NaN."""
        signal = self.signals[k]
        result = np.full(stop - start, np.nan)
        missing = WFDB_FORMATS[self.form][0]
        low_end, high_end = start + signal.skew, min(stop + signal.skew, self.n_samples)
        value = self._value_before(k, min(low_end, high_end)) if self.form == 8 else 0
        for low, high in self._blocks(low_end, high_end):
            frames = self._frames(k, low, high)
            if self.form == 8:
                frames = np.cumsum(frames, dtype=np.int64).reshape(frames.shape) + value
                value = int(frames[-1, -1])
                self.known[k] = high, value
            valid = frames != missing if missing is not None else np.ones(frames.shape, bool)
            count = valid.sum(axis=1)
            mean = np.where(valid, frames, 0).sum(axis=1, dtype=float) / np.maximum(count, 1)
            result[low - low_end:high - low_end] = np.where(count, (mean - signal.baseline) * signal.scale, np.nan)
        return result


class _Segment:
    """A WFDB record of one piece."""

    def __init__(self, header, promised=None):
        if header.segments is not None:
            raise UserError(f"{header.file}: a segment that has segments of its own. Leave the recording out.")
        self.header = header
        self.signals = [_Signal(header.file, line) for line in header.lines]
        self.n_samples = header.n_samples or promised
        self.places = []
        names = [s.file_name for s in self.signals]
        files = {}
        for name in [] if set(names) == {"~"} else dict.fromkeys(names):
            signals = [s for s in self.signals if s.file_name == name]
            files[name] = _SignalFile(header.file, name, signals, self.n_samples)
            self.n_samples = self.n_samples or files[name].n_samples
        seen = {name: 0 for name in files}
        for name in names if files else []:
            self.places.append((files[name], seen[name]))
            seen[name] += 1
        self.n_samples = self.n_samples or 0

    def read(self, k, start, stop):
        file, place = self.places[k]
        return file.read(place, start, stop)


class Wfdb:
    """A WFDB record, of one piece or of segments with gaps."""

    def __init__(self, path, file, _):
        header = _Header(file)
        self.fs_hz, self.start = header.fs_hz, header.start
        if header.segments is None:
            segment = _Segment(header)
            if segment.signals and not segment.places:
                raise UserError(f"{path}: the layout of a multi-segment record, without samples. "
                                "Name the record's own header.")
            self.pieces, signals = [(segment, 0, segment.n_samples)], [segment.signals]
            self.maps = [range(len(segment.signals))]
        else:
            signals = self._read_segments(header)
        if not any(signals):
            raise UserError(f"{path}: has no leads; expected at least one signal. Leave the recording out.")
        self.n_samples = self.pieces[-1][2]
        shown = [next((s[m[k]] for s, m in zip(signals, self.maps) if m[k] is not None and s), None)
                 for k in range(len(self.maps[0]))]
        names = self.names if header.segments is not None else [s.name for s in shown]
        self.leads = names
        self.units = [s.units if s else "" for s in shown]
        self.calibrated = [s is not None and all(t[m[k]].calibrated for t, m in zip(signals, self.maps)
                                                 if m[k] is not None) for k, s in enumerate(shown)]

    def _read_segments(self, header):
        """Fill `pieces` (segment or None, start, stop), `maps` and `names`; returns the signals of each piece."""
        lines = []
        for line in header.lines:
            match = re.fullmatch(r"(\S+)\s+(\d{1,15})", line)
            if match is None:
                raise _not_wfdb(header.file, "no segment line", line)
            lines.append((match.group(1), int(match.group(2))))
        if not lines:
            raise UserError(f"{header.file}: a multi-segment record without segments. Leave the recording out.")
        known, layout = {}, None
        if lines[0][1] == 0:
            layout = self._segment(header, known, *lines.pop(0))
        self.pieces, at = [], 0
        for name, length in lines:
            segment = None if name == "~" or length == 0 else self._segment(header, known, name, length)
            self.pieces.append((segment, at, at + length))
            at += length
        if header.n_samples and header.n_samples != at or not self.pieces:
            raise UserError(f"{header.file}: segments of {at:,} samples together, the header promises "
                            f"{header.n_samples or 0:,}. Correct the header.")
        first = layout or next((s for s, _, _ in self.pieces if s), None)
        self.names = [s.name for s in first.signals] if first else []
        if len(self.names) != header.n_signals:
            raise UserError(f"{header.file}: {len(self.names)} signals in its segments, the header promises "
                            f"{header.n_signals}. Correct the header.")
        self.maps, signals = [], []
        for segment, _, _ in self.pieces:
            own = [s.name for s in segment.signals] if segment else []
            if segment is None:
                where = [None] * len(self.names)
            elif layout:
                where = [own.index(name) if name in own else None for name in self.names]
            elif len(own) == len(self.names):
                where = list(range(len(own)))
            else:
                raise UserError(f"{segment.header.file}: {len(own)} signals, the other segments have "
                                f"{len(self.names)}. Correct the headers.")
            self.maps.append(where)
            signals.append(segment.signals if segment else [])
        self._check_units(header, signals)
        return signals

    def _check_units(self, header, signals):
        for k, name in enumerate(self.names):
            units = {s[m[k]].units for s, m in zip(signals, self.maps) if m[k] is not None}
            if len(units) > 1:
                raise UserError(f"{header.file}: lead {name} in {' and '.join(sorted(units))}; expected one unit. "
                                "Correct the headers of its segments.")

    def _segment(self, header, known, name, length):
        if name not in known:
            known[name] = _Segment(_Header(beside(header.file, name + ".hea")), length or None)
        segment = known[name]
        if length and (not segment.places or segment.n_samples < length):
            raise UserError(f"{segment.header.file}: {segment.n_samples if segment.places else 0:,} samples, "
                            f"{header.file.name} promises {length:,}. Copy it again, or correct the header.")
        if segment.header.fs_hz != header.fs_hz:
            raise UserError(f"{segment.header.file}: sampled at {segment.header.fs_hz:g} Hz, {header.file.name} says "
                            f"{header.fs_hz:g}. Correct the headers.")
        return segment

    def read(self, k, start, stop):
        result = np.full(stop - start, np.nan)
        for (segment, first, last), where in zip(self.pieces, self.maps):
            low, high = max(start, first), min(stop, last)
            if low < high and where[k] is not None:
                result[low - start:high - start] = segment.read(where[k], low - first, high - first)
        return result
