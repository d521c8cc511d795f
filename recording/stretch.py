"""A stretch of one lead of a recording as the network needs it: resampled, filtered, judged."""

from dataclasses import dataclass

import numpy as np

from preprocess import bandpass, fill_gaps, resample
from recording import fibrillation, quality

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
    without_qrs = fibrillation.without_qrs(filtered, fs_hz)
    noise, none = (quality.REASONS.index(name) for name in ("noise", "no QRS complexes"))
    verdict[without_qrs & (verdict == noise)] = none
    without_qrs &= (verdict == 0) | (verdict == none)

    skip = round((start_s - first / own_hz) / quality.VERDICT_S)
    count = int(np.ceil((stop_s - start_s) / quality.VERDICT_S))
    return Stretch(first / own_hz, raw, filtered, found, verdict[skip:skip + count],
                   without_qrs[skip:skip + count])
