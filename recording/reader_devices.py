"""Files of electrocardiographs: DICOM, HL7 aECG, GE MUSE, SCP-ECG, MFER, AliveCor (JSON).

They are read by ecgdatakit (requirements/formats.txt), which is loaded for them only, in a process
of its own with bounded memory and time; the samples come back in a file that is mapped.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UserError
from recording.reader_array import Array, open_array
from recording.reader_sniff import INSTALL

ROOT = Path(__file__).resolve().parent.parent
# of a file that is read whole: a day in DICOM at 200 Hz has 100 MB, ten seconds in SCP 0.1
MAX_MB = {".dcm": 256, ".xml": 128, ".scp": 16, ".mwf": 256, ".mfer": 256, ".json": 64}
TIMEOUT_S = 600
BLOCK_BYTES = 2**20
ARGUMENTS = ("-m", "recording.reader_devices_process")
DEFLATED = b"1.2.840.10008.1.2.1.99"    # a DICOM file packed by zlib
EXPORT = "Export the recording again, as EDF if the device can."


def open_device(path, _):
    """An Array of a device's file; UserError where the library is missing or cannot read it."""
    suffix = path.suffix.lower()
    if find_spec("ecgdatakit") is None:
        raise UserError(f"{path}: a file {suffix} is read by ecgdatakit, which is not installed. "
                        f"Install it with: {INSTALL}")
    size = path.stat().st_size
    if size > MAX_MB[suffix] * 2**20:
        raise UserError(f"{path}: {size:,} bytes; a file {suffix} is read whole, expected at most "
                        f"{MAX_MB[suffix]} MB. Export it in parts, or as EDF.")
    _refuse_bombs(path, suffix)

    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        out = os.path.join(folder, "signal.npy")
        said = _run(path, out)
        if "error" in said:
            raise UserError(f"{path}: damaged, or no such file as its suffix {suffix} says "
                            f"({said['error']}). {EXPORT}")
        # the folder goes at once, the map of the array stays
        array = open_array(path, out, said["fs_hz"]).array

    factors = [1.0 if known else None for known in said["calibrated"]]
    source = Array(path, array, said["fs_hz"], said["leads"], factors)
    source.start = datetime.fromisoformat(said["start"]) if said["start"] else None
    return source


def _refuse_bombs(path, suffix):
    """Raise UserError for what unpacks to more than it is: entities of XML, packed DICOM."""
    with open(path, "rb") as file:
        if suffix == ".dcm" and DEFLATED in file.read(BLOCK_BYTES):
            raise UserError(f"{path}: a packed DICOM file (deflated). Export it unpacked.")

        before = b""
        while suffix == ".xml" and (block := file.read(BLOCK_BYTES)):
            # NUL: XML may be in UTF-16
            text = before + block.replace(b"\0", b"")
            if b"<!doctype" in text.lower() or b"<!entity" in text.lower():
                raise UserError(f"{path}: XML with a DOCTYPE or entities, which no recording "
                                f"needs, is not opened. {EXPORT}")
            before = text[-9:]


def _run(path, out):
    """What the process says of a file: a dict."""
    command = [sys.executable, *ARGUMENTS, str(path.resolve()), out]
    # a library's threads take address space, which is bounded
    env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, timeout=TIMEOUT_S)
        return json.loads(done.stdout.decode().strip().split("\n")[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"it takes more than {TIMEOUT_S} s to read"}
    except ValueError:
        return {"error": f"its reader ended with status {done.returncode}"}
