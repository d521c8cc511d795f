"""EDF, EDF+ and BDF, any stretch of any lead; in the gaps of an EDF+D the samples are missing.

The header is read and the samples are mapped here. edfio 0.4.18, which the tests hold this against,
reads a BDF whole into memory and takes a file that was cut short for a whole one. pyedflib 0.1.42
refuses EDF+D, a file without its number of records, a signal without range, and to open a file twice.
"""

import re
from datetime import datetime

import numpy as np

from pipeline.errors import UserError
from recording.reader_files import MAX_FS_HZ, MIN_FS_HZ, same_size, to_mv

ECG_LABEL = re.compile(r"e[ck]g|^(lead\s*)?(i{1,3}|av[rlf]|v[1-9]r?|ml?i{1,3}|mcl\d|c[cms]\d)"
                       r"([\s-]|$)", re.I)
SIGNAL_FIELDS = (("label", 16), ("transducer", 80), ("units", 8), ("bottom", 8), ("top", 8),
                 ("low", 8), ("high", 8), ("filter", 80), ("samples", 8), ("reserved", 32))
ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
ONSET = re.compile(rb"([+-]\d{1,9}(\.\d{1,9})?)\x14")


class Edf:
    """EDF, EDF+ and BDF: data records, each with a stretch of every signal one after the other."""

    def __init__(self, path, _):
        self.path = path
        try:
            with open(path, "rb") as stream:
                self._read_header(stream)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{path}: no sound EDF or BDF: {error}. Copy or export it "
                            "again.") from error

    def _read_header(self, stream):
        """Read the header, map the data records, choose the leads."""
        head = stream.read(256)
        count = int(head[252:256])
        begin = int(head[184:192])
        held = self.path.stat().st_size - begin
        self.width = 3 if head.startswith(b"\xffBIOSEMI") else 2
        if self.width == 2 and head[:8].strip() != b"0":
            raise ValueError("it does not begin as one")
        if count < 1 or begin != 256 * (count + 1) or held < 0:
            raise ValueError(f"a header of {begin} bytes for {count} signals")
        columns = {}
        for name, size in SIGNAL_FIELDS:
            columns[name] = [stream.read(size).decode("latin-1").strip(" \0") for _ in range(count)]

        samples = [int(text) for text in columns["samples"]]
        seconds = float(head[244:252])
        if min(samples) < 0 or not max(samples) or not 0 < seconds < 1e9:
            raise ValueError(f"data records of {seconds:g} s with {min(samples)} to "
                             f"{max(samples)} samples")
        self.ends = np.cumsum(samples) * self.width  # of each signal in a record, in bytes
        size = int(self.ends[-1])
        promised = int(head[236:244])
        records = held // size if promised == -1 else promised  # -1: the writer was interrupted
        if not 0 < records <= held // size:
            raise ValueError(f"cut short: {held // size:,} of the {promised:,} data records that "
                             "its header promises")
        self.data = np.memmap(self.path, np.uint8, "r", begin, (records, size))
        self.file_size = begin + records * size

        self._choose_leads(columns, samples, seconds)
        # stretches without a gap: (first sample, first data record, number of records)
        self.stretches = [(0, 0, records)]
        if head[192:197] in (b"EDF+D", b"BDF+D"):
            self._find_gaps(columns["label"])
        self.n_samples = self.stretches[-1][0] + self.stretches[-1][2] * self.per_record
        try:
            self.start = datetime.strptime(head[168:184].decode("latin-1"), "%d.%m.%y%H.%M.%S")
            if self.start.year < 1985:
                self.start = self.start.replace(year=self.start.year + 100)  # as the format says
        except ValueError:
            self.start = None

    def _choose_leads(self, columns, samples, seconds):
        """Leads: the signals with the rate of the first ECG by name, else of the first that fits."""
        labels = columns["label"]
        signals = [k for k, label in enumerate(labels) if label not in ANNOTATIONS]
        if not signals:
            raise ValueError("it has no leads, only annotations")
        fits = [k for k in signals if MIN_FS_HZ <= samples[k] / seconds <= MAX_FS_HZ] or signals
        ecg = next((k for k in fits if ECG_LABEL.search(labels[k])), fits[0])
        self.per_record = samples[ecg]
        self.fs_hz = self.per_record / seconds
        self.chosen = [k for k in signals if samples[k] == self.per_record]
        self.leads = [labels[k] for k in self.chosen]

        self.units = []
        self.calibrated = []
        self.lines = []  # (slope, offset) to mV, or to the unit of the file
        for k in self.chosen:
            bottom, top, low, high = (float(columns[name][k]) for name in
                                      ("bottom", "top", "low", "high"))
            units = columns["units"][k]
            mv = to_mv(units)
            # without a range the file's own numbers are all that is known
            if high <= low or top == bottom or not np.isfinite([bottom, top, low, high]).all():
                bottom, top, low, high, units, mv = 0.0, 1.0, 0.0, 1.0, "", None
            slope = (top - bottom) / (high - low) * (mv or 1.0)
            self.lines.append((slope, bottom * (mv or 1.0) - low * slope))
            self.units.append("mV" if mv else units)
            self.calibrated.append(mv is not None)

    def _find_gaps(self, labels):
        """The first annotation of each data record of an EDF+D says when the record begins."""
        k = next((k for k, label in enumerate(labels) if label in ANNOTATIONS), None)
        if k is None:
            raise ValueError("discontinuous (EDF+D), but without times of its data records")
        times = []
        for row in self.data[:, self.ends[k - 1] if k else 0:self.ends[k]]:
            match = ONSET.match(row.tobytes())
            if match is None:
                raise ValueError(f"data record {len(times) + 1} does not say when it begins")
            times.append(float(match[1]))

        firsts = np.round((np.array(times) - times[0]) * self.fs_hz).astype(int)
        gaps = np.diff(firsts) - self.per_record
        if (gaps < -1).any():
            raise ValueError("a data record begins before the one above it ends")
        begins = [0, *np.flatnonzero(gaps > 1) + 1]  # a sample more or less is rounding
        counts = np.diff([*begins, len(firsts)])
        self.stretches = list(zip(firsts[begins].tolist(), begins, counts.tolist()))

    def read(self, k, start, stop):
        same_size(self.path, self.path, self.file_size)
        result = np.full(stop - start, np.nan)
        for first, record, count in self.stretches:
            low = max(start, first)
            high = min(stop, first + count * self.per_record)
            if low >= high:
                continue
            # whole data records, of which the samples from low to high are kept
            skip = (low - first) % self.per_record
            begin = record + (low - first) // self.per_record
            end = record - (first - high) // self.per_record
            values = self._decode(self.chosen[k], begin, end)
            result[low - start:high - start] = values[skip:skip + high - low]

        slope, offset = self.lines[k]
        return result * slope + offset

    def _decode(self, signal, begin, end):
        """Whole numbers of a signal in data records begin to end; they have 2 or 3 bytes."""
        stop = self.ends[signal]
        raw = self.data[begin:end, stop - self.per_record * self.width:stop].reshape(-1, self.width)
        missing = 4 - self.width
        padded = np.pad(raw, ((0, 0), (missing, 0)))  # (samples, 4): the sign in its place
        return padded.view("<i4")[:, 0] >> 8 * missing
