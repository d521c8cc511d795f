"""detect.py against expert labels, on recordings as they are and with noise mixed in."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import wfdb
from sklearn.metrics import roc_auc_score

import config
from pipeline import settings, simulated_ecg
from pipeline.errors import UserError
from recording import quality
from studies import expert_labels, noise_stress


def compared(name, found_s, excess, expert_s, symbols):
    """expert_labels.compare of beats found in a recording of ten minutes, flagged from 4 on."""
    z = np.array(excess, float)
    beats = SimpleNamespace(time_s=np.array(found_s), scored=np.isfinite(z),
                            unreadable=np.arange(60) == 59)
    kind = np.where(z >= 7, "V", np.where(z >= 4, "S", "N"))
    found = SimpleNamespace(score=z, group=np.asarray(z >= 7, int))
    scored = SimpleNamespace(beats=beats, lead="II", found=found, excess=z, flagged=z >= 4,
                             kind=kind)
    return expert_labels.compare(name, scored, np.array(expert_s), np.array(list(symbols)))


def test_missed_unscored_and_extra_beats_are_counted():
    """N, V, S missed, V not scored, F flagged, N; a beat 200 ms late is extra."""
    found = compared("r", [10, 11, 301, 302, 303.2, 304, 305, 308], [9, 9, 0, 5, 8, np.nan, 7, 0],
                     [10, 301, 302, 303, 304, 305.1, 308], "NNVAVFN")
    result = expert_labels.figures_of([found])
    assert result["qrs"] == pytest.approx(dict.fromkeys(result["qrs"], 5 / 6))
    assert result["unreadable_share"] == pytest.approx(1 / 30)
    assert result["false_alarms_per_hour"] == pytest.approx(12)  # one in the last five minutes
    # n, missed, not scored, gross, average, records
    assert {name: tuple(row.values()) for name, row in result["classes"].items()} == {
        "N": (2, 0, 0, 0, 0, 1), "S": (1, 1, 0, 0, 0, 1), "V": (2, 0, 1, 0.5, 0.5, 1),
        "F": (1, 0, 0, 1, 1, 1), "Q": (0, 0, 0, None, None, 0)}


def test_beats_by_kind_are_counted_as_bxb_does():
    """Given V: a V, an F (forgiven), an N, a beat of nobody. Given S: an S, a V. A V missed."""
    given = compared("r", [301, 302, 303, 304, 305, 306, 307, 308], [9, 8, 7, 7, 5, 5, 0, 0],
                     [301, 302, 303, 305, 306, 307, 308, 320], "VFNAVNNV")
    kinds = expert_labels.figures_of([given])["kinds"]
    v = {"n": 3, "sensitivity_gross": 1 / 3, "ppv_gross": 1 / 3, "false_positive_rate": 1 / 4}
    s = {"n": 1, "sensitivity_gross": 1, "ppv_gross": 1 / 2, "false_positive_rate": 1 / 7}
    for letter, expected in (("V", v), ("S", s)):
        found = kinds[letter]
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        assert found["ppv_average"] == pytest.approx(expected["ppv_gross"])


def test_groups_are_counted_and_their_most_frequent_class():
    """Group 1: V, V, N; alone: two S given S; two N given N, one a missed S."""
    given = compared("r", range(301, 309), [9, 9, 9, 5, 5, 0, 0, np.nan], range(301, 309),
                     "VVNAANAV")
    assert expert_labels.figures_of([given])["groups"] == pytest.approx({
        "median": 1, "most": 1, "purity": 5 / 7, "alone": 4 / 7})
    alone = compared("r", [301, 302], [5, 0], [301, 302], "AN")
    assert expert_labels.figures_of([alone])["groups"]["purity"] is None


def test_figures_are_pooled_and_means_over_records():
    z = np.random.default_rng(0).normal(4, 1, (2, 40))
    symbols = np.array([list("NNAV" * 10), list("NVVV" * 10)])
    times = 301.0 + np.arange(40)
    result = expert_labels.figures_of([compared(name, times, own, times, labels)
                                       for name, own, labels in zip("ab", z, symbols)])
    y = symbols != "N"
    own = [roc_auc_score(*record) for record in zip(y, z)]
    assert result["excess"] == pytest.approx({
        "auroc": roc_auc_score(y.ravel(), z.ravel()), "auroc_record_mean": np.mean(own),
        "records": 2})
    flagged = [np.mean(own[labels == "V"] >= 4) for own, labels in zip(z, symbols)]
    assert result["classes"]["V"]["gross"] == pytest.approx(np.mean(z[symbols == "V"] >= 4))
    assert result["classes"]["V"]["average"] == pytest.approx(np.mean(flagged))


@pytest.fixture
def simulated(tmp_path, monkeypatch):
    """A simulated database with one test record of eight minutes and the shipped checkpoint."""
    entry = config.DATABASES["simulated"] | {"home": str(tmp_path), "test": "s01", "train": "s02"}
    monkeypatch.setitem(config.DATABASES, "simulated", entry)
    database = settings.database("simulated")
    simulated_ecg.write_database(database.records_dir(), ("s01",), duration_s=480, seed=2)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(settings.ROOT / "checkpoints" / "patient.pt", tmp_path / "checkpoints")
    return database


def test_recordings_by_the_command(simulated, tmp_path, capsys):
    command = ["--database", "simulated", "--threads", "1"]
    expert_labels.main(command)
    detected = json.loads((simulated.out / "results" / "recordings-test.json").read_text())
    assert detected["r_peaks"] == "detected" and detected["by_record"][0]["record"] == "s01"
    assert detected["qrs"]["sensitivity_gross"] > 0.9

    out = tmp_path / "mine.json"
    command += [str(simulated.records_dir()), "--out", str(out)]
    expert_labels.main([*command, "--given-beats", "--score-all"])
    assert json.loads(out.read_text())["unreadable_share"] == 0
    assert re.search(r"R peaks: sensitivity \(%\) +100.00\n", capsys.readouterr().out)
    assert len(list((simulated.out / "results").iterdir())) == 1  # of one's own goes to --out alone
    with pytest.raises(SystemExit):
        expert_labels.main(command[:-2])
    with pytest.raises(UserError, match="s01.none: missing.*--annotator"):
        expert_labels.main([*command, "--annotator", "none"])


def test_noise_is_in_every_other_two_minutes_after_five_and_nowhere_else():
    fs = 100
    noise = np.random.default_rng(0).normal(size=400 * fs)
    signal = np.zeros(900 * fs)
    beats = np.arange(50, len(signal) - 50, 80)
    signal[beats] = 1
    mixed = noise_stress.mix(signal, noise, beats, 6, fs).reshape(15, -1)
    everywhere = quality.mix_noise(signal, noise, beats, 6, fs).reshape(15, -1)
    noisy = [5, 6, 9, 10, 13, 14]
    expected = signal.reshape(15, -1)
    expected[noisy] = everywhere[noisy]
    np.testing.assert_array_equal(mixed, expected)


def test_shares_of_readable_beats_and_records_that_end_without_a_word():
    """60 V of which 40 are flagged, in a record that says so; 60 V in one that says nothing."""
    times = 301.0 + np.arange(60)
    rows, record = compared("a", times, [9] * 40 + [0] * 15 + [np.nan] * 5, times, "V" * 60)
    silent, quiet = compared("b", times, [0] * 60, times, "V" * 60)
    said = [(rows, record | {"said": 40}), (silent, quiet | {"said": 0})]
    found = noise_stress.readable_beats(said)
    assert found["readable"]["V"] == pytest.approx(40 / 115) and found["readable"]["S"] is None
    assert found["silent"] == ["b"]
    few = noise_stress.readable_beats([(silent[:50], quiet | {"said": 0})])
    assert few["silent"] == []


def test_noise_stress_by_the_command(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(noise_stress, "NOISES", {"em": "electrode motion"})
    monkeypatch.setattr(noise_stress, "SNR_DB", (24, -6))
    command = ["--database", "simulated", "--threads", "1", "--noise", str(tmp_path)]
    with pytest.raises(UserError, match="em.hea: missing.*nstdb"):
        noise_stress.main(command)
    noise = np.random.default_rng(0).normal(size=(60 * 360, 1)).cumsum(axis=0)
    wfdb.wrsamp("em", 360, ["mV"], ["noise"], noise, fmt=["16"], write_dir=str(tmp_path))
    noise_stress.main(command)
    saved = json.loads((simulated.out / "results" / "noise_stress.json").read_text())
    clean, little, much = saved["rows"]
    assert clean["readable"]["V"] > 0.8 and clean["silent"] == []
    assert (much["noise"], much["snr_db"], much["hours"]) == ("em", -6, pytest.approx(1 / 30))
    assert clean["unreadable_share"] <= little["unreadable_share"] < much["unreadable_share"]
    assert much["without_rule"]["classes"]["N"]["not_scored"] < much["classes"]["N"]["not_scored"]
    assert (simulated.out / "evaluation_plots" / "noise_stress.png").is_file()
