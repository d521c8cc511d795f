"""WFDB records, any stretch of any lead: formats 8 to 524, several files and segments.

The samples are decoded by the wfdb package (4.3.1), one floor below `wfdb.rdrecord`, because the
latter reads the header leniently and again for every stretch: it takes 250 Hz for a rate that is no
number, V for µV, gain 200 for gain 0 (not calibrated), cannot read a part of a record whose header
gives no length, begins format 8 anew at every part, and allocates the skew that a header claims.
"""

import math
import re
from itertools import groupby
from operator import attrgetter

import numpy as np
import wfdb
from wfdb.io import annotation
from wfdb.io._signal import BIT_RES, BYTES_PER_SAMPLE, COMPRESSED_FMTS, _rd_segment

from pipeline.errors import UserError, said
from recording.reader_files import WFDB_RECORD, beside, overlaps, start_of, to_mv
from recording.reader_header import header_lines

MAX_ANNOTATION_BYTES = 20e6     # two weeks of beats, each with a note, have 15 MB
DEFAULT_FS_HZ = 250.0           # what the WFDB library takes where the header says nothing
DEFAULT_GAIN = 200.0            # likewise, per mV; such a lead is not calibrated

# FILE FORMATxPER_FRAME:SKEW+OFFSET GAIN(BASELINE)/UNITS BITS ZERO FIRST CHECKSUM BLOCK NAME
SIGNAL_LINE = re.compile(
    r"(?P<file_name>\S+)\s+(?P<fmt>0|8|16|24|32|61|80|160|212|310|311|508|516|524)"
    r"(x(?P<samps_per_frame>\d{1,6}))?(:(?P<skew>\d{1,12}))?(\+(?P<byte_offset>\d{1,15}))?"
    r"(\s+(?P<gain>[-+]?(\d{1,12}\.?\d{0,12}|\.\d{1,12})([eE][-+]?\d\d?)?)"
    r"(\((?P<baseline>[-+]?\d{1,12})\))?(/(?P<units>\S+))?"
    r"(\s+\S+(\s+(?P<zero>[-+]?\d{1,12})(\s+(?P<first>[-+]?\d{1,9})"
    r"(\s+\S+(\s+\S+(\s+(?P<name>.*))?)?)?)?)?)?)?")
SEGMENT_LINE = re.compile(r"(\S+)\s+(\d{1,15})")


def read_annotations(base, extension):
    """wfdb.Annotation of the file BASE.EXTENSION; raises ValueError or whatever wfdb does.

    Of notes at its start that begin with "## ", wfdb 4.3.1 takes the rate and definitions of
    symbols; at any other, as at a second rate, it waits for ever.
    """
    file = f"{base}.{extension}"
    with open(file, "rb") as stream:
        raw = stream.read(int(MAX_ANNOTATION_BYTES) + 1)
    if len(raw) > MAX_ANNOTATION_BYTES:
        raise ValueError(f"more than {MAX_ANNOTATION_BYTES:,.0f} bytes")

    if b"## " in raw:
        pairs = annotation.load_byte_pairs(str(base), extension, None)
        sample, label, _, _, _, notes = annotation.proc_ann_bytes(pairs, None)
        special, _ = annotation.get_special_inds(sample, label, notes)
        kinds = "".join(map(_kind_of_note, notes[:len(special)]))
        if not re.fullmatch("(BE)*R?(BE)*", kinds):
            raise ValueError("a note that begins with ## and is no definition")
    return wfdb.rdann(str(base), extension)


def _kind_of_note(note):
    """R, a rate; B and E, where definitions begin and end; X, another "## "; "" for the rest."""
    if not note.startswith("## "):
        return ""
    if annotation.rx_fs.search(note):
        return "R"
    return {"## annotation type definitions": "B", "## end of definitions": "E"}.get(note, "X")


def _matches(pattern, file, line):
    match = pattern.fullmatch(line)
    if not match:
        raise UserError(f"{file}: {line[:80]!r} is no such line of a WFDB header, see header(5) "
                        "of its manual. Correct the header or copy it again.")
    return match


class _Record:
    """The record line of a WFDB header, and the lines after it."""

    def __init__(self, file):
        self.file = file
        line, *self.lines = header_lines(file) or [""]
        _, segments, signals, fs_hz, samples, when = _matches(WFDB_RECORD, file, line).groups()

        self.has_segments = segments is not None
        self.n_signals = int(signals)
        self.fs_hz = float(fs_hz or DEFAULT_FS_HZ)
        self.n_samples = int(samples or 0)  # 0: as many as the file holds

        # to the whole second
        self.start = start_of(re.sub(r"\.\d+", "", when or ""), "%H:%M:%S %d/%m/%Y")

        # a header of one line must not make us expect 999,999,999 signals
        promised = int(segments or signals)
        if len(self.lines) != promised:
            raise UserError(f"{file}: {len(self.lines)} lines where {promised} are promised. "
                            "Correct the header or copy it again.")


class _Signal:
    """One signal line of a WFDB header; file_name to byte_offset have their names in wfdb."""

    def __init__(self, file, line):
        match = _matches(SIGNAL_LINE, file, line)
        numbers = match.groupdict("0")

        self.file_name = match["file_name"]
        self.fmt = match["fmt"]
        self.samps_per_frame = int(numbers["samps_per_frame"]) or 1
        self.skew = int(numbers["skew"])
        self.byte_offset = int(numbers["byte_offset"])
        self.first = int(numbers["first"])
        self.baseline = int(match["baseline"] or numbers["zero"])
        self.name = match["name"] or ""

        # gain 0, as in records 820 to 823 of SVDB, means that nobody knows the scale
        gain = float(numbers["gain"])
        units = match["units"] or "mV"
        mv = to_mv(units)
        self.units = "mV" if mv else units
        self.calibrated = bool(gain and mv)
        self.scale = (mv or 1.0) / (gain or DEFAULT_GAIN)
        # format 8 stores differences and has no number that means missing
        self.missing = math.nan if self.fmt in ("0", "8") else -2 ** (BIT_RES[self.fmt] - 1)


class _Segment:
    """A WFDB record of one piece."""

    def __init__(self, record, promised):
        if record.has_segments:
            raise UserError(
                f"{record.file}: a segment that has segments of its own. Leave the recording out.")

        self.file = record.file
        self.fs_hz = record.fs_hz
        self.signals = [_Signal(self.file, line) for line in record.lines]

        # file "~" has no samples; wfdb wants the signals of a file one after the other
        stored = [signal for signal in self.signals if signal.file_name != "~"]
        self.stored = sorted(stored, key=attrgetter("file_name"))
        self.n_samples = record.n_samples or promised if stored else 0

        # each file is there and holds the samples that are promised
        for name, group in groupby(self.stored, attrgetter("file_name")):
            signals = list(group)
            file = beside(self.file, name)
            first = signals[0]
            if len({(signal.fmt, signal.byte_offset) for signal in signals}) > 1:
                raise UserError(f"{self.file}: {name} in different formats or from different "
                                "bytes; expected one of each for a file. Correct the header.")

            # the header's length is held against the file: nothing is allocated because it says so
            if first.fmt in COMPRESSED_FMTS:
                import soundfile  # needs a library of the system, and few recordings are compressed
                frames = max(0, soundfile.info(str(file)).frames - first.byte_offset)
                held = frames // first.samps_per_frame
            else:
                # 2 samples of format 212 share 3 bytes, 3 of format 310 share 4
                size = max(0, file.stat().st_size - first.byte_offset)
                samples = int(size / BYTES_PER_SAMPLE[first.fmt])
                held = samples // sum(signal.samps_per_frame for signal in signals)

            # a header without length: that of its first file
            self.n_samples = self.n_samples or held
            if held < self.n_samples:
                raise UserError(f"{file}: holds {held:,} of the {self.n_samples:,} samples that "
                                f"{self.file.name} promises. Copy it again, or correct the header.")

        self.arguments = {"dir_name": str(self.file.parent), "pn_dir": None, "n_sig": len(stored),
                          "sig_len": self.n_samples, "ignore_skew": True}
        for name in ("file_name", "fmt", "samps_per_frame", "skew", "byte_offset"):
            self.arguments[name] = [getattr(signal, name) for signal in self.stored]

    def _value_before(self, signal, begin):
        """The value of a signal of format 8 before a frame: stored differences, added up."""
        group = [other for other in self.stored if other.file_name == signal.file_name]

        # the differences of the leads in a file come frame by frame, a byte each
        ends = np.cumsum([other.samps_per_frame for other in group])
        data = np.memmap(self.file.with_name(signal.file_name), np.int8, "r", signal.byte_offset,
                         (self.n_samples, ends[-1]))
        column = ends[group.index(signal)]
        before = data[:begin, column - signal.samps_per_frame:column]
        return signal.first + int(before.sum(dtype=int))

    def read(self, signal, start, stop):
        """(stop - start,) float64 of a signal in its own units, missing samples NaN."""
        result = np.full(stop - start, np.nan)

        # a signal with a skew is stored so many samples late; behind the end it is missing
        begin = start + signal.skew
        end = min(stop + signal.skew, self.n_samples)
        if begin >= end or signal not in self.stored:
            return result

        try:
            value = self._value_before(signal, begin) if signal.fmt == "8" else 0
            # the skew is added above, within the record: wfdb would allocate it
            values, = _rd_segment(**self.arguments, channels=[self.stored.index(signal)],
                                  init_value=[value] * len(self.stored), sampfrom=begin, sampto=end)
        except Exception as error:  # the decoder of a damaged file raises anything
            raise UserError(
                f"{self.file}: samples {begin} to {end} cannot be read ({said(error)}). A signal "
                "file "
                "is damaged or has become shorter. Copy it again.") from error

        # the mean of a frame is that of the samples it has; wfdb takes a missing one for a number
        if signal.samps_per_frame == 1:
            mean = np.where(values == signal.missing, np.nan, values)
        else:
            frames = values.reshape(-1, signal.samps_per_frame)
            mean = np.ma.masked_where(frames == signal.missing, frames).mean(axis=1).filled(np.nan)
        result[:len(mean)] = (mean - signal.baseline) * signal.scale
        return result


class Wfdb:
    """A WFDB record, of one piece or of segments with gaps."""

    def __init__(self, path, _):
        record = _Record(path.resolve())
        self.fs_hz = record.fs_hz
        self.start = record.start

        # a first segment without length is the layout: the leads of all segments, by name
        layout = None
        if record.has_segments:
            segments = _open_segments(record)
            if segments and segments[0][1] == 0:
                layout, _ = segments.pop(0)
        else:
            segment = _Segment(record, 0)
            segments = [(segment, segment.n_samples)]

        first = layout or next((segment for segment, _ in segments if segment), None)
        self.leads = [signal.name for signal in first.signals] if first else []

        self.pieces = []  # (first sample, sample behind it, (segment, {lead: its _Signal}))
        self.n_samples = 0
        for segment, length in segments:
            begin = self.n_samples
            self.n_samples += length
            if not segment:
                continue

            # with a layout each segment has the leads that were connected at the time, by name
            signals = dict(enumerate(segment.signals))
            if layout:
                named = {signal.name: signal for signal in reversed(segment.signals)}
                signals = {k: named[name] for k, name in enumerate(self.leads) if name in named}
            elif len(signals) != len(self.leads):
                raise UserError(f"{segment.file}: {len(signals)} signals, the other segments have "
                                f"{len(self.leads)}. Correct the headers.")
            self.pieces.append((begin, self.n_samples, (segment, signals)))

        if len(self.leads) != record.n_signals or record.n_samples not in (0, self.n_samples):
            raise UserError(f"{record.file}: {len(self.leads)} signals of {self.n_samples:,} "
                            f"samples in its segments, the header promises {record.n_signals} of "
                            f"{record.n_samples:,}. Correct the header.")

        self.units = []
        self.calibrated = []
        for k, name in enumerate(self.leads):
            signals = [of[k] for _, _, (_, of) in self.pieces if k in of]
            units = sorted({signal.units for signal in signals}) or [""]

            if len(units) > 1:
                raise UserError(f"{record.file}: lead {name} in {' and '.join(units)}; expected "
                                "one unit. Correct the headers of its segments.")

            self.units += units
            self.calibrated.append(bool(signals) and all(s.calibrated for s in signals))

    def read(self, k, start, stop):
        result = np.full(stop - start, np.nan)
        for where, (segment, signals), low, high in overlaps(self.pieces, start, stop):
            if k in signals:
                result[where] = segment.read(signals[k], low, high)
        return result


def _open_segments(record):
    """[(segment, number of samples)] of a multi-segment record; a gap is None."""
    known = {"~": None}
    segments = []

    for line in record.lines:
        name, length = _matches(SEGMENT_LINE, record.file, line).groups()
        length = int(length)
        if name not in known:
            known[name] = _Segment(_Record(beside(record.file, name + ".hea")), length)

        segment = known[name]
        if segment and (segment.n_samples < length or segment.fs_hz != record.fs_hz):
            raise UserError(f"{segment.file}: {segment.n_samples:,} samples at {segment.fs_hz:g} "
                            f"Hz, {record.file.name} promises {length:,} at {record.fs_hz:g}. Copy "
                            "it again, or correct the header.")

        segments.append((segment, length))
    return segments
