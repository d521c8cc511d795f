"""docs/recordings.md: each command, on a file made as the device writes it, finds the same beats
as the WFDB record of the same ECG."""

import json
import re
import shlex
from datetime import datetime, timedelta

import device_files
import edfio
import numpy as np
import pytest

import detect
from pipeline import simulated_ecg
from pipeline.settings import ROOT
from preprocess import resample
from recording.reader import open_recording
from test_reader_logs import polar

PAGE = (ROOT / "docs" / "recordings.md").read_text()
COMMANDS = re.findall(r"(?m)^python detect\.py (.*)$", PAGE)
SECONDS = 300
START = datetime(2024, 3, 5, 9)


@pytest.fixture(scope="module")
def ecg(tmp_path_factory):
    """(folder of a simulated WFDB record, its mV at 360 Hz (n,), its beats in s)."""
    folder = tmp_path_factory.mktemp("wfdb")
    simulated_ecg.write_database(folder, ("s01",), SECONDS)
    with open_recording(folder / "s01.hea") as recording:
        mv = recording.read(0, 0, recording.n_samples)
        return mv, beats_of(folder / "s01.hea", folder / "out"), recording.fs_hz


def beats_of(*arguments):
    path, out = arguments
    detect.main([str(path), "--out", str(out), "--threads", "2"])
    return times_of(out)


def times_of(out):
    """(n,) s of the beats in the one table of a folder."""
    tables = list(out.glob("*.ecgad.csv"))
    assert len(tables) == 1
    return np.genfromtxt(tables[0], delimiter=",", skip_header=1, usecols=0)


def watch(path, mv):
    path.parent.mkdir()
    lines = ["Name,Jane", "Recorded Date,2024-03-05 09:00:00 +0100", "Sample Rate,512 hertz",
             "Lead,Lead I", "Unit,µV", "", *(f"{1000 * value:.3f}" for value in mv)]
    path.write_text("\n".join(lines), encoding="utf-8")


def table(path, mv, times):
    rows = [f"{time:%H:%M:%S.%f};{value:.4f}" if times else f"{value:.4f}"
            for time, value in ((START + timedelta(seconds=k / 250), value)
                                for k, value in enumerate(mv))]
    path.write_text("\n".join(["time;MLII [mV]" if times else "MLII [mV]", *rows]))


def edf(path, mv):
    edfio.Edf([edfio.EdfSignal(mv, 250, label="ECG II", physical_dimension="mV",
                               physical_range=(-10, 10))]).write(path)


def raw(mv):
    return np.column_stack([np.round(mv / 2.5e-3), np.round(mv / 1e-3)]).astype(np.int16)


MAKERS = {  # the file or folder of a command: (rate, who writes it)
    "Polar_H10_ECG.txt": (130, lambda path, mv: polar(path, mv[:, None])),
    "electrocardiograms": (512, lambda path, mv: watch(path / "ecg_2024-03-05.csv", mv)),
    "holter.edf": (250, edf),
    "holter.ecg": (250, lambda path, mv: device_files.ishne(path, raw(mv))),
    "ecg.dcm": (250, lambda path, mv: device_files.dicom(path, raw(mv))),
    "archive": (250, lambda path, mv: (path.mkdir(), (path / "notes.xml").write_text("<notes/>"),
                                       device_files.aecg(path / "a.xml", raw(mv)))),
    "recording.csv": (250, lambda path, mv: table(path, mv, True)),
    "samples.csv": (250, lambda path, mv: table(path, mv, False))}


def test_each_command_has_a_maker():
    assert {shlex.split(command)[0] for command in COMMANDS} == set(MAKERS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_finds_the_beats(tmp_path, monkeypatch, capsys, ecg, command):
    mv, expected_s, fs_hz = ecg
    words = shlex.split(command)
    rate, make = MAKERS[words[0]]
    make(tmp_path / words[0], resample(mv, fs_hz, rate))

    monkeypatch.chdir(tmp_path)
    checkpoint = ROOT / "checkpoints" / "patient.pt"
    detect.main([*words, "--threads", "2", "--checkpoint", str(checkpoint)])
    found_s = times_of(tmp_path / "found")
    expected_s = expected_s[expected_s < found_s[-1] + 0.5]   # a part of a packet is not sent
    assert abs(len(found_s) - len(expected_s)) <= 0.01 * len(expected_s)
    near_s = np.abs(found_s[:, None] - expected_s).min(axis=1)
    assert np.quantile(near_s, 0.98) < 0.02
    assert ("passed over 1 file: notes.xml" in capsys.readouterr().out) == (words[0] == "archive")

    summary, = (tmp_path / "found").glob("*.ecgad.json")
    assert json.loads(summary.read_text())["calibrated"]
