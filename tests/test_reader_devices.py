"""Files of electrocardiographs hold the same mV as the arrays that they were made of."""

import json
import os
from datetime import datetime

import device_files
import numpy as np
import pytest
from conftest import ecg_mv, leads_of, peak_bytes, refused

from recording import reader_devices, reader_devices_process
from recording.reader import find_recordings, open_recording
from recording.reader_ishne import Ishne
from recording.reader_sniff import INSTALL

START = datetime(2024, 3, 5, 23, 59, 50)
MV = np.array([2.5e-3, 1e-3])      # of a step of each lead
N = 7500


def raw_of(steps_mv=MV, fs_hz=250):
    return np.round(ecg_mv(N, fs_hz=fs_hz) / steps_mv).astype(np.int16)


@pytest.mark.parametrize("name", ["rec.ecg", "rec.dcm", "aecg.xml", "utf16.xml", "muse.xml",
                                  "rec.mwf", "blocks.mfer"])
def test_samples_leads_units_rate_and_start(tmp_path, name):
    path = tmp_path / name
    raw = raw_of()
    write = {"rec.ecg": device_files.ishne, "rec.dcm": device_files.dicom,
             "aecg.xml": device_files.aecg, "muse.xml": device_files.muse,
             "rec.mwf": device_files.mfer}
    if name == "utf16.xml":
        device_files.aecg(path, raw, encoding="utf-16")
    elif name == "blocks.mfer":
        device_files.mfer(path, raw, blocks=30)
    else:
        write[name](path, raw)
    with open_recording(path) as recording:
        assert recording.fs_hz == 250 and recording.leads == ["II", "V5"]
        assert recording.calibrated == [True, True] and recording.start == START
    for block in (None, 999):
        np.testing.assert_allclose(leads_of(path, block=block), raw * MV, atol=1e-9)
    assert find_recordings([tmp_path]) == [path]
    refused(path, "250", "--fs says 360", fs_hz=360)


@pytest.mark.parametrize("differences", [0, 1])
def test_scp(tmp_path, differences):
    raw = raw_of(1e-3)[:5000]
    device_files.scp(tmp_path / "rec.scp", raw, differences=differences)
    with open_recording(tmp_path / "rec.scp") as recording:
        assert recording.fs_hz == 250 and recording.leads == ["II", "V5"]
        assert recording.calibrated == [True, True] and recording.start == START
    np.testing.assert_allclose(leads_of(tmp_path / "rec.scp"), raw * 1e-3, atol=1e-9)


def test_alivecor(tmp_path):
    raw = raw_of(5e-4)
    device_files.kardia(tmp_path / "rec.json", raw)
    (tmp_path / "rec.ecgad.json").write_text(json.dumps({"lead": "I"}))
    assert [path.name for path in find_recordings([tmp_path])] == ["rec.json"]
    with open_recording(tmp_path / "rec.json") as recording:
        assert recording.fs_hz == 300 and recording.leads == ["I", "II"]
    np.testing.assert_allclose(leads_of(tmp_path / "rec.json"), raw * 5e-4, atol=1e-9)


def test_factors_to_mv_in_other_units(tmp_path):
    """mV and V a step, and a unit that is none of voltage."""
    raw = raw_of()
    for unit, step in (("mV", MV), ("V", MV / 1000)):
        device_files.dicom(tmp_path / "rec.dcm", raw, uv=step, unit=unit)
        np.testing.assert_allclose(leads_of(tmp_path / "rec.dcm"), raw * MV, atol=1e-9)
    device_files.dicom(tmp_path / "rec.dcm", raw, unit="mm[Hg]")
    with open_recording(tmp_path / "rec.dcm") as recording:
        assert recording.calibrated == [False, False] and recording.units == ["", ""]
    device_files.muse(tmp_path / "rec.xml", raw, uv=MV, units="MILLIVOLTS")
    read = leads_of(tmp_path / "rec.xml")
    with open_recording(tmp_path / "rec.xml") as recording:
        factor = MV if recording.calibrated == [True, True] else 1
    np.testing.assert_allclose(read, raw * factor, atol=1e-9)


@pytest.mark.parametrize("fs_hz", [128, 500, 1000])
def test_other_rates(tmp_path, fs_hz):
    raw = raw_of(fs_hz=fs_hz)
    for name, write in (("r.ecg", device_files.ishne), ("r.dcm", device_files.dicom),
                        ("r.xml", device_files.aecg)):
        write(tmp_path / name, raw, fs_hz=fs_hz)
        with open_recording(tmp_path / name) as recording:
            assert recording.fs_hz == fs_hz


def test_ishne_equals_ecgdatakit_and_a_lead_that_is_off_is_missing(tmp_path):
    raw = raw_of()
    raw[100:200, 1] = -2**15
    device_files.ishne(tmp_path / "rec.ecg", raw)
    from ecgdatakit import FileParser
    theirs = FileParser.parse(tmp_path / "rec.ecg", units="mV").leads
    expected = np.column_stack([lead.samples for lead in theirs])
    expected[100:200, 1] = np.nan
    np.testing.assert_allclose(leads_of(tmp_path / "rec.ecg"), expected, atol=1e-9)
    assert [lead.label for lead in theirs] == Ishne(tmp_path / "rec.ecg", None).leads


# --- what is wrong with a file ------------------------------------------------------------------

WRITERS = {"r.ecg": device_files.ishne, "r.dcm": device_files.dicom, "aecg.xml": device_files.aecg,
           "muse.xml": device_files.muse, "r.mwf": device_files.mfer, "r.scp": device_files.scp,
           "r.json": device_files.kardia}


@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, raw_of()[:1000])
    whole = path.read_bytes()
    # cut in the middle of a sample, and in the header; of another kind
    for raw in (whole[:-2001], whole[:100], b"\0" * 200 + whole[200:], b"\0" * 5000):
        path.write_bytes(raw)
        if name == "r.mwf" and len(raw) > 1000 and raw[:1] == b"\x40":
            continue  # what is missing is NaN, by its standard
        refused(path, "xport" if name != "r.ecg" else "Copy or export")


@pytest.mark.parametrize("above", [
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>',
    '<!DOCTYPE x SYSTEM "file:///etc/passwd">', "<!-- " + "x" * 2**17 + " --><!doctype x>"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_xml_with_entities_is_not_parsed(tmp_path, monkeypatch, above, encoding):
    monkeypatch.setattr(reader_devices, "_run", lambda *_: pytest.fail("it was parsed"))
    monkeypatch.setattr(reader_devices, "BLOCK_BYTES", 7)  # the word lies in two blocks
    device_files.aecg(tmp_path / "rec.xml", raw_of()[:500], above=above, encoding=encoding)
    refused(tmp_path / "rec.xml", "DOCTYPE", "Export")


def test_absurd_sizes(tmp_path, monkeypatch):
    for suffix in reader_devices.MAX_MB:
        path = tmp_path / f"big{suffix}"
        path.touch()
        os.truncate(path, 10**10)
        assert peak_bytes(refused, path, "read whole", "in parts") < 5e6

    # a header that claims more than the file has
    raw = raw_of()[:1000]
    device_files.mfer(tmp_path / "claim.mwf", raw, claim=2**31 - 1)
    device_files.scp(tmp_path / "claim.scp", raw)
    data = (tmp_path / "claim.scp").read_bytes()
    (tmp_path / "claim.scp").write_bytes(data.replace(b"\1\0\0\0\xe8\3\0\0", b"\1\0\0\0\xff" * 1
                                                      + b"\xff\xff\x7f"))
    for name in ("claim.mwf", "claim.scp"):
        assert peak_bytes(refused, tmp_path / name, "Export") < 5e6


def test_a_packed_dicom_file_is_not_unpacked(tmp_path):
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    device_files.dicom(tmp_path / "rec.dcm", np.zeros((10**6, 2), np.int16),
                       syntax=DeflatedExplicitVRLittleEndian)
    assert (tmp_path / "rec.dcm").stat().st_size < 10**5
    refused(tmp_path / "rec.dcm", "packed", "Export it unpacked")


def test_memory_and_time_of_the_library_are_bounded(tmp_path, monkeypatch):
    device_files.dicom(tmp_path / "rec.dcm", np.zeros((10**7, 2), np.int16))
    # it takes 40 MB of bytes, twice, and 320 MB of numbers; here they are another process's
    def first():
        with open_recording(tmp_path / "rec.dcm") as recording:
            recording.read(0, 5_000_000, 5_100_000)
    assert peak_bytes(first) < 10e6
    monkeypatch.setattr(reader_devices, "TIMEOUT_S", 0.01)
    refused(tmp_path / "rec.dcm", "more than 0.01 s")

    # the process that may have less
    monkeypatch.undo()
    code = ("import sys, recording.reader_devices_process as p; p.MAX_BYTES = 5 * 10**8; "
            "p.main(*sys.argv[1:])")
    monkeypatch.setattr(reader_devices, "ARGUMENTS", ("-c", code))
    refused(tmp_path / "rec.dcm", "500,000,000 bytes of memory")


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_devices, "find_spec", lambda name: None)
    device_files.muse(tmp_path / "rec.xml", raw_of())
    refused(tmp_path / "rec.xml", "not installed", INSTALL)


def test_only_formats_whose_units_were_checked(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(reader_devices_process.CHECKED, ".xml", ("hl7_aecg",))
    device_files.muse(tmp_path / "rec.xml", raw_of())
    with pytest.raises(ValueError, match="units are not known"):
        reader_devices_process.read(str(tmp_path / "rec.xml"), str(tmp_path / "out.npy"))
