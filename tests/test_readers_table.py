"""CSV and TSV tables, NumPy arrays."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ecg_mv, leads_of, peak_bytes, refused

from recording import reader_table
from recording.reader import open_recording

FS = 250
N = 5003


def write_csv(path, table, head=("MLII", "V5"), delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([head] if head else [])
        writer.writerows(table)
    return path


@pytest.mark.parametrize("name,delimiter,head", [
    ("rec.csv", ",", ("MLII", "V5")), ("rec.csv", ";", None), ("rec.tsv", "\t", ("I", "II")),
    ("rec.csv", " ", None)])
def test_csv(tmp_path, monkeypatch, name, delimiter, head):
    signal = ecg_mv(500)
    path = write_csv(tmp_path / name, signal, head, delimiter)
    text = path.read_bytes()
    for cells, end in ((2**16, b"\r\n"), (3, b"\n"), (998, b"\r")):
        monkeypatch.setattr(reader_table, "BLOCK_CELLS", cells)
        path.write_bytes(text.replace(b"\r\n", end))
        np.testing.assert_allclose(leads_of(path, FS, block=99), signal, rtol=1e-12)
    with open_recording(path, FS) as recording:
        assert recording.leads == list(head or ("1", "2")) and recording.fs_hz == FS
        assert recording.calibrated == [False, False]


@pytest.mark.parametrize("text,leads,calibrated,signal", [
    (b"\xef\xbb\xbf# made by hand\r\n\r\n'sample #','MLII (uV)','V5 [V]',\"note\"\r\n"
     b"0,1000,0.001,1\r\n1,,-0.002,nan\r\n2,\"3e3\", -,3\r\n", ["MLII", "V5", "note"],
     [True, True, False], [[1, 1, 1], [np.nan, -2, np.nan], [3, np.nan, 3]]),
    (b"I (\xb5V);II (\xc2\xb5V)\n1000;\n2000;-inf\n",  # in Latin-1 and in UTF-8
     ["I", "II"], [True, True], [[1, np.nan], [2, np.nan]]),
    (b",0\n0,0.5\n1,0.25\n2,0.75\n", ["0"], [False], [[0.5], [0.25], [0.75]])])
def test_csv_names_units_and_missing_cells(tmp_path, text, leads, calibrated, signal):
    (tmp_path / "rec.csv").write_bytes(text)
    with open_recording(tmp_path / "rec.csv", FS) as recording:
        assert recording.leads == leads and recording.calibrated == calibrated
        assert recording.units == ["mV" if known else "" for known in calibrated]
    np.testing.assert_allclose(leads_of(tmp_path / "rec.csv", FS), signal)


@pytest.mark.parametrize("name,digits,unit", [("time", 3, 1), ("Seconds", 4, 1),
                                              ("time (ms)", 1, 1e3)])
def test_csv_column_of_times_gives_the_rate(tmp_path, name, digits, unit):
    times = np.round(np.arange(N) / 360 * unit, digits)
    path = write_csv(tmp_path / "rec.csv", np.column_stack([times, ecg_mv()]), (name, "I", "II"))
    for fs_hz in (None, 360, 360.1):
        with open_recording(path, fs_hz) as recording:
            assert recording.fs_hz == 360 and recording.leads == ["I", "II"]
    refused(path, "--fs", "360", "250", fs_hz=250)


def test_csv_column_of_times_in_an_unnamed_unit_wants_fs(tmp_path):
    times = np.arange(N) * 4
    path = write_csv(tmp_path / "rec.csv", np.column_stack([times, ecg_mv()]), ("time", "I", "II"))
    refused(path, "0.25 Hz", "--fs")
    with open_recording(path, FS) as recording:
        assert recording.leads == ["I", "II"] and recording.fs_hz == FS


@pytest.mark.parametrize("text,words", [
    ("a,b\n1,2\n3,x\n", ("row 3, column 2", "'x'")), ("1;2\n1,5;2.5\n", ("row 2", "'2.5'")),
    ("a,b\n", ("no samples",)), ("1,2\n3,0x10\n", ("row 2", "'0x10'")),
    ("1,2\n3,4,\n5\n", ("row 2", "3 columns")),
    ("1 2\n3 x\n", ("row 2", "'x'")), ("1\n" + "2" * 2**18, ("over 131,072",)),
    ("a\0b\n", ("NUL",)),
    ("1," * 2000 + "1\n", ("2,001 columns",)),
    ('1,2\n3,"4\n5\n', ("row 3", "1 columns"))])
def test_hostile_csv(tmp_path, text, words):
    (tmp_path / "rec.csv").write_text(text)
    refused(tmp_path / "rec.csv", *words, fs_hz=FS)


# --- arrays -------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype,order", [("<f8", "C"), (">f4", "F"), ("u1", "F")])
def test_npy_and_npz(tmp_path, dtype, order):
    signal = np.asarray(np.abs(ecg_mv()) * 50, dtype, order=order)
    np.save(tmp_path / "rec.npy", signal)
    np.savez(tmp_path / "plain.npz", signal)
    np.savez_compressed(tmp_path / "named.npz", ecg=signal, other=np.arange(3))
    for name in ("rec.npy", "plain.npz", "named.npz"):
        np.testing.assert_array_equal(leads_of(tmp_path / name, FS, block=999), signal)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("evil.npy", np.array([Evil()], object))
    np.savez("evil.npz", np.array([Evil()], object))
    for name in ("evil.npy", "evil.npz"):
        refused(name, "pickle", fs_hz=FS)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("array", [
    np.zeros(5, complex), np.zeros((5, 2, 2)), np.zeros((2, 500)), np.zeros((0, 2)),
    np.zeros((2000, 2000), "i1")], ids=str)
def test_hostile_arrays(tmp_path, array):
    np.save(tmp_path / "rec.npy", array)
    np.savez(tmp_path / "rec.npz", array)
    np.savez(tmp_path / "two.npz", a=array, b=array)
    for name, word in (("rec.npy", ""), ("rec.npz", ""), ("two.npz", "2 arrays")):
        refused(tmp_path / name, word, fs_hz=FS)


@pytest.mark.parametrize("claim", [
    b"(1001,)}", b"(99999999999, 2)}", b"(-5,)}", b"(1e3,)}", b"(((((((", b"(" + b"9" * 60 + b",)}"
])
def test_npy_that_claims_more_than_it_has(tmp_path, claim):
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': " + claim
    raw = b"\x93NUMPY\x01\0\x76\0" + head.ljust(117) + b"\n" + bytes(8000)
    (tmp_path / "rec.npy").write_bytes(raw)
    with zipfile.ZipFile(tmp_path / "rec.npz", "w") as archive:
        archive.writestr("signal.npy", raw)
    for name in ("rec.npy", "rec.npz"):
        assert peak_bytes(refused, tmp_path / name, "numpy.save", fs_hz=FS) < 20e6
