"""R peaks: where they lie, which are found beside the detector's own, and what is none."""

import numpy as np
import pytest
import wfdb
from numpy.testing import assert_allclose, assert_array_equal
from scipy.ndimage import maximum_filter1d, minimum_filter1d

import preprocess
from pipeline import settings, simulated_ecg
from recording import r_peaks
from studies import expert_labels

FS = 360
BAND_HZ = (0.5, 40)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """(band-passed signal, R peaks) of six simulated minutes."""
    path = tmp_path_factory.mktemp("simulated") / "s01"
    simulated_ecg.write_database(path.parent, ("s01",), duration_s=360, seed=3)
    notes = wfdb.rdann(str(path), "atr")
    beat = np.isin(notes.symbol, list(settings.AAMI_OF))
    signal = wfdb.rdrecord(str(path)).p_signal[:, 0]
    return preprocess.bandpass(signal, FS, BAND_HZ, 3), notes.sample[beat]


def waves(n, *shapes):
    """Signal of n samples with Gaussian waves (times in samples, height, width in s)."""
    t = np.arange(n)
    signal = np.zeros(n)
    for at, height, width_s in shapes:
        for sample in at:
            signal += height * np.exp(-0.5 * ((t - sample) / (width_s * FS)) ** 2)
    return signal


BEATS = np.arange(360, 360 * 40, 360)    # one a second


def test_peak_is_the_largest_deviation_within_reach():
    signal = np.zeros(100)
    signal[[20, 28, 60]] = 1, -2, 5
    assert_array_equal(r_peaks.align_to_extreme(signal, np.array([22, 50]), 8), [28, 42])


def test_beats_the_detector_passed_over_are_found_between_its_own(simulated):
    """The annotated beats less every fifth: those come back, and no T wave or noise does."""
    filtered, peaks = simulated
    lost = peaks[5:-1:5]
    known = np.setdiff1d(peaks, lost)
    found = r_peaks.search_back(filtered, known, FS)
    back = np.setdiff1d(found, known)
    assert set(known) <= set(found) and (np.diff(found) > 0).all()
    assert (np.abs(lost[:, None] - back).min(axis=1) < 0.05 * FS).mean() > 0.9
    assert (np.abs(peaks[:, None] - back).min(axis=0) < 0.05 * FS).all()
    assert len(r_peaks.search_back(filtered, peaks, FS)) <= 1.005 * len(peaks)
    assert len(r_peaks.search_back(filtered, peaks[:1], FS)) == 1


def test_gaps_without_anything_steep_are_passed_over_and_no_others(simulated, monkeypatch):
    signal, peaks = simulated
    found = np.delete(peaks, np.arange(5, len(peaks) - 5, 3))   # beats that must be searched for
    quickly = r_peaks.search_back(signal, found, FS)
    monkeypatch.setattr(r_peaks, "ranges", lambda values, first, _: np.full(len(first), np.inf))
    assert_array_equal(quickly, r_peaks.search_back(signal, found, FS))
    assert len(quickly) > len(found) + 50


def test_ranges_are_those_of_slices():
    values = np.random.default_rng(0).normal(size=40)
    first, last = np.array([0, -3, 5, 30, 39]), np.array([39, 4, 5, 60, 39])
    known = [np.ptp(values[max(a, 0):b + 1]) for a, b in zip(first, last)]
    assert_array_equal(r_peaks.ranges(values, first, last), known)


@pytest.mark.parametrize("n", [1, 5, 40, 300])
@pytest.mark.parametrize("reach", [1, 2, 6, 18])
def test_range_around_is_that_of_filters(n, reach):
    values = np.random.default_rng(n).normal(size=n)
    width = 2 * reach + 1
    known = maximum_filter1d(values, width) - minimum_filter1d(values, width)
    assert_array_equal(r_peaks.range_around(values, reach), known)


def test_of_an_interpolated_beat_the_peak_is_found_not_its_higher_t_wave():
    """As in 805: a negative QRS complex, and 0.2 s later a T wave half as high again."""
    early = BEATS[[10, 25]] + 150
    signal = waves(360 * 41, (BEATS, 1, 0.01), (early, -1.5, 0.03), (early + 72, 2.2, 0.05))
    found = r_peaks.find_r_peaks(signal, BEATS, FS)
    back = np.setdiff1d(found, BEATS)
    assert len(back) == 2 and np.abs(back - early).max() < 0.05 * FS


def test_a_steep_late_t_wave_of_every_beat_is_no_beat():
    """As in 801. The same wave after two beats alone is one."""
    late = 0.42 * FS
    usual = waves(360 * 41, (BEATS, 1, 0.012), (BEATS + late, 0.8, 0.015))
    assert_array_equal(r_peaks.find_r_peaks(usual, BEATS, FS), BEATS)

    rare = waves(360 * 41, (BEATS, 1, 0.012), (BEATS[[10, 25]] + late, 0.8, 0.015))
    assert len(r_peaks.find_r_peaks(rare, BEATS, FS)) == len(BEATS) + 2


def test_the_trough_of_a_broad_beat_is_no_beat_and_a_steep_early_beat_is():
    """As in 119, whose detector takes the trough 0.28 s after the peak of a ventricular beat."""
    broad = BEATS[[10, 25]]
    trough = broad + round(0.28 * FS)
    signal = waves(360 * 41, (BEATS, 1, 0.01), (broad, 3, 0.03), (trough, -1.3, 0.07))
    taken = np.sort(np.append(BEATS, trough))
    assert_array_equal(r_peaks.find_r_peaks(signal, taken, FS), BEATS)

    early = waves(360 * 41, (BEATS, 1, 0.01), (trough, 0.8, 0.01))
    assert_array_equal(r_peaks.find_r_peaks(early, taken, FS), taken)


def test_a_burst_of_noise_before_a_beat_is_not_taken_for_it():
    """The detector is blind for 0.2 s after what it finds. A burst as steep as the beat stays."""
    rows = [10, 25]
    burst = BEATS[rows] - round(0.12 * FS)
    taken = BEATS.copy()
    taken[rows] = burst
    for height, expected in ((0.4, BEATS), (0.9, taken)):
        signal = waves(360 * 41, (BEATS, 1, 0.012), (burst, height, 0.012))
        assert_array_equal(r_peaks.find_r_peaks(signal, taken, FS), expected)


def test_a_bump_between_two_beats_is_none_in_noise_alone_and_only_where_none_is_due():
    """Less steep, between two beats that are one interval apart. With a tenth of the noise it is an
    interpolated beat, and where one is missing it is that one.
    """
    noise = 0.03 * np.random.default_rng(0).normal(size=360 * 41)
    bump = BEATS[[10, 25]] + 170
    usual = waves(360 * 41, (BEATS, 1, 0.012), (bump, 0.6, 0.012))
    taken = np.sort(np.append(BEATS, bump))
    assert_array_equal(r_peaks.drop_bumps(usual + noise / 10, taken, FS), taken)
    assert_array_equal(r_peaks.drop_bumps(usual + noise, taken, FS), BEATS)
    assert len(r_peaks.find_r_peaks(usual + noise, taken, FS)) == len(BEATS)

    late = np.delete(BEATS, [11, 26])
    signal = waves(360 * 41, (late, 1, 0.012), (bump, 0.6, 0.012)) + noise
    taken = np.sort(np.append(late, bump))
    assert_array_equal(r_peaks.drop_bumps(signal, taken, FS), taken)


def test_signal_to_noise_ratio_is_that_of_the_surroundings():
    """QRS power p^2 / 8 over that of the noise: 10 log10(1 / 8 / 0.03^2) = 21.4 dB."""
    noise = np.random.default_rng(0).normal(size=360 * 41)
    noise *= np.where(np.arange(len(noise)) < 360 * 20, 0.03, 0.003)
    found_db = r_peaks.snr_db(waves(360 * 41, (BEATS, 1, 0.012)) + noise, BEATS, FS)
    assert_allclose(found_db[:14], 21.4, atol=3)
    assert_allclose(found_db[25:], 41.4, atol=3)


@pytest.mark.parametrize("signal", [np.zeros(7200), np.full(7200, 5.0), np.zeros(10), np.ones(1),
                                    1e9 * np.sign(np.sin(np.arange(7200) / 5)),
                                    np.random.default_rng(0).normal(size=72_000)])
def test_no_signal_stops_it(signal):
    found = r_peaks.detect(signal, FS)
    peaks = r_peaks.find_r_peaks(signal, found, FS)
    assert (np.diff(peaks) > 0).all() and ((peaks >= 0) & (peaks < len(signal))).all()


def test_of_several_detections_the_one_with_most_beats_and_fewest_waves_is_taken():
    signal = waves(360 * 41, (BEATS, 1, 0.012), (BEATS + 120, 0.5, 0.06))
    slope = r_peaks.slope_of(signal, FS)
    with_t_waves = np.sort(np.append(BEATS, BEATS + 120))
    for attempts in ([BEATS, BEATS[:-3]], [BEATS[:-3], BEATS], [with_t_waves, BEATS],
                     [BEATS + 120, BEATS, np.empty(0, int)]):
        assert_array_equal(r_peaks.most_steep(slope, attempts, FS), BEATS)
    assert len(r_peaks.most_steep(slope, [np.empty(0, int)] * 2, FS)) == 0


@pytest.mark.parametrize("record", ["105", "119", "207", "232"])
def test_a_start_that_settles_goes_on_as_one_without_warm_up(mitdb, record, monkeypatch):
    signal = wfdb.rdrecord(str(mitdb / record), channels=[0]).p_signal[:, 0]
    plain = r_peaks.detect_after(0, signal, FS)
    for_less = [r_peaks.detect_from(warm_up_s, signal, plain, FS) for warm_up_s in (10, 20)]
    for warm_up_s, found in zip((10, 20), for_less):
        assert_array_equal(found, r_peaks.detect_after(warm_up_s, signal, FS))

    # what does not settle is done whole: a start of other beats, and a signal that begins late
    lengths = []
    monkeypatch.setattr(r_peaks, "detect_after", lambda _, raw, fs_hz: lengths.append(len(raw))
                        or plain[plain < len(raw)])
    r_peaks.detect_from(10, signal, plain, FS)
    r_peaks.detect_from(10, signal, plain + 1, FS)
    late = np.where(np.arange(len(signal)) < 200 * FS, 0.0, signal)
    r_peaks.detect_from(10, late, plain, FS)
    assert lengths == [300 * FS, 300 * FS, len(signal), len(signal)]


def test_beats_of_record_119_are_the_experts(mitdb):
    """With 444 ventricular beats, from the first on: all, and no trough."""
    record = wfdb.rdrecord(str(mitdb / "119"), channels=[0])
    time_s, _ = expert_labels.expert_beats(mitdb / "119.hea", "atr", FS)
    signal = record.p_signal[:, 0]
    filtered = preprocess.bandpass(signal, FS, BAND_HZ, 3)
    found_s = r_peaks.find_r_peaks(filtered, r_peaks.detect(signal, FS), FS) / FS

    pair = expert_labels.match(time_s, found_s)
    assert (pair >= 0).all() and len(np.setdiff1d(np.arange(len(found_s)), pair)) == 0
