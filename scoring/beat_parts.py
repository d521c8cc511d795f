"""Which part of a beat makes it unusual: P wave, QRS, ST-T or timing.

Each beat is compared, sample by sample, with the mean of its nearest beats among the record's own
regular ones (the reference of the score `self_reference`), in the windows below. What counts is how far
it is from usual in units of the record's own spread, divided by the limit that the asked share of
normal validation beats stays below: 1 is that limit, and the part with the largest value leads.
"""

import numpy as np

from scoring.scores import neighbours, self_references

# s from the R peak: 0.25 holds a PR interval of up to 0.2 s with its wave, 0.1 half a wide QRS,
# 0.45 the end of T at ordinary heart rates
WINDOWS_S = {"P": (-0.25, -0.10), "QRS": (-0.10, 0.10), "ST-T": (0.10, 0.45)}
PARTS = (*WINDOWS_S, "timing")
TEMPLATE_BEATS = 10
TITLES = {"P": "P wave", "QRS": "QRS", "ST-T": "ST-T", "timing": "timing"}


def deviations(features, x, fitted, fs_hz):
    """(values (n, 4) of PARTS, usual (n, w)): deviation from the record's own regular beats in units
    of its spread, and the mean of the nearest of them, which each beat is compared with.

    x (n, w) are the scored segments, `features` and `fitted` as in scoring/detector.py.
    """
    middle = x.shape[1] // 2
    spans = [slice(middle + round(a * fs_hz), middle + round(b * fs_hz)) for a, b in WINDOWS_S.values()]
    vectors = features.vectors(fitted["z_scale"])
    result = np.zeros((len(x), len(PARTS)))
    typical = x.copy()
    for here, reference in self_references(features, fitted, False):
        if len(here) < 2 or len(reference) < 2:
            continue  # nothing to compare with: no part leads
        mean = nearest_mean(vectors[here], reference, x[here])
        typical[here] = mean
        difference = x[here] - mean

        values = [np.sqrt((difference[:, span] ** 2).mean(axis=1)) for span in spans]
        values.append(features.irregular[here])
        for k, value in enumerate(values):
            centre = np.median(value[reference])
            spread = max(np.median(np.abs(value[reference] - centre)), 1e-3)
            result[here, k] = (value - centre) / spread
    return result, typical


def nearest_mean(vectors, reference, x):
    """(n, w) mean of the TEMPLATE_BEATS reference beats nearest to each beat of a record, itself left out."""
    _, near = neighbours(vectors[reference], vectors, TEMPLATE_BEATS + 1)
    skipped = np.zeros((len(x), 1), int)
    skipped[reference, 0] = 1  # a reference beat's nearest is itself
    near = np.take_along_axis(near, np.arange(near.shape[1] - 1)[None, :] + skipped, axis=1)
    known = x[reference]
    mean = np.zeros_like(x)
    for column in near.T:
        mean += known[column] / near.shape[1]
    return mean


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
