"""detect.py as a user runs it: the files it writes, what they depend on, many recordings, flags."""

import csv
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import edfio
import numpy as np
import pytest
import wfdb
from threadpoolctl import threadpool_info, threadpool_limits
from wfdb.processing import compare_annotations

import config
import detect
import models
import preprocess
from pipeline import settings, simulated_ecg
from pipeline.errors import UserError
from recording import reader
from recording.output import rates, stored_summary

NOTHING = {"origin": "x"}


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def summary_of(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """Folder of a simulated record of three minutes, copies of it, and detect.py's output."""
    folder = tmp_path_factory.mktemp("brought")
    simulated_ecg.write_database(folder, ("s02",), duration_s=180, seed=5)
    signal = wfdb.rdrecord(str(folder / "s02")).p_signal[:, 0]
    np.save(folder / "array.npy", signal)
    copy = edfio.EdfSignal(signal, 360, label="ECG MLII", physical_dimension="mV",
                           physical_range=(-163.84, 163.835))  # WFDB's 0.005 mV a step
    edfio.Edf([copy]).write(folder / "copy.edf")
    np.savetxt(folder / "table.csv", signal, fmt="%.4f", header="MLII", comments="")
    run(folder / "s02.hea")
    return folder


@pytest.fixture
def folder(brought, tmp_path):
    shutil.copytree(brought, tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def shipped():
    return models.load_checkpoint(settings.ROOT / "checkpoints" / "patient.pt", "make")


# --- one recording --------------------------------------------------------------------------------

def test_table_annotations_picture_and_summary_agree(brought):
    summary = summary_of(brought / "s02.ecgad.json")
    rows = rows_of(brought / "s02.ecgad.csv")
    scored = [r for r in rows if r["state"] == "scored"]
    assert summary["beats"] == len(rows) > 150 and summary["scored"] == len(scored)
    assert summary["lead"] == "MLII" and summary["robust_z_rule"].startswith("specificity 0.98")
    z = np.array([float(r["robust_z"]) for r in scored])
    flagged = np.array([r["flag"] == "1" for r in scored])
    np.testing.assert_array_equal(flagged, z >= summary["robust_z"])
    assert summary["flagged"] == flagged.sum() > 3
    assert not [r for r in rows if r["state"] != "scored" and (r["flag"], r["score"]) != ("0", "")]
    np.testing.assert_allclose(np.diff([float(r["time_s"]) for r in rows]),
                               [float(r["rr_before_s"]) for r in rows[1:]],
                               atol=2e-5)

    notes = wfdb.rdann(str(brought / "s02"), "ecgad")
    assert notes.fs == 360 and set(notes.symbol) == {"N", "Q"}
    np.testing.assert_array_equal(notes.sample, [int(r["sample"]) for r in scored])
    np.testing.assert_array_equal(np.array(notes.symbol) == "Q", flagged)
    np.testing.assert_allclose([float(a) for a in notes.aux_note], z, atol=0.0051)
    assert (brought / "s02.ecgad.png").stat().st_size > 20000 and not list(brought.glob(".part-*"))


def test_flags_are_on_the_abnormal_beats_and_wfdb_scores_the_peaks(brought):
    notes, expert = (wfdb.rdann(str(brought / "s02"), name) for name in ("ecgad", "atr"))
    abnormal = expert.sample[np.isin(expert.symbol, ("A", "V"))]
    flagged = notes.sample[np.array(notes.symbol) == "Q"]
    assert (np.abs(abnormal[:, None] - flagged).min(axis=1) < 54).mean() > 0.8
    beats = expert.sample[np.isin(expert.symbol, list(settings.AAMI_OF))]
    pairs = compare_annotations(beats, notes.sample, 54)
    assert pairs.sensitivity > 0.97 and pairs.positive_predictivity > 0.97


def test_settings_of_use_are_those_of_the_checkpoint(brought, tmp_path, monkeypatch):
    """Whoever edits config.py without training anew gets the same flags."""
    for name, value in (("FS_HZ", 250), ("BAND_HZ", (2.0, 20.0)), ("FILTER_ORDER", 1),
                        ("WINDOW_SIZE", 512), ("QRS_SIGMA_S", 1.0), ("SELF_CAUSAL_S", 20.0),
                        ("LOCAL_BEATS", 11),
                        ("SCORES", config.SCORES | {"patient": ("mse", "combined")})):
        monkeypatch.setattr(config, name, value)
    run(brought / "s02.hea", "--out", tmp_path)
    assert (tmp_path / "s02.ecgad.csv").read_bytes() == (brought / "s02.ecgad.csv").read_bytes()
    monkeypatch.setattr(config, "ROBUST_Z_SPECIFICITY", 0.9)  # a choice of the user's
    run(brought / "s02.hea", "--out", tmp_path)
    line, other = (summary_of(path / "s02.ecgad.json")["robust_z"] for path in (brought, tmp_path))
    assert other < line


def test_examples_are_the_highest_beats_well_apart_as_filtered(brought, shipped):
    with reader.open_recording(brought / "s02.hea") as recording:
        _, scored = detect.score_recording(recording, *shipped)
        signal = recording.read(0, 0, recording.n_samples)
    filtered = preprocess.bandpass(signal, 360, (0.5, 40), 3)
    times = np.array([example["time_s"] for example in scored.examples])
    assert len(times) == 8 and scored.examples[0]["robust_z"] == np.nanmax(scored.robust_z)
    assert np.diff(np.sort(times)).min() >= 10
    left = scored.robust_z[np.abs(scored.beats.time_s[:, None] - times).min(axis=1) >= 10]
    assert scored.examples[-1]["robust_z"] >= np.nanmax(left)
    for example in scored.examples:
        peak = round(example["time_s"] * 360)
        np.testing.assert_allclose(example["signal"], filtered[peak - 360:peak + 360], atol=1e-4)
        assert np.corrcoef(example["recon"][320:400], example["signal"][320:400])[0, 1] > 0.5
        assert example["offset_s"][360] == 0


def test_other_formats_agree_beat_for_beat_and_jobs_do_not_matter(brought, tmp_path):
    """--threads alone decides how many: the last digits of a score depend on it."""
    others = [brought / name for name in ("table.csv", "array.npy", "copy.edf")]
    with threadpool_limits(2):
        run(*others, "--fs", 360, "--out", tmp_path / "1")
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    run(*others, "--fs", 360, "--out", tmp_path / "2", "--jobs", 2)
    first = rows_of(brought / "s02.ecgad.csv")
    for name in ("table", "array", "copy"):
        path = tmp_path / "1" / f"{name}.ecgad.csv"
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
        rows = rows_of(path)
        for column in ("time_s", "sample", "flag", "state"):
            assert [r[column] for r in first] == [r[column] for r in rows]
        np.testing.assert_allclose(*[[float(r["robust_z"] or 0) for r in both]
                                     for both in (first, rows)], atol=0.02)


def test_given_beats_and_a_missing_annotator(folder):
    run(folder / "s02.hea", "--beats", "atr")
    notes = wfdb.rdann(str(folder / "s02"), "atr")
    beats = notes.sample[np.isin(notes.symbol, list(settings.AAMI_OF))]
    assert [int(r["sample"]) for r in rows_of(folder / "s02.ecgad.csv")] == beats.tolist()
    assert summary_of(folder / "s02.ecgad.json")["r_peaks"] == "given"
    with pytest.raises(UserError, match="s02.qrs: missing.*--beats"):
        run(folder / "s02.hea", "--beats", "qrs")


def test_unreadable_stretches_are_noise_marks_and_no_beats_no_crash(brought, tmp_path, capsys):
    signal = np.load(brought / "array.npy")
    signal[100 * 360:130 * 360] = np.nan
    np.save(tmp_path / "gap.npy", signal)
    np.save(tmp_path / "flat.npy", np.zeros(25 * 360))
    run(tmp_path, "--fs", 360)
    notes = wfdb.rdann(str(tmp_path / "gap"), "ecgad")
    marks = np.array(notes.symbol) == "~"
    assert notes.sample[marks].tolist() == [36000, 46800]
    assert notes.subtype[marks].tolist() == [-1, 0] and (np.diff(notes.sample) >= 0).all()
    notes = wfdb.rdann(str(tmp_path / "flat"), "ecgad")
    assert notes.symbol == ["~", "~"] and notes.sample.tolist() == [0, 25 * 360 - 1]
    summary = summary_of(tmp_path / "flat.ecgad.json")
    assert summary["scored"] == 0 and summary["unreadable"]["flat"] == 1
    assert "no readable beat in 0.4 min" in capsys.readouterr().out


# --- the line -------------------------------------------------------------------------------------

@pytest.mark.parametrize("per_hour, n", [(0, 0), (2, 1), (3, 1), (4, 2), (100, 4)])
def test_alarms_per_hour_are_kept(per_hour, n):
    z = np.array([1.0, np.nan, 3, 2, 0.5])
    line, rule = detect.line_to_flag(z, 1800, None, alarms_per_hour=per_hour)
    assert (z >= line).sum() == n and rule == f"at most {per_hour} flags an hour"


def test_line_is_asked_for_or_of_the_validation_patients(monkeypatch):
    curve = {"robust_z": [1, 2, 3], "specificity": [0.5, 0.9, 0.99],
             "sensitivity": [0.95, 0.8, 0.4]}
    monkeypatch.setattr(config, "ROBUST_Z_SPECIFICITY", 0.9)
    asked = ({}, {"sensitivity": 0.8}, {"sensitivity": 0.9}, {"robust_z": 7.5})
    lines = [detect.line_to_flag(np.zeros(3), 60, curve, **flags)[0] for flags in asked]
    assert lines == [2, 2, 1, 7.5]


def test_causal_score_is_that_of_the_past_or_an_error():
    names = [("combined", "combined_causal"), ("self_reference", "self_causal")]
    for name, causal in names:
        stored = {"score_settings": {"DEFAULT_SCORE": name}}
        assert [detect.score_name(stored, past) for past in (False, True)] == [name, causal]
    with pytest.raises(UserError, match="--causal: the checkpoint's score mse"):
        detect.score_name({"score_settings": {"DEFAULT_SCORE": "mse"}}, True)


def test_causal_scores_of_the_past_do_not_change_with_the_future(brought, tmp_path, shipped):
    """Changed after 100 s: what comes before is scored alike, against the first beats."""
    signal = np.load(brought / "array.npy")
    shipped[1]["fitted"]["settings"]["SELF_CAUSAL_S"] = 60
    scores = []
    for name, changed in (("a", signal), ("b", np.append(signal[:100 * 360], -signal[:80 * 360]))):
        np.save(tmp_path / f"{name}.npy", changed)
        with reader.open_recording(tmp_path / f"{name}.npy", 360) as recording:
            _, scored = detect.score_recording(recording, *shipped, causal=True)
        scores.append(scored.robust_z[scored.beats.time_s < 95])
    assert len(scores[0]) > 80
    np.testing.assert_allclose(*scores, atol=1e-3)


def test_heart_rate_and_flagged_share_of_stretches():
    scored = np.array([1, 1, 1, 1, 0, 0], bool)
    time_s = np.array([1, 1.5, 2.25, 15, 15.1, 25])  # 12.75 and 0.1 s are no heart rate
    beats = SimpleNamespace(time_s=time_s, scored=scored, readable=scored)
    found = SimpleNamespace(beats=beats, rr_before_s=np.diff(time_s, prepend=np.nan),
                            flagged=np.array([0, 1, 0, 1, 0, 0]))
    rows = rates(found, np.array([0, 10, 20, 30]))
    np.testing.assert_allclose(rows["rate"], [(120 + 80) / 2, np.nan, np.nan])
    np.testing.assert_allclose(rows["flagged"], [100 / 3, 100, np.nan])


# --- many recordings ------------------------------------------------------------------------------

def test_what_is_done_is_skipped_and_a_changed_flag_or_lost_file_is_not(folder, capsys):
    table = folder / "s02.ecgad.csv"
    run(folder / "s02.hea", "--force")
    assert "done before" not in capsys.readouterr().out
    before = table.stat().st_mtime_ns
    run(folder / "s02.hea")
    assert "done before" in capsys.readouterr().out and table.stat().st_mtime_ns == before
    run(folder / "s02.hea", "--robust-z", 2)
    assert summary_of(folder / "s02.ecgad.json")["robust_z"] == 2
    (folder / "s02.ecgad.png").unlink()
    run(folder / "s02.hea", "--robust-z", 2)
    assert (folder / "s02.ecgad.png").exists()


def test_stored_summary_of_another_origin_or_without_its_files_is_none(tmp_path):
    stem = tmp_path / "r"
    (tmp_path / "r.ecgad.json").write_text(json.dumps(NOTHING))
    assert stored_summary(stem, "x") is None
    for end in ("", ".csv", ".png"):
        (tmp_path / f"r.ecgad{end}").touch()
    assert stored_summary(stem, "x") == NOTHING
    assert stored_summary(stem, "y") is None and stored_summary(stem, "x", html=True) is None
    (tmp_path / "r.ecgad.json").write_text("{")
    assert stored_summary(stem, "x") is None


def test_failed_write_leaves_no_summary_of_before(folder, monkeypatch):
    monkeypatch.setattr(detect.output, "save", lambda *a: 1 / 0)
    with pytest.raises(UserError, match="s02.hea: ZeroDivisionError"):
        run(folder / "s02.hea", "--robust-z", 1)
    assert not (folder / "s02.ecgad.json").exists()


def test_folder_is_searched_and_a_bad_file_is_named_and_stops_no_other(folder, tmp_path):
    (folder / "bad.hea").write_text("no header at all\n")
    (folder / "table.csv").unlink()
    with pytest.raises(UserError, match=r"1 of 4 recordings failed:\n  \S*bad.hea: "):
        run(folder, "--fs", 360, "--out", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    # own output is no recording
    assert names == {"s02.ecgad.json", "array.ecgad.json", "copy.ecgad.json"}
    assert not list((tmp_path / "out").glob("*bad*"))


def test_same_names_in_one_output_folder_are_refused_before_any_work(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(UserError, match="both write"):
        run(folder / "s02.hea", tmp_path / "again" / "s02.hea", "--out", tmp_path / "out")
    web = "http://127.0.0.1/x.hea"
    for command in ((folder / "s02.hea", "--out", web), (web,)):
        with pytest.raises(UserError, match="nothing can be written to http"):
            run(*command)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags, message", [
    (["--checkpoint", "none.pt"],
     "none.pt: missing. Make it with: python train_mitbih.py --protocol patient$"),
    (["--database", "simulated", "--run", "none"],
     "runs/none/simulated/checkpoints/patient.pt: missing.*--database simulated --run none")])
def test_missing_checkpoint_names_the_command(folder, flags, message):
    with pytest.raises(UserError, match=message):
        run(folder / "s02.hea", *flags)


def test_demo_is_a_simulated_recording(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(config.DATABASES, "simulated",
                        config.DATABASES["simulated"] | {"home": str(tmp_path)})
    monkeypatch.setattr(detect, "DEMO_S", 30)
    run("--demo")
    assert "SIMULATED recording" in capsys.readouterr().out
    assert summary_of(tmp_path / "demo" / "s01.ecgad.json")["duration_s"] == 30


@pytest.mark.parametrize("argv", ["", "--demo x", "x --jobs 0", "x --sensitivity 2",
                                  "x --alarms-per-hour -1", "x --robust-z 1 --sensitivity 0.5",
                                  "x --jobs 2 --cluster y"])
def test_nonsense_flags_are_refused(argv):
    with pytest.raises(SystemExit):
        detect.parse_args(argv.split())


def test_import_is_light():
    code = ("import sys, detect; print(*[n for n, m in sys.modules.items() if n == 'bokeh' or "
            f"(getattr(m, '__file__', None) or '').startswith({str(settings.ROOT)!r} + '/')])")
    found = subprocess.run([sys.executable, "-c", code], cwd=settings.ROOT, capture_output=True,
                           text=True, check=True)
    names = found.stdout.split()
    assert "detect" in names and len(names) <= 26 and not {"bokeh", "recording.page"} & set(names)
