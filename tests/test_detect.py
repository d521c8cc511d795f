import csv
import json
import shutil

import edfio
import numpy as np
import pytest
import wfdb
from threadpoolctl import threadpool_info, threadpool_limits
from wfdb.processing import compare_annotations

from scoring import ec57
import config
import detect
from recording import output
from pipeline import simulated_ecg
from pipeline.errors import UserError


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A folder with one simulated WFDB record of five minutes and copies of it as CSV and NumPy."""
    folder = tmp_path_factory.mktemp("brought")
    simulated_ecg.write_database(folder, ("s02",), duration_s=300, seed=5)
    signal = wfdb.rdrecord(str(folder / "s02")).p_signal[:, 0]
    np.save(folder / "array.npy", signal)
    edfio.Edf([edfio.EdfSignal(signal, 360, label="ECG MLII", physical_dimension="mV",
                               physical_range=(-163.84, 163.835))]).write(folder / "copy.edf")  # WFDB's 0.005 mV a step
    np.savetxt(folder / "table.csv", signal, fmt="%.4f", header="MLII", comments="")
    return folder


@pytest.fixture
def folder(brought, tmp_path):
    shutil.copytree(brought, tmp_path / "in")
    return tmp_path / "in"


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def run(*argv):
    detect.main([str(a) for a in argv])


def test_writes_table_annotations_picture_and_summary_that_agree(folder, capsys):
    run(folder / "s02.hea")
    stem = folder / "s02.ecgad"
    summary, rows = json.loads((folder / "s02.ecgad.json").read_text()), rows_of(f"{stem}.csv")
    flagged = [r for r in rows if r["flag"] == "1"]
    assert summary["flagged"] == len(flagged) > 3 and summary["beats"] == len(rows) > 250
    assert summary["lead"] == "MLII" and summary["level_rule"].startswith("specificity 0.98")
    assert all(float(r["level"]) >= summary["level"] for r in flagged)
    assert all(float(r["level"]) < summary["level"] for r in rows if r["state"] == "scored" and r["flag"] == "0")
    notes = wfdb.rdann(str(folder / "s02"), "ecgad")
    scored = [r for r in rows if r["state"] == "scored"]
    beat = np.isin(notes.symbol, ("N", "Q"))
    np.testing.assert_array_equal(np.asarray(notes.sample)[beat], [int(r["sample"]) for r in scored])
    assert [s == "Q" for s in np.array(notes.symbol)[beat]] == [r["flag"] == "1" for r in scored]
    np.testing.assert_allclose([float(a) for a, b in zip(notes.aux_note, beat) if b],
                               [float(r["level"]) for r in scored], atol=0.0051)  # two and four digits
    assert notes.fs == 360 and (folder / "s02.ecgad.png").stat().st_size > 20000
    assert "s02" in capsys.readouterr().out and not list(folder.glob(".part-*"))


def test_flags_are_where_the_abnormal_beats_are(folder):
    """Simulated records hold premature and wide beats: most flags are on them."""
    run(folder / "s02.hea")
    notes = wfdb.rdann(str(folder / "s02"), "atr")
    expert = np.asarray(notes.sample)[[s in "AV" for s in notes.symbol]] / 360
    found = np.array([float(r["time_s"]) for r in rows_of(folder / "s02.ecgad.csv") if r["flag"] == "1"])
    near = np.abs(expert[:, None] - found).min(axis=1) < 0.15
    assert near.mean() > 0.8


def test_annotations_survive_a_round_trip_and_are_scored_by_wfdb(folder):
    run(folder / "s02.hea")
    notes, expert = (wfdb.rdann(str(folder / "s02"), name) for name in ("ecgad", "atr"))
    wfdb.wrann("copy", "ecgad", notes.sample, notes.symbol, notes.subtype, aux_note=notes.aux_note, fs=notes.fs,
               write_dir=str(folder))
    again = wfdb.rdann(str(folder / "copy"), "ecgad")
    assert (again.sample == notes.sample).all() and again.symbol == notes.symbol and again.aux_note == notes.aux_note
    beats = np.isin(expert.symbol, list("".join(config.AAMI.values())))
    pairs = compare_annotations(expert.sample[beats], notes.sample[np.isin(notes.symbol, ("N", "Q"))], 54)
    assert pairs.sensitivity > 0.97 and pairs.positive_predictivity > 0.97


def test_copies_in_other_formats_agree_beat_for_beat(folder, tmp_path):
    out = tmp_path / "out"
    run(folder / "s02.hea", "--out", out)
    run(folder / "table.csv", folder / "array.npy", folder / "copy.edf", "--fs", 360, "--out", out)
    first = rows_of(out / "s02.ecgad.csv")
    for name in ("table", "array", "copy"):
        other = rows_of(out / f"{name}.ecgad.csv")
        for column in ("time_s", "sample", "flag", "state"):
            assert [r[column] for r in first] == [r[column] for r in other]
        levels = [[float(r["level"] or 0) for r in rows] for rows in (first, other)]
        np.testing.assert_allclose(*levels, atol=0.02)


def test_what_is_done_is_skipped_and_a_changed_flag_or_file_is_not(folder, capsys):
    run(folder / "s02.hea")
    before = (folder / "s02.ecgad.csv").stat().st_mtime_ns
    run(folder / "s02.hea")
    assert "done before" in capsys.readouterr().out and (folder / "s02.ecgad.csv").stat().st_mtime_ns == before
    run(folder / "s02.hea", "--level", 2)
    assert json.loads((folder / "s02.ecgad.json").read_text())["level"] == 2
    (folder / "s02.ecgad.png").unlink()
    run(folder / "s02.hea", "--level", 2)
    assert (folder / "s02.ecgad.png").exists()


def test_one_bad_file_does_not_stop_the_others_and_is_named(folder, tmp_path):
    (folder / "bad.hea").write_text("no header at all\n")
    with pytest.raises(UserError, match=r"1 of 2 recordings failed:\n  \S*bad.hea: no record line"):
        run(folder / "bad.hea", folder / "s02.hea", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "s02.ecgad.json").exists() and not list((tmp_path / "out").glob("bad*"))


def test_folder_is_searched_and_own_output_is_no_recording(folder, tmp_path):
    run(folder, "--fs", 360)
    names = {p.name for p in folder.glob("*.ecgad.json")}
    assert names == {"s02.ecgad.json", "array.ecgad.json", "table.ecgad.json", "copy.ecgad.json"}
    run(folder, "--fs", 360)
    assert {p.name for p in folder.glob("*.ecgad.json")} == names


def test_jobs_give_the_same_files(folder, tmp_path):
    for jobs in (1, 2):
        run(folder, "--fs", 360, "--out", tmp_path / str(jobs), "--jobs", jobs, "--threads", 1)
    for path in sorted((tmp_path / "1").glob("*.csv")):
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_same_names_in_one_output_folder_are_refused_before_any_work(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again")
    with pytest.raises(UserError, match="both write"):
        run(folder / "s02.hea", tmp_path / "again" / "s02.hea", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("per_hour", [0, 24, 120])
def test_alarms_per_hour_are_kept(folder, per_hour):
    run(folder / "s02.hea", "--alarms-per-hour", per_hour)
    summary = json.loads((folder / "s02.ecgad.json").read_text())
    assert summary["flagged"] == int(per_hour * 300 / 3600)


def test_sensitivity_asks_for_a_level_of_the_curve(folder):
    run(folder / "s02.hea", "--sensitivity", 0.9)
    low = json.loads((folder / "s02.ecgad.json").read_text())["level"]
    run(folder / "s02.hea", "--sensitivity", 0.5)
    assert low < json.loads((folder / "s02.ecgad.json").read_text())["level"]


def test_given_beats_and_a_missing_annotator(folder):
    run(folder / "s02.hea", "--beats", "atr")
    notes = wfdb.rdann(str(folder / "s02"), "atr")
    beats = np.asarray(notes.sample)[np.isin(notes.symbol, list("".join(config.AAMI.values())))]
    assert [int(r["sample"]) for r in rows_of(folder / "s02.ecgad.csv")] == beats.tolist()
    with pytest.raises(UserError, match="s02.qrs: missing.*--beats"):
        run(folder / "s02.hea", "--beats", "qrs")


def test_causal_levels_of_the_past_do_not_change_with_the_future(brought, tmp_path, monkeypatch):
    signal = np.load(brought / "array.npy")
    for name, changed in (("a", signal), ("b", np.concatenate([signal[:200 * 360], signal[:100 * 360][::-1]]))):
        np.save(tmp_path / f"{name}.npy", changed)
    run(tmp_path / "a.npy", tmp_path / "b.npy", "--fs", 360, "--causal")
    a, b = ([r for r in rows_of(tmp_path / f"{n}.ecgad.csv") if float(r["time_s"]) < 150] for n in "ab")
    assert len(a) > 100 and [r["time_s"] for r in a] == [r["time_s"] for r in b]


def test_no_beats_is_said_and_no_crash(tmp_path, capsys):
    np.save(tmp_path / "flat.npy", np.zeros(20 * 360))
    run(tmp_path / "flat.npy", "--fs", 360)
    assert "no readable beat" in capsys.readouterr().out
    summary = json.loads((tmp_path / "flat.ecgad.json").read_text())
    assert summary["scored"] == 0 and summary["unreadable"]["flat"] == 1
    assert set(wfdb.rdann(str(tmp_path / "flat"), "ecgad").symbol) <= {"~"}


def test_missing_checkpoint_names_the_command(folder, tmp_path):
    with pytest.raises(UserError, match="missing. Make it with: python train_mitbih.py --protocol patient"):
        run(folder / "s02.hea", "--checkpoint", tmp_path / "none.pt")


@pytest.mark.parametrize("argv", [[], ["--demo", "x"], ["x", "--jobs", "0"], ["x", "--sensitivity", "2"],
                                  ["x", "--alarms-per-hour", "-1"], ["x", "--level", "1", "--sensitivity", "0.5"]])
def test_nonsense_flags_are_refused(argv):
    with pytest.raises(SystemExit):
        detect.parse_args(argv)


def test_unreadable_stretches_are_noise_marks(brought, tmp_path):
    signal = np.load(brought / "array.npy")
    signal[100 * 360:130 * 360] = np.nan
    np.save(tmp_path / "gap.npy", signal)
    run(tmp_path / "gap.npy", "--fs", 360)
    notes = wfdb.rdann(str(tmp_path / "gap"), "ecgad")
    marks = [(s, k) for s, k, symbol in zip(notes.sample, notes.subtype, notes.symbol) if symbol == "~"]
    assert marks == [(36000, -1), (46800, 0)]


def test_level_curve_is_of_means_over_records():
    levels = np.array([0.0, 1, 2, 3, 5, 6, 1, 9])
    y = np.array([0, 0, 0, 0, 1, 1, 0, 1])
    record = np.array(list("aaaaaabb"))
    curve = ec57.robust_z_curve(levels, y, record)
    at = curve["level"].index(1.5)
    assert curve["specificity"][at] == pytest.approx((2 / 4 + 1) / 2) and curve["sensitivity"][at] == 1
    assert ec57.robust_z_at(curve, "specificity", 0.75) == pytest.approx(1.05)
    assert ec57.robust_z_at(curve, "sensitivity", 0.75) == pytest.approx(6.0)
    assert ec57.robust_z_at(curve, "specificity", 1.0) == pytest.approx(3.05)


def test_stored_summary_of_another_origin_or_without_its_files_is_none(tmp_path):
    stem = tmp_path / "r"
    (tmp_path / "r.ecgad.json").write_text('{"origin": "x"}')
    assert output.stored_summary(stem, "x") is None
    for end in ("", ".csv", ".png"):
        (tmp_path / f"r.ecgad{end}").touch()
    assert output.stored_summary(stem, "x") and output.stored_summary(stem, "y") is None
    (tmp_path / "r.ecgad.json").write_text("{")
    assert output.stored_summary(stem, "x") is None


def test_threads_are_those_of_all_libraries(folder):
    """The last digits of a score depend on them: --threads alone must decide, not the machine or its environment."""
    with threadpool_limits(2):
        run(folder / "s02.hea", "--threads", 1)
        pools = threadpool_info()
        assert {pool["user_api"] for pool in pools} >= {"blas"} and {pool["num_threads"] for pool in pools} == {1}
