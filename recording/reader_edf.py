"""EDF, EDF+ and BDF, any stretch of any lead."""

import math
import re
from datetime import datetime, timedelta

import numpy as np

from pipeline.errors import UserError
from recording.reader_files import MIN_FS_HZ, MAX_FS_HZ, BLOCK_SAMPLES, NUMBER, to_mv, same_size
from recording.reader_wfdb import decode

ECG_LABEL = re.compile(r"e[ck]g|^(?:lead\s*)?(?:i{1,3}|av[rlf]|v[1-9]r?|m?l?i{1,3}|mcl\d|c[cms]\d)(?:[\s-]|$)", re.I)


EDF_FIELDS = (("label", 16), ("transducer", 80), ("units", 8), ("physical_min", 8), ("physical_max", 8),
              ("digital_min", 8), ("digital_max", 8), ("filter", 80), ("samples", 8), ("reserved", 32))


class Edf:
    """EDF, EDF+ and BDF: data records, each with a stretch of every signal one after the other."""

    def __init__(self, path, file, _):
        self.path, self.file = path, file
        with open(file, "rb") as stream:
            head = stream.read(256)
            self.width = 3 if head[:8] == b"\xffBIOSEMI" else 2
            if len(head) < 256 or self.width == 2 and head[:8].strip() != b"0":
                raise self._wrong("does not begin as an EDF or BDF file")
            count = self._number(head[252:256], "number of signals", whole=True)
            if head[192:197] in (b"EDF+D", b"BDF+D"):
                raise UserError(f"{path}: discontinuous (EDF+D), it has gaps without samples; expected a continuous "
                                "one. Convert it to EDF+C with the software that wrote it.")
            records = self._number(head[236:244], "number of data records", whole=True)
            seconds = self._number(head[244:252], "duration of a data record")
            self.begin = self._number(head[184:192], "size of the header", whole=True)
            if count < 1 or self.begin != 256 * (count + 1) or file.stat().st_size < self.begin:
                raise self._wrong(f"a header of {self.begin} bytes for {count} signals")
            columns = {name: [stream.read(size) for _ in range(count)] for name, size in EDF_FIELDS}
        samples = [self._number(text, "samples of a data record", whole=True) for text in columns["samples"]]
        if min(samples) < 0 or not 0 <= seconds < 1e9:
            raise self._wrong("a negative number of samples or duration")
        self.ends = np.cumsum(np.asarray(samples, np.int64)) * self.width
        self.record = int(self.ends[-1])
        self.records = self._count(records)
        self.start = _edf_start(head)
        self._choose(columns, samples, seconds)

    def _wrong(self, what):
        return UserError(f"{self.path}: no sound EDF or BDF: {what}. Copy or export it again.")

    def _number(self, raw, what, whole=False):
        text = raw.decode("latin-1").strip(" \0")
        if not re.fullmatch(r"[-+]?\d{1,8}" if whole else NUMBER, text):
            raise self._wrong(f"{text!r} as {what}")
        return int(text) if whole else float(text)

    def _count(self, records):
        """Data records: as promised, if the file has them; all it has where the writer left -1."""
        if self.record == 0:
            raise self._wrong("no samples in its data records")
        held = (self.file.stat().st_size - self.begin) // self.record
        if records < -1:
            raise self._wrong(f"{records} data records")
        if held < records:
            raise UserError(f"{self.path}: cut short: {held:,} of the {records:,} data records that its header "
                            "promises. Copy it again.")
        return held if records == -1 else records

    def _choose(self, columns, samples, seconds):
        """Leads: the signals with the rate of the first that is an ECG by its name, else of the first that fits."""
        labels = [raw.decode("latin-1").strip(" \0") for raw in columns["label"]]
        signals = [k for k, label in enumerate(labels) if label not in ("EDF Annotations", "BDF Annotations")]
        if not signals:
            raise UserError(f"{self.path}: has no leads, only annotations. Leave the recording out.")
        if not seconds:
            raise self._wrong("a data record of 0 s")
        fits = [k for k in signals if MIN_FS_HZ <= samples[k] / seconds <= MAX_FS_HZ]
        ecg = next((k for k in fits if ECG_LABEL.search(labels[k])), fits[0] if fits else signals[0])
        self.fs_hz = samples[ecg] / seconds
        self.chosen = [k for k in signals if samples[k] == samples[ecg]]
        self.per_record = samples[ecg]
        self.n_samples = self.records * self.per_record
        self.leads = [labels[k] for k in self.chosen]
        self.units, self.calibrated, self.lines = [], [], []
        for k in self.chosen:
            self._calibrate({name: values[k] for name, values in columns.items()})

    def _calibrate(self, field):
        low, high, bottom, top = (self._number(field[name], name.replace("_", " ")) for name in
                                  ("digital_min", "digital_max", "physical_min", "physical_max"))
        units = field["units"].decode("latin-1").strip(" \0")
        mv = to_mv(units)
        if high <= low or top == bottom or not math.isfinite((top - bottom) / (high - low)):
            slope, offset, units, mv = 1.0, 0.0, "", None  # the file's own numbers: nothing else is known
        else:
            slope = (top - bottom) / (high - low)
            offset = bottom - low * slope
        self.lines.append((slope * (mv or 1.0), offset * (mv or 1.0)))
        self.units.append("mV" if mv else units)
        self.calibrated.append(mv is not None)

    def read(self, k, start, stop):
        result = np.empty(stop - start)
        if start == stop:
            return result
        same_size(self.path, self.file, self.begin + self.records * self.record)
        signal = self.chosen[k]
        begin = int(self.ends[signal]) - self.per_record * self.width
        records = np.memmap(self.file, np.uint8, "r", self.begin, (self.records, self.record))
        at = start
        while at < stop:
            record, within = divmod(at, self.per_record)
            if within or stop - at < self.per_record:
                rows, take = slice(record, record + 1), min(self.per_record - within, stop - at)
            else:
                many = min((stop - at) // self.per_record, max(1, BLOCK_SAMPLES // self.per_record))
                rows, take = slice(record, record + many), self.per_record
            raw = records[rows, begin + within * self.width:begin + (within + take) * self.width].tobytes()
            values = decode(16 if self.width == 2 else 24, raw, len(raw) // self.width)
            result[at - start:at - start + len(values)] = values
            at += len(values)
        slope, offset = self.lines[k]
        return result * slope + offset


def _edf_start(head):
    """datetime of the 2-digit date and the time in an EDF header, None where they make none."""
    match = re.fullmatch(rb"(\d\d)\.(\d\d)\.(\d\d)(\d\d)\.(\d\d)\.(\d\d)", head[168:184])
    if match is None:
        return None
    day, month, year, hour, minute, second = map(int, match.groups())
    try:
        return datetime(year + (1900 if year >= 85 else 2000), month, day) + timedelta(
            hours=hour, minutes=minute, seconds=second)
    except (ValueError, OverflowError):
        return None
