"""detect.score in a notebook: the same as the files of detect.py, clear words for wrong input."""

import json

import numpy as np
import pandas as pd
import pytest
import wfdb
from numpy.testing import assert_allclose, assert_array_equal

import detect
from pipeline import settings, simulated_ecg
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from recording import groups

FS = 360


def written(path, out, *flags):
    """(table, summary) of the files that detect.py writes of a recording."""
    detect.main([str(path), "--out", str(out), "--threads", "1", *map(str, flags)])
    stem = path.stem
    table = pd.read_csv(out / f"{stem}.ecgad.csv", keep_default_na=False, na_values=[""])
    return table, json.loads((out / f"{stem}.ecgad.json").read_text())


def assert_same(beats, table, summary, tmp_path, *other, atol=5.1e-6):
    """A DataFrame of detect.score is the files' table, of five digits, and its attrs their summary
    but for `other`."""
    assert list(beats.columns) == [*table.columns, "why"] and len(beats) == len(table) > 100
    assert beats["flag"].dtype == bool
    for name in ("sample", "flag", "group", "state", "lead"):
        assert_array_equal(beats[name].astype(table[name].dtype), table[name], name)
    assert_array_equal(beats["kind"], table["kind"].fillna(""))
    for name in ("time_s", "rr_before_s", "early", "qrs_distance", "score", "excess"):
        assert_allclose(beats[name], table[name], rtol=0, atol=atol, err_msg=name)

    write_json(tmp_path / "attrs.json", beats.attrs)
    said = json.loads((tmp_path / "attrs.json").read_text())
    for name in ("origin", *other):
        summary.pop(name)
        said.pop(name, None)
    assert said == summary


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """Folder of a simulated record of four minutes: files, and its leads as an array in mV."""
    folder = tmp_path_factory.mktemp("record")
    simulated_ecg.write_database(folder, ("s02",), duration_s=240, seed=5)
    return folder / "s02.hea", wfdb.rdrecord(str(folder / "s02")).p_signal


# --- the same as the file -------------------------------------------------------------------------

def test_an_array_gives_what_the_file_gives_and_nothing_is_said_or_written(record, tmp_path, capsys,
                                                                           monkeypatch):
    path, signal = record
    table, summary = written(path, tmp_path / "out")
    assert summary["flagged"] > 5 and summary["lead"] == "MLII"
    capsys.readouterr()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = {file: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    kept = signal.copy()

    beats = detect.score(signal, FS, lead_names=["MLII", "V5"])
    assert_same(beats, table, dict(summary), tmp_path, "recording")
    # a frame names its leads itself; the file by its name without suffix
    assert detect.score(pd.DataFrame(signal, columns=["MLII", "V5"]), FS).equals(beats)
    by_path = detect.score(str(path.with_suffix("")))
    assert_same(by_path, table, dict(summary), tmp_path)
    assert by_path.equals(beats)

    assert capsys.readouterr() == ("", "") and not list((tmp_path / "empty").iterdir())
    assert {file: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before
    assert_array_equal(signal, kept)


@pytest.mark.parametrize("flags, options", [
    (["--causal"], {"causal": True}),
    (["--lead", 2, "--excess", 2.5], {"lead": 2, "excess": 2.5}),
    (["--alarms-per-hour", 60, "--score-all"], {"alarms_per_hour": 60, "score_all": True}),
    (["--sensitivity", 0.9], {"sensitivity": 0.9})])
def test_options_do_what_the_flags_do(record, tmp_path, flags, options):
    path, signal = record
    holes = signal.copy()
    holes[40000:45000] = np.nan
    np.save(tmp_path / "holes.npy", holes)
    table, summary = written(tmp_path / "holes.npy", tmp_path / "out", "--fs", FS, *flags)
    beats = detect.score(holes, FS, **options)
    # of an .npy file it is not known whether it is in mV
    assert_same(beats, table, summary, tmp_path, "recording", "calibrated")
    if "score_all" not in options:
        assert (beats["state"] == "unreadable").any()

    # missing samples behind a mask
    masked = np.ma.masked_invalid(holes)
    masked.data[masked.mask] = 7
    assert detect.score(masked, FS, **options).equals(beats)


def test_whole_numbers_and_another_unit_give_the_same_flags(record):
    path, signal = record
    beats = detect.score(signal[:, 0], FS)
    raw = wfdb.rdrecord(str(path.with_suffix("")), physical=False).d_signal[:, 0].astype(np.int16)
    other = detect.score(raw, FS)
    for name in ("sample", "flag", "kind", "state"):
        assert_array_equal(other[name], beats[name])
    assert_allclose(other["score"], beats["score"], atol=1e-3)


def test_given_r_peaks_are_scored_in_samples_in_seconds_and_from_a_file(record, tmp_path):
    path, signal = record
    expert = wfdb.rdann(str(path.with_suffix("")), "atr")
    peaks = expert.sample[np.isin(expert.symbol, list(settings.AAMI_OF))]
    table, summary = written(path, tmp_path, "--beats", "atr")
    beats = detect.score(signal[:, 0], FS, r_peaks=peaks, lead_names=["MLII"])
    assert_same(beats, table, summary, tmp_path, "recording", "leads")
    assert_array_equal(beats["sample"], peaks)
    assert detect.score(signal[:, 0], FS, r_peaks_s=peaks / FS, lead_names=["MLII"]).equals(beats)
    assert detect.score(path, beats="atr").equals(beats)


def test_a_real_record_gives_what_its_file_gives(mitdb, tmp_path):
    signal = wfdb.rdrecord(str(mitdb / "119"))
    table, summary = written(mitdb / "119.hea", tmp_path)
    assert summary["flagged"] > 400
    assert_same(detect.score(mitdb / "119.hea"), table, dict(summary), tmp_path)

    # wfdb's own reader rounds otherwise, by 4e-16 mV
    beats = detect.score(signal.p_signal, signal.fs, lead_names=signal.sig_name)
    assert_same(beats, table, summary, tmp_path, "recording", "groups", atol=2e-5)
    flagged = beats[beats["flag"]]
    foreign = flagged["why"].str.contains("foreign to the regular ones")
    assert foreign.mean() > 0.95 and (flagged["kind"] == "V").mean() > 0.95


def test_the_words_of_a_beat_are_those_of_its_figures(record):
    beats = detect.score(*record[1:], FS)
    known = beats["state"] == "scored"
    assert (beats["why"][~known] == "").all() and (~known).any()
    for row in beats[known].itertuples():
        assert row.why == groups.in_words(row.early, row.qrs_distance)
    early = beats["why"].str.startswith("early by")
    usual_s = beats["rr_before_s"].quantile(0.9)
    assert early.sum() > 5 and (beats["rr_before_s"][early] < 0.95 * usual_s).all()


# --- wrong input ----------------------------------------------------------------------------------

SIGNAL = np.random.default_rng(0).normal(size=3600)


@pytest.mark.parametrize("signal, fs, words", [
    (SIGNAL + 1j, FS, "complex128"), (np.zeros((9, 9, 9)), FS, r"shape \(9, 9, 9\)"),
    (np.array(["a", "b"]), FS, "<U1"), (np.zeros(0), FS, "empty"),
    (np.zeros((0, 2)), FS, "empty"), (np.float64(3), FS, r"shape \(\)"),
    (SIGNAL[:600], FS, "600 samples, 1.67 s; expected at least 2 s"),
    (np.zeros((2, 5000)), FS, "Transpose"), ([[1, 2], [3]], FS, "signal: no array"),
    ([1.0, None] * 999, FS, "object"), (None, FS, "object"), (SIGNAL > 0, FS, "bool"),
    (SIGNAL, None, "fs: missing"), (SIGNAL, 99, "fs: a sampling rate of 99 Hz; expected 100 to"),
    (SIGNAL, 2001, "2001 Hz"), (SIGNAL, np.nan, "nan Hz"), (SIGNAL, "360", "fs: '360'"),
    (SIGNAL, True, "fs: True"), (SIGNAL, [360], "fs:"),
    ("no/such/file.edf", None, "no/such/file.edf")])
def test_wrong_signals_and_rates_are_named(signal, fs, words):
    with pytest.raises(UserError, match=words):
        detect.score(signal, fs)


@pytest.mark.parametrize("options, words", [
    ({"r_peaks": [500, 300]}, "out of order, 500 comes before 300"),
    ({"r_peaks": [300, 300]}, "out of order"), ({"r_peaks": [-1, 300]}, "-1 lies outside"),
    ({"r_peaks": [300, 3600]}, "0 to 3600 samples"), ({"r_peaks": [0.8, 1.6]}, "r_peaks_s"),
    ({"r_peaks_s": [1, 360]}, "360 lies outside of the recording, 0 to 10 s"),
    ({"r_peaks": []}, "at least one"), ({"r_peaks": [[1, 2]]}, r"shape \(1, 2\)"),
    ({"r_peaks": [1, np.nan]}, "no number"), ({"r_peaks": ["a"]}, "<U1"),
    ({"r_peaks": [1], "r_peaks_s": [1]}, "Give R peaks once"), ({"beats": "atr"}, "an array"),
    ({"excess": 2, "sensitivity": 0.9}, "excess, sensitivity"),
    ({"sensitivity": 1}, "sensitivity: 1"), ({"alarms_per_hour": -1}, "alarms_per_hour: -1"),
    ({"excess": np.nan}, "excess: nan"), ({"excess": "2"}, "excess: '2'"),
    ({"lead": "aVR"}, "no lead 'aVR'"),
    ({"lead_names": ["I", "II"]}, "2 names for 1 leads"), ({"device": "cray"}, "cray"),
    ({"checkpoint": "none.pt"}, "none.pt: missing")])
def test_wrong_options_are_named(options, words):
    with pytest.raises(UserError, match=words):
        detect.score(SIGNAL, FS, **options)


def test_a_file_without_a_rate_asks_for_the_argument_and_a_folder_for_one_file(tmp_path):
    np.save(tmp_path / "a.npy", SIGNAL)
    with pytest.raises(UserError, match="Give the rate in Hz with fs, for example"):
        detect.score(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", SIGNAL)
    with pytest.raises(UserError, match="means 2 recordings; expected one"):
        detect.score(tmp_path, FS)


def test_a_signal_without_a_heartbeat_is_a_table_of_none(record):
    beats = detect.score(np.full(36000, np.nan), FS)
    assert not beats["flag"].any() and beats.attrs["scored"] == 0
    assert beats.attrs["unreadable_share"] == 1
    assert "kind" in beats and beats.attrs["flagged_share"] is None


@pytest.mark.parametrize("column, word", [
    (np.arange(3600) / 360, "rises all along"), (np.arange(3600) % 300 == 0, "of 0 and 1")])
def test_a_column_that_is_no_lead_is_refused(column, word):
    frame = pd.DataFrame({"other": np.asarray(column, float), "ECG": np.sin(np.arange(3600) / 50)})
    with pytest.raises(UserError, match=f"column other .*{word}"):
        detect.score(frame, 360)


def test_docs_name_every_column_and_entry(record):
    page = (settings.ROOT / "docs/python.md").read_text()
    beats = detect.score(record[0])
    for name in (*beats.columns, *beats.attrs):
        assert f"`{name}`" in page, name
