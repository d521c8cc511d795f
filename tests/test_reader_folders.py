"""Folders of all sorts of files; MATLAB files, and rates that archives know."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io
from conftest import ecg_mv, leads_of, peak_bytes, refused

from pipeline.errors import UserError
from recording import places
from recording.reader import find_recordings, open_recording
from recording.reader_sniff import INSTALL, sentence

FS = 250


def test_a_folder_says_what_it_passes_over_and_why(tmp_path):
    np.savetxt(tmp_path / "good.txt", ecg_mv(500), header="time: none")
    np.savetxt(tmp_path / "good.csv", ecg_mv(500))
    for name, text in (("README.txt", "An archive."), ("SHA256SUMS.txt", "ab12  good.csv\n" * 200),
                       ("numbers.txt", "100\n101\n"), ("books.xml", "<books/>"),
                       ("old.zip", "PK"), ("old.h5", "x"), ("alone.dat", "x"), ("ct.dcm", "DICM"),
                       ("picture.png", "x"), ("code.py", "1")):
        (tmp_path / name).write_text(text)
    skipped = {}
    found = find_recordings([tmp_path], skipped)
    assert [path.name for path in found] == ["good.csv", "good.txt"]
    reasons = {path.name: reason for path, reason in skipped.items()}
    assert set(reasons) == {"README.txt", "SHA256SUMS.txt", "numbers.txt", "books.xml", "old.zip",
                            "old.h5", "alone.dat", "ct.dcm"}
    assert "XML" in reasons["books.xml"] and "unpack" in reasons["old.zip"]
    said = sentence(skipped)
    assert said.startswith("passed over 8 files: ") and "\n" not in said and "alone.dat (a" in said
    assert find_recordings([tmp_path / "*"]) == found

    # what is named is opened, and says what is wrong with it
    assert find_recordings([tmp_path / "README.txt"]) == [tmp_path / "README.txt"]
    refused(tmp_path / "README.txt", "no samples")


def test_a_folder_with_nothing_else_is_an_error_that_says_so(tmp_path):
    (tmp_path / "old.zip").write_text("PK")
    with pytest.raises(UserError, match=r"no recording \(passed over 1 file: old.zip \(packed"):
        find_recordings([tmp_path])


def test_a_folder_at_an_address_names_what_would_have_to_be_looked_at():
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("a.hea", "SHA256SUMS.txt", "b.xml"):
        store.pipe(f"/looked/{name}", b"x")
    skipped = {}
    found = places.find_places(["memory://looked/"], None, False, skipped)
    assert found == ["memory:///looked/a.hea"]
    assert "SHA256SUMS.txt" in sentence(skipped) and "name its address" in sentence(skipped)
    # what is named, or asked for by its suffix, is taken
    assert len(places.find("memory://looked/*.txt")) == 1
    assert places.find("memory://looked/b.xml") == ["memory://looked/b.xml"]


def test_without_the_library_a_folder_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("recording.reader_sniff.find_spec", lambda name: None)
    (tmp_path / "a.xml").write_text("<?xml version='1.0'?><RestingECG/>")
    np.save(tmp_path / "b.npy", ecg_mv(9))
    skipped = {}
    assert [path.name for path in find_recordings([tmp_path], skipped)] == ["b.npy"]
    assert INSTALL in sentence(skipped)


# --- MATLAB and NumPy ---------------------------------------------------------------------------

def test_challenge_records_are_their_headers_and_a_lone_mat_wants_fs(tmp_path):
    """Of 2017 and 2020: a MATLAB 4 file whose header names format 16 behind 24 bytes."""
    raw = np.round(ecg_mv(3000).T * 1000).astype("<i2")
    for name in ("A00001", "lone"):
        scipy.io.savemat(tmp_path / f"{name}.mat", {"val": raw}, format="4")
    (tmp_path / "A00001.hea").write_text(
        "A00001 2 300 3000\n" + "A00001.mat 16+24 1000/mV 16 0 0 0 0 ECG\n" * 2)
    assert find_recordings([tmp_path]) == [tmp_path / "A00001.hea", tmp_path / "lone.mat"]
    assert find_recordings([tmp_path / "A00001.mat"]) == [tmp_path / "A00001.hea"]
    np.testing.assert_allclose(leads_of(tmp_path / "A00001.hea"), raw.T / 1000)

    refused(tmp_path / "lone.mat", "--fs")
    np.testing.assert_array_equal(leads_of(tmp_path / "lone.mat", 300), raw.T)
    with open_recording(tmp_path / "lone.mat", 300) as recording:
        assert recording.calibrated == [False, False]


@pytest.mark.parametrize("suffix", ["mat", "npz"])
def test_an_archive_that_knows_its_rate(tmp_path, suffix):
    path = tmp_path / f"rec.{suffix}"
    for name in ("fs", "sampling_rate"):
        held = {"signal": ecg_mv(), name: 360}
        np.savez(path, **held) if suffix == "npz" else scipy.io.savemat(path, held,
                                                                        do_compression=True)
        with open_recording(path) as recording:
            assert recording.fs_hz == 360
        np.testing.assert_array_equal(leads_of(path), ecg_mv())
        with open_recording(path, 250) as recording:
            assert recording.fs_hz == 250, "what the user says goes before"


def test_hostile_mat(tmp_path):
    path = tmp_path / "rec.mat"
    scipy.io.savemat(path, {"val": ecg_mv(), "x": ecg_mv()}, do_compression=True)
    whole = path.read_bytes()
    for raw, word in ((whole[:5000], "damaged"), (whole[:124] + b"\0\2IM" + whole[128:], "-v7"),
                      (b"nonsense" * 100, "damaged")):
        path.write_bytes(raw)
        refused(path, word, fs_hz=FS)

    # 2 GB of zeros in 2 MB
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(2**20)) for _ in range(2000)) + packer.flush()
    path.write_bytes(whole[:128] + struct.pack("<II", 15, len(bomb)) + bomb)
    assert peak_bytes(refused, path, "unpacks to more than", fs_hz=FS) < 20e6
