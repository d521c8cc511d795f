"""detect.py as a user runs it: the files it writes, what they depend on, many recordings, flags."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import wfdb
from conftest import scored_beats
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_info, threadpool_limits

import config
import detect
import models
import preprocess
from pipeline import settings, simulated_ecg
from pipeline.errors import UserError
from recording import reader
from recording.picture import rates
from recording.scored import line_to_flag, score_name, score_recording


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


def summary_of(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """Folder of a simulated record of three minutes, copies of it, and detect.py's output."""
    folder = tmp_path_factory.mktemp("brought")
    simulated_ecg.write_database(folder, ("s02",), duration_s=180, seed=5)
    signal = wfdb.rdrecord(str(folder / "s02")).p_signal[:, 0]
    np.save(folder / "array.npy", signal)
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
    table = pd.read_csv(brought / "s02.ecgad.csv")
    scored = table[table["state"] == "scored"]
    others = table[table["state"] != "scored"]
    assert summary["beats"] == len(table) > 150 and summary["scored"] == len(scored)
    assert summary["lead"] == "MLII" and summary["excess_rule"].startswith("specificity 0.98")
    flagged = scored["flag"] == 1
    assert (scored["excess"][flagged] >= summary["excess"]).all()
    assert (scored["excess"] >= summary["excess"]).sum() - flagged.sum() <= 3  # of no kind
    assert summary["flagged"] == flagged.sum() == sum(summary["kinds"].values()) > 3
    assert_array_equal(scored["kind"] == "N", ~flagged)
    assert len(others) and not others["flag"].any() and others["score"].isna().all()
    assert_allclose(np.diff(table["time_s"]), table["rr_before_s"][1:], atol=2e-5)

    notes = wfdb.rdann(str(brought / "s02"), "ecgad")
    assert notes.fs == 360
    # + is a change of rhythm
    beat = np.array(notes.symbol) != "+"
    notes.sample = notes.sample[beat]
    notes.symbol = np.array(notes.symbol)[beat]
    notes.aux_note = np.array(notes.aux_note)[beat]
    assert_array_equal(notes.sample, scored["sample"])
    assert_array_equal(notes.symbol, scored["kind"])
    assert_allclose(np.array(notes.aux_note, float), scored["excess"], atol=0.0051)
    assert (brought / "s02.ecgad.png").stat().st_size > 20000 and not list(brought.glob(".part-*"))

    expert = wfdb.rdann(str(brought / "s02"), "atr")
    abnormal = expert.sample[np.isin(expert.symbol, ("A", "V"))]
    away = np.abs(abnormal[:, None] - notes.sample[flagged]).min(axis=1)
    assert (away < 54).mean() > 0.8
    # what the expert calls premature and what ventricular, by the kinds given
    given = dict(zip(notes.sample, notes.symbol))
    for symbol, kind in (("A", "S"), ("V", "V")):
        for sample in expert.sample[np.array(expert.symbol) == symbol]:
            near = [given[at] for at in given if abs(at - sample) < 54]
            assert near in ([kind], ["N"], []), (symbol, sample, near)


def test_settings_of_use_are_those_of_the_checkpoint(brought, tmp_path, monkeypatch, capsys):
    """Whoever edits config.py without training anew gets the same flags."""
    for name, value in (("FS_HZ", 250), ("BAND_HZ", (2.0, 20.0)), ("FILTER_ORDER", 1),
                        ("WINDOW_SIZE", 512), ("QRS_SIGMA_S", 1.0), ("SELF_CAUSAL_S", 20.0),
                        ("LOCAL_BEATS", 11),
                        ("SCORES", config.SCORES | {"patient": ("mse", "combined")})):
        monkeypatch.setattr(config, name, value)
    run(brought / "s02.hea", "--out", tmp_path)
    assert (tmp_path / "s02.ecgad.csv").read_bytes() == (brought / "s02.ecgad.csv").read_bytes()
    assert capsys.readouterr().out.endswith(
        f"wrote NAME.ecgad.* into {tmp_path}\nopen {tmp_path / 's02.ecgad.png'}\n")


def test_examples_are_the_highest_beats_well_apart_as_filtered(brought, shipped):
    with reader.open_recording(brought / "s02.hea") as recording:
        _, scored = score_recording(recording, *shipped)
    filtered = preprocess.bandpass(np.load(brought / "array.npy"), 360, (0.5, 40), 3)
    times = np.array([example["time_s"] for example in scored.examples])
    assert len(times) == 8 and np.diff(np.sort(times)).min() >= 10
    assert scored.examples[0]["excess"] == np.nanmax(scored.excess)
    left = scored.excess[np.abs(scored.beats.time_s[:, None] - times).min(axis=1) >= 10]
    assert scored.examples[-1]["excess"] >= np.nanmax(left)
    for example in scored.examples:
        peak = round(example["time_s"] * 360)
        signal = example["signal"]
        assert_allclose(signal, filtered[peak - 360:peak + 360], atol=1e-4)
        assert np.corrcoef(example["recon"][320:400], signal[320:400])[0, 1] > 0.5
        assert example["offset_s"][360] == 0


def test_other_formats_agree_beat_for_beat_and_jobs_do_not_matter(brought, tmp_path):
    """--threads alone decides how many: the last digits of a score depend on it."""
    others = [brought / "table.csv", brought / "array.npy"]
    with threadpool_limits(2):
        run(*others, "--fs", 360, "--out", tmp_path / "1")
        assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    run(*others, "--fs", 360, "--out", tmp_path / "2", "--jobs", 2)
    first = pd.read_csv(brought / "s02.ecgad.csv")
    columns = ["time_s", "sample", "flag", "state"]
    for other in others:
        path = tmp_path / "1" / f"{other.stem}.ecgad.csv"
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
        table = pd.read_csv(path)
        assert table[columns].equals(first[columns])
        assert_allclose(table["excess"], first["excess"], atol=0.02)


def test_given_beats_are_those_of_the_annotator(folder):
    run(folder / "s02.hea", "--beats", "atr")
    notes = wfdb.rdann(str(folder / "s02"), "atr")
    beats = notes.sample[np.isin(notes.symbol, list(settings.AAMI_OF))]
    assert_array_equal(pd.read_csv(folder / "s02.ecgad.csv")["sample"], beats)
    assert summary_of(folder / "s02.ecgad.json")["r_peaks"] == "given"


def test_unreadable_stretches_are_noise_marks_and_no_beats_no_crash(brought, tmp_path, capsys):
    signal = np.load(brought / "array.npy")
    signal[100 * 360:130 * 360] = np.nan
    np.save(tmp_path / "gap.npy", signal)
    np.save(tmp_path / "flat.npy", np.zeros(25 * 360))
    run(tmp_path, "--fs", 360)
    for name, edges in (("gap", [36000, 46800]), ("flat", [0, 25 * 360 - 1])):
        notes = wfdb.rdann(str(tmp_path / name), "ecgad")
        marks = np.array(notes.symbol) == "~"
        assert notes.sample[marks].tolist() == edges
        assert notes.subtype[marks].tolist() == [-1, 0] and (np.diff(notes.sample) >= 0).all()
    assert marks.all()
    summary = summary_of(tmp_path / "flat.ecgad.json")
    assert summary["scored"] == 0 and summary["unreadable"]["flat"] == 1
    assert "no readable beat in 0.4 min" in capsys.readouterr().out


# --- the line -------------------------------------------------------------------------------------

def test_line_keeps_the_alarms_per_hour():
    z = np.array([1.0, np.nan, 3, 2, 0.5])
    for per_hour, n in ((0, 0), (2, 1), (3, 1), (4, 2), (100, 4)):
        line, rule = line_to_flag(z, 1800, None, alarms_per_hour=per_hour)
        assert (z >= line).sum() == n and rule == f"at most {per_hour} flags an hour"


def test_line_is_asked_for_or_of_the_validation_patients(monkeypatch):
    curve = {"excess": [1, 2, 3], "specificity": [0.5, 0.9, 0.99],
             "sensitivity": [0.95, 0.8, 0.4]}
    monkeypatch.setattr(config, "EXCESS_SPECIFICITY", 0.9)
    asked = ({}, {"sensitivity": 0.9}, {"excess": 7.5})
    lines = [line_to_flag(np.zeros(3), 60, curve, **flags)[0] for flags in asked]
    assert lines == [2, 1, 7.5]


def test_causal_score_is_that_of_the_past_or_an_error():
    names = [("combined", "combined_causal"), ("self_reference", "self_causal")]
    for name, causal in names:
        stored = {"score_settings": {"DEFAULT_SCORE": name}}
        assert [score_name(stored, past) for past in (False, True)] == [name, causal]
    with pytest.raises(UserError, match="--causal: the checkpoint's score mse"):
        score_name({"score_settings": {"DEFAULT_SCORE": "mse"}}, True)


def test_causal_scores_of_the_past_do_not_change_with_the_future(brought, tmp_path, shipped):
    """Changed after 100 s: what comes before is scored alike, against the first beats."""
    signal = np.load(brought / "array.npy")
    shipped[1]["fitted"]["settings"]["SELF_CAUSAL_S"] = 60
    found = []
    for changed in (signal, np.append(signal[:100 * 360], -signal[:80 * 360])):
        np.save(tmp_path / "r.npy", changed)
        with reader.open_recording(tmp_path / "r.npy", 360) as recording:
            _, scored = score_recording(recording, *shipped, causal=True)
        found.append(scored.excess[scored.beats.time_s < 95])
    assert len(found[0]) > 80
    assert_allclose(*found, atol=1e-3)


def test_heart_rate_and_flagged_share_of_stretches():
    """12.75 and 0.1 s are no heart rate."""
    time_s = np.array([1, 1.5, 2.25, 15, 15.1, 25])
    found = scored_beats(100 * time_s, [0, 3, 0, 3, np.nan, np.nan], 3000)
    rows = rates(found, np.array([0, 10, 20, 30]))
    assert_allclose(rows["rate"], [(120 + 80) / 2, np.nan, np.nan])
    assert_allclose(rows["flagged"], [100 / 3, 100, np.nan])


# --- many recordings ------------------------------------------------------------------------------

def test_what_is_done_is_skipped_and_a_changed_flag_or_lost_file_is_not(folder, capsys):
    def done_before(*flags):
        run(folder / "s02.hea", *flags)
        return "done before" in capsys.readouterr().out

    assert not done_before("--force")
    before = (folder / "s02.ecgad.csv").stat().st_mtime_ns
    assert done_before() and (folder / "s02.ecgad.csv").stat().st_mtime_ns == before
    assert not done_before("--excess", 2)
    assert summary_of(folder / "s02.ecgad.json")["excess"] == 2
    (folder / "s02.ecgad.png").unlink()
    assert not done_before("--excess", 2) and (folder / "s02.ecgad.png").exists()
    (folder / "s02.ecgad.json").write_text("{")
    assert not done_before("--excess", 2)


def test_a_damaged_checkpoint_is_one_error_of_several_recordings(folder, tmp_path):
    checkpoint = tmp_path / "damaged.pt"
    checkpoint.write_bytes(b"no network")
    with pytest.raises(UserError) as failed:
        detect.main([str(folder), "--jobs", "2", "--checkpoint", str(checkpoint),
                     "--out", str(tmp_path / "out")])
    said = str(failed.value)
    assert said.startswith("3 of 3 recordings failed:\n") and said.count("damaged.pt") == 1
    assert " and 2 others:" in said


def test_failed_write_leaves_no_summary_of_before(folder, monkeypatch):
    monkeypatch.setattr(detect.output, "write_csv", lambda *a: 1 / 0)
    with pytest.raises(UserError, match="s02.hea: ZeroDivisionError"):
        run(folder / "s02.hea", "--excess", 1)
    assert not (folder / "s02.ecgad.json").exists()


def test_folder_is_searched_and_a_bad_file_is_named_and_stops_no_other(folder, tmp_path):
    (folder / "bad.hea").write_text("no header at all\n")
    with pytest.raises(UserError, match=r"1 of 4 recordings failed:\n  \S*bad.hea: "):
        run(folder, "--fs", 360, "--out", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    # own output is no recording
    assert names == {"s02.ecgad.json", "array.ecgad.json", "table.ecgad.json"}
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


def test_missing_checkpoint_names_the_command(folder):
    with pytest.raises(UserError, match="none.pt: missing.*python train_mitbih.py --protocol pat"):
        run(folder / "s02.hea", "--checkpoint", "none.pt")


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(folder, shipped, tmp_path):
    model, stored = shipped
    own = ("format", "network", "network_code", "model_args", "state_dict")
    fields = {name: value for name, value in stored.items() if name not in own}
    fields["score_settings"] = {name: value for name, value in stored["score_settings"].items()
                                if name != "PAUSE_RATIO"}
    models.save_checkpoint(tmp_path / "old.pt", model, **fields)
    with pytest.raises(UserError, match="old.pt: .* without PAUSE_RATIO.*python train_mitbih.py"):
        run(folder / "s02.hea", "--checkpoint", tmp_path / "old.pt")


def test_demo_is_a_simulated_recording(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(config.DATABASES, "simulated",
                        config.DATABASES["simulated"] | {"home": str(tmp_path)})
    monkeypatch.setattr(detect, "DEMO_S", 30)
    run("--demo")
    assert "SIMULATED recording" in capsys.readouterr().out
    assert summary_of(tmp_path / "demo" / "s01.ecgad.json")["duration_s"] == 30


@pytest.mark.parametrize("argv", ["", "--demo x", "x --jobs 0", "x --sensitivity 2",
                                  "x --alarms-per-hour -1", "x --excess 1 --sensitivity 0.5",
                                  "x --jobs 2 --cluster y"])
def test_nonsense_flags_are_refused(argv):
    with pytest.raises(SystemExit):
        detect.parse_args(argv.split())
