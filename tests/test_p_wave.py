"""P waves: seen where every beat has one, not where what comes before the QRS complex differs."""

import numpy as np
import pytest
import wfdb
from numpy.testing import assert_allclose, assert_array_equal

import models
from pipeline import settings
from recording import episodes, p_wave, reader
from recording.scored import score_recording

FS = 360


def segments_of(before, k=400, width=720, scale=0.2):
    """(k, width + 2) segments whose signal in front of the R peak is before(time_s (m,), beat)."""
    time_s = (np.arange(width) - width // 2) / FS
    qrs = np.exp(-0.5 * np.square(time_s / 0.01))
    signal = np.array([qrs + before(time_s, beat) for beat in range(k)])
    return np.column_stack([signal / scale, np.zeros(k), np.full(k, scale)])


def p_of(time_s, beat):
    return 0.1 * np.exp(-0.5 * np.square((time_s + 0.16) / 0.02))


def noise_of(time_s, beat):
    rng = np.random.default_rng(beat)
    return 0.05 * np.sin(2 * np.pi * (6 * time_s + rng.uniform())) + 0.01 * rng.normal(size=720)


def both(time_s, beat):
    return p_of(time_s, beat) + noise_of(time_s, beat)


@pytest.mark.parametrize("before, expected", [(p_of, False), (noise_of, True), (both, False)])
def test_a_p_wave_is_what_all_beats_have_in_common(before, expected):
    segments = segments_of(before)
    assert_array_equal(p_wave.without_p(segments, np.zeros(400), FS), np.full(400, expected))


def test_share_is_that_of_the_mean_over_the_beats_around():
    """Against the figure of one window, computed beat by beat."""
    x = p_wave.before_r(segments_of(both), FS)
    own = np.arange(400) % 7 > 0
    here = np.flatnonzero(own & (np.abs(np.arange(400) - 200) <= p_wave.BEATS // 2))
    pairs = [x[a] @ x[b] for a in here for b in here if a != b]
    share = np.mean(pairs) / np.mean([x[a] @ x[a] for a in here])
    assert_allclose(p_wave.same_share(x, own)[200], share)


def test_foreign_beats_are_left_out_and_slices_do_not_show(monkeypatch):
    """Bigeminy: half of the beats are foreign and have no P wave."""
    segments = segments_of(lambda time_s, beat: (noise_of if beat % 2 else both)(time_s, beat))
    distance = np.arange(400) % 2.0
    assert not p_wave.without_p(segments, distance, FS).any()

    whole = p_wave.without_p(segments, 0 * distance, FS)
    monkeypatch.setattr(p_wave, "BATCH", 3)
    assert_array_equal(p_wave.without_p(segments, 0 * distance, FS), whole)


def test_an_irregular_rhythm_with_p_waves_is_no_fibrillation():
    time_s = np.cumsum(0.7 * np.exp(np.random.default_rng(0).normal(0, 0.2, 300)))
    kind, joined = np.full(300, "N"), np.ones(299, bool)
    assert episodes.in_atrial_fibrillation(time_s, kind, joined).mean() > 0.9
    half = np.arange(300) < 150
    suspected = episodes.in_atrial_fibrillation(time_s, kind, joined, half)
    assert suspected[:150].mean() > 0.8 and not suspected[150:].any()
    assert not episodes.in_atrial_fibrillation(time_s, kind, joined, False).any()


def test_in_201_p_waves_are_seen_outside_of_its_fibrillation_alone(mitdb):
    """By the expert's rhythm annotations; within half a minute of a change it is mixed."""
    model, stored = models.load_checkpoint(settings.ROOT / "checkpoints" / "patient.pt", "make")
    with reader.open_recording(mitdb / "201.hea") as recording:
        _, scored = score_recording(recording, model, stored)

    notes = wfdb.rdann(str(mitdb / "201"), "atr")
    changes = [(sample / 360, aux.strip("\0"))
               for sample, symbol, aux in zip(notes.sample, notes.symbol, notes.aux_note)
               if symbol == "+"]
    change_s, rhythm = zip(*changes)
    here = np.searchsorted(change_s, scored.beats.time_s, side="right") - 1
    away_s = np.abs(scored.beats.time_s[:, None] - change_s).min(axis=1)
    clear = scored.beats.scored & (away_s > 30)
    fibrillation = np.array(rhythm)[here] == "(AFIB"
    without = scored.found.without_p
    assert (clear & fibrillation).sum() > 400 and (clear & ~fibrillation).sum() > 200
    assert without[clear & fibrillation].mean() > 0.98
    assert without[clear & ~fibrillation].mean() < 0.05
