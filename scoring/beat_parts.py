"""Which part of a beat makes it unusual: P wave, QRS, ST-T or timing.

Each beat is compared, sample by sample, with the mean of its nearest beats among the record's own
regular ones (the reference of the score `record`), in the windows below. What counts is how far
it is from usual in units of the record's own spread, divided by the limit that the asked share of
normal validation beats stays below: 1 is that limit, and the part with the largest value leads.
"""

import numpy as np

from scoring import detector

# s from the R peak: 0.25 holds a PR interval of up to 0.2 s with its wave, 0.1 half a wide QRS,
# 0.45 the end of T at ordinary heart rates
WINDOWS_S = {"P": (-0.25, -0.10), "QRS": (-0.10, 0.10), "ST-T": (0.10, 0.45)}
PARTS = (*WINDOWS_S, "timing")
TEMPLATE_BEATS = 10
TITLES = {"P": "P wave", "QRS": "QRS", "ST-T": "ST-T", "timing": "timing"}


def deviations(view, x, fitted, fs_hz):
    """(values (n, 4) of PARTS, usual (n, w)): deviation from the record's own regular beats in units
    of its spread, and the mean of the nearest of them, which each beat is compared with.

    x (n, w) are the scored segments, `view` and `fitted` as in scoring.py.
    """
    middle, vectors = x.shape[1] // 2, view.vectors(fitted["z_scale"])
    spans = [slice(middle + round(a * fs_hz), middle + round(b * fs_hz)) for a, b in WINDOWS_S.values()]
    result, typical = np.zeros((len(x), len(PARTS))), x.copy()
    for here, reference in detector.own_references(view, fitted, False):
        if len(here) < 2 or len(reference) < 2:
            continue  # nothing to compare with: no part leads
        _, near = detector.neighbours(vectors[here][reference], vectors[here], TEMPLATE_BEATS + 1)
        own = np.zeros((len(here), 1), int)
        own[reference, 0] = 1  # a reference beat's nearest is itself: leave it out
        near = np.take_along_axis(near, np.arange(near.shape[1] - 1)[None, :] + own, axis=1)
        known, mean = x[here[reference]], np.zeros_like(x[here])
        for column in near.T:
            mean += known[column] / near.shape[1]
        typical[here], difference = mean, x[here] - mean
        values = [np.sqrt((difference[:, span] ** 2).mean(axis=1)) for span in spans]
        values.append(view.irregular[here])
        for k, value in enumerate(values):
            centre = np.median(value[reference])
            spread = max(np.median(np.abs(value[reference] - centre)), 1e-3)
            result[here, k] = (value - centre) / spread
    return result, typical


def limits(values, specificity):
    """(4,) of `deviations` (n, 4) of normal beats: what the asked share of them stays below, each part."""
    return np.maximum(np.quantile(values, specificity, axis=0), 1e-3)


def leading(values, limit):
    """(index into PARTS (n,), how many times its limit (n,)) of deviations (n, 4)."""
    ratio = values / np.asarray(limit)
    return ratio.argmax(axis=1), ratio.max(axis=1)


def shares(part, aami, flagged):
    """{class: {"n", part: share}} of the flagged beats of each class: which part leads."""
    result = {}
    for name in "NSVFQ":
        here = (aami == name) & flagged
        result[name] = {"n": int(here.sum()), **{p: float((part[here] == k).mean()) if here.any() else None
                                                 for k, p in enumerate(PARTS)}}
    return result
