"""Episodes: made-up rhythms of known truth."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import scored_beats

from recording import output, stretch
from recording.episodes import episodes, still
from studies import expert_labels

RNG = np.random.default_rng(0)


def found(rr_s, kind=None, joined=None, without_p=True):
    """[(kind, start_s, end_s)] of beats with these intervals; kind: letters, N otherwise."""
    time_s = np.append(0, np.cumsum(rr_s))
    kind = np.array(list(kind)) if kind else np.full(len(time_s), "N")
    joined = np.ones(len(rr_s), bool) if joined is None else joined
    rows = episodes(time_s, kind, joined, without_p)
    return [(row["kind"], row["start_s"], row["end_s"]) for row in rows]


def test_a_steady_rhythm_has_no_episode():
    assert found(np.full(300, 0.8)) == []
    assert found([]) == [] and found([0.8], "NN") == []


def runs(rr_s, kind, joined=None):
    """Those of `found` that are runs: all of a few seconds is a tachycardia as well."""
    return [row for row in found(rr_s, kind, joined) if row[0].endswith("run")]


def test_runs_are_of_three_and_more_beats_and_named_by_their_majority():
    rr_s = np.full(19, 0.5)
    assert runs(rr_s, "NNVVNNVVVNNSSSNNSSVV"[:20]) == [
        ("ventricular run", 3, 4), ("supraventricular run", 5.5, 6.5),
        ("ventricular run", 8, 9.5)]
    # below 100 a minute a ventricular run is a slow one, a supraventricular one none
    assert runs(2 * rr_s, "NNVVNNVVVNNSSSNNSSVV"[:20]) == [
        ("slow ventricular run", 6, 8), ("slow ventricular run", 16, 19)]
    # three with an unreadable stretch in it are none
    joined = np.ones(19, bool)
    joined[6] = False
    assert runs(rr_s, "NNVVNNVVVNNNNNNNNNNN", joined) == []


def test_bigeminy_and_trigeminy_need_three_cycles():
    rr_s = np.full(23, 1.0)
    assert found(rr_s, "NNNVNVNVNNNNNNNNNNNNNNNN") == []
    assert found(rr_s, "NNNVNVNVNVNNNNNNNNNNNNNN") == [("bigeminy", 3, 8)]
    assert found(rr_s, "NNNVNNSNNVNNVNNNNNNNNNNN") == [("trigeminy", 3, 11)]


def test_pauses_and_asystole():
    rr_s = np.array([0.8, 2.1, 0.8, 1.9, 5.5, 0.8])
    assert [row[0] for row in found(rr_s)] == ["pause", "asystole"]
    assert found(rr_s, joined=rr_s < 1) == []
    row = episodes(np.append(0, np.cumsum(rr_s)), np.full(7, "N"), np.ones(6, bool))[1]
    assert row["beats"] == 2 and row["rate_per_min"] == pytest.approx(60 / 5.5)
    assert row["why"] == "5.5 s without a beat"


def test_slow_and_fast_rhythms_last_half_a_minute():
    quick = np.full(80, 0.5)
    rr_s = np.concatenate([np.full(60, 0.8), quick, np.full(60, 0.8), quick[:30]])
    (name, start_s, end_s), = found(rr_s)
    assert name == "tachycardia" and abs(start_s - 48) < 3 and abs(end_s - 88) < 3
    assert found(np.full(40, 1.3))[0][0] == "bradycardia"


@pytest.mark.parametrize("rhythm, expected", [
    ("fibrillation", True), ("sinus arrhythmia", False), ("bigeminy", False),
    ("trigeminy", False), ("premature beats", False), ("change of rate", False)])
def test_irregular_at_every_distance_is_told_from_other_irregular_rhythms(rhythm, expected):
    n = 600
    jitter = np.exp(RNG.normal(0, 0.015, n))
    rr_s = {"fibrillation": 0.7 * np.exp(RNG.normal(0, 0.2, n)),
            "sinus arrhythmia": 0.9 * np.exp(0.12 * np.sin(np.arange(n))) * jitter,
            "bigeminy": np.tile([0.5, 1.1], n // 2) * jitter,
            "trigeminy": np.tile([0.8, 0.5, 1.1], n // 3) * jitter,
            "premature beats": np.full(n, 0.8) * jitter,
            "change of rate": np.linspace(1.2, 0.65, n) * jitter}[rhythm]
    if rhythm == "premature beats":
        early = RNG.choice(np.arange(0, n - 1, 2), n // 6, replace=False)
        rr_s[early] *= 0.65
        rr_s[early + 1] *= 1.35
    # in sinus arrhythmia there are P waves; the others are told by their intervals alone
    rows = found(rr_s, without_p=rhythm != "sinus arrhythmia")
    assert ("atrial fibrillation, suspected" in {row[0] for row in rows}) == expected
    if expected:
        assert sum(end_s - start_s for _, start_s, end_s in rows) > 0.9 * rr_s.sum()


@pytest.mark.parametrize("seconds", [10, 30])
def test_of_a_strip_nearly_all_is_as_good_as_half_a_minute(seconds):
    irregular = 0.7 * np.exp(np.random.default_rng(2).normal(0, 0.2, 100))
    for rr_s, expected in ((irregular, "atrial fibrillation, suspected"),
                           (np.full(100, 0.5), "tachycardia"), (np.full(100, 1.3), "bradycardia")):
        strip = rr_s[np.cumsum(rr_s) < seconds - 0.5]
        assert [row[0] for row in found(strip)] == [expected]

        # not half of it; nor so much of a long recording
        steady = np.full(round(seconds / 2 / 0.8), 0.8)
        assert found(np.append(steady, strip[:len(strip) // 2])) == []
        assert found(np.append(np.full(100, 0.8), strip[:-len(strip) // 5])) == []

        # but what is left of it where a part cannot be read, if that is not too short
        joined = np.arange(len(strip)) >= len(strip) // 5
        left_s = strip[joined][:-1].sum()     # slow and fast are told up to the last beat but one
        assert len(found(strip, joined=joined)) == (left_s >= 7)
    assert found(np.full(8, 0.5)) == [] and found(irregular[:7]) == []


@pytest.mark.parametrize("rr_s", [[0.8], [0.5, 1.1], [0.8, 0.5, 1.1]])
def test_a_strip_whose_intervals_return_is_no_fibrillation(rr_s):
    for n in (9, 10, 30):
        assert found(np.resize(rr_s, n) * np.exp(RNG.normal(0, 0.015, n))) == []


def test_wfdb_is_told_where_a_rhythm_begins_and_ends():
    scored = scored_beats(np.arange(100, 2000, 100), np.zeros(19), 2000)
    scored.episodes = [{"kind": "bigeminy", "start_s": 3.0, "end_s": 9.0},
                       {"kind": "pause", "start_s": 4.0, "end_s": 6.5}]   # has no symbol
    rows = list(zip(*output.annotations_of(scored)))
    assert [row[:3] for row in rows if row[1] == "+"] == [(300, "+", b"(B"), (900, "+", b"(N")]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows) and len(rows) == 21


def test_seconds_of_fibrillation_are_held_against_the_experts():
    """Expert from 400 to 500 s, flutter from 600; found from 450 to 549 and in the flutter."""
    notes = SimpleNamespace(sample=np.array([0, 40_000, 50_000, 60_000]), symbol=["+"] * 4,
                            aux_note=["(N\0", "(AFIB\0", "(N", "(AFL"])
    name = "atrial fibrillation, suspected"
    scored = SimpleNamespace(beats=SimpleNamespace(duration_s=700.5), episodes=[
        {"kind": name, "start_s": 450.2, "end_s": 549.7},
        {"kind": name, "start_s": 610.0, "end_s": 650.0},
        {"kind": "bigeminy", "start_s": 400.0, "end_s": 440.0}])
    assert expert_labels.fibrillation_seconds(notes, scored, 100) == {
        "fibrillation_s": 100, "found_s": 100, "both_s": 50, "counted_s": 300}


def still_rows(swing, reason=0, known=()):
    unreadable = np.full(-(-len(swing) // 10), reason)
    unreadable[0] = 0
    return still(np.array(swing), unreadable, 10, known)


def test_a_lead_that_hardly_moves_for_five_seconds_is_asystole():
    swing = np.full(60, 1.0)
    swing[20:24] = 0.1      # too short
    swing[30:36] = 0.2
    swing[40:50] = 0.3      # a smaller beat
    row, = still_rows(swing)
    assert (row["kind"], row["start_s"], row["end_s"]) == ("asystole", 30, 36)
    # noise or not, it is one; without a signal it is none
    assert len(still_rows(swing, reason=4)) == 1
    assert not still_rows(np.where(swing == 0.2, np.nan, swing))
    assert not still_rows(swing, known=[{"kind": "asystole", "start_s": 29.5, "end_s": 35}])
    assert len(still_rows(swing, known=[{"kind": "pause", "start_s": 29.5, "end_s": 35}])) == 1


def test_the_swing_of_a_second_is_from_lowest_to_highest():
    lead = np.concatenate([np.linspace(-1, 2, 100), np.full(100, 5), np.zeros(50)])
    assert stretch.swings(lead, 100).tolist() == [3, 0]


@pytest.mark.parametrize("n", [0, 1, 4])
def test_hardly_any_signal_is_no_asystole(n):
    assert not still_rows(np.zeros(n)) if n else not still(
        np.zeros(0), np.zeros(1, int), 10, [])
