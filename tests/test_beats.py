import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import wfdb
from scipy.signal import resample

from recording import scan
import config
from pipeline import settings
import models
from recording import quality
from recording import reader
from recording import stretch
from pipeline import simulated_ecg

FS, BAND, ORDER = config.FS_HZ, config.BAND_HZ, config.FILTER_ORDER
SHIPPED = settings.ROOT / "checkpoints" / "patient.pt"


class Array:
    """A Recording of one lead that is an array."""

    def __init__(self, signal, fs_hz):
        self.signal, self.fs_hz, self.n_samples, self.reads = np.asarray(signal, float), float(fs_hz), len(signal), []

    def read(self, lead, start, stop):
        self.reads.append(stop - start)
        return self.signal[start:stop].copy()


@pytest.fixture(scope="module")
def detector():
    return models.load_checkpoint(SHIPPED)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """(signal in mV, R peaks, symbols) of 12 simulated minutes."""
    folder = tmp_path_factory.mktemp("simulated")
    simulated_ecg.write_database(folder, ("s01",), duration_s=720, seed=3)
    record, notes = wfdb.rdrecord(str(folder / "s01")), wfdb.rdann(str(folder / "s01"), "atr")
    beat = np.isin(notes.symbol, list("".join(config.AAMI.values())))
    return record.p_signal[:, 0], np.asarray(notes.sample)[beat], np.array(notes.symbol)[beat]


def scan(signal, fs_hz, detector, **more):
    model, stored = detector
    return scan.scan(Array(signal, fs_hz), 0, model, stored["fitted"], FS, BAND, ORDER, "cpu", **more)


def test_every_simulated_beat_is_found_at_its_peak(simulated, detector):
    signal, peaks, _ = simulated
    found = scan(signal, FS, detector)
    error = np.abs(found.time_s[:, None] - peaks / FS).min(axis=0)
    assert (error < 0.05).mean() > 0.98 and len(found.time_s) < 1.02 * len(peaks)
    assert np.median(error) < 0.01 and found.duration_s == pytest.approx(720)
    assert (np.diff(found.time_s) >= scan.REFRACTORY_S).all()
    assert found.z.shape == (found.scored.sum(), 32) and np.isfinite(found.mse).all() and found.scored.mean() > 0.98


def test_beats_do_not_depend_on_where_pieces_begin(simulated, detector, monkeypatch):
    """Pieces of one minute and of five: but for what the QRS detector learns first, the same beats and latents."""
    signal, _, _ = simulated
    five = scan(signal, FS, detector)
    monkeypatch.setattr(scan, "PIECE_S", 60)
    one = scan(signal, FS, detector)
    assert abs(len(one.time_s) - len(five.time_s)) <= 1
    at = [np.round(found.time_s[found.scored] * FS) for found in (one, five)]
    same = np.isin(at[0], at[1])
    assert same.mean() > 0.995
    np.testing.assert_allclose(one.z[same], five.z[np.isin(at[1], at[0])], atol=1e-3)


@pytest.mark.parametrize("fs_hz", [128, 250, 500, 1000])
def test_rate_of_the_recording_does_not_matter(simulated, detector, fs_hz):
    signal = simulated[0][:300 * FS]
    native = scan(signal, FS, detector)
    other = scan(resample(signal, 300 * fs_hz), fs_hz, detector)
    near = np.abs(other.time_s[other.scored][:, None] - native.time_s[native.scored])
    assert (near.min(axis=0) < 0.02).mean() > 0.98
    index = near.argmin(axis=0)
    both = near.min(axis=0) < 0.002
    assert both.mean() > 0.8
    z, w = native.z[both], other.z[index][both]
    assert np.median(np.linalg.norm(z - w, axis=1)) < 0.1 * np.median(np.linalg.norm(z - z.mean(axis=0), axis=1))


def test_gain_and_offset_do_not_matter(simulated, detector):
    signal = simulated[0][:120 * FS]
    one, other = scan(signal, FS, detector), scan(250 * signal + 7000, FS, detector)
    np.testing.assert_array_equal(one.time_s, other.time_s)
    np.testing.assert_allclose(one.z, other.z, atol=1e-3)


def test_memory_is_bounded_by_pieces(simulated, detector):
    recording = Array(simulated[0], FS)
    model, stored = detector
    scan.scan(recording, 0, model, stored["fitted"], FS, BAND, ORDER, "cpu")
    assert max(recording.reads) <= (scan.PIECE_S + 2 * stretch.MARGIN_S) * FS


def test_missing_stretch_is_unreadable_and_not_scored(simulated, detector):
    signal = simulated[0][:200 * FS].copy()
    signal[100 * FS:130 * FS] = np.nan
    found = scan(signal, FS, detector)
    windows = slice(int(100 // quality.WINDOW_S), int(130 // quality.WINDOW_S))
    assert (found.unreadable[windows] == quality.REASONS.index("missing")).all()
    inside = (found.time_s >= 100) & (found.time_s < 130)
    assert not found.scored[inside].any() and found.scored[~inside].mean() > 0.9
    table = scan.rhythm_table(found, FS)
    assert np.nanmax(table["rr_before_s"]) < 3  # the gap is no pause of the heart
    assert np.isnan(table["rr_before_s"]).sum() >= 1


@pytest.mark.parametrize("signal", [np.zeros(1), np.zeros(50 * FS), np.full(20 * FS, np.nan), np.ones(300),
                                    np.random.default_rng(0).normal(size=400)])
def test_hardly_any_signal_is_no_beat_and_no_crash(signal, detector):
    found = scan(signal, FS, detector)
    assert not found.scored.any() and len(found.z) == 0
    scores, levels, _ = scan.score(found, detector[1]["fitted"], "combined", FS)
    assert len(scores) == len(levels) == len(found.time_s) and np.isnan(scores).all()


def test_given_beats_are_taken_as_they_are(simulated, detector):
    signal, peaks, _ = simulated
    found = scan(signal, FS, detector, given_s=peaks / FS)
    np.testing.assert_allclose(found.time_s, peaks / FS, atol=0.5 / FS)
    np.testing.assert_array_equal(found.whole, (peaks >= 360) & (peaks + 360 <= len(signal)))


def test_score_equals_the_pipeline_on_given_beats(simulated, detector):
    """detect's path and dataset's path: the same segments, the same scores."""
    import preprocess
    from scoring import detector

    signal, peaks, _ = simulated
    model, stored = detector
    found = scan(signal, FS, detector, given_s=peaks / FS)
    assert found.readable.all()
    scores, levels, _ = scan.score(found, stored["fitted"], "combined", FS)
    keep = preprocess.inside(peaks, len(signal), 720)
    filtered = preprocess.bandpass(signal, FS, BAND, ORDER)
    x, _, _ = preprocess.normalise(preprocess.cut_segments(filtered, peaks[keep], 720))
    before, after = preprocess.rr_intervals_s(peaks, FS)
    segments = SimpleNamespace(x=x, rows={"record": np.full(len(x), "r"), "sample": peaks[keep],
                                          "rr_before_s": before[keep], "rr_after_s": after[keep]})
    expected, view = detector.score(model, stored["fitted"], segments, np.arange(len(x)), ("combined",), FS, "cpu")
    np.testing.assert_allclose(scores[keep], expected["combined"], atol=2e-3)
    np.testing.assert_allclose(levels[keep], detector.robust_z(expected["combined"], view, stored["fitted"]), atol=5e-3)


def test_aligned_moves_to_the_largest_deviation_within_reach():
    signal = np.zeros(100)
    signal[[20, 28, 60]] = 1, -2, 5
    np.testing.assert_array_equal(scan.aligned(signal, np.array([22, 50]), 8), [28, 42])
    np.testing.assert_array_equal(scan.aligned(signal, np.array([22, 55]), 5), [20, 60])
    assert len(scan.aligned(signal, np.empty(0, int), 5)) == 0


def test_separate_keeps_the_first_of_near_beats():
    times = np.array([0, 0.1, 0.25, 0.3, 1])
    np.testing.assert_array_equal(scan.separate(times, 0.2), [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(scan.separate(times, 0.2, last_s=-0.15), [0, 1, 0, 0, 1])
    assert len(scan.separate(np.empty(0), 0.2)) == 0


def test_recordings_are_read_by_pieces_from_a_file(simulated, detector, tmp_path):
    path = tmp_path / "r.npy"
    np.save(path, simulated[0][:100 * FS])
    model, stored = detector
    with reader.open_recording(path, FS) as recording:
        found = scan.scan(recording, 0, model, stored["fitted"], FS, BAND, ORDER, "cpu")
    assert dataclasses.is_dataclass(found) and found.scored.sum() > 80


def test_broad_beats_the_detector_passes_over_are_searched_for_between_its_own(simulated):
    """The detector's beats less every fifth: those come back, at their place, and a T wave or noise does not."""
    signal, peaks, symbols = simulated
    filtered = scan.bandpass(signal, FS, BAND, ORDER)
    known = np.delete(peaks, np.arange(5, len(peaks) - 1, 5))
    found = scan.searched_back(filtered, known, FS)
    assert set(known) <= set(found) and (np.diff(found) > 0).all()
    back = np.setdiff1d(found, known)
    lost = np.setdiff1d(peaks, known)
    assert (np.abs(lost[:, None] - back).min(axis=1) < 0.05 * FS).mean() > 0.9
    assert (np.abs(peaks[:, None] - back).min(axis=0) < 0.05 * FS).all()
    whole = scan.searched_back(filtered, peaks, FS)
    assert len(whole) <= 1.005 * len(peaks)
    assert len(scan.searched_back(filtered, peaks[:1], FS)) == 1


def test_search_back_finds_the_ventricular_beats_of_208(mitdb):
    record, notes = wfdb.rdrecord(str(mitdb / "208")), wfdb.rdann(str(mitdb / "208"), "atr")
    signal, v = record.p_signal[:, 0], np.asarray(notes.sample)[np.array(notes.symbol) == "V"]
    filtered, near = scan.bandpass(signal, FS, BAND, ORDER), lambda found: (
        np.abs(v[:, None] - found).min(axis=1) <= 0.15 * FS)
    detected = scan.detections(signal, FS)
    assert near(detected).mean() < 0.75  # 0.67: what the search is for
    assert near(scan.searched_back(filtered, detected, FS)).mean() > 0.94


def test_scores_do_not_depend_on_how_much_is_decoded_at_a_time(detector, tmp_path, monkeypatch):
    """Blocks of one minute and of an hour, of both leads: identical, not just alike."""
    from recording import reader_wfdb

    simulated_ecg.write_database(tmp_path, ("s03",), duration_s=420, seed=4)
    model, stored = detector
    found = []
    for seconds in (60, 3600):
        monkeypatch.setattr(reader_wfdb, "BLOCK_SAMPLES", 2 * seconds * FS)
        with reader.open_recording(tmp_path / "s03.hea") as recording:
            scanned = scan.scan(recording, 0, model, stored["fitted"], FS, BAND, ORDER, "cpu")
        found.append((scanned.time_s, *scan.score(scanned, stored["fitted"], "combined", FS)[:2]))
    assert len(found[0][0]) > 300
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)
