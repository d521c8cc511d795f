"""What a page of recording/page.py holds of a recording, bounded whatever its length.

All of a recording up to FULL_SAMPLES is kept at full rate; of a longer one STRIP_S about as many of
its highest flagged beats, and the lowest and highest sample of each of ENVELOPE stretches.
"""

from dataclasses import dataclass

import numpy as np

FULL_SAMPLES = 2_000_000   # 92 min at 360 Hz; int16 in base64: 5.3 MB of the page
ENVELOPE = 500_000         # 2.7 MB
DRAWN = 200_000            # beats; of more, the lowest and highest of neighbours: 3.5 MB
LISTED = 2000              # beats in the table
STRIP_S = 10
CHUNK = 1 << 18            # samples read at a time
MISSING = -32768           # int16 of a sample that is missing; page.js knows it too
OUTLIER = 100              # times the central 99.8 % of the signal: what lies farther off is drawn
                           # there, so that a spike leaves the beats their share of the 16 bits
USUAL, FLAGGED, UNSCORED = range(3)   # states of a beat; page.js knows them too


@dataclass
class Content:
    """What the page draws of the signal and which beats it holds; positions in samples of the
    recording.
    """

    listed: np.ndarray         # row numbers of the flagged beats in the table, highest first
    drawn: np.ndarray          # (n,) bool: which beats the page holds
    kept: np.ndarray           # (k, 2) from, to: at full rate
    full: np.ndarray           # int16: the samples of `kept` one after another
    low: np.ndarray            # (m,) int16: extremes of each `step` samples; empty for a step of 1,
                               # where everything is kept at full rate
    high: np.ndarray
    step: int
    offset: float              # value = offset + scale * int16
    scale: float


def content_of(scored, recording):
    """Content of ScoredBeats and the Recording they are of."""
    n = recording.n_samples
    listed = highest_flagged(scored, n)
    kept = full_rate(scored.samples[listed], n, scored.fs_hz)

    # a stretch of the envelope is `step` samples
    step = 1 if n <= FULL_SAMPLES else -(-n // ENVELOPE)
    arrays, offset, scale = quantise(*read_signal(recording, scored.lead_index, kept, step))
    return Content(listed, thin_out(scored, kept), kept, *arrays, step, offset, scale)


def states(scored):
    """(n,) uint8 of USUAL, FLAGGED and UNSCORED."""
    kinds = [FLAGGED, USUAL]
    return np.select([scored.flagged, scored.beats.scored], kinds, UNSCORED).astype(np.uint8)


def highest_flagged(scored, n_samples):
    """Row numbers of the flagged beats in the page's table, highest excess first."""
    flagged = np.flatnonzero(scored.flagged)
    order = flagged[np.argsort(-scored.excess[flagged], kind="stable")]

    # of a long recording no more than there are strips for
    strips = LISTED if n_samples <= FULL_SAMPLES else int(FULL_SAMPLES // (STRIP_S * scored.fs_hz))
    return order[:min(LISTED, strips)]


def full_rate(samples, n_samples, fs_hz):
    """(k, 2) from, to, ascending and apart, kept at full rate: everything, or STRIP_S about these R
    peaks.
    """
    if n_samples <= FULL_SAMPLES:
        return np.array([[0, n_samples]])
    half = int(STRIP_S * fs_hz / 2)
    strips = np.sort(samples)[:, None] + [-half, half + 1]

    return join_spans(strips.clip(0, n_samples))


def join_spans(spans, gap=0):
    """Spans (k, 2), ascending, those at most `gap` apart made one: (m, 2)."""
    if not len(spans):
        return spans
    first = np.append(True, spans[1:, 0] - spans[:-1, 1] > gap)
    return np.column_stack([spans[first, 0], spans[np.append(first[1:], True), 1]])


def read_signal(recording, lead, kept, step):
    """(full, low, high) float32: samples of `kept` (k, 2) one after another; extremes of each
    `step` samples.

    One pass, CHUNK samples at a time. Missing samples are NaN; low and high are empty for a step of
    1.
    """
    n = recording.n_samples
    chunk = CHUNK // step * step or step
    # without a piece there is nothing to put together
    full, low, high = ([np.empty(0, np.float32)] for _ in range(3))

    for first in range(0, n, chunk):
        signal = recording.read(lead, first, min(first + chunk, n))
        signal = signal.clip(-1e35, 1e35).astype(np.float32)
        for start, stop in kept[(kept[:, 0] < first + chunk) & (kept[:, 1] > first)]:
            # a copy: a view would keep the whole chunk
            full.append(signal[max(start - first, 0):stop - first].copy())
        if step > 1:
            begin = np.arange(0, len(signal), step)
            low.append(np.fmin.reduceat(signal, begin))
            high.append(np.fmax.reduceat(signal, begin))
    return tuple(np.concatenate(part) for part in (full, low, high))


def quantise(*arrays):
    """([int16 arrays], offset, scale): value = offset + scale * int16; MISSING where it is NaN."""
    known = np.concatenate([a[np.isfinite(a)] for a in arrays])
    low, middle, high = np.zeros(3)
    if len(known):
        low, middle, high = np.percentile(known, [0.1, 50, 99.9]).astype(float)
    reach = np.abs(known - middle).max(initial=0)
    if high > low:
        reach = min(reach, OUTLIER * (high - low))
    scale = float(reach / 32767) or 1.0

    stored = []
    for array in arrays:
        steps = np.clip((array - middle) / scale, -32767, 32767).round()
        stored.append(np.nan_to_num(steps, nan=MISSING).astype(np.int16))
    return stored, float(middle), scale


def thin_out(scored, kept):
    """(n,) bool, which beats the page holds: all, or the lowest and highest of neighbours, and
    those in `kept`.
    """
    n = len(scored.excess)
    if n <= DRAWN:
        return np.ones(n, bool)
    drawn = np.zeros(n, bool)

    # two of each group of neighbours
    size = -(-2 * n // DRAWN)
    for values in (scored.excess, -scored.excess):
        groups = np.pad(np.nan_to_num(values, nan=-np.inf), (0, -n % size), constant_values=-np.inf)
        drawn[np.arange(0, n, size) + groups.reshape(-1, size).argmax(axis=1)] = True

    # and all in a strip
    for start, stop in np.searchsorted(scored.samples, kept):
        drawn[start:stop] = True
    return drawn
