"""EDF and BDF; what is true of every format; the Recording, and how recordings are found."""

import os
from datetime import datetime, time
from pathlib import Path

import edfio
import numpy as np
import pytest
from conftest import ecg_mv, fuzz, leads_of, peak_bytes, refused

from pipeline.errors import UserError
from recording.reader import READERS, find_recordings, lead_index, open_recording

FS = 250


def write_edf(path, signal=None, units="mV", factor=1.0, seconds=1.0, **more):
    """An EDF or BDF file of two leads by edfio; returns their (n, 2) mV."""
    signal = ecg_mv(20 * FS) if signal is None else signal
    bdf = path.suffix == ".bdf"
    digital = {"digital_range": (-2**23, 2**23 - 1)} if bdf else {}
    make = edfio.BdfSignal if bdf else edfio.EdfSignal
    signals = [make(signal[:, k] * factor, FS, label=label, physical_dimension=units,
                    physical_range=(-3 * factor, 3 * factor), **digital)
               for k, label in enumerate(("ECG II", "ECG V5"))]
    file = edfio.Bdf if bdf else edfio.Edf
    file(signals, data_record_duration=seconds, **more).write(path)
    return signal


def change(path, *changes):
    """Overwrite (position, bytes) of a file."""
    data = bytearray(path.read_bytes())
    for at, new in changes:
        data[at:at + len(new)] = new
    path.write_bytes(data)


# --- EDF and BDF --------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["rec.edf", "rec.bdf"])
@pytest.mark.parametrize("units,factor", [("uV", 1e3), ("V", 1e-3)])
def test_edf_and_bdf_equal_edfio(tmp_path, name, units, factor):
    path = tmp_path / name
    write_edf(path, units=units, factor=factor, starttime=time(5, 6, 7))
    theirs = (edfio.read_bdf if name == "rec.bdf" else edfio.read_edf)(path).signals
    with open_recording(path) as recording:
        assert recording.leads == ["ECG II", "ECG V5"] and recording.fs_hz == FS
        assert recording.units == ["mV"] * 2 and recording.calibrated == [True] * 2
        assert recording.start == datetime(1985, 1, 1, 5, 6, 7)
    for block in (None, 77, 250):
        read = leads_of(path, block=block) * factor
        np.testing.assert_allclose(read, np.column_stack([s.data for s in theirs]), atol=1e-9)


def test_edf_leads_are_the_signals_with_the_rate_of_the_first_ecg(tmp_path):
    path = tmp_path / "rec.edf"
    wave = np.sin(np.arange(20 * FS))
    signals = [edfio.EdfSignal(samples, len(samples) / 20, label=label, physical_dimension=units)
               for samples, label, units in (
                   (np.tile(wave, 2), "EEG C3", "uV"), (wave, "ABP", "mmHg"), (wave, "EKG", "mV"),
                   (wave[:20], "SpO2", "%"))]
    edfio.Edf(signals, annotations=[]).write(path)
    with open_recording(path) as recording:
        assert recording.leads == ["ABP", "EKG"] and recording.fs_hz == FS
        assert recording.units == ["mmHg", "mV"] and recording.calibrated == [False, True]
    np.testing.assert_allclose(leads_of(path), np.column_stack([wave] * 2), atol=1e-4)


def test_edf_of_one_long_record_without_a_count_or_a_range(tmp_path):
    path = tmp_path / "rec.edf"
    signal = write_edf(path, seconds=20)
    theirs = edfio.read_edf(path).signals[0].digital
    change(path, (236, b"-1      "), (256 + 2 * 104, b"3       "))  # minimum = maximum
    with open_recording(path) as recording:
        assert recording.calibrated == [False, True] and recording.units == ["", "mV"]
        np.testing.assert_array_equal(recording.read(0, 0, 99), theirs[:99])
        np.testing.assert_allclose(recording.read(1, 123, 4567), signal[123:4567, 1], atol=1e-4)


@pytest.mark.parametrize("name", ["rec.edf", "rec.bdf"])
def test_gaps_of_a_discontinuous_edf_are_missing_samples(tmp_path, name):
    """Records 5 to 9 are 2.5 s late, records 10 to 19 another 4 s; the first begins at 0.25 s."""
    path = tmp_path / name
    signal = write_edf(path, annotations=[], starttime=time(0, 0, 0, 250_000))
    data = path.read_bytes().replace(b"DF+C", b"DF+D")
    expected = np.full((int(26.5 * FS), 2), np.nan)
    for record, late in reversed([*enumerate(np.repeat([0, 2.5, 6.5], [5, 5, 10]))]):
        old = b"+%g\x14\x14\0" % (record + 0.25)
        new = b"+%g\x14\x14\0" % (record + 0.25 + late)
        data = data.replace(old.ljust(len(new), b"\0"), new)
        at = int((record + late) * FS)
        expected[at:at + FS] = signal[record * FS:(record + 1) * FS]
    path.write_bytes(data)
    for block in (None, 333):
        np.testing.assert_allclose(leads_of(path, block=block), expected, atol=1e-4)

    for wrong, word in ((b"x4.25", "record 5 does not say"), (b"+0.25", "begins before")):
        path.write_bytes(data.replace(b"+4.25", wrong))
        refused(path, word)


@pytest.mark.parametrize("at,text,word", [
    (192, b"EDF+D", "times"), (236, b"99999999", "cut short"), (236, b"x", "x"),
    (244, b"nan     ", "nan s"), (244, b"10      ", "25 Hz"), (252, b"0   ", "0 signals"),
    (184, b"512     ", "header"), (0, b"1", "begin"), (236, b"0       ", "cut short"),
    (256 + 2 * 216, b"0       0       ", "0 bytes"), (256 + 2 * 216, b"-5      ", "-5 samples")])
def test_hostile_edf(tmp_path, at, text, word):
    path = tmp_path / "rec.edf"
    write_edf(path)
    change(path, (at, text))
    refused(path, word)


# --- every container ----------------------------------------------------------------------------

def write_all(folder):
    """The same (5000, 2) mV as a.hea, b.edf, c.bdf, d.csv, e.npy and f.npz."""
    signal = np.round(ecg_mv(20 * FS), 3)
    (folder / "a.dat").write_bytes(np.round(signal * 1000).astype("<i2").tobytes())
    (folder / "a.hea").write_text(f"a 2 {FS} 5000\n" + "a.dat 16 1000(0)/mV\n" * 2)
    write_edf(folder / "b.edf", signal)
    write_edf(folder / "c.bdf", signal)
    np.savetxt(folder / "d.csv", signal, delimiter=",", header="I,II", comments="")
    np.save(folder / "e.npy", signal)
    np.savez(folder / "f.npz", signal=signal)
    return signal, find_recordings([folder])


def test_the_same_signal_in_every_container(tmp_path):
    signal, paths = write_all(tmp_path)
    assert [path.name for path in paths] == ["a.hea", "b.edf", "c.bdf", "d.csv", "e.npy", "f.npz"]
    for path in paths:
        np.testing.assert_allclose(leads_of(path, FS), signal, atol=1e-4)
        if path.suffix in (".hea", ".edf", ".bdf"):
            refused(path, "250", "--fs says 360", fs_hz=360)
        else:
            refused(path, "--fs")
    for fs_hz in (99, 2001, np.nan):
        with pytest.raises(UserError, match=f"--fs.* {fs_hz} Hz; expected 100 to 2,000 Hz"):
            open_recording(path, fs_hz)


def test_files_cut_short_after_opening(tmp_path):
    _, paths = write_all(tmp_path)
    for path in paths[:3] + paths[4:5]:  # others are unpacked before they are read
        file = path.with_suffix(".dat") if path.suffix == ".hea" else path
        with open_recording(path, FS) as recording, pytest.raises(UserError, match="shorter"):
            os.truncate(file, 900)
            recording.read(0, 0, 5000)


@pytest.mark.parametrize("suffix", READERS)
def test_empty_missing_and_no_files(tmp_path, suffix):
    (tmp_path / f"none{suffix}").touch()
    (tmp_path / f"dir{suffix}").mkdir()
    os.mkfifo(tmp_path / f"fifo{suffix}")
    (tmp_path / f"note{suffix}.txt").write_text("x")
    for name, word in (("none", "empty"), ("dir", "folder"), ("missing", "missing"),
                       ("fifo", "regular")):
        refused(tmp_path / f"{name}{suffix}", word, fs_hz=FS)
    refused(tmp_path / f"note{suffix}.txt", suffix)


def test_memory_depends_on_the_stretch_not_on_the_recording(tmp_path):
    """Sparse files of 9 GB and more; the stretch of 100,000 samples has 0.8 MB."""
    for name, width in (("b.edf", 2), ("c.bdf", 3)):
        write_edf(tmp_path / name)
        change(tmp_path / name, (236, b"9000000 "))
        os.truncate(tmp_path / name, 768 + 9_000_000 * 2 * FS * width)
    np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float64, (10**9, 2))
    (tmp_path / "a.hea").write_text(f"a 8 {FS} {10**9}\n" + "a.dat 212 200\n" * 8)
    (tmp_path / "a.dat").touch()
    os.truncate(tmp_path / "a.dat", 12 * 10**9)
    for path in find_recordings([tmp_path]):
        with open_recording(path, FS) as recording:
            assert peak_bytes(recording.read, 1, 10**9 - 100_001, 10**9 - 1) < 20e6


@pytest.mark.parametrize("name,header", [
    ("a.hea", 10**6), ("b.edf", 1024), ("c.bdf", 1024), ("d.csv", 10**6), ("e.npy", 128),
    ("f.npz", 10**6)])
def test_fuzzed_files(tmp_path, name, header):
    write_all(tmp_path)
    path = tmp_path / name
    if name == "d.csv":
        np.savetxt(path, ecg_mv(60), delimiter=",")
    fuzz(path, 100, header, fs_hz=FS)


# --- the object ---------------------------------------------------------------------------------

def test_lead_index(tmp_path):
    (tmp_path / "rec.csv").write_text("MLII,2,v5\n1,2,3\n")
    with open_recording(tmp_path / "rec.csv", FS) as recording:
        found = [lead_index(recording, name) for name in ("mlii", "MLII", 1, "2", "3", "V5")]
        assert found == [0, 0, 0, 1, 2, 2]
        for wanted in ("V1", "0", "4", "-1", "", "²"):
            with pytest.raises(UserError, match="1: MLII, 2: 2, 3: v5"):
                lead_index(recording, wanted)


def test_read_outside_the_recording(tmp_path):
    np.save(tmp_path / "rec.npy", ecg_mv(9))
    with open_recording(tmp_path / "rec.npy", FS) as recording:
        for where in ((0, -1, 5), (0, 5, 4), (0, 0, 10), (2, 0, 1)):
            with pytest.raises(ValueError, match="it has 9 of 2"):
                recording.read(*where)
    with pytest.raises(ValueError, match="closed"):
        recording.read(0, 0, 1)


# --- finding ------------------------------------------------------------------------------------

def test_find_in_folders_files_patterns_and_record_names(tmp_path):
    for name in ("sub/deep", ".hidden", "x.hea"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("b", "sub/a", ".hidden/h"):
        for suffix in ("hea", "dat", "atr"):
            (tmp_path / f"{name}.{suffix}").write_text(f"r 1\n{Path(name).name}.dat 16\n")
    for name in ("c.CSV", "sub/deep/d.edf", "[1].npy", "note.txt"):
        (tmp_path / name).write_text("x")
    names = ("[1].npy", "b.hea", "c.CSV", "sub/a.hea", "sub/deep/d.edf")
    everything = [tmp_path / name for name in names]
    assert find_recordings([tmp_path]) == everything
    assert find_recordings([tmp_path, str(tmp_path / "sub"), tmp_path / "b"]) == everything
    for one in ("b", "b.hea", "b.atr", "b.d?t"):
        assert find_recordings([tmp_path / one]) == [tmp_path / "b.hea"], one
    assert find_recordings([tmp_path / "s*"]) == everything[3:]
    assert find_recordings([tmp_path / "[1].npy"]) == [tmp_path / "[1].npy"]
    for none in ("nothing", "x.hea", "note.txt", "", "a\0b", "x" * 5000):
        with pytest.raises(UserError, match="Give"):
            find_recordings([none])


def test_find_does_not_follow_links_out(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    np.save(outside / "secret.npy", ecg_mv(9))
    np.save(inside / "own.npy", ecg_mv(9))
    for name, target in (("file.npy", outside / "secret.npy"), ("folder", outside),
                         ("loop", inside), ("loop.npy", "loop.npy"), ("twin.npy", "own.npy")):
        (inside / name).symlink_to(target)
    assert len(find_recordings([inside])) == 1, "the link within is the same recording"
    with pytest.raises(UserError):
        find_recordings([inside / "fold*"])
    assert find_recordings([inside / "file.npy"]) == [inside / "file.npy"], "named by the user"
