"""What a page of recording/page.py holds of a recording, bounded whatever its length.

The scored lead, and one beside it, are kept at full rate up to FULL_SAMPLES in all; of a longer
recording STRIP_S about some of its flagged beats and episodes, and of the scored lead the lowest
and highest sample of each of ENVELOPE stretches.
"""

from dataclasses import dataclass

import numpy as np

from recording.summary import weight_of

FULL_SAMPLES = 1_800_000   # two leads of 41 min at 360 Hz; int16 in base64: 4.8 MB of the page
ENVELOPE = 400_000         # 2.1 MB
DRAWN = 200_000            # beats; of more, the flagged, and the lowest and highest of neighbours
STRIP_S = 10
LEADS = 2                  # the scored one and one beside it
CHUNK = 1 << 18            # samples read at a time
MISSING = -32768           # int16 of a sample that is missing; page.js knows it too
OUTLIER = 100              # times the central 99.8 % of the signal: what lies farther off is drawn
                           # there, so that a spike leaves the beats their share of the 16 bits
UNSCORED = "?"             # state of a beat beside the letters of kinds
STATES = "NSVFQ" + UNSCORED   # page.js knows their order too


@dataclass
class Content:
    """What the page draws of the signal and which beats it holds; positions in samples of the
    recording.
    """

    leads: list                # indices, the scored one first
    drawn: np.ndarray          # (n,) bool: which beats the page holds
    kept: np.ndarray           # (k, 2) from, to: at full rate
    full: list                 # int16 of each lead: the samples of `kept` one after another
    low: np.ndarray            # (m,) int16: extremes of each `step` samples of the scored lead;
                               # empty for a step of 1, where everything is kept at full rate
    high: np.ndarray
    step: int
    offset: list               # value = offset + scale * int16, of each lead
    scale: list


def content_of(scored, recording):
    """Content of ScoredBeats and the Recording they are of."""
    n = recording.n_samples
    others = [k for k in range(len(recording.leads)) if k != scored.lead_index]
    leads = [scored.lead_index, *others][:LEADS]
    most = FULL_SAMPLES // len(leads)
    kept = full_rate(scored, n, most)

    # a stretch of the envelope is `step` samples
    step = 1 if n <= most else -(-n // ENVELOPE)
    full = []
    offset = []
    scale = []
    for lead in leads:
        # the lead beside it is drawn in strips alone
        own_step = step if lead == scored.lead_index else 1
        (own, *extremes), *line = quantise(*read_signal(recording, lead, kept, own_step))
        full.append(own)
        offset.append(line[0])
        scale.append(line[1])
        if lead == scored.lead_index:
            low, high = extremes
    return Content(leads, thin_out(scored, kept), kept, full, low, high, step, offset, scale)


def states(scored):
    """(n,) uint8, index into STATES."""
    letters = np.where(scored.beats.scored, scored.kind, UNSCORED)
    order = np.argsort(list(STATES))
    return order[np.searchsorted(list(STATES), letters, sorter=order)].astype(np.uint8)


def full_rate(scored, n_samples, most):
    """(k, 2) from, to, ascending and apart, kept at full rate: everything up to `most` samples, or
    STRIP_S about flagged beats, evenly in time, and about the middle of the episodes that most need
    a look: as many of each review group and of each kind of episode.
    """
    if n_samples <= most:
        return np.array([[0, n_samples]])

    n_groups = int(scored.review_group.max(initial=0))
    kinds = {}
    for episode in sorted(scored.episodes, key=weight_of, reverse=True):
        middle_s = (episode["start_s"] + episode["end_s"]) / 2
        kinds.setdefault(episode["kind"], []).append(round(middle_s * scored.fs_hz))

    each = int(most // (STRIP_S * scored.fs_hz)) // max(n_groups + len(kinds), 1)
    chosen = [np.array(samples[:each]) for samples in kinds.values()]
    for number in range(1, n_groups + 1):
        samples = scored.samples[scored.review_group == number]
        even = np.linspace(0, len(samples) - 1, min(each, len(samples))).astype(int)
        chosen.append(samples[even])

    half = int(STRIP_S * scored.fs_hz / 2)
    middles = np.sort(np.concatenate([np.empty(0, int), *chosen]))
    strips = middles[:, None] + [-half, half + 1]
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
    """(n,) bool, which beats the page holds: all, or the lowest and highest of neighbours, those
    in `kept` and the flagged ones.
    """
    n = len(scored.excess)
    if n <= DRAWN:
        return np.ones(n, bool)
    drawn = scored.flagged & (scored.flagged.sum() <= DRAWN)

    # two of each group of neighbours
    size = -(-2 * n // DRAWN)
    for values in (scored.excess, -scored.excess):
        groups = np.pad(np.nan_to_num(values, nan=-np.inf), (0, -n % size), constant_values=-np.inf)
        drawn[np.arange(0, n, size) + groups.reshape(-1, size).argmax(axis=1)] = True

    # and all in a strip
    for start, stop in np.searchsorted(scored.samples, kept):
        drawn[start:stop] = True
    return drawn
