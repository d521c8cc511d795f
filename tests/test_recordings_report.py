from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import config
from pipeline import settings
import evaluate
from studies import noise_stress
from recording import quality
from studies import expert_labels
from pipeline import simulated_ecg
from pipeline.errors import UserError


def test_matching_is_one_to_one_within_150_ms():
    expert = np.array([1.0, 2.0, 3.0, 4.0])
    found = np.array([1.149, 2.2, 2.95, 3.04, 4.0])
    np.testing.assert_array_equal(expert_labels.matched(expert, found), [0, -1, 3, 4])
    assert (expert_labels.matched(expert, np.empty(0)) == -1).all() and len(expert_labels.matched(np.empty(0), found)) == 0


def findings(time_s, levels, threshold, unreadable=60):
    levels = np.array(levels, float)
    beats = SimpleNamespace(time_s=np.array(time_s), scored=np.isfinite(levels), duration_s=600.0,
                            unreadable=np.zeros(unreadable, np.int8))
    return SimpleNamespace(beats=beats, scores=levels * 2, levels=levels, flagged=levels >= threshold)


def test_missed_unscored_and_extra_beats_are_counted():
    """Six expert beats: normal, V, S missed, V not scored, F flagged; one extra flagged, one before five minutes."""
    found = findings([10, 301, 302, 304, 305, 306, 308], [9, 0, 5, np.nan, 7, 8, 0], 4)
    rows, record = expert_labels.compared("r", "II", found, np.array([10, 301, 302, 303, 304, 305.1, 308]),
                                   np.array(list("NNVAVFN")))
    assert rows["aami"].tolist() == list("NVSVFN") and rows["flagged"].tolist() == [0, 1, 0, 0, 1, 0]
    assert rows["found"].tolist() == [1, 1, 0, 1, 1, 1] and rows["scored"].tolist() == [1, 1, 0, 0, 1, 1]
    assert record["extra"] == 1 and record["extra_flagged"] == 1 and record["hours"] == pytest.approx(300 / 3600)
    result = expert_labels.figures(rows, [record])
    assert result["qrs"]["sensitivity_gross"] == pytest.approx(5 / 6)
    assert result["qrs"]["ppv_gross"] == pytest.approx(5 / 6)
    v = result["classes"]["V"]
    assert (v["n"], v["missed"], v["not_scored"], v["gross"]) == (2, 0, 1, 0.5)
    assert result["classes"]["S"] == {"n": 1, "missed": 1, "not_scored": 0, "gross": 0, "average": 0, "records": 1}
    assert result["false_alarms_per_hour"] == pytest.approx(1 / (300 / 3600))
    assert result["level"]["auroc"] == 1 and "100.00 % pooled" in expert_labels.table(result)


def test_gross_is_of_all_beats_and_average_of_records():
    times = np.array([301.0, 302, 303])
    one = expert_labels.compared("a", "I", findings(times, [5, 5, 5], 4), times, np.array(list("VVV")))
    two = expert_labels.compared("b", "I", findings([301], [0], 4), np.array([301.0]), np.array(["V"]))
    rows = {name: np.concatenate([one[0][name], two[0][name]]) for name in one[0]}
    v = expert_labels.figures(rows, [one[1], two[1]])["classes"]["V"]
    assert v["gross"] == 0.75 and v["average"] == 0.5


def test_recordings_of_a_folder_by_the_command(tmp_path, capsys, monkeypatch):
    """With the shipped checkpoint on simulated records: the table is printed and saved."""
    monkeypatch.setattr(config, "MITDB", replace(settings.database("mitdb"), root=tmp_path))
    (tmp_path / "checkpoints").symlink_to(settings.ROOT / "checkpoints")
    folder = tmp_path / "mine"
    simulated_ecg.write_database(folder, ("s01", "s02"), duration_s=480, seed=2)
    evaluate.main(["--recordings", str(folder), "--threads", "1"])
    text = capsys.readouterr().out
    assert "2 records" in text and "QRS detection: sensitivity" in text
    assert (tmp_path / "results" / "recordings-mine.json").is_file()
    evaluate.main(["--recordings", str(folder), "--threads", "1", "--given-beats"])
    assert "sensitivity 100.00 % gross" in capsys.readouterr().out
    with pytest.raises(UserError):
        evaluate.main(["--recordings", str(tmp_path / "none")])


def test_noise_is_in_every_other_two_minutes_after_five_and_nowhere_else():
    fs, rng = 100, np.random.default_rng(0)
    signal, noise = np.zeros(900 * fs), rng.normal(size=400 * fs)
    beats = np.arange(50, len(signal) - 50, 80)
    signal[beats] = 1
    mixed = noise_stress.mixed(signal, noise, beats, 6, fs)
    changed = (mixed != signal).reshape(-1, 60 * fs).mean(axis=1) > 0.9
    assert changed.tolist() == [False] * 5 + [True, True, False, False, True, True, False, False, True, True]
    there = slice(300 * fs, 420 * fs)
    np.testing.assert_allclose(mixed[there], quality.mix_noise(signal, noise, beats, 6, fs)[there])


def test_noise_folder_without_its_records_is_refused(tmp_path):
    with pytest.raises(UserError, match="bw.hea: missing.*nstdb"):
        noise_stress.main(["--noise", str(tmp_path)])
