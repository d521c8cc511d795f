"""R peaks of one lead: what the QRS detector finds, what it passes over, and what is no beat.

Pure functions over arrays. Figures are of detections held against the experts' beats of DS1 and of
23 records of svdb, the first five minutes not counted.
"""

import numpy as np
import scipy

from recording.quality import FLOOR_PIECE_S, FLOOR_QUANTILE, QRS_HALF_S

REFRACTORY_S = 0.2  # of two beats nearer than this the first is kept
SHORTEST_S = 0.2     # that can hold a QRS complex
WARM_UP_S = (10, 20)  # beside none: of DS1's first two minutes 28 beats are then missed instead of
                      # 52, 5 instead of 20 of them V; 10 alone loses 238 beats of 820
BEGINNING_S = 300     # on so much of a piece the other starts are tried; what they find in ...
SETTLED_S = (180, 290)  # ... this part is nearly always what none finds, and then goes on as that
                      # does: of 372 starts of mitdb, svdb and vfdb 34 find something else, and of
                      # the rest 4 would later on, which changed one detection of 186 pieces
SETTLED_BEATS = 30    # fewer say nothing
ALIGN_S = 0.07      # the R peak is the largest deviation this near to the detection: on DS1 2.3
                    # samples (median over records 1.5) of scatter about the annotated peaks, 3.4
                    # for the highest value, 2.8 for none
SEARCH_S = 0.36     # a beat the detector passed over is looked for this far from its neighbours
                    # (a T wave comes sooner: Pan and Tompkins 1985) ...
SEARCH_SIZE = 0.5   # ... and has this share of their steepness: on DS1 98 % of V beats are then
                    # found instead of 89 %
FIRST_SIZE = 0.6    # of the deflections in a gap it is the first of this share of the largest: an
                    # interpolated beat has a T wave higher than itself (805: 51 of 186 V beats)
SLOPE_S = 0.022     # steepness: rise over twice this time, which T waves lack and broad QRS
                    # complexes do not ...
STEEP_S = 0.1       # ... from lowest to highest, this near to the beat ...
STEEP_BEATS = 41    # ... and the usual one is the median of so many beats'
T_WAVE_S = 0.45     # what is no later than this after a beat is a late T wave, no beat, where ...
T_WAVE_SIZE = 0.7   # ... so large a share of its steepness stands at that place ...
T_WAVE_SHARE = 0.1  # ... after all but this share of the beats around (801: 85 of 98 extra beats)
TROUGH_SIZE = 0.4   # a detection within SEARCH_S of one with less than this share of its steepness
TROUGH_STEEP_S = 0.05  # (this near) is the trough of a broad beat: 18 of them in 119, 0 now; Pan
                    # and Tompkins take half, which on DS1 and svdb costs 7 beats

BURST_SIZE = 0.7    # a detection with less than this share of the steepness that comes within
                    # REFRACTORY_S of it is a burst of noise: with 12 dB of muscle artefact 34 N
                    # peaks of DS1 are 0.05 s and more off instead of 103, 27 beats are missed
                    # instead of 88; without noise 173 are extra, not 229. Flat from 0.5 to 0.9
# A bump of noise: less than BUMP_SIZE of the usual steepness, between two steeper beats that are
# one usual interval apart, where the signal-to-noise ratio is low. With 12 dB of electrode motion
# 343 beats of DS1 are extra instead of 1,106, of muscle artefact 110 instead of 246; without noise
# 4 V beats of 3,136 are lost. Flat from 0.65 to 0.85, 1.2 to 1.3 and 22 to 26 dB
BUMP_SIZE = 0.75
BUMP_APART = 1.2    # of the usual interval, at most: what is interpolated, or nearly
BUMP_PERCENTILE = 75  # of the intervals around is the usual one: bumps make a part of them short
BUMP_SNR_DB = 24.0  # without noise 29 is usual in DS1; of interpolated V beats of 805 95 % have 29
FLOOR_S = 10.0      # the noise floor is that of so long around


def find_r_peaks(filtered, found, fs_hz):
    """R peaks (k,) in samples, rising, of a band-passed lead (n,) from detections (m,) in it."""
    peaks = search_back(filtered, to_steepest(filtered, found, fs_hz), fs_hz)
    peaks = align_to_extreme(filtered, peaks, round(ALIGN_S * fs_hz))
    peaks = peaks[apart(peaks / fs_hz, REFRACTORY_S)]
    return drop_bumps(filtered, drop_troughs(filtered, peaks, fs_hz), fs_hz)


def detect(raw, fs_hz):
    """QRS complexes (k,) in samples: modified Pan and Tompkins 1985 (sleepecg); none in a signal
    without any.

    The detector learns from the first seconds, and what it learned there can hold for the whole
    recording: it is started on each of WARM_UP_S of the signal mirrored before its beginning, and
    the detections that are best as a whole are taken.
    """
    # sleepecg 0.6.0 leaves out a flat beginning, and fails on a rest that is shorter than a beat
    swings = raw[1:] != raw[:-1]
    if len(raw) < 2 * fs_hz or not swings.any() or (
            len(raw) - swings.argmax() < SHORTEST_S * fs_hz):
        return np.empty(0, int)

    plain = detect_after(0, raw, fs_hz)
    attempts = [plain, *(detect_from(warm_up_s, raw, plain, fs_hz) for warm_up_s in WARM_UP_S)]
    return most_steep(slope_of(raw, fs_hz), attempts, fs_hz)


def detect_after(warm_up_s, raw, fs_hz):
    """Detections (k,) in a signal after so much of it mirrored."""
    import sleepecg   # here: as in pieces.load_libraries

    before = raw[1:1 + round(warm_up_s * fs_hz)][::-1]
    found = np.asarray(sleepecg.detect_heartbeats(np.append(before, raw), fs_hz), int)
    return found[found >= len(before)] - len(before)


def detect_from(warm_up_s, raw, plain, fs_hz):
    """`detect_after`, for less where it comes to find what `plain` (m,) does, of no warm-up."""
    first, last = (round(limit_s * fs_hz) for limit_s in SETTLED_S)
    beginning = raw[:round(BEGINNING_S * fs_hz)]
    if len(beginning) < len(raw) and np.diff(raw[:first]).any():
        begun = detect_after(warm_up_s, beginning, fs_hz)
        here, there = (found[(found >= first) & (found < last)] for found in (begun, plain))
        if len(here) >= SETTLED_BEATS and np.array_equal(here, there):
            return np.append(begun[begun < last], plain[plain >= last])
    return detect_after(warm_up_s, raw, fs_hz)


def most_steep(slope, attempts, fs_hz):
    """The one of several detections (k,) with the most steep ones, less those that are not."""
    sizes = [steepness(slope, found, STEEP_S, fs_hz) for found in attempts]
    usual = np.median(np.concatenate(sizes)) if any(map(len, sizes)) else 0.0
    merits = [np.sign(size - SEARCH_SIZE * usual).sum() for size in sizes]
    return attempts[int(np.argmax(merits))]


# --- steepness ------------------------------------------------------------------------------------

def slope_of(filtered, fs_hz):
    """(n,) rise of a signal (n,) over twice SLOPE_S."""
    lag = round(SLOPE_S * fs_hz)
    padded = np.pad(filtered, lag, mode="edge")
    return padded[2 * lag:] - padded[:-2 * lag]


def steepness(slope, at, reach_s, fs_hz):
    """(k,) range of the slope within reach_s of `at` (k,): of its steepest rise to its steepest
    fall.
    """
    reach = np.arange(-round(reach_s * fs_hz), round(reach_s * fs_hz) + 1)
    return np.ptp(slope[np.clip(at[:, None] + reach, 0, len(slope) - 1)], axis=1)


# --- beats passed over ----------------------------------------------------------------------------

def search_back(filtered, found, fs_hz):
    """Detections (k,) and, where two are far apart, the deflection between them if it is about as
    steep.

    The detector squares slopes, and broad ventricular beats among steep normal ones escape it (208:
    323 of 992).
    """
    if len(found) < 2:
        return found

    slope = slope_of(filtered, fs_hz)
    usual = scipy.ndimage.median_filter(steepness(slope, found, STEEP_S, fs_hz), STEEP_BEATS,
                                        mode="nearest")

    reach = round(SEARCH_S * fs_hz)
    gaps = np.flatnonzero(np.diff(found) > 2 * reach)
    least = SEARCH_SIZE * np.minimum(usual[gaps], usual[gaps + 1])

    # most gaps hold nothing as steep, and need no closer look
    room = round(STEEP_S * fs_hz)
    possible = ranges(slope, found[gaps] + reach - room, found[gaps + 1] - reach + room) >= least
    gaps, least = gaps[possible], least[possible]

    passed = np.empty(len(gaps), int)
    for i, k in enumerate(gaps):
        first = found[k] + reach
        passed[i] = first + first_deflection(np.abs(filtered[first:found[k + 1] - reach + 1]))

    steep = steepness(slope, passed, STEEP_S, fs_hz) >= least

    kept = []
    for k, beat in zip(gaps[steep], passed[steep]):
        if not is_t_wave(slope, found, k, beat, fs_hz):
            kept.append(beat)
    return np.sort(np.append(found, np.array(kept, int)))


def ranges(values, first, last):
    """(m,) range of values (n,) from each index first to last (m,), both included."""
    values = np.append(values, values[-1])    # what lies behind the last one begins somewhere
    ends = np.clip(np.stack([first, last + 1], axis=1), 0, len(values) - 1).ravel()
    return (np.maximum.reduceat(values, ends) - np.minimum.reduceat(values, ends))[::2]


def first_deflection(size):
    """Index of the first peak of sizes (n,) that reaches FIRST_SIZE of the largest."""
    index = int(np.argmax(size >= FIRST_SIZE * size.max()))
    while index + 1 < len(size) and size[index + 1] > size[index]:
        index += 1
    return index


def is_t_wave(slope, found, k, beat, fs_hz):
    """Whether what stands at `beat`, after detection number k, stands there after nearly every
    detection around.
    """
    after = beat - found[k]
    if after > T_WAVE_S * fs_hz:
        return False

    half = STEEP_BEATS // 2
    places = found[max(0, k - half):k + half + 1] + after
    places = places[(places != beat) & (places < len(slope))]
    if not len(places):
        return False

    own = steepness(slope, np.array([beat]), STEEP_S, fs_hz)[0]
    others = steepness(slope, places, STEEP_S, fs_hz)
    return np.quantile(others, T_WAVE_SHARE) >= T_WAVE_SIZE * own


# --- where a beat lies, and what is none ----------------------------------------------------------

def to_steepest(filtered, found, fs_hz):
    """Detections (k,), each moved to what is much steeper within REFRACTORY_S: for so long after a
    burst of noise the detector is blind, and the QRS complex may come then.
    """
    slope = slope_of(filtered, fs_hz)
    steep = range_around(slope, round(TROUGH_STEEP_S * fs_hz))

    reach = round(REFRACTORY_S * fs_hz)
    around = np.clip(found[:, None] + np.arange(-reach, reach + 1), 0, len(filtered) - 1)
    steepest = np.take_along_axis(around, steep[around].argmax(axis=1)[:, None], axis=1)[:, 0]
    burst = steep[np.clip(found, 0, len(filtered) - 1)] < BURST_SIZE * steep[steepest]
    return np.unique(np.where(burst, steepest, found))


def range_around(values, reach):
    """(n,) range of values (n,) within `reach` of each: scipy.ndimage's filters take ten times as
    long.
    """
    width = 2 * reach + 1
    highest = lowest = np.pad(values, reach, mode="symmetric")
    done = 1
    while done < width:
        step = min(done, width - done)
        highest = np.maximum(highest[step:], highest[:-step])
        lowest = np.minimum(lowest[step:], lowest[:-step])
        done += step
    return highest - lowest


def align_to_extreme(filtered, found, reach):
    """Each detection (k,) moved to the largest absolute value within `reach` samples."""
    last = len(filtered) - 1
    around = np.clip(found[:, None] + np.arange(-reach, reach + 1), 0, last)
    moved = found - reach + np.abs(filtered[around]).argmax(axis=1)
    return np.unique(moved.clip(0, last))


def apart(time_s, refractory_s, last_s=-np.inf):
    """(n,) bool: which beats come at least refractory_s after the one kept before; time_s (n,)
    ascending.
    """
    kept = np.zeros(len(time_s), bool)
    for k, t in enumerate(time_s):
        if t - last_s >= refractory_s:
            kept[k] = True
            last_s = t
    return kept


def drop_troughs(filtered, peaks, fs_hz):
    """Peaks (k,) without those soon after a much steeper one: the trough of a broad beat."""
    steep = steepness(slope_of(filtered, fs_hz), peaks, TROUGH_STEEP_S, fs_hz)
    near = SEARCH_S * fs_hz

    kept = np.ones(len(peaks), bool)
    last, last_steep = -np.inf, 0.0
    for k, (peak, size) in enumerate(zip(peaks.tolist(), steep.tolist())):
        if peak - last < near and size < TROUGH_SIZE * last_steep:
            kept[k] = False
        else:
            last, last_steep = peak, size
    return peaks[kept]


# --- bumps of noise -------------------------------------------------------------------------------

def drop_bumps(filtered, peaks, fs_hz):
    """Peaks (k,) without those in noise that are less steep than the beats before and after them,
    which are one usual interval apart: bumps of the noise between two beats.
    """
    if len(peaks) < 3:
        return peaks
    steep = steepness(slope_of(filtered, fs_hz), peaks, TROUGH_STEEP_S, fs_hz)
    usual_steep = scipy.ndimage.median_filter(steep, STEEP_BEATS, mode="nearest")
    beats = np.flatnonzero(steep >= BUMP_SIZE * usual_steep)
    usual = scipy.ndimage.percentile_filter(np.diff(peaks), BUMP_PERCENTILE, STEEP_BEATS,
                                            mode="nearest")

    # from each beat to the next: peaks that are less steep may stand between them
    near = np.diff(peaks[beats]) < BUMP_APART * usual[beats[:-1]]
    between = np.zeros(len(peaks), bool)
    for first, last in zip(beats[:-1][near], beats[1:][near]):
        between[first + 1:last] = True
    if not between.any():
        return peaks
    return peaks[~between | (snr_db(filtered, peaks, fs_hz) >= BUMP_SNR_DB)]


def snr_db(filtered, peaks, fs_hz):
    """(k,) signal-to-noise ratio around each peak, as quality.snr_db has it of a window."""
    half = round(QRS_HALF_S * fs_hz)
    around = np.clip(peaks[:, None] + np.arange(-half, half + 1), 0, len(filtered) - 1)
    amplitude = scipy.ndimage.median_filter(np.ptp(filtered[around], axis=1), STEEP_BEATS,
                                            mode="nearest")

    piece = round(FLOOR_PIECE_S * fs_hz)
    power = filtered[:len(filtered) // piece * piece].reshape(-1, piece).var(axis=1)
    floor = scipy.ndimage.percentile_filter(power, 100 * FLOOR_QUANTILE,
                                            round(FLOOR_S / FLOOR_PIECE_S), mode="nearest")
    with np.errstate(divide="ignore"):
        return 10 * np.log10(amplitude ** 2 / 8 / floor[np.minimum(peaks // piece, len(floor) - 1)])
