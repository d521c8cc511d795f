"""What can be fed with any bytes: each reader, and what else is read of a stranger's.

A target writes valid files into a folder and says which of them is spoilt; `feed` puts any bytes
there and opens it. Any bytes end in a result or in a UserError of one clear line.
"""

import contextlib
import io
import json
import sys
import time
import warnings
import zipfile
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import scipy.io
import soundfile
import wfdb

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent)]

import device_files
from pipeline import settings
from pipeline.errors import UserError
from recording import places, reader, reader_devices, reader_devices_process, reviewed

FS = 250
N = 600
MAX_S = 20
MAX_MESSAGE = 3000


def wave(leads=2):
    """(N, leads) mV."""
    time_s = np.arange(N)[:, None] / FS
    return np.round(np.sin(2 * np.pi * time_s * (1 + np.arange(leads))), 3)


# --- what is done with a file ---------------------------------------------------------------------

def read(path):
    """A recording: looked for, as detect.py does, opened with and without a rate, read in parts."""
    places.find_places([path.parent], None, absolute=False)
    places.files_of(path)

    refused = []
    for fs_hz in (FS, None):
        try:
            recording = reader.open_recording(path, fs_hz)
        except UserError as error:
            refused.append(error)
            continue
        with recording:
            n = recording.n_samples
            for k in range(min(len(recording.leads), 3)):
                for start, stop in ((0, min(n, 900)), (n // 2, n // 2), (max(0, n - 900), n)):
                    signal = recording.read(k, start, stop)
                    assert signal.shape == (stop - start,) and signal.dtype == np.float64
                    assert not np.isinf(signal).any()
            assert all(isinstance(text, str) for text in recording.leads + recording.units)
            assert recording.start is None or isinstance(recording.start, datetime)
    if len(refused) == 2:
        raise refused[0]


def read_device(path):
    """The same of a device's file, whose library is called here and not in a process of its own."""
    def run(path, out):
        try:
            return json.loads(json.dumps(reader_devices_process.read(str(path), out)))
        except Exception as error:  # as its process does
            return {"error": str(error)[:300]}

    before = reader_devices._run
    reader_devices._run = run
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read(path)
    finally:
        reader_devices._run = before


def read_annotations(path):
    """An annotation file beside a record."""
    header = path.with_suffix(".hea")
    time_s, symbol = reader.annotated_beats(header, "atr", FS, settings.AAMI_OF, "Leave it out.")
    assert len(time_s) == len(symbol) and np.isfinite(time_s).all()


def read_back(path):
    """What a reviewer saved, or what it is held against: r.ecgad.csv, r.ecgad."""
    name = path.name if ".reviewed" in path.name else "r.reviewed.csv"
    name, summary = reviewed.read_back(path.parent / name)
    reviewed.in_words(name, summary)


# --- valid files ----------------------------------------------------------------------------------

def wfdb_files(folder):
    """A record of 16 bits, one of FLAC, annotations, and a record of both with a gap."""
    raw = np.round(wave() * 200).astype("<i2")
    (folder / "s.dat").write_bytes(raw.tobytes())
    soundfile.write(folder / "f.dat", raw, FS, subtype="PCM_16", format="FLAC")
    (folder / "s.hea").write_text(f"s 2 {FS} {N}\n" + "s.dat 16 200/mV 12 0 0 0 0 II\n" * 2)
    (folder / "f.hea").write_text(f"f 2 {FS} {N}\n" + "f.dat 516 200/mV 12 0 0 0 0 II\n" * 2)
    wfdb.wrann("s", "atr", np.arange(20, N, 60), list("NVNANLQ/NN"), write_dir=str(folder))


def headers(folder):
    wfdb_files(folder)
    texts = [(folder / "s.hea").read_text(),
             f"r/3 2 {FS} {2 * N + 99}\ns {N}\n~ 99\nf {N}\n",
             f"r 2 {FS}/1(0) 300 13:05:07 24/12/2001\n# note\ns.dat 8x2:3+7 1e2(9)/uV 8 0 0 0 0 a\n"
             "s.dat 8+7 0/mmHg\n",
             f"r 1 {FS}\ns.dat 212 200\n"]
    return folder / "r.hea", [text.encode() for text in texts]


def signals(name):
    def make(folder):
        wfdb_files(folder)
        path = folder / f"{name}.dat"
        return path, [path.read_bytes()]
    return make


def annotations(folder):
    wfdb_files(folder)
    return folder / "s.atr", [(folder / "s.atr").read_bytes()]


def edf(folder):
    """EDF, BDF, EDF+D, two data records a second long each."""
    seeds = []
    for width, kind in ((2, ""), (3, ""), (2, "EDF+D")):
        stored = np.round(wave() * 1000).astype("<i4").view(np.uint8).reshape(N, 2, 4)[..., :width]
        begins = b"\xffBIOSEMI" if width == 3 else b"0       "
        head = begins + b"x".ljust(160) + b"01.01.8500.00.00" + b"1024    "
        head += kind.ljust(44).encode()
        head += b"2       1       3   "
        top = 2**(8 * width - 1) - 1
        labels = ("ECG II", "ECG V5", "EDF Annotations")
        for values in (labels, ("", "", ""), ("mV", "uV", ""), (-9, -9, -1), (9, 9, 1),
                       (-top, -top, -top), (top, top, top), ("", "", ""), (FS, FS, 12)):
            size = {labels: 16, ("", "", ""): 80}.get(values, 8)
            head += b"".join(str(value).ljust(size).encode() for value in values)
        head += b" " * 96
        for record in range(2):
            here = stored[record * FS:][:FS]
            note = b"+%d\x14\x14\0" % (3 * record)
            head += here[:, 0].tobytes() + here[:, 1].tobytes() + note.ljust(12 * width, b"\0")
        seeds.append(head)
    return folder / "r.edf", seeds


def tables(folder):
    start = datetime(2024, 3, 5, 23, 59, 59)
    values = wave()[:, 0]
    times = [start + timedelta(seconds=row / FS) for row in range(N)]
    heads = {
        "I,II\n": "{v:.3f},{v:.2f}\n", "time (s);I [mV]\n": "{s:.3f};{v:.3f}\n",
        "'Elapsed time','MLII'\n'mm:ss.mmm','mV'\n": "0:{s:06.3f},{v:.3f}\n",
        "Name,Jane\nSample Rate,512 hertz\nLead,Lead I\nUnit,µV\n\n": "\"{v:.3f}\"\n",
        "Phone timestamp;sensor timestamp [ns];ecg [uV]\n": "{t};{ns};{v:.3f}\n",
        "": "{d}\t{v:.3f}\t3\n"}
    seeds = []
    for head, row in heads.items():
        lines = [row.format(v=v, s=k / FS, t=t.isoformat(), ns=599616000318562436 + 4_000_000 * k,
                            d=f"{t:%d.%m.%Y %H:%M:%S,%f}")
                 for k, (v, t) in enumerate(zip(values, times)) if not 100 < k < 120]
        seeds.append((head + "".join(lines[:200])).encode())
    return folder / "r.csv", seeds


def npy_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy(folder):
    arrays = (wave(), wave(1)[:, 0].astype(np.float32), np.asfortranarray(wave()).astype(">i2"))
    return folder / "r.npy", [npy_bytes(array) for array in arrays]


def npz(folder):
    seeds = []
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, signal=wave(), fs=FS)
        seeds.append(file.getvalue())
    return folder / "r.npz", seeds


def mat(folder):
    seeds = []
    for packed in (False, True):
        scipy.io.savemat(folder / "x", {"val": wave().T, "fs": float(FS)}, appendmat=False,
                         do_compression=packed)
        seeds.append((folder / "x").read_bytes())
    scipy.io.savemat(folder / "x", {"val": wave().T}, appendmat=False, format="4")
    seeds.append((folder / "x").read_bytes())
    (folder / "x").unlink()
    return folder / "r.mat", seeds


def device(suffix, *writers):
    def make(folder):
        path = folder / f"r{suffix}"
        seeds = []
        for writer in writers:
            writer(path, np.round(wave() * 400).astype(np.int16)[:300])
            seeds.append(path.read_bytes())
        return path, seeds
    return make


def review(spoilt):
    def make(folder):
        """Five beats of detect.py, two of them flagged, and what a reviewer made of them."""
        (folder / "r.ecgad.csv").write_text(
            "time_s,sample,kind,flag,state\n0.4,100,N,0,scored\n0.8,200,V,1,scored\n"
            "1.2,300,N,0,scored\n1.6,400,S,1,scored\n2,500,,0,unreadable\n")
        notes = {"aux_note": ["0.10", "5.00", "", "0.20", "2.00"], "fs": 360,
                 "subtype": np.array([0, 0, -1, 0, 0]), "write_dir": str(folder)}
        for extension in ("ecgad", "reviewed"):
            wfdb.wrann("r", extension, np.array([100, 200, 250, 300, 400]), list("NV~NS"), **notes)
        (folder / "r.reviewed.csv").write_text(
            "sample,reviewed_kind,verdict\n200,N,rejected\n400,V,accepted\n")
        path = folder / spoilt
        return path, [path.read_bytes()]
    return make


# name: (what makes the valid files, what is done with the spoilt one)
TARGETS = {
    "wfdb-header": (headers, read),
    "wfdb-signal": (signals("s"), lambda path: read(path.with_suffix(".hea"))),
    "wfdb-flac": (signals("f"), lambda path: read(path.with_suffix(".hea"))),
    "wfdb-annotations": (annotations, read_annotations),
    "edf": (edf, read), "table": (tables, read), "npy": (npy, read), "npz": (npz, read),
    "mat": (mat, read), "ishne": (device(".ecg", device_files.ishne), read),
    "dicom": (device(".dcm", device_files.dicom), read_device),
    "xml": (device(".xml", device_files.aecg, device_files.muse), read_device),
    "scp": (device(".scp", device_files.scp), read_device),
    "mfer": (device(".mwf", device_files.mfer), read_device),
    "kardia": (device(".json", device_files.kardia), read_device),
    "reviewed-table": (review("r.reviewed.csv"), read_back),
    "reviewed-annotations": (review("r.reviewed"), read_back),
    "beat-table": (review("r.ecgad.csv"), read_back),
    "beat-annotations": (review("r.ecgad"), read_back)}


def feed(name, path, data):
    """Whether the target reads the bytes; False: refused, in one clear line and in time."""
    path.write_bytes(data)
    before = time.process_time()  # of this process: a machine may be busy
    try:
        with warnings.catch_warnings():
            # a line of numpy's own on the terminal helps nobody
            warnings.simplefilter("error", RuntimeWarning)
            TARGETS[name][1](path)
        return True
    except UserError as error:
        said = str(error)
        assert len(said) < MAX_MESSAGE and str(path.parent) in said, said[:MAX_MESSAGE]
        assert said.rstrip().endswith("."), said
        return False
    finally:
        assert time.process_time() - before < MAX_S


def packed(data):
    """The bytes of an .npy as an archive, whose checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("signal.npy", data)
    return file.getvalue()
