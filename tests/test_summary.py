"""Many recordings: what a summary says of the rhythm, which comes first, every lead, the page."""

import json

import numpy as np
import pytest
import wfdb
from conftest import scored_beats

import detect
from pipeline import settings, simulated_ecg
from recording import episodes, scan
from recording.rhythm import rhythm_of


def run(*argv):
    detect.main([str(a) for a in (*argv, "--threads", 1)])


def summary_of(path):
    return json.loads(path.read_text())


# --- the rhythm of one recording ------------------------------------------------------------------

def beats_of(rr_s, kind, gap_s=()):
    """ScoredBeats of intervals before each beat and of letters ("-": not scored); the stretches of
    ten seconds that begin at gap_s are unreadable.
    """
    time_s = np.cumsum(rr_s)
    letters = np.array(list(kind))
    excess = np.where(letters == "-", np.nan, np.where(letters == "N", 0, 5))
    scored = scored_beats(1000 * time_s, excess, 1000 * (time_s[-1] + 1), fs_hz=1000)
    scored.kind = np.where(letters == "-", "", letters)
    scored.beats.unreadable[(np.array(gap_s) // 10).astype(int)] = 1
    scored.episodes = episodes.episodes(time_s, scored.kind, scan.joined(scored.beats))
    return scored


def test_rhythm_is_that_of_a_hand_count():
    """At 75 a minute: eight beats at 150, ten at 40, a pause of 3 s, bigeminy, runs, couplets."""
    usual = [0.8] * 10
    rr_s = [*usual, *[0.4] * 8, *usual, *[1.5] * 10, 3.0, *usual]
    kind = "N" * len(rr_s)
    #      couplets VV, SS; V alone; SV is none; a run of four; VV at its end is no couplet
    more = "NVVNNSSNNVNNSVNNSSVVNNN"
    found = rhythm_of(beats_of(rr_s + [0.8] * len(more), kind + more))
    assert found["rate_highest_per_min"] == pytest.approx(150)
    # eight in a row with the pause: 7 of 1.5 s and one of 3
    assert found["rate_lowest_per_min"] == pytest.approx(60 * 8 / (7 * 1.5 + 3))
    # 52 of 0.8, less the one before the first beat
    assert found["rate_mean_per_min"] == pytest.approx(
        60 * 71 / (52 * 0.8 + 8 * 0.4 + 10 * 1.5 + 3))
    assert found["longest_pause_s"] == pytest.approx(3)
    assert found["longest_pause_at_s"] == pytest.approx(10 * 0.8 + 8 * 0.4 + 8 + 15)
    assert found["v_burden"] == 6 / 72 and found["s_burden"] == 5 / 72
    assert (found["runs"], found["longest_run_beats"], found["couplets"]) == (1, 4, 2)


def test_rhythm_stops_at_what_is_unreadable():
    """Nothing is told across a gap: a pause of 25 s, a run and a couplet would lie in it."""
    gap = beats_of([1.0] * 9 + [25.0] + [1.0] * 9, "NNNNNNNNVVNNNNNNNNN", gap_s=[10, 20])
    found = rhythm_of(gap)
    assert found["longest_pause_s"] == 1 and found["couplets"] == 0
    assert found["rate_lowest_per_min"] == found["rate_highest_per_min"] == 60
    few = rhythm_of(beats_of([1.0] * 5, "NNNNN"))
    assert few["rate_mean_per_min"] == 60 and few["rate_lowest_per_min"] is None
    nothing = rhythm_of(beats_of([1.0] * 5, "-----"))
    assert set(nothing.values()) == {None} and rhythm_of(scored_beats([], [], 3000)) == nothing


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """Folder of a simulated record of three minutes with two leads, and detect.py's output."""
    folder = tmp_path_factory.mktemp("brought")
    simulated_ecg.write_database(folder, ("s02",), duration_s=180, seed=5)
    run(folder / "s02.hea")
    return folder


def test_rhythm_of_a_record_is_that_of_its_experts(brought):
    """Counted from the annotations alone, with as much tolerance as missed beats may make."""
    notes = wfdb.rdann(str(brought / "s02"), "atr")
    beat = np.isin(notes.symbol, list(settings.AAMI_OF))
    symbol = np.array(notes.symbol)[beat]
    time_s = notes.sample[beat] / 360
    rates = 480 / (time_s[8:] - time_s[:-8])
    found = summary_of(brought / "s02.ecgad.json")["rhythm"]
    assert found["rate_mean_per_min"] == pytest.approx(60 / np.diff(time_s).mean(), rel=0.02)
    assert found["rate_lowest_per_min"] == pytest.approx(rates.min(), rel=0.02)
    assert found["rate_highest_per_min"] == pytest.approx(rates.max(), rel=0.02)
    assert found["longest_pause_s"] == pytest.approx(np.diff(time_s).max(), abs=0.03)
    assert found["longest_pause_at_s"] == pytest.approx(time_s[np.diff(time_s).argmax()], abs=0.03)
    # a fusion beat may be told V
    assert (symbol == "V").mean() <= found["v_burden"] <= np.isin(symbol, ("V", "F")).mean()
    assert found["s_burden"] == pytest.approx((symbol == "A").mean(), abs=0.015)
