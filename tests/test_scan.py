"""From a recording to scored beats: R peaks, seams, readable stretches, the pipeline's scores."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import wfdb
from numpy.testing import assert_allclose, assert_array_equal
from conftest import Leads
from scipy.signal import resample

import models
import preprocess
from pipeline import settings, simulated_ecg
from recording import pieces, quality, r_peaks, scan
from scoring import detector

FS = 360
BAND_HZ = (0.5, 40)
SHIPPED = settings.ROOT / "checkpoints" / "patient.pt"


@pytest.fixture(scope="module")
def shipped():
    return models.load_checkpoint(SHIPPED, "make")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """(signal in mV, R peaks) of six simulated minutes."""
    path = tmp_path_factory.mktemp("simulated") / "s01"
    simulated_ecg.write_database(path.parent, ("s01",), duration_s=360, seed=3)
    notes = wfdb.rdann(str(path), "atr")
    beat = np.isin(notes.symbol, list(settings.AAMI_OF))
    return wfdb.rdrecord(str(path)).p_signal[:, 0], notes.sample[beat]


def scanned(signal, shipped, fs_hz=FS, **more):
    """(DetectedBeats of a signal, what was read of it)."""
    model, stored = shipped
    recording = Leads([signal], fs_hz)
    return scan.scan(recording, 0, model, stored["segment_settings"], stored["score_settings"],
                     "cpu", **more), recording.reads


# --- beats ----------------------------------------------------------------------------------------

def test_rows_of_a_spool_are_read_while_others_are_put_behind():
    spool = scan.Spool(3)
    spool.append(np.zeros((1, 3)))
    wrong = []

    def read():
        while len(spool) < 3000:
            rows = spool[max(0, len(spool) - 50):len(spool)]
            wrong.append((rows != rows[:, :1]).any() or (np.diff(rows[:, 0]) != 1).any())

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for k in range(1, 3000):
        spool.append(np.full((1, 3), k))
    for reader in readers:
        reader.join()
    assert len(wrong) > 10 and not any(wrong)


def test_every_simulated_beat_is_found_at_its_peak(simulated, shipped):
    signal, peaks = simulated
    found, _ = scanned(signal, shipped)
    error = np.abs(found.time_s[:, None] - peaks / FS).min(axis=0)
    assert (error < 0.05).mean() > 0.98 and np.median(error) < 0.01
    assert len(found.time_s) < 1.02 * len(peaks)
    assert found.duration_s == 360 and found.scored.mean() > 0.98


def test_beats_do_not_depend_on_where_pieces_begin(simulated, shipped, monkeypatch):
    """Pieces of half a minute, each read once, and one of all: the same, but for what the QRS
    detector learns first.
    """
    whole, _ = scanned(simulated[0], shipped)
    monkeypatch.setattr(pieces, "PIECE_S", 30)
    parts, reads = scanned(simulated[0], shipped)
    assert [k / FS for k in reads[1]] == [0, 90] and len(reads) == 12
    assert abs(len(parts.time_s) - len(whole.time_s)) <= 1
    assert (np.diff(parts.time_s) >= r_peaks.REFRACTORY_S).all()
    at = [np.round(found.time_s[found.scored] * FS) for found in (parts, whole)]
    same = np.isin(at[0], at[1])
    assert same.mean() > 0.98
    assert_allclose(parts.z[same], whole.z[np.isin(at[1], at[0])], atol=1e-3)


@pytest.mark.parametrize("fs_hz, offset", [(128, 0), (360, 7000), (1000, 0)])
def test_rate_gain_and_offset_of_the_recording_do_not_matter(simulated, shipped, fs_hz,
                                                              offset):
    signal = simulated[0][:180 * FS]
    native, _ = scanned(signal, shipped)
    other, _ = scanned(250 * resample(signal, 180 * fs_hz) + offset, shipped, fs_hz)
    away_s = np.abs(other.time_s[other.scored][:, None] - native.time_s[native.scored])
    assert (away_s.min(axis=0) < 0.02).mean() > 0.98
    both = away_s.min(axis=0) < 0.002
    assert both.mean() > 0.8
    moved = np.abs(native.z[both] - other.z[away_s.argmin(axis=0)[both]])
    assert np.median(moved) < 0.1 * native.z[both].std(axis=0).mean()


def test_missing_stretch_is_unreadable_unless_all_is_scored(simulated, shipped):
    signal = simulated[0][:200 * FS].copy()
    signal[100 * FS:130 * FS] = np.nan
    found, _ = scanned(signal, shipped)
    wanted = np.zeros(20)
    wanted[10:13] = quality.REASONS.index("missing")
    assert_array_equal(found.unreadable, wanted)
    within = (found.time_s >= 100) & (found.time_s < 130)
    assert not found.scored[within].any() and found.scored[~within].mean() > 0.9
    rr_s = scan.rhythm_table(found, FS)["rr_before_s"]
    assert np.nanmax(rr_s) < 3 and np.isnan(rr_s).sum() == 1  # the gap is no pause of the heart

    # nor is it asystole, which a lead that is there and does not move is
    everything, _ = scanned(signal, shipped, score_all=True)
    assert not everything.unreadable.any()
    assert_array_equal(np.isnan(everything.swing), np.isin(np.arange(200) // 10, (10, 11, 12)))
    signal[100 * FS:130 * FS] = 0.01 * np.random.default_rng(0).normal(size=30 * FS)
    still, _ = scanned(signal, shipped)
    assert still.swing[102:128].max() < 0.1 < still.swing[:100].min()


@pytest.mark.parametrize("signal", [np.zeros(1), np.zeros(50 * FS), np.full(20 * FS, np.nan),
                                    np.ones(300), np.random.default_rng(0).normal(size=400)])
def test_hardly_any_signal_is_no_beat_and_no_crash(signal, shipped):
    found, _ = scanned(signal, shipped)
    assert not found.scored.any() and len(found.z) == len(found.segments) == 0
    known = scan.score(found, shipped[1]["fitted"], "combined", False, FS)
    assert all(len(values) == len(found.time_s) for values in vars(known).values())
    assert np.isnan(known.score).all() and not known.group.any()


def test_given_beats_get_the_scores_of_the_pipeline(simulated, shipped):
    """detect's path and dataset's path: the same beats, segments and scores."""
    signal, peaks = simulated
    model, stored = shipped
    found, _ = scanned(signal, shipped, given_s=peaks / FS)
    assert_allclose(found.time_s, peaks / FS, atol=0.5 / FS)
    keep = preprocess.inside(peaks, len(signal), 720)
    assert_array_equal(found.scored, keep)

    filtered = preprocess.bandpass(signal, FS, BAND_HZ, 3)
    x, offset, scale = preprocess.normalise(preprocess.cut_segments(filtered, peaks[keep], 720))
    assert_allclose(found.segments[:], np.column_stack([x, offset, scale]), atol=1e-5)
    before, after = preprocess.rr_intervals_s(peaks, FS)
    segments = SimpleNamespace(x=x, rows={"record": np.full(len(x), "r"), "sample": peaks[keep],
                                          "rr_before_s": before[keep], "rr_after_s": after[keep]})
    for name, causal in (("combined", False), ("combined_causal", True)):
        known = scan.score(found, stored["fitted"], name, causal, FS)
        expected, features = detector.score(model, stored["fitted"], segments, np.arange(len(x)),
                                            (name,), FS, "cpu")
        assert_allclose(known.score[keep], expected[name], atol=2e-3)
        wanted = detector.excess(expected[name], features, stored["fitted"], causal)
        assert_allclose(known.excess[keep], wanted, atol=5e-3)
        # of log(usual RR / RR): the first beat has no interval
        prematurity = (features.past_times if causal else features.times)[1:, 0]
        assert_allclose(-np.log(1 - known.early[keep][1:]),
                        prematurity / stored["fitted"]["settings"]["TIMING_WEIGHT"], atol=1e-5)
        assert not causal or not known.group.any()


def test_a_beat_is_drawn_only_for_a_score_that_asks(simulated, shipped, monkeypatch):
    model, stored = shipped
    found, _ = scanned(simulated[0], shipped)
    with monkeypatch.context() as without_decoder:
        without_decoder.setattr(models.ConvAutoencoder, "decode", None)
        quick, _ = scanned(simulated[0], shipped)
        known = scan.score(quick, stored["fitted"], "combined", False, FS)
    assert np.isfinite(known.score[quick.scored]).all()

    x = found.segments[:][:, :-2]
    recon, z = models.reconstruct(model, x, 512, "cpu")
    assert_allclose(quick.z[:], z, atol=1e-4)
    error = (x * model.taper.numpy() - recon.numpy()) ** 2
    for name, weights in (("mse", np.ones(720)),
                          ("qrs_error", preprocess.gaussian(720, 40 / 360 * FS))):
        known = scan.score(quick, stored["fitted"], name, False, FS)
        assert_allclose(known.score[quick.scored], np.average(error, axis=1, weights=weights),
                        rtol=1e-4)


# --- lead -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("names, wanted, expected", [
    ("I mlii V5", None, (1, "named as in training")), ("I II", None, (1, "named as in training")),
    ("I II", "1", (0, "asked for")), ("aVR", None, (0, "the only one")),
    ("A B C", None, (1, "most readable of 3"))])
def test_lead_is_asked_for_named_or_most_readable(simulated, shipped, names, wanted, expected):
    signal = simulated[0][:60 * FS]
    noise = np.random.default_rng(0).normal(size=len(signal))
    recording = Leads([noise, signal, np.zeros(len(signal))][:len(names.split())], FS,
                      names.split())
    assert pieces.choose_lead(recording, wanted, shipped[1]["segment_settings"]) == expected
