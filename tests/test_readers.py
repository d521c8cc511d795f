import csv
import gc
import os
import pickle
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import wfdb

import config
from pipeline import settings
from recording import reader_table
from recording import reader
from pipeline.errors import UserError
from recording.reader import find_recordings, lead_index, open_recording


def edfio():
    """The package that EDF and BDF are held against."""
    return pytest.importorskip("edfio")


FS = 250
N = 5003  # prime to every block of bytes that samples share
WRITABLE = ("16", "24", "32", "80", "212")  # by the wfdb package
DAT_FORMATS = ("8", "16", "24", "32", "61", "80", "160", "212", "310", "311")


def ecg_mv(n=N, leads=2, seed=0):
    """(n, leads) mV: a wave and noise within +-2 mV."""
    t, rng = np.arange(n) / FS, np.random.default_rng(seed)
    wave = [np.sin(2 * np.pi * (1 + k) * t) + 0.1 * rng.normal(size=n) for k in range(leads)]
    return np.clip(np.column_stack(wave), -2, 2)


def encoded(fmt, frames):
    """Bytes of (n, samples) whole numbers in a WFDB format, number by number as signal(5) of the manual says."""
    if fmt == "8":
        frames = np.diff(frames, axis=0, prepend=frames[:1])
    flat = [int(v) for v in frames.ravel()]
    if fmt in ("310", "311"):
        flat += [0] * (-len(flat) % 3)
        words = b""
        for a, b, c in zip(*[iter(v & 0x3FF for v in flat)] * 3):
            if fmt == "311":
                words += (a | b << 10 | c << 20).to_bytes(4, "little")
            else:
                words += (a << 1 | (c & 0x1F) << 11).to_bytes(2, "little")
                words += (b << 1 | c >> 5 << 11).to_bytes(2, "little")
        return words
    if fmt == "212":
        flat += [0] * (len(flat) % 2)
        return b"".join(bytes([a & 0xFF, a >> 8 | b >> 8 << 4, b & 0xFF])
                        for a, b in zip(*[iter(v & 0xFFF for v in flat)] * 2))
    width, order, shift = {"8": (1, "little", 0), "80": (1, "little", 128), "16": (2, "little", 0), "61": (2, "big", 0),
                           "160": (2, "little", 32768)}[fmt]
    return b"".join(((v + shift) % 256**width).to_bytes(width, order) for v in flat)


def rewrite(folder, name, fmt, frames, firsts):
    """A record that wfdb wrote in format 16, in a format that it reads only; firsts: of each lead's values."""
    path = folder / f"{name}.hea"
    lines = path.read_text().replace(f"{name}.dat 16", f"{name}.dat {fmt}").splitlines()
    for k, first in enumerate(firsts):
        fields = lines[1 + k].split(" ")
        lines[1 + k] = " ".join(fields[:5] + [str(first)] + fields[6:])
    path.write_text("\n".join(lines) + "\n")
    (folder / f"{name}.dat").write_bytes(encoded(fmt, frames))


def write_wfdb(folder, name="rec", d_signal=None, fmt="16", leads=("MLII", "V5"), fs=FS, gain=50.0, baseline=3):
    """A WFDB record of whole numbers; returns them and the path of its header."""
    if d_signal is None:
        d_signal = np.round(ecg_mv(leads=len(leads)) * gain + baseline).astype(np.int64)
    k = d_signal.shape[1]
    wfdb.wrsamp(name, fs=fs, units=["mV"] * k, sig_name=list(leads[:k]), adc_gain=[gain] * k, baseline=[baseline] * k,
                fmt=[fmt if fmt in WRITABLE else "16"] * k, d_signal=d_signal, write_dir=str(folder))
    if fmt not in WRITABLE:
        rewrite(folder, name, fmt, d_signal, d_signal[0])
    return d_signal, folder / f"{name}.hea"


def write_edf(path, signal_mv=None, labels=("ECG II", "ECG V5"), fs=FS, units="mV", kind="edf", factor=1.0, extra=(),
              seconds=1.0, **more):
    signal_mv = ecg_mv(4 * N // (4 * FS) * FS) if signal_mv is None else signal_mv
    make, write = {"edf": (edfio().EdfSignal, edfio().Edf), "bdf": (edfio().BdfSignal, edfio().Bdf)}[kind]
    limits = {} if kind == "edf" else {"digital_range": (-8388608, 8388607)}
    signals = [make(signal_mv[:, k] * factor, fs, label=label, physical_dimension=units,
                    physical_range=(-3 * factor, 3 * factor), **limits) for k, label in enumerate(labels)]
    write([*signals, *extra], data_record_duration=seconds, **more).write(path)
    return signal_mv


def write_csv(path, table, head=("MLII", "V5"), delimiter=","):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        if head:
            writer.writerow(head)
        writer.writerows(table)
    return path


def whole(recording, k=0):
    return recording.read(k, 0, recording.n_samples)


def in_blocks(recording, k, size):
    ends = range(0, recording.n_samples, size)
    return np.concatenate([recording.read(k, at, min(at + size, recording.n_samples)) for at in ends])


def refused(path, *words, fs_hz=None):
    """The UserError of opening and reading a file; it must name the file and hold the words."""
    with pytest.raises(UserError) as caught:
        with open_recording(path, fs_hz) as recording:
            for k in range(len(recording.leads)):
                whole(recording, k)
    message = str(caught.value)
    assert Path(path).stem in message and len(message) < 2000
    for word in words:
        assert word in message, message
    return message


# --- samples ------------------------------------------------------------------------------------

@pytest.mark.parametrize("fmt", DAT_FORMATS)
def test_every_wfdb_format_equals_wfdb_and_blocks_equal_the_whole(tmp_path, fmt):
    d_signal, path = write_wfdb(tmp_path, fmt=fmt, leads=("I", "II", "III"), gain=30.0)
    expected = wfdb.rdrecord(str(path)[:-4]).p_signal
    with open_recording(path) as recording:
        assert recording.n_samples == N and recording.leads == ["I", "II", "III"]
        assert recording.fs_hz == FS and isinstance(recording.fs_hz, float)
        for k in range(3):
            np.testing.assert_allclose(whole(recording, k), expected[:, k], rtol=0, atol=1e-12)
            np.testing.assert_allclose(whole(recording, k), (d_signal[:, k] - 3) / 30, rtol=0, atol=1e-12)
        for size in (1, 7, 1000, 4096)[fmt == "8":]:
            np.testing.assert_array_equal(in_blocks(recording, 1, size), whole(recording, 1))
        np.testing.assert_array_equal(recording.read(2, 4001, 4010), whole(recording, 2)[4001:4010])
        np.testing.assert_array_equal(recording.read(2, 17, 40), whole(recording, 2)[17:40])
        assert recording.read(0, 9, 9).shape == (0,)


@pytest.mark.parametrize("fmt", ["508", "516", "524"])
def test_flac_equals_what_was_written(tmp_path, fmt):
    soundfile = pytest.importorskip("soundfile")
    bits = {"508": 8, "516": 16, "524": 24}[fmt]
    d_signal = np.round(ecg_mv() * 50).astype(np.int32)
    subtype = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}[bits]
    soundfile.write(tmp_path / "rec.flac", d_signal << (32 - bits), FS, subtype=subtype, format="FLAC")
    (tmp_path / "rec.hea").write_text(f"rec 2 {FS} {N}\n" + f"rec.flac {fmt} 50(3)/mV 0 0 0 0 0 x\n" * 2)
    with open_recording(tmp_path / "rec.hea") as recording:
        np.testing.assert_allclose(whole(recording, 1), (d_signal[:, 1] - 3) / 50, atol=1e-12)
        np.testing.assert_array_equal(in_blocks(recording, 1, 999), whole(recording, 1))
        expected = wfdb.rdrecord(str(tmp_path / "rec")).p_signal
        np.testing.assert_allclose(whole(recording, 0), expected[:, 0], atol=1e-12)


@pytest.mark.parametrize("fmt,value", [("16", -32768), ("212", -2048), ("80", -128), ("24", -2**23), ("310", -512)])
def test_missing_wfdb_samples_are_nan(tmp_path, fmt, value):
    d_signal = np.round(ecg_mv() * 50).astype(np.int64)
    d_signal[10:13, 0] = value
    _, path = write_wfdb(tmp_path, d_signal=d_signal, fmt=fmt)
    with open_recording(path) as recording:
        assert np.flatnonzero(np.isnan(whole(recording))).tolist() == [10, 11, 12]
        assert np.isfinite(whole(recording, 1)).all()


@pytest.mark.parametrize("gain,calibrated,units,factor", [
    ("200(10)/mV", True, "mV", 1 / 200), ("0.2(10)/uV", True, "mV", 1 / 200), ("0.2(10)/µV", True, "mV", 1 / 200),
    ("200000(10)/V", True, "mV", 1 / 200), ("0(10)", False, "mV", 1 / 200), ("0(10)/mV", False, "mV", 1 / 200),
    ("50(10)/mmHg", False, "mmHg", 1 / 50), ("-200(10)", True, "mV", -1 / 200)])
def test_wfdb_units_gain_and_baseline(tmp_path, gain, calibrated, units, factor):
    d_signal, path = write_wfdb(tmp_path, gain=200.0)
    path.write_text(f"rec 2 {FS} {N} 13:05:07 24/12/2001\n" + f"rec.dat 16 {gain} 16 0 0 0 0 a lead\n" * 2)
    with open_recording(path) as recording:
        assert recording.calibrated == [calibrated] * 2 and recording.units == [units] * 2
        assert recording.leads == ["a lead"] * 2 and recording.start == datetime(2001, 12, 24, 13, 5, 7)
        np.testing.assert_allclose(whole(recording), (d_signal[:, 0] - 10) * factor, atol=1e-12)


def test_wfdb_header_with_nothing_but_the_needful(tmp_path):
    """No length, no gain, no names: the length is the file's, the gain 200 and uncalibrated, the rate 250 Hz."""
    d_signal, path = write_wfdb(tmp_path, fmt="212")
    path.write_text("# note\r\nrec 2\r\nrec.dat 212\r\nrec.dat 212\r\n")
    with open_recording(path) as recording:
        assert recording.n_samples == N and recording.fs_hz == 250 and recording.start is None
        assert recording.leads == ["1", "2"] and recording.calibrated == [False, False]
        np.testing.assert_allclose(whole(recording, 1), d_signal[:, 1] / 200, atol=1e-12)
    path.write_text("rec 2 250\nrec.dat 212 100 12 7\nrec.dat 212 100 12 7\n")
    with open_recording(path) as recording:
        np.testing.assert_allclose(whole(recording, 1), (d_signal[:, 1] - 7) / 100, atol=1e-12)


@pytest.mark.parametrize("fmt", ["16", "8", "212", "310"])
def test_frames_of_several_samples_are_averaged_and_skew_is_undone(tmp_path, fmt):
    """Lead A four samples a frame, lead B one; A is stored 3 frames late."""
    a = np.round(ecg_mv(4 * 1000, 1)[:, 0] * 50).astype(np.int64)
    b = np.round(ecg_mv(1000, 1, seed=1)[:, 0] * 50).astype(np.int64)
    wfdb.wrsamp("rec", fs=FS, units=["mV"] * 2, sig_name=["A", "B"], fmt=["16"] * 2, adc_gain=[50.0] * 2,
                baseline=[0, 0], e_d_signal=[a, b], samps_per_frame=[4, 1], write_dir=str(tmp_path))
    frames = np.column_stack([a.reshape(-1, 4), b])
    if fmt == "8":  # differences run on from sample to sample of a lead, not from frame to frame
        firsts, steps = (a[0], b[0]), [np.diff(lead, prepend=lead[0]) for lead in (a, b)]
        frames = np.cumsum(np.column_stack([steps[0].reshape(-1, 4), steps[1]]), axis=0)
        rewrite(tmp_path, "rec", fmt, frames, firsts)
        raw = np.column_stack([steps[0].reshape(-1, 4), steps[1]]).astype("i1")
        (tmp_path / "rec.dat").write_bytes(raw.tobytes())
    else:
        rewrite(tmp_path, "rec", fmt, frames, (a[0], b[0]))
    with open_recording(tmp_path / "rec.hea") as recording:
        assert recording.n_samples == 1000
        np.testing.assert_allclose(whole(recording), a.reshape(-1, 4).mean(axis=1) / 50, atol=1e-12)
        np.testing.assert_allclose(whole(recording, 1), b / 50, atol=1e-12)
        np.testing.assert_array_equal(in_blocks(recording, 0, 13), whole(recording))
        plain = whole(recording)
    header = (tmp_path / "rec.hea").read_text().replace(f"{fmt}x4", f"{fmt}x4:3")
    (tmp_path / "rec.hea").write_text(header)
    with open_recording(tmp_path / "rec.hea") as recording:
        np.testing.assert_array_equal(whole(recording), np.append(plain[3:], [np.nan] * 3))
        np.testing.assert_array_equal(in_blocks(recording, 0, 13), whole(recording))


def test_a_missing_sample_of_a_frame_is_no_number(tmp_path):
    a = np.arange(400) % 50
    a[8:12] = a[20] = -32768
    wfdb.wrsamp("rec", fs=FS, units=["mV"], sig_name=["A"], fmt=["16"], adc_gain=[1.0], baseline=[0],
                e_d_signal=[a], samps_per_frame=[4], write_dir=str(tmp_path))
    with open_recording(tmp_path / "rec.hea") as recording:
        signal = whole(recording)
    assert np.isnan(signal[2]) and signal[5] == a[21:24].mean() and signal[1] == a[4:8].mean()


@pytest.mark.parametrize("byte_offset", [0, 512])
def test_wfdb_samples_behind_a_preamble(tmp_path, byte_offset):
    d_signal, path = write_wfdb(tmp_path)
    data = tmp_path / "rec.dat"
    data.write_bytes(b"x" * byte_offset + data.read_bytes())
    path.write_text(path.read_text().replace("rec.dat 16 ", f"rec.dat 16+{byte_offset} "))
    with open_recording(path) as recording:
        np.testing.assert_allclose(whole(recording), (d_signal[:, 0] - 3) / 50, atol=1e-12)


def test_leads_of_several_files_in_any_order(tmp_path):
    a, _ = write_wfdb(tmp_path, "a", fmt="212")
    b, _ = write_wfdb(tmp_path, "b", d_signal=a[::-1].copy(), fmt="16")
    (tmp_path / "m.hea").write_text(f"m 3 {FS} {N}\na.dat 212 50(3) 0 0 0 0 0 x\nb.dat 16 50(3) 0 0 0 0 0 y\n"
                                    "a.dat 212 50(3) 0 0 0 0 0 z\n")
    (tmp_path / "b.dat").write_bytes(b[:, 0].astype("<i2").tobytes())
    with open_recording(tmp_path / "m") as recording:
        for k, expected in enumerate((a[:, 0], b[:, 0], a[:, 1])):
            np.testing.assert_allclose(whole(recording, k), (expected - 3) / 50, atol=1e-12)


def write_segments(folder, variable):
    """Master `m` over s1, a gap of 100, s2 (V5 only if variable); returns the expected (n, 2) mV."""
    one, two = ecg_mv(1000), ecg_mv(700, seed=1)
    d1, _ = write_wfdb(folder, "s1", d_signal=np.round(one * 50).astype(int), baseline=0)
    d2, _ = write_wfdb(folder, "s2", d_signal=np.round(two * 80).astype(int)[:, [1] if variable else [0, 1]], gain=80.0,
                       baseline=0, leads=("V5",) if variable else ("MLII", "V5"))
    gap = np.full((100, 2), np.nan)
    second = np.column_stack([np.full(700, np.nan), d2[:, 0] / 80]) if variable else d2 / 80
    lines = ["s1 1000", "~ 100", "s2 700"]
    if variable:
        lines.insert(0, "m_layout 0")
        (folder / "m_layout.hea").write_text(f"m_layout 2 {FS} 0\n~ 0 50/mV 0 0 0 0 0 MLII\n~ 0 50/mV 0 0 0 0 0 V5\n")
    (folder / "m.hea").write_text(f"m/{len(lines)} 2 {FS} 1800 10:00:00 01/02/2003\n" + "\n".join(lines) + "\n")
    return np.vstack([d1 / 50, gap, second])


@pytest.mark.parametrize("variable", [False, True])
def test_multi_segment_record_with_gap_equals_wfdb(tmp_path, variable):
    expected = write_segments(tmp_path, variable)
    with open_recording(tmp_path / "m.hea") as recording:
        assert recording.leads == ["MLII", "V5"] and recording.n_samples == 1800
        assert recording.calibrated == [True, True] and recording.start == datetime(2003, 2, 1, 10)
        for k in range(2):
            np.testing.assert_allclose(whole(recording, k), expected[:, k], atol=1e-12)
            np.testing.assert_array_equal(in_blocks(recording, k, 333), whole(recording, k))
        if variable:
            theirs = wfdb.rdrecord(str(tmp_path / "m")).p_signal
            np.testing.assert_allclose(whole(recording, 1), theirs[:, 1], atol=1e-12)
    assert find_recordings([tmp_path]) == [tmp_path / "m.hea"]
    assert find_recordings([tmp_path / "s1.hea"]) == [tmp_path / "s1.hea"]


@pytest.mark.parametrize("kind,units,factor,tolerance", [
    ("edf", "mV", 1, 1e-4), ("edf", "uV", 1e3, 1e-4), ("edf", "V", 1e-3, 1e-4), ("bdf", "uV", 1e3, 1e-6)])
def test_edf_and_bdf_equal_edfio(tmp_path, kind, units, factor, tolerance):
    path = tmp_path / f"rec.{kind}"
    signal_mv = write_edf(path, units=units, kind=kind, factor=factor, starttime=datetime(1, 1, 1, 5, 6, 7).time())
    theirs = {"edf": edfio().read_edf, "bdf": edfio().read_bdf}[kind](path)
    with open_recording(path) as recording:
        assert recording.leads == ["ECG II", "ECG V5"] and recording.fs_hz == FS
        assert recording.units == ["mV"] * 2 and recording.calibrated == [True] * 2
        assert recording.n_samples == len(signal_mv) and recording.start.hour == 5
        for k in range(2):
            np.testing.assert_allclose(whole(recording, k), signal_mv[:, k], atol=tolerance)
            np.testing.assert_allclose(whole(recording, k), theirs.signals[k].data / factor, atol=1e-9)
        for size in (1, 77, 250, 3000):
            np.testing.assert_array_equal(in_blocks(recording, 1, size), whole(recording, 1))


def test_edf_annotations_and_other_rates_are_no_leads(tmp_path):
    n = 20
    slow = edfio().EdfSignal(np.arange(n * 1.0), 1, label="SpO2", physical_dimension="%")
    pressure = edfio().EdfSignal(np.sin(np.arange(n * FS)), FS, label="ABP", physical_dimension="mmHg")
    signal_mv = write_edf(tmp_path / "rec.edf", extra=[slow, pressure],
                          annotations=[edfio().EdfAnnotation(1, None, "x")])
    with open_recording(tmp_path / "rec.edf") as recording:
        assert recording.leads == ["ECG II", "ECG V5", "ABP"]
        assert recording.units[2] == "mmHg" and recording.calibrated == [True, True, False]
        np.testing.assert_allclose(whole(recording, 1), signal_mv[:, 1], atol=1e-4)
        np.testing.assert_allclose(whole(recording, 2), np.sin(np.arange(n * FS)), atol=1e-4)


def test_edf_rate_is_that_of_the_ecg_not_of_the_first_signal(tmp_path):
    eeg = edfio().EdfSignal(np.sin(np.arange(20 * 500)), 500, label="EEG C3", physical_dimension="uV")
    ecg = edfio().EdfSignal(ecg_mv(20 * FS)[:, 0], FS, label="EKG", physical_dimension="mV")
    edfio().Edf([eeg, ecg], data_record_duration=1).write(tmp_path / "rec.edf")
    with open_recording(tmp_path / "rec.edf") as recording:
        assert recording.leads == ["EKG"] and recording.fs_hz == FS


def test_edf_in_one_long_record_and_without_a_count(tmp_path):
    signal_mv = write_edf(tmp_path / "rec.edf", seconds=20)
    data = bytearray((tmp_path / "rec.edf").read_bytes())
    data[236:244] = b"-1      "
    (tmp_path / "rec.edf").write_bytes(data)
    with open_recording(tmp_path / "rec.edf") as recording:
        np.testing.assert_allclose(recording.read(1, 123, 4567), signal_mv[123:4567, 1], atol=1e-4)


@pytest.mark.parametrize("suffix,delimiter", [("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t"), ("csv", " ")])
@pytest.mark.parametrize("head", [("MLII", "V5"), None])
def test_csv(tmp_path, suffix, delimiter, head):
    signal = ecg_mv()
    path = write_csv(tmp_path / f"rec.{suffix}", signal, head, delimiter)
    with open_recording(path, FS) as recording:
        assert recording.leads == list(head or ("1", "2")) and recording.n_samples == N
        assert recording.units == ["", ""] and recording.calibrated == [False, False] and recording.fs_hz == FS
        np.testing.assert_allclose(whole(recording, 1), signal[:, 1], rtol=1e-12)
        np.testing.assert_array_equal(in_blocks(recording, 0, 999), whole(recording))


def test_csv_across_parsed_blocks(tmp_path, monkeypatch):
    """Blocks of few rows; lines end in \\r\\n, \\n or \\r."""
    path = write_csv(tmp_path / "rec.csv", ecg_mv(500))
    text = path.read_bytes()
    with open_recording(path, FS) as recording:
        expected = whole(recording, 1)
    for size, end in ((2, b"\r\n"), (3, b"\n"), (998, b"\r")):
        path.write_bytes(text.replace(b"\r\n", end))
        monkeypatch.setattr(reader_table, "BLOCK_CELLS", size)
        with open_recording(path, FS) as recording:
            np.testing.assert_array_equal(whole(recording, 1), expected)


def test_csv_missing_quoted_units_and_comments(tmp_path):
    path = tmp_path / "rec.csv"
    path.write_bytes(b"\xef\xbb\xbf# made by hand\r\n\r\n'sample #','MLII (uV)','V5 [V]',\"note\"\r\n"
                     b"0,1000,0.001,1\r\n1,,-0.002,nan\r\n2,\"3e3\", -,3\r\n")
    with open_recording(path, FS) as recording:
        assert recording.leads == ["MLII", "V5", "note"] and recording.calibrated == [True, True, False]
        assert recording.units == ["mV", "mV", ""]
        np.testing.assert_allclose(whole(recording, 0), [1, np.nan, 3], rtol=1e-6)
        np.testing.assert_allclose(whole(recording, 1), [1, -2, np.nan], rtol=1e-6)
        np.testing.assert_allclose(whole(recording, 2), [1, np.nan, 3], rtol=1e-6)


def test_csv_of_one_lead_with_a_blank_in_its_name_and_of_a_frame(tmp_path):
    (tmp_path / "a.csv").write_text("ECG I\n0.5\n0.25\n")
    with open_recording(tmp_path / "a.csv", FS) as recording:
        assert recording.leads == ["ECG I"] and whole(recording).tolist() == [0.5, 0.25]
    (tmp_path / "b.csv").write_text(",0\n0,0.5\n1,0.25\n2,0.75\n")
    with open_recording(tmp_path / "b.csv", FS) as recording:
        assert recording.leads == ["0"] and whole(recording).tolist() == [0.5, 0.25, 0.75]


@pytest.mark.parametrize("name,digits,unit", [("time", 3, 1), ("t", 9, 1), ("Seconds", 4, 1), ("time (ms)", 1, 1e3)])
def test_csv_time_column_gives_the_rate(tmp_path, name, digits, unit):
    t = np.round(np.arange(N) / 360 * unit, digits)
    path = write_csv(tmp_path / "rec.csv", np.column_stack([t, ecg_mv()]), (name, "MLII", "V5"))
    for fs_hz in (None, 360, 360.1):
        with open_recording(path, fs_hz) as recording:
            assert recording.fs_hz == 360 and recording.leads == ["MLII", "V5"]
    refused(path, "--fs", "360", "250", fs_hz=250)


def test_csv_time_column_with_a_gap_gives_no_rate(tmp_path):
    t = np.arange(N) / FS
    t[3000:] += 1 / FS
    path = write_csv(tmp_path / "rec.csv", np.column_stack([t, ecg_mv()]), ("time", "MLII", "V5"))
    refused(path, "evenly", "--fs")
    with open_recording(path, FS) as recording:
        assert recording.leads == ["MLII", "V5"]
    t = np.concatenate([np.arange(3000) / 250, 12 + np.arange(N - 3000) / 300])
    refused(write_csv(tmp_path / "rec2.csv", np.column_stack([t, ecg_mv()]), ("time", "MLII", "V5")), "evenly")


def test_csv_time_column_in_an_unnamed_unit_wants_fs(tmp_path):
    path = write_csv(tmp_path / "rec.csv", np.column_stack([np.arange(N) * 4, ecg_mv()]), ("time", "MLII", "V5"))
    refused(path, "--fs", "0.25 Hz")
    with open_recording(path, 250) as recording:
        assert recording.fs_hz == 250


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<i2", "u1", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_and_npz(tmp_path, dtype, order):
    signal = np.asarray(np.abs(ecg_mv()) * 50, dtype, order=order)
    np.save(tmp_path / "rec.npy", signal)
    np.savez(tmp_path / "plain.npz", signal)
    np.savez_compressed(tmp_path / "named.npz", ecg=signal, other=np.arange(3))
    for name in ("rec.npy", "plain.npz", "named.npz"):
        with open_recording(tmp_path / name, FS) as recording:
            assert recording.leads == ["1", "2"] and recording.units == ["", ""] and recording.n_samples == N
            assert whole(recording).dtype == np.float64
            np.testing.assert_array_equal(whole(recording, 1), signal[:, 1])
            np.testing.assert_array_equal(recording.read(0, 100, 200), signal[100:200, 0])
    np.save(tmp_path / "one.npy", signal[:, 0])
    with open_recording(tmp_path / "one.npy", FS) as recording:
        np.testing.assert_array_equal(whole(recording), signal[:, 0])


def test_infinite_samples_are_missing(tmp_path):
    np.save(tmp_path / "rec.npy", np.array([1, np.inf, np.nan, -np.inf, 2]))
    with open_recording(tmp_path / "rec.npy", FS) as recording:
        np.testing.assert_array_equal(whole(recording), [1, np.nan, np.nan, np.nan, 2])


def test_the_same_signal_in_every_container(tmp_path):
    signal = np.round(ecg_mv(20 * FS), 3)
    write_wfdb(tmp_path, "a", d_signal=np.round(signal * 1000).astype(int), gain=1000.0, baseline=0)
    write_edf(tmp_path / "b.edf", signal)
    write_edf(tmp_path / "c.bdf", signal, kind="bdf")
    write_csv(tmp_path / "d.csv", signal)
    np.save(tmp_path / "e.npy", signal)
    np.savez(tmp_path / "f.npz", signal=signal)
    found = find_recordings([tmp_path])
    assert [path.name for path in found] == ["a.hea", "b.edf", "c.bdf", "d.csv", "e.npy", "f.npz"]
    for path in found:
        with open_recording(path, FS) as recording:
            for k in range(2):
                np.testing.assert_allclose(whole(recording, k), signal[:, k], atol=1e-4)


def test_real_records_equal_wfdb(mitdb):
    for name in ("100", "102", "114"):
        expected = wfdb.rdrecord(str(mitdb / name))
        with open_recording(mitdb / name) as recording:
            assert recording.leads == expected.sig_name and recording.fs_hz == 360
            for k in range(2):
                np.testing.assert_allclose(whole(recording, k), expected.p_signal[:, k], atol=1e-12)
            np.testing.assert_allclose(recording.read(1, 123_457, 200_000), expected.p_signal[123_457:200_000, 1],
                                       atol=1e-12)
    assert len(find_recordings([mitdb])) == 48


# --- the object ---------------------------------------------------------------------------------

def test_lead_index(tmp_path):
    _, path = write_wfdb(tmp_path, leads=("MLII", "2", "v5"))
    with open_recording(path) as recording:
        assert [lead_index(recording, w) for w in ("mlii", "MLII", "1", 1, "2", "3", "V5")] == [0, 0, 0, 0, 1, 2, 2]
        for wanted in ("V1", "0", "4", "-1", "", "²", "9" * 5000):
            with pytest.raises(UserError, match="1: MLII, 2: 2, 3: v5"):
                lead_index(recording, wanted)


@pytest.mark.parametrize("start,stop", [(-1, 5), (5, 4), (0, N + 1)])
def test_read_outside_the_recording(tmp_path, start, stop):
    _, path = write_wfdb(tmp_path)
    with open_recording(path) as recording:
        with pytest.raises(ValueError):
            recording.read(0, start, stop)
        with pytest.raises(ValueError):
            recording.read(2, 0, 1)
    with pytest.raises(ValueError, match="closed"):
        recording.read(0, 0, 1)


def test_another_process_reads_the_same(tmp_path):
    path = write_csv(tmp_path / "rec.csv", ecg_mv(500))
    with open_recording(path, FS) as recording:
        (tmp_path / "pickle").write_bytes(pickle.dumps(recording))
        code = ("import pickle; r = pickle.load(open('pickle', 'rb')); "
                "print(r.fs_hz, r.leads, r.read(1, 100, 200).sum())")
        shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True,
                               env={**os.environ, "PYTHONPATH": str(settings.ROOT)})
        assert shown.stdout.split() == f"250.0 ['MLII', 'V5'] {recording.read(1, 100, 200).sum()}".split(), shown.stderr


@pytest.mark.parametrize("name", ["rec.csv", "rec.npz"])
def test_temporary_files_are_gone(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_csv(tmp_path / "rec.csv", ecg_mv())
    np.savez(tmp_path / "rec.npz", ecg_mv())
    mapped = lambda: Path("/proc/self/maps").read_text().count(str(tmp_path / "tmp"))
    recording = open_recording(tmp_path / name, FS)
    if Path("/proc/self/maps").exists():
        assert mapped() == 1
        recording.close()
        assert mapped() == 0
        recording = open_recording(tmp_path / name, FS)
        del recording
        gc.collect()
        assert mapped() == 0
    assert not list((tmp_path / "tmp").iterdir())


def peak_bytes(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def sparse(path, size):
    with open(path, "ab") as file:
        file.truncate(size)


def test_memory_depends_on_the_stretch_not_on_the_recording(tmp_path):
    """Sparse files of 12 GB and more; the stretch of 100,000 samples has 0.8 MB."""
    n = 10**9
    (tmp_path / "a.hea").write_text(f"a 8 {FS} {n}\n" + "a.dat 212 200 0 0 0 0 0 x\n" * 8)
    sparse(tmp_path / "a.dat", 12 * n)
    write_edf(tmp_path / "b.edf")
    write_edf(tmp_path / "c.bdf", kind="bdf")
    for name, width in (("b.edf", 2), ("c.bdf", 3)):
        data = bytearray((tmp_path / name).read_bytes())
        data[236:244] = b"9000000 "
        (tmp_path / name).write_bytes(data)
        sparse(tmp_path / name, 768 + 9_000_000 * 2 * FS * width)
    np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float64, (n, 2))
    for name in ("a.hea", "b.edf", "c.bdf", "d.npy"):
        def read():
            with open_recording(tmp_path / name, FS) as recording:
                assert recording.n_samples >= n
                assert len(recording.read(1, n - 100_001, n - 1)) == 100_000
        assert peak_bytes(read) < 20e6, name


def test_csv_is_parsed_in_bounded_memory(tmp_path):
    line = b"".join(b"%d.125,-0.5\n" % k for k in range(1000))
    (tmp_path / "rec.csv").write_bytes(line * 1000)  # 12 MB, 1,000,000 rows

    def read():
        with open_recording(tmp_path / "rec.csv", FS) as recording:
            assert recording.n_samples == 10**6
            assert recording.read(0, 999_998, 10**6).tolist() == [998.125, 999.125]
    assert peak_bytes(read) < 30e6


# --- finding ------------------------------------------------------------------------------------

def test_find_in_folders_files_patterns_and_record_names(tmp_path, monkeypatch):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for folder, name in ((tmp_path, "b"), (tmp_path / "sub", "a"), (tmp_path / ".hidden", "h")):
        write_wfdb(folder, name)
        (folder / f"{name}.atr").touch()
    for path in (tmp_path / "c.CSV", tmp_path / "sub" / "deep" / "d.edf", tmp_path / "[1].npy", tmp_path / "note.txt"):
        path.write_text("x")
    (tmp_path / "x.hea").mkdir()
    everything = [tmp_path / p for p in ("[1].npy", "b.hea", "c.CSV", "sub/a.hea", "sub/deep/d.edf")]
    assert find_recordings([tmp_path]) == everything
    assert find_recordings([tmp_path, str(tmp_path / "sub"), tmp_path / "b"]) == everything, "each once"
    assert find_recordings([tmp_path / "sub", tmp_path])[:2] == everything[3:], "in the order of the arguments"
    for one in ("b", "b.hea", "b.dat", "b.atr", "b.*", "b.d?t"):
        assert find_recordings([str(tmp_path / one)]) == [tmp_path / "b.hea"], one
    assert find_recordings([str(tmp_path / "**" / "*.edf")]) == [everything[4]]
    assert find_recordings([str(tmp_path / "s*")]) == everything[3:]
    assert find_recordings([tmp_path / "[1].npy"]) == [tmp_path / "[1].npy"]
    monkeypatch.chdir(tmp_path)
    assert find_recordings(["sub/a"]) == [Path("sub/a.hea")]
    for none in ("nothing", "*.xyz", "x.hea", "note.txt", "", "a\0b", "x" * 5000):
        with pytest.raises(UserError) as caught:
            find_recordings([none])
        assert "Give" in str(caught.value) or "Name" in str(caught.value) or "Convert" in str(caught.value)


def test_find_does_not_follow_links_out(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    np.save(outside / "secret.npy", ecg_mv())
    np.save(inside / "own.npy", ecg_mv())
    (inside / "file.npy").symlink_to(outside / "secret.npy")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (inside / "loop.npy").symlink_to("loop.npy")
    (inside / "twin.npy").symlink_to("own.npy")
    assert len(find_recordings([inside])) == 1, "the link within is the same recording"
    assert find_recordings([str(inside / "f*.npy"), inside / "own.npy"] [1:]) == [inside / "own.npy"]
    with pytest.raises(UserError):
        find_recordings([str(inside / "f*.npy")])
    with pytest.raises(UserError):
        find_recordings([str(inside / "fold*")])
    assert find_recordings([inside / "file.npy"]) == [inside / "file.npy"], "named by the user"


# --- hostile files ------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["../out/rec.dat", "/etc/passwd", "..", ".", "link.dat", "linked/rec.dat", "loop.dat",
                                  "a\\b", "x" * 400, "folder", "-", "nothing.dat", "fifo"])
def test_header_naming_a_file_elsewhere(tmp_path, name):
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    write_wfdb(outside)
    write_wfdb(folder)
    (folder / "link.dat").symlink_to(outside / "rec.dat")
    (folder / "linked").symlink_to(outside)
    (folder / "loop.dat").symlink_to("loop.dat")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    path = folder / "rec.hea"
    path.write_text(path.read_text().replace("rec.dat", name))
    refused(path, repr(name)[1:100])
    path.write_text(f"rec/1 2 {FS} 100\n{name} 100\n")
    refused(path)


def test_link_within_the_folder_is_fine(tmp_path):
    d_signal, path = write_wfdb(tmp_path)
    (tmp_path / "rec.dat").rename(tmp_path / "other.bin")
    (tmp_path / "rec.dat").symlink_to("other.bin")
    with open_recording(path) as recording:
        np.testing.assert_allclose(whole(recording), (d_signal[:, 0] - 3) / 50, atol=1e-12)


HEADERS = {
    "huge": (f"rec 2 {FS} 25000000000\nrec.dat 16 50\nrec.dat 16 50\n", "promises"),
    "one too many": (f"rec 2 {FS} {N + 1}\nrec.dat 16 50\nrec.dat 16 50\n", "promises"),
    "offset": (f"rec 2 {FS} {N}\nrec.dat 16+2 50\nrec.dat 16+2 50\n", "promises"),
    "offset beyond": (f"rec 2 {FS}\nrec.dat 16+999999999999 50\nrec.dat 16+999999999999 50\n", "0 samples"),
    "two offsets": (f"rec 2 {FS} 100\nrec.dat 16+2 50\nrec.dat 16 50\n", "one of each"),
    "frame": (f"rec 2 {FS} 10\nrec.dat 16x999999 50\nrec.dat 16x999999 50\n", "a frame"),
    "no leads": (f"rec 0 {FS} 100\n", "0 leads"),
    "fewer lines": (f"rec 3 {FS} 100\nrec.dat 16 50\nrec.dat 16 50\n", "promised"),
    "many leads": (f"rec 999999999 {FS} 100\nrec.dat 16 50\n", "promised"),
    "nan rate": ("rec 1 nan 100\nrec.dat 16 50\n", "record line"),
    "slow": ("rec 1 99 100\nrec.dat 16 50\n", "99 Hz"),
    "fast": ("rec 1 2001 100\nrec.dat 16 50\n", "2001 Hz"),
    "zero rate": ("rec 1 0 100\nrec.dat 16 50\n", "0 Hz"),
    "infinite rate": ("rec 1 1e999 100\nrec.dat 16 50\n", "inf Hz"),
    "negative rate": ("rec 1 -360 100\nrec.dat 16 50\n", "-360 Hz"),
    "nan gain": (f"rec 1 {FS} 100\nrec.dat 16 nan 12 0\n", "signal line"),
    "infinite gain": (f"rec 1 {FS} 100\nrec.dat 16 1e999 12 0\n", "gain"),
    "format": (f"rec 1 {FS} 100\nrec.dat 17 50\n", "format 17"),
    "no flac": (f"rec 1 {FS} 100\nrec.dat 516 50\n", "FLAC"),
    "empty": ("", "empty"),
    "comment": ("# nothing\n", "record line"),
    "layout": (f"rec 1 {FS} 0\n~ 0 200\n", "layout"),
    "own segment": (f"rec/1 2 {FS} 100\nrec 100\n", "segments of its own"),
    "no segments": (f"rec/0 2 {FS} 100\n", "without segments"),
    "long segment": (f"rec/1 2 {FS} 999999999999\nok 999999999999\n", "promises"),
    "sum": (f"rec/1 2 {FS} 200\nok 100\n", "together"),
    "other rate": ("rec/1 2 500 100\nok 100\n", "500"),
    "only a gap": (f"rec/1 2 {FS} 100\n~ 100\n", "promises 2"),
    "segment garbage": (f"rec/1 2 {FS} 100\nok\n", "segment line"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_wfdb_header(tmp_path, case):
    text, word = HEADERS[case]
    _, path = write_wfdb(tmp_path)
    write_wfdb(tmp_path, "ok")
    path.write_text(text)
    assert peak_bytes(lambda: refused(path, word)) < 20e6


def test_wfdb_skew_beyond_the_end_is_missing_not_memory(tmp_path):
    _, path = write_wfdb(tmp_path)
    path.write_text(f"rec 2 {FS} {N}\nrec.dat 16:999999999999 50\nrec.dat 16 50\n")

    def read():
        with open_recording(path) as recording:
            assert np.isnan(whole(recording)).all()
    assert peak_bytes(read) < 20e6


def test_truncated_and_empty_files(tmp_path):
    _, path = write_wfdb(tmp_path)
    data = tmp_path / "rec.dat"
    data.write_bytes(data.read_bytes()[:-1])
    refused(path, "promises")
    data.write_bytes(b"")
    refused(path, "promises")
    write_edf(tmp_path / "e.edf")
    raw = (tmp_path / "e.edf").read_bytes()
    for size in (len(raw) - 1, 768, 767, 300, 255, 8):
        (tmp_path / "e.edf").write_bytes(raw[:size])
        refused(tmp_path / "e.edf")
    np.save(tmp_path / "n.npy", ecg_mv())
    raw = (tmp_path / "n.npy").read_bytes()
    for size in (len(raw) - 1, 128, 50, 7, 1):
        (tmp_path / "n.npy").write_bytes(raw[:size])
        refused(tmp_path / "n.npy", "numpy.save", fs_hz=FS)
    for suffix in reader.SUFFIXES:
        (tmp_path / f"empty{suffix}").touch()
        refused(tmp_path / f"empty{suffix}", "empty", fs_hz=FS)
        (tmp_path / f"dir{suffix}").mkdir()
        refused(tmp_path / f"dir{suffix}", "folder", fs_hz=FS)
        refused(tmp_path / f"missing{suffix}", "missing", fs_hz=FS)
    os.mkfifo(tmp_path / "fifo.csv")
    refused(tmp_path / "fifo.csv", "no regular file", fs_hz=FS)
    (tmp_path / "note.txt").write_text("x")
    refused(tmp_path / "note.txt", ".edf")


def test_a_file_that_shrinks_after_opening(tmp_path):
    write_wfdb(tmp_path)
    write_edf(tmp_path / "e.edf")
    np.save(tmp_path / "n.npy", ecg_mv())
    for name, data in (("rec.hea", "rec.dat"), ("e.edf", "e.edf"), ("n.npy", "n.npy")):
        with open_recording(tmp_path / name, FS) as recording:
            os.truncate(tmp_path / data, 900)
            with pytest.raises(UserError, match="shorter"):
                whole(recording)
            (tmp_path / data).unlink()
            with pytest.raises(UserError):
                whole(recording)


def changed_edf(path, at, text):
    write_edf(path)
    data = bytearray(path.read_bytes())
    data[at:at + len(text)] = text
    path.write_bytes(data)


@pytest.mark.parametrize("at,text,word", [
    (192, b"EDF+D", "discontinuous"), (236, b"99999999", "cut short"), (236, b"-7      ", "-7"), (236, b"x", "x"),
    (244, b"nan     ", "nan s"), (244, b"0       ", "0 s"), (244, b"-1      ", "-1 s"), (244, b"10      ", "Hz"),
    (252, b"0   ", "signals"), (252, b"9999", "signals"), (184, b"512     ", "header"), (0, b"1", "begin"),
    (236, b"0       ", "cut short"), (256 + 2 * 216, b"0       0       ", "0 samples"),
    (256 + 2 * 216, b"-5      ", "-5 to")])
def test_hostile_edf(tmp_path, at, text, word):
    changed_edf(tmp_path / "rec.edf", at, text)
    refused(tmp_path / "rec.edf", word)


def test_edf_without_a_range_gives_its_own_numbers(tmp_path):
    changed_edf(tmp_path / "rec.edf", 256 + 2 * 104, b"3       ")  # physical minimum = maximum
    with open_recording(tmp_path / "rec.edf") as recording:
        assert recording.calibrated == [False, True] and recording.units == ["", "mV"]
        np.testing.assert_array_equal(whole(recording), edfio().read_edf(tmp_path / "rec.edf").signals[0].digital)


@pytest.mark.parametrize("text,words", [
    ("a,b\n1,2\n3,x\n", ("row 3, column 2", "'x'")), ("1,2\n3,4\n5,6,7\n", ("row 3", "3 columns")),
    ("1,2\n3\n", ("row 2", "1 columns")), ("1;2\n1,5;2\n", ("row 2", "'1,5'")), ("a,b\n", ("no samples",)),
    ("\n\n", ("no samples",)), ("1,2\n3,0x10\n", ("row 2", "'0x10'")), ("1,2\n3,1_0\n", ("row 2", "'1_0'")),
    ("1,2\n3,4,\n5\n", ("row 2", "3 columns")), ("1 2\n3 4\n3 4 5\n5 6\n", ("row 2", "no number")),
    ("1 2\n3 x\n", ("row 2", "'x'")), ("1\n" + "2" * 300_000, ("line",)), ("1," * 2000 + "1\n", ("2,001 columns",)),
    ("a\0b\n", ("NUL",)), ("time\n1\n", ("--fs",)), ("1,2\n3,True\n", ("row 2", "'True'"))])
def test_hostile_csv(tmp_path, text, words):
    (tmp_path / "rec.csv").write_text(text)
    refused(tmp_path / "rec.csv", *words, fs_hz=None if words == ("--fs",) else FS)


def test_csv_of_one_endless_line_takes_no_memory(tmp_path):
    (tmp_path / "rec.csv").write_bytes(b"1")
    with open(tmp_path / "rec.csv", "wb") as file:
        for _ in range(40):
            file.write(b"1," * 2**20)
    assert peak_bytes(lambda: refused(tmp_path / "rec.csv", "line", fs_hz=FS)) < 30e6


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_hostile_numpy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("evil.npy", np.array([Evil()], object), allow_pickle=True)
    np.savez("evil.npz", np.array([Evil()], object))
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.npy", "evil.npz", "raw.npy"):
        refused(tmp_path / name, "pickle", fs_hz=FS)
    assert not Path("pwned").exists()
    bad = {"text": np.array(["a"]), "complex": np.zeros(5, complex), "flag": np.zeros(5, bool),
           "cube": np.zeros((5, 2, 2)), "scalar": np.array(1.0), "flat": np.zeros((2, 500)),
           "none": np.zeros((0, 2)), "wide": np.zeros((2000, 2000), "i1")}
    for name, array in bad.items():
        np.save(f"{name}.npy", array)
        refused(tmp_path / f"{name}.npy", fs_hz=FS)
        np.savez(f"{name}.npz", array)
        refused(tmp_path / f"{name}.npz", fs_hz=FS)
    np.savez("two.npz", a=np.arange(5), b=np.arange(5))
    refused(tmp_path / "two.npz", "2 arrays", "signal", fs_hz=FS)
    np.savez("rec.npz", x=ecg_mv())
    np.save("rec.npy", ecg_mv())
    for name in ("rec.npy", "rec.npz"):
        refused(tmp_path / name, "--fs")
        refused(tmp_path / name, "99 Hz", fs_hz=99)


def test_npy_that_claims_more_than_it_has(tmp_path):
    def write(claim):
        head = b"{'descr': '<f8', 'fortran_order': False, 'shape': " + claim
        (tmp_path / "rec.npy").write_bytes(b"\x93NUMPY\x01\0\x76\0" + head.ljust(117) + b"\n" + bytes(8000))
    write(b"(1000,)}")
    assert survives(tmp_path / "rec.npy", FS)
    for claim in (b"(1001,)}", b"(99999999999999,)}", b"(-5,)}", b"(99999999999, 2)}", b"(1e3,)}", b"(True,)}", b"x}",
                  b"}", b"(((((((", b"'", b"(1000,), 'shape': 5}", b"(" + b"9" * 60 + b",)}"):
        write(claim)
        assert peak_bytes(lambda: refused(tmp_path / "rec.npy", "numpy.save", fs_hz=FS)) < 20e6
        with zipfile.ZipFile(tmp_path / "rec.npz", "w") as archive:
            archive.write(tmp_path / "rec.npy", "signal.npy")
        assert peak_bytes(lambda: refused(tmp_path / "rec.npz", "numpy.save", fs_hz=FS)) < 20e6


def test_a_full_temporary_folder_is_said(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(reader_table.tempfile, "TemporaryFile", full)
    refused(write_csv(tmp_path / "rec.csv", ecg_mv()), "No space", "TMPDIR", fs_hz=FS)


@pytest.mark.parametrize("fs_hz", [0, -250, 99, 2001, float("nan"), float("inf"), "x"])
def test_rate_that_cannot_be(tmp_path, fs_hz):
    with pytest.raises(UserError, match="--fs.*expected 100 to 2,000 Hz"):
        open_recording(write_csv(tmp_path / "rec.csv", ecg_mv(10)), fs_hz)


def test_rate_that_contradicts_the_file(tmp_path):
    _, path = write_wfdb(tmp_path)
    write_edf(tmp_path / "rec.edf")
    for path in (path, tmp_path / "rec.edf"):
        refused(path, "250", "360", "Leave --fs out", fs_hz=360)
        with open_recording(path, 250) as recording:
            assert recording.fs_hz == 250


# --- fuzz ---------------------------------------------------------------------------------------

def mutated(raw, rng, header):
    """raw with a few bytes of its header changed, cut, doubled, or replaced by tokens that parsers stumble over."""
    data = bytearray(raw)
    tokens = [b"-1", b"nan", b"1e999", b"99999999999", b"0", b"..", b"/", b"~", b"\0", b"\xff", b"\n", b" ", b"(",
              b"x3", b":9", b"+7", b"8", b"212", b"/2", "٣".encode(), b"#"]
    for _ in range(rng.integers(1, 6)):
        at, kind = int(rng.integers(0, max(1, min(header, len(data))))), rng.integers(0, 5)
        token = tokens[rng.integers(len(tokens))]
        if kind == 0:
            data[at:at + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            data[at:at + len(token)] = token
        elif kind == 2:
            data[at:at] = token
        elif kind == 3:
            del data[at:at + int(rng.integers(1, 40))]
        else:
            data[at:at] = data[at:at + int(rng.integers(1, 80))]
    return bytes(data)


def survives(path, fs_hz=None):
    """Whether the file was read; anything but a UserError escapes."""
    try:
        with open_recording(path, fs_hz) as recording:
            assert 100 <= recording.fs_hz <= 2000 and len(recording.leads) == len(recording.units)
            n = recording.n_samples
            for k in range(min(len(recording.leads), 4)):
                for start, stop in ((0, min(n, 500)), (max(0, n - 500), n), (n // 2, min(n, n // 2 + 77))):
                    assert recording.read(k, start, stop).shape == (stop - start,)
            lead_index(recording, 1)
        return True
    except UserError as error:
        assert len(str(error)) < 5000
        return False


def fuzz(path, rounds, header, fs_hz=None, opened=None):
    """Mutate the file at path, open it (or `opened`, which needs it), put it back."""
    raw, rng, read = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(rounds):
        path.write_bytes(mutated(raw, rng, header))
        read += survives(opened or path, fs_hz)
    path.write_bytes(raw)
    assert survives(opened or path, fs_hz) and read < rounds
    assert read or path.suffix == ".npz", "both outcomes are met; a zip knows by its checksum"


def test_fuzzed_wfdb_headers(tmp_path):
    _, path = write_wfdb(tmp_path, fmt="212")
    fuzz(path, 300, 10**6)
    write_segments(tmp_path, True)
    for name in ("m.hea", "m_layout.hea", "s2.hea"):
        fuzz(tmp_path / name, 100, 10**6, opened=tmp_path / "m.hea")
    rng = np.random.default_rng(0)
    for _ in range(100):
        path.write_bytes(rng.bytes(int(rng.integers(1, 500))))
        assert not survives(path)


@pytest.mark.parametrize("kind", ["edf", "bdf"])
def test_fuzzed_edf(tmp_path, kind):
    path = tmp_path / f"rec.{kind}"
    write_edf(path, ecg_mv(4 * FS), kind=kind, annotations=[edfio().EdfAnnotation(1, None, "x")])
    fuzz(path, 100, 1024)


def test_fuzzed_flac(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "rec.flac", np.round(ecg_mv(1000) * 50).astype(np.int16), FS, "PCM_16", format="FLAC")
    raw, rng = (tmp_path / "rec.flac").read_bytes(), np.random.default_rng(2)
    for length in ("", " 1000"):
        (tmp_path / "rec.hea").write_text(f"rec 2 {FS}{length}\n" + "rec.flac 516 50\n" * 2)
        for _ in range(40):
            (tmp_path / "rec.flac").write_bytes(mutated(raw, rng, 200))
            survives(tmp_path / "rec.hea")


@pytest.mark.parametrize("name", ["rec.csv", "rec.npy", "rec.npz"])
def test_fuzzed_tables_and_arrays(tmp_path, name):
    path = tmp_path / name
    if name == "rec.csv":
        write_csv(path, np.column_stack([np.arange(60) / FS, ecg_mv(60)]), ("time", "MLII", "V5"))
    else:
        {"rec.npy": np.save, "rec.npz": np.savez_compressed}[name](path, ecg_mv(60))
    fuzz(path, 150, 128 if name == "rec.npy" else 10**6, None if name == "rec.csv" else FS)
