"""WFDB records: every format, segments, frames, and headers that lie."""

import os
from datetime import datetime

import numpy as np
import pytest
import wfdb
from conftest import ecg_mv, fuzz, leads_of, peak_bytes, refused

from recording.reader import find_recordings, open_recording

FS = 250
N = 5003

def write(folder, name="rec", numbers=None, calibration="50(3)/mV", leads=("MLII", "V5")):
    """A WFDB record of (n, k) whole numbers; returns them and the path of its header."""
    if numbers is None:
        numbers = np.round(ecg_mv(N, len(leads)) * 50 + 3).astype(int)
    lines = [f"{name} {numbers.shape[1]} {FS} {len(numbers)} 13:05:07 24/12/2001"]
    for k in range(numbers.shape[1]):
        lines.append(f"{name}.dat 16 {calibration} 12 0 {numbers[0, k]} 0 0 {leads[k]}")
    path = folder / f"{name}.hea"
    path.write_text("\n".join(lines) + "\n")
    (folder / f"{name}.dat").write_bytes(numbers.astype("<i2").tobytes())
    return numbers, path


def mv(numbers):
    return (numbers - 3) / 50


@pytest.mark.parametrize("fmt", ["8", "16", "24", "32", "61", "80", "160", "212", "310", "311"])
def test_any_bytes_in_every_format_whole_and_in_parts(tmp_path, fmt):
    """As wfdb reads them whole; missing samples are NaN."""
    raw = bytes(99) + np.random.default_rng(0).bytes(10 * N)  # no number of format 8 is missing
    (tmp_path / "rec.dat").write_bytes(raw)
    path = tmp_path / "rec.hea"
    path.write_text(f"rec 2 {FS} 1800 13:05:07 24/12/2001\nrec.dat {fmt} 50(3)/mV 12 0 -128 0 0 I\n"
                    f"rec.dat {fmt} 20/mV 12 0 7 0 0 a lead\n")
    expected = wfdb.rdrecord(str(tmp_path / "rec")).p_signal
    for block in (None, 97):
        np.testing.assert_allclose(leads_of(path, block=block), expected, rtol=1e-9)
    with open_recording(path) as recording:
        assert recording.leads == ["I", "a lead"] and recording.fs_hz == FS
        assert recording.start == datetime(2001, 12, 24, 13, 5, 7)
        for start, stop in ((1001, 1010), (17, 1040), (9, 9), (0, 5)):  # backwards, too
            np.testing.assert_allclose(recording.read(1, start, stop), expected[start:stop, 1])


@pytest.mark.parametrize("fmt,subtype", [("508", "PCM_S8"), ("516", "PCM_16"), ("524", "PCM_24")])
def test_flac(tmp_path, fmt, subtype):
    soundfile = pytest.importorskip("soundfile")
    numbers, path = write(tmp_path)
    path.write_text(path.read_text().replace("rec.dat 16", f"rec.dat {fmt}"))
    stored = numbers.astype(np.int32) << 532 - int(fmt)
    soundfile.write(tmp_path / "rec.dat", stored, FS, subtype=subtype, format="FLAC")
    for block in (None, 999):
        np.testing.assert_allclose(leads_of(path, block=block), mv(numbers), atol=1e-12)


@pytest.mark.parametrize("calibration,calibrated,units,factor", [
    ("0.2(10)/uV", True, "mV", 1 / 200), ("0.2(10)/µV", True, "mV", 1 / 200),
    ("2e5(10)/V", True, "mV", 1 / 200), ("0(10)/mV", False, "mV", 1 / 200),
    ("50(10)/mmHg", False, "mmHg", 1 / 50), ("-200 12 10", True, "mV", -1 / 200)])
def test_units_gain_and_baseline(tmp_path, calibration, calibrated, units, factor):
    numbers, path = write(tmp_path)
    path.write_text(f"rec 2\r\n# note\r\nrec.dat 16 {calibration}\r\nrec.dat 16\r\n")
    with open_recording(path) as recording:  # gain 200 and 250 Hz where the header does not say
        assert recording.calibrated == [calibrated, False] and recording.units == [units, "mV"]
        assert recording.fs_hz == 250 and recording.leads == ["1", "2"] and not recording.start
    expected = (numbers - (10, 0)) * (factor, 1 / 200)
    np.testing.assert_allclose(leads_of(path, block=800), expected, atol=1e-12)


@pytest.mark.parametrize("fmt,dtype", [("16", "<i2"), ("8", "i1")])
def test_frames_are_averaged_and_skew_is_undone(tmp_path, fmt, dtype):
    """Lead A has four samples a frame and is stored 3 frames late; lead B has one sample."""
    stored = np.random.default_rng(0).integers(-9, 9, (1000, 5))
    if fmt == "16":  # left out of the mean of its frame; no number of format 8 means missing
        stored[5, 0] = -2**15
    (tmp_path / "rec.dat").write_bytes(stored.astype(dtype).tobytes())
    path = tmp_path / "rec.hea"
    path.write_text(f"rec 2 {FS} 1000\nrec.dat {fmt}x4:3 1\nrec.dat {fmt} 1\n")
    a = stored[:, :4].ravel()
    b = stored[:, 4]
    if fmt == "8":  # the differences of a lead run on from frame to frame
        a, b = np.cumsum(a), np.cumsum(b)
    late = np.append(a.reshape(-1, 4).mean(axis=1)[3:], [np.nan] * 3)
    if fmt == "16":
        late[2] = stored[5, 1:4].mean()
    for block in (None, 13):
        np.testing.assert_allclose(leads_of(path, block=block), np.column_stack([late, b]))


def test_several_files_in_any_order_and_samples_behind_a_preamble(tmp_path):
    one, _ = write(tmp_path, "a")
    two, _ = write(tmp_path, "b", numbers=one[::-1, :1].copy())
    (tmp_path / "c").write_bytes(b"x" * 512 + (tmp_path / "b.dat").read_bytes())
    (tmp_path / "b.dat").unlink()
    (tmp_path / "b.dat").symlink_to("c")  # a link within the folder is fine
    (tmp_path / "m.hea").write_text(f"m 3 {FS} {N}\na.dat 16 50(3)\nb.dat 16+512 50(3)\n"
                                    "a.dat 16 50(3)\n")
    expected = mv(np.column_stack([one[:, 0], two, one[:, 1]]))
    np.testing.assert_allclose(leads_of(tmp_path / "m"), expected, atol=1e-12)


def write_segments(folder, variable):
    """Record m: s1, a gap of 100, s2, which has V5 only if `variable`; returns (1800, 2) mV."""
    one, _ = write(folder, "s1", np.round(ecg_mv(1000) * 50).astype(int))
    two = np.round(ecg_mv(700, seed=1) * 80).astype(int)
    expected = np.vstack([mv(one), np.full((100, 2), np.nan), (two - 3) / 80])
    lines = ["s1 1000", "~ 100", "s2 700"]
    leads = ("MLII", "V5")
    if variable:
        lines.insert(0, "m_layout 0")
        (folder / "m_layout.hea").write_text(f"m_layout 2 {FS} 0\n~ 0 50/mV 0 0 0 0 0 MLII\n"
                                             "~ 0 50/mV 0 0 0 0 0 V5\n")
        two, leads = two[:, 1:], ("V5",)
        expected[1100:, 0] = np.nan
    write(folder, "s2", two, calibration="80(3)/mV", leads=leads)
    head = f"m/{len(lines)} 2 {FS} 1800 10:00:00 01/02/2003"
    (folder / "m.hea").write_text("\n".join([head, *lines]) + "\n")
    return expected


@pytest.mark.parametrize("variable", [False, True])
def test_segments_with_a_gap(tmp_path, variable):
    expected = write_segments(tmp_path, variable)
    path = tmp_path / "m.hea"
    with open_recording(path) as recording:
        assert recording.leads == ["MLII", "V5"] and recording.calibrated == [True, True]
        assert recording.start == datetime(2003, 2, 1, 10)
    for block in (None, 333):
        np.testing.assert_allclose(leads_of(path, block=block), expected, atol=1e-12)
    assert find_recordings([tmp_path]) == [path], "segments are no recordings"

    (tmp_path / "s2.hea").write_text((tmp_path / "s2.hea").read_text().replace("/mV", "/mmHg"))
    refused(path, "mV and mmHg")
    write_segments(tmp_path, variable)
    fuzz(tmp_path / ("m_layout.hea" if variable else "m.hea"), 60, 10**6, opened=path)


def test_real_records_equal_wfdb(mitdb):
    for name in ("100", "102", "114"):
        expected = wfdb.rdrecord(str(mitdb / name)).p_signal
        for block in (None, 123_457):
            np.testing.assert_allclose(leads_of(mitdb / name, block=block), expected, atol=1e-12)
    assert len(find_recordings([mitdb])) == 48


# --- untrusted ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", [
    "../out/rec.dat", "/etc/passwd", "..", "link.dat", "loop.dat", "a\\b", "x" * 400, "folder",
    "nothing.dat", "fifo"])
def test_header_naming_a_file_elsewhere(tmp_path, name):
    folder, outside = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    outside.mkdir()
    write(outside)
    _, path = write(folder)
    (folder / "link.dat").symlink_to(outside / "rec.dat")
    (folder / "loop.dat").symlink_to("loop.dat")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    path.write_text(path.read_text().replace("rec.dat", name))
    refused(path, repr(name)[1:70])
    path.write_text(f"rec/1 2 {FS} 100\n{name} 100\n")
    refused(path)


@pytest.mark.parametrize("text,word", [
    (f"rec 2 {FS} {N + 1}\nrec.dat 16 50\nrec.dat 16 50\n", "promises"),
    (f"rec 2 {FS} {N}\nrec.dat 16+2 50\nrec.dat 16+2 50\n", "promises"),
    (f"rec 2 {FS}\nrec.dat 16+999999999999 50\nrec.dat 16+999999999999 50\n", "0 samples"),
    (f"rec 2 {FS} 100\nrec.dat 16+2 50\nrec.dat 16 50\n", "one of each"),
    (f"rec 2 {FS} 10\nrec.dat 16x999999 50\nrec.dat 16x999999 50\n", "promises"),
    (f"rec 999999999 {FS} 100\nrec.dat 16 50\n", "promised"),
    ("rec 1 nan 100\nrec.dat 16 50\n", "'rec 1 nan 100'"),
    ("rec 1 1e999 100\nrec.dat 16 50\n", "inf Hz"),
    (f"rec 1 {FS} 100\nrec.dat 16 1e999 12 0\n", "1e999"),
    (f"rec 1 {FS} 100\nrec.dat 516 50\n", "Format"), ("# nothing\n", "''"),
    (f"rec/1 2 {FS} 100\nrec 100\n", "segments of its own"),
    (f"rec/1 2 {FS} 100\n~ 100\n", "promises 2"),
    (f"rec/1 2 {FS} 200\nok 100\n", "200"), ("rec/1 2 500 100\nok 100\n", "500"),
    (f"rec/1 2 {FS} 100\nok\n", "'ok'"),
    (f"rec/2 2 {FS}\nok 100\n~ 999999999999\n", "hours")])
def test_hostile_header(tmp_path, text, word):
    _, path = write(tmp_path)
    write(tmp_path, "ok")
    path.write_text(text)
    assert peak_bytes(refused, path, word) < 20e6


def test_skew_beyond_the_end_is_missing_not_memory(tmp_path):
    _, path = write(tmp_path)
    path.write_text(f"rec 1 {FS} {N}\nrec.dat 16:999999999999 50\n")
    assert peak_bytes(leads_of, path) < 20e6
    assert np.isnan(leads_of(path)).all()
