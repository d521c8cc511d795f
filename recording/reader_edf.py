"""EDF, EDF+ and BDF, any stretch of any lead; in the gaps of an EDF+D the samples are missing.

The header is read and the samples are mapped here: edfio 0.4.18, which the tests hold this against,
reads a BDF whole into memory, takes a file that was cut short for a whole one and joins an EDF+D
without its gaps; pyedflib 0.1.42 refuses EDF+D, a file without its number of records (a recorder
that lost power), a signal without range, an odd date, and to open a file a second time.
"""

import re

import numpy as np

from pipeline.errors import UserError
from recording.reader_files import MAX_FS_HZ, MIN_FS_HZ, overlaps, same_size, start_of, to_mv

ECG_LABEL = re.compile(r"e[ck]g|^(lead\s*)?(i{1,3}|av[rlf]|v[1-9]r?|ml?i{1,3}|mcl\d|c[cms]\d)"
                       r"([\s-]|$)", re.I)
# name and bytes of the fields of the header, all signals in each
SIGNAL_FIELDS = {"label": 16, "transducer": 80, "units": 8, "bottom": 8, "top": 8, "low": 8,
                 "high": 8, "filter": 80, "samples": 8, "reserved": 32}
ANNOTATIONS = ("EDF Annotations", "BDF Annotations")
ONSET = re.compile(rb"([+-]\d{1,9}(\.\d{1,9})?)\x14")


def _text(raw):
    return raw.decode("latin-1").strip(" \0")


class Edf:
    """EDF, EDF+ and BDF: data records, each with a stretch of every signal one after the other."""

    def __init__(self, path, _):
        self.path = path
        try:
            with open(path, "rb") as stream:
                head = stream.read(256)
                count = int(head[252:256])
                if count < 1 or int(head[184:192]) != 256 * (count + 1):
                    raise ValueError(f"a header of another size than {count} signals take")

                # first the labels of all signals, then all transducers, ...
                fields = {name: [_text(stream.read(size)) for _ in range(count)]
                          for name, size in SIGNAL_FIELDS.items()}

                samples = [int(text) for text in fields["samples"]]
                self._map(head, samples, stream.tell())
            self._choose_leads(fields, samples, float(head[244:252]))

            # stretches without a gap: (first sample, sample behind it, first data record)
            self.stretches = [(0, len(self.data) * self.per_record, 0)]
            if head[193:197] == b"DF+D":
                self._find_gaps(fields["label"])
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: no sound EDF or BDF: {error}. Copy or export it again.") from error

        self.n_samples = self.stretches[-1][1]
        self.start = start_of(_text(head[168:184]), "%d.%m.%y%H.%M.%S")

    def _map(self, head, samples, begin):
        """Map the data records, which begin at a byte; a sample has 2 or 3 bytes."""
        self.width = 3 if head.startswith(b"\xffBIOSEMI") else 2
        if self.width == 2 and head[:8].strip() != b"0":
            raise ValueError("it does not begin as one")
        if min(samples) < 0:
            raise ValueError(f"{min(samples)} samples in a data record")

        sizes = np.array(samples) * self.width  # of each signal in a record, in bytes
        size = int(sizes.sum())

        # what the header claims is held against the size of the file
        held = (self.path.stat().st_size - begin) // max(size, 1)
        records = int(head[236:244])
        if records == -1:
            records = held  # the writer was interrupted
        if not size or not 0 < records <= held:
            raise ValueError(f"cut short: {held:,} of the {records:,} data records of {size:,} "
                             "bytes that its header promises")
        self.data = np.memmap(self.path, np.uint8, "r", begin, (records, size))

        # the bytes of each signal in every data record: (records, bytes)
        self.columns = np.split(self.data, np.cumsum(sizes)[:-1], axis=1)

    def _choose_leads(self, fields, samples, seconds):
        """Leads: the signals with the rate of the first ECG by name, else of any that fits."""
        labels = fields["label"]
        signals = [k for k, label in enumerate(labels) if label not in ANNOTATIONS]
        if not signals or not 0 < seconds < 1e9:
            raise ValueError(f"{len(signals)} signals in data records of {seconds:g} s")
        fits = [k for k in signals if MIN_FS_HZ <= samples[k] / seconds <= MAX_FS_HZ] or signals

        # files of sleep laboratories begin with EEG leads at another rate
        ecg = next((k for k in fits if ECG_LABEL.search(labels[k])), fits[0])
        self.per_record = samples[ecg]
        self.fs_hz = self.per_record / seconds
        self.chosen = [k for k in signals if samples[k] == self.per_record]
        self.leads = [labels[k] for k in self.chosen]

        self.units = []
        self.lines = []  # (slope, offset) from the stored number to mV, or to the unit of the file
        for k in self.chosen:
            bottom, top, low, high = (float(fields[name][k]) for name in
                                      ("bottom", "top", "low", "high"))
            units = fields["units"][k]

            slope = (top - bottom) / (high - low) if high > low else 0.0
            offset = bottom - low * slope
            if not slope or not np.isfinite(offset):
                # without a range the file's own numbers are all that is known
                slope = 1.0
                offset = 0.0
                units = ""

            mv = to_mv(units)
            self.units.append("mV" if mv else units)
            self.lines.append((slope * (mv or 1.0), offset * (mv or 1.0)))
        self.calibrated = [units == "mV" for units in self.units]

    def _find_gaps(self, labels):
        """The first annotation of each data record of an EDF+D says when the record begins."""
        signal = next((k for k, label in enumerate(labels) if label in ANNOTATIONS), None)
        if signal is None:
            raise ValueError("discontinuous (EDF+D), but without times of its data records")

        times = []
        for row in self.columns[signal]:
            match = ONSET.match(row.tobytes())
            if not match:
                raise ValueError(f"data record {len(times) + 1} does not say when it begins")
            times.append(float(match[1]))

        firsts = np.round((np.array(times) - times[0]) * self.fs_hz).astype(int)
        gaps = np.diff(firsts) - self.per_record
        if (gaps < -1).any():
            raise ValueError("a data record begins before the one above it ends")

        # a sample more or less is rounding
        begins = np.append(0, np.flatnonzero(gaps > 1) + 1)
        lengths = np.diff(begins, append=len(firsts)) * self.per_record
        firsts = firsts[begins]
        self.stretches = np.column_stack([firsts, firsts + lengths, begins]).tolist()

    def read(self, k, start, stop):
        same_size(self.path, self.data.offset + self.data.size)
        result = np.full(stop - start, np.nan)
        column = self.columns[self.chosen[k]]

        for where, record, low, high in overlaps(self.stretches, start, stop):
            # whole data records, of which the samples from low to high are kept
            first, skipped = divmod(low, self.per_record)
            last = (high - 1) // self.per_record
            raw = column[record + first:record + last + 1].reshape(-1, self.width)

            # 2 or 3 bytes go to the end of 4, where the sign has its place, and are shifted back
            padded = np.zeros((len(raw), 4), np.uint8)
            padded[:, -self.width:] = raw
            values = padded.view("<i4")[:, 0] >> 32 - 8 * self.width
            result[where] = values[skipped:][:high - low]

        slope, offset = self.lines[k]
        return result * slope + offset
