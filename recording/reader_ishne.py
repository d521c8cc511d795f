"""ISHNE Holter files, any stretch of any lead: 522 bytes of header, text, samples of 16 bits.

Mapped, because a day of three leads at 1,000 Hz has 500 MB: ecgdatakit 2.0.3, which the tests hold
this against, reads it whole and makes eight bytes of two.
Badilini F: The ISHNE Holter standard output file format. Ann Noninvasive Electrocardiol 3, 1998.
"""

from datetime import datetime

import numpy as np

from pipeline.errors import UserError
from recording.reader_files import same_size

HEADER_BYTES = 522
LEADS = ("", "", "X", "Y", "Z", "I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4",
         "V5", "V6", "ES", "AS", "AI")
FAULT = -2**15                  # a lead that is off
MAX_LEADS = 12
HEADER = np.dtype({
    "names": ["magic", "text", "samples", "date", "time", "leads", "codes", "nv", "rate"],
    "formats": ["S8", "<i4", "<i4", ("<i2", 3), ("<i2", 3), "<i2", ("<i2", 12), ("<i2", 12),
                "<i2"],
    "offsets": [0, 10, 14, 138, 150, 156, 158, 206, 272], "itemsize": HEADER_BYTES})


class Ishne:
    """An ISHNE Holter file: all leads of a sample side by side."""

    def __init__(self, path, _):
        self.path = path
        remedy = "Copy or export it again."
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
        if len(raw) < HEADER_BYTES or not raw.startswith(b"ISHNE1.0"):
            raise UserError(f"{path}: no ISHNE file: {len(raw)} bytes of {HEADER_BYTES} of its "
                            f"header, which begins with {raw[:8]!r}, not ISHNE1.0. {remedy}")

        head = np.frombuffer(raw, HEADER)[0]
        count = int(head["leads"])
        begin = HEADER_BYTES + int(head["text"])
        size = path.stat().st_size
        if not 1 <= count <= MAX_LEADS or not HEADER_BYTES <= begin < size:
            raise UserError(f"{path}: no sound ISHNE file: {count} leads from byte {begin:,} of "
                            f"{size:,}; expected 1 to {MAX_LEADS}. {remedy}")

        # writers do not agree what the header's number of samples counts, but none cuts a sample
        frames, left = divmod(size - begin, 2 * count)
        promised = int(head["samples"])
        if left and frames < promised:
            raise UserError(f"{path}: cut short: {frames:,} of {promised:,} samples, and a part of "
                            f"one. {remedy}")

        self.data = np.memmap(path, "<i2", "r", begin, (frames, count)) if frames else None
        self.n_samples = frames
        self.fs_hz = float(head["rate"])
        self.leads = [LEADS[code] if 0 <= code < len(LEADS) else "" for code in
                      head["codes"][:count].tolist()]
        self.mv = [nv * 1e-6 if nv > 0 else None for nv in head["nv"][:count].tolist()]
        self.calibrated = [mv is not None for mv in self.mv]
        self.units = ["mV" if known else "" for known in self.calibrated]

        self.start = None
        try:
            day, month, year = head["date"].tolist()
            self.start = datetime(year, month, day, *head["time"].tolist())
        except ValueError:
            pass  # not known

    def read(self, k, start, stop):
        same_size(self.path, self.data.offset + self.data.nbytes)
        values = self.data[start:stop, k]
        return np.where(values == FAULT, np.nan, values * (self.mv[k] or 1.0))
