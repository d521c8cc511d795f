"""A stretch of one lead of a recording as the network needs it: resampled, filtered, judged."""

from dataclasses import dataclass

import numpy as np

from preprocess import bandpass, fill_gaps, resample
from recording import fibrillation, quality

NO_SIGNAL = ("missing", "flat", "saturated")
MARGIN_S = quality.MARGIN_S   # read to both sides; filters ring for about a second


@dataclass
class Stretch:
    """One stretch with its margin, at the network's rate."""

    start_s: float             # of the first sample, in the recording
    raw: np.ndarray            # (n,) resampled, NaN filled
    filtered: np.ndarray       # (n,)
    found: np.ndarray          # (k,) beats in samples of `raw`, by which noise is judged
    unreadable: np.ndarray     # of each VERDICT_S without the margin: index into quality.REASONS
    without_qrs: np.ndarray    # of each bool: fibrillation, flutter, wide and fast rhythms
    oscillation: np.ndarray    # of each: fibrillation.score
    swing: np.ndarray          # of each second without the margin: `swings`, NaN where its window
                               # has no signal


def read_stretch(recording, lead, start_s, stop_s, fs_hz, band_hz, order, find_beats):
    """The Stretch from start_s to stop_s of one lead (index); stop_s may lie after the end.

    find_beats(raw, first_s): rising R peaks (k,) in samples of raw (n,), whose first sample lies at
    first_s. start_s is a multiple of quality.VERDICT_S.
    """
    own_hz = recording.fs_hz
    stop_s = min(stop_s, recording.n_samples / own_hz)
    first = max(0, round((start_s - MARGIN_S) * own_hz))
    last = min(recording.n_samples, round((stop_s + MARGIN_S) * own_hz))
    given = recording.read(lead, first, last)

    raw = resample(fill_gaps(given), own_hz, fs_hz)
    filtered = np.zeros(len(raw))
    if len(raw) > 6 * order + 3:   # scipy pads so many samples at each end
        filtered = bandpass(raw, fs_hz, band_hz, order)
    found = find_beats(raw, first / own_hz)

    # what was filled is told to the rule again
    signal = raw.copy()
    missing = np.flatnonzero(~np.isfinite(given))
    at = np.round(missing * fs_hz / own_hz).astype(int)
    signal[np.clip(at, 0, len(signal) - 1)] = np.nan
    verdict = quality.unreadable(signal, filtered, fs_hz, found)

    # what resembles no heartbeat is no noise if it swings like fibrillation
    noise, none = (quality.REASONS.index(name) for name in ("noise", "no QRS complexes"))
    oscillation = fibrillation.oscillation(filtered, fs_hz)
    without_qrs = fibrillation.without_qrs(*oscillation, verdict == noise)
    verdict[without_qrs & (verdict == noise)] = none
    without_qrs &= (verdict == 0) | (verdict == none)

    skip = round((start_s - first / own_hz) / quality.VERDICT_S)
    count = int(np.ceil((stop_s - start_s) / quality.VERDICT_S))
    here = slice(skip, skip + count)
    begin = round((start_s - first / own_hz) * fs_hz)
    swing = swings(filtered[begin:begin + round((stop_s - start_s) * fs_hz)], fs_hz)

    # a lead that is off is not still
    no_signal = np.isin(verdict[here], [quality.REASONS.index(name) for name in NO_SIGNAL])
    swing[no_signal[(np.arange(len(swing)) // quality.VERDICT_S).astype(int)]] = np.nan
    return Stretch(first / own_hz, raw, filtered, found, verdict[here], without_qrs[here],
                   fibrillation.score(*oscillation)[here], swing)


def swings(filtered, fs_hz):
    """(m,) from lowest to highest of each whole second of a lead (n,)."""
    second = round(fs_hz)
    seconds = filtered[:len(filtered) // second * second].reshape(-1, second)
    return np.ptp(seconds, axis=1)
