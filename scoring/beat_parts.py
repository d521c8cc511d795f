"""Which part of a beat makes it unusual: P wave, QRS, ST-T or timing.

Each beat is compared, sample by sample, with the mean of its nearest beats among the record's own
regular ones (the reference of the score `self_reference`), in the windows below. What counts is
how far it is from usual in units of the record's own spread, divided by the limit that the asked
share of normal validation beats stays below: 1 is that limit, and the part with the largest value
leads.

A beat with no part beyond its limit is as usual in its record, and was flagged against the training
beats alone: paced beats are, where a record has no others. Its whole shape leads where that is
foreign to them (`latent_knn`), else its timing where that is early (`rhythm`), else nothing alone.
Without this, 71 % of the flagged paced beats were said to be led by a timing far below its limit.
"""

import numpy as np

from scoring.distances import neighbours
from scoring.scores import self_references

# s from the R peak: 0.25 holds a PR interval of up to 0.2 s with its wave, 0.1 half a wide QRS,
# 0.45 the end of T at ordinary heart rates
WINDOWS_S = {"P": (-0.25, -0.10), "QRS": (-0.10, 0.10), "ST-T": (0.10, 0.45)}
MEASURED = (*WINDOWS_S, "timing")
PARTS = (*MEASURED, "shape", "none")
TITLES = {"P": "P wave", "QRS": "QRS", "ST-T": "ST-T", "timing": "timing",
          "shape": "whole shape", "none": "no part alone"}
TEMPLATE_BEATS = 10
LEAST_SPREAD = 1e-3   # of equal beats, and the least limit: nothing is divided by 0


def deviations(features, x, fitted, fs_hz):
    """(values (n, 4) of MEASURED, usual (n, w)): how far each beat is from usual, and what that is.

    In units of the spread of the record's own regular beats; usual is the mean of the nearest of
    them. x (n, w) are the scored segments, `features` and `fitted` as in scoring/detector.py.
    """
    middle = x.shape[1] // 2
    spans = [slice(middle + round(start_s * fs_hz), middle + round(end_s * fs_hz))
             for start_s, end_s in WINDOWS_S.values()]
    vectors = features.vectors(fitted["z_scale"])

    result = np.zeros((len(x), len(MEASURED)))
    usual = x.copy()
    for here, reference in self_references(features, fitted, False):
        if len(here) < 2 or len(reference) < 2:
            continue  # nothing to compare with: no part leads
        usual[here] = nearest_mean(vectors[here], reference, x[here])
        difference = x[here] - usual[here]

        shape = [np.sqrt((difference[:, span] ** 2).mean(axis=1)) for span in spans]
        # timing with its sign: a late beat is not unusual
        values = np.column_stack([*shape, features.irregular[here]])  # (n, 4)

        # noise widens every deviation of a record, so each record has its own unit
        centre = np.median(values[reference], axis=0)
        spread = np.median(np.abs(values[reference] - centre), axis=0)
        result[here] = (values - centre) / np.maximum(spread, LEAST_SPREAD)
    return result, usual


def nearest_mean(vectors, reference, x):
    """(n, w) mean of the TEMPLATE_BEATS reference beats nearest to each beat, itself left out."""
    _, near = neighbours(vectors[reference], vectors, TEMPLATE_BEATS + 1)
    # a reference beat's nearest is itself
    skipped = np.zeros((len(x), 1), int)
    skipped[reference] = 1
    near = np.take_along_axis(near, skipped + np.arange(near.shape[1] - 1), axis=1)

    # neighbour by neighbour: (n, 10, w) at once would be ten copies of the segments
    known = x[reference]
    mean = np.zeros_like(x)
    for column in near.T:
        mean += known[column] / near.shape[1]
    return mean


def limits(values, specificity):
    """(4,) what the asked share of normal beats stays below; values (n, 4) of `deviations`."""
    return np.maximum(np.quantile(values, specificity, axis=0), LEAST_SPREAD)


def leading(values, limit, scores, thresholds):
    """(index into PARTS (n,), how many times its limit (n,)) of deviations (n, 4).

    scores {name: (n,)} and thresholds {name: float}: of `latent_knn` and `rhythm`; one that is not
    there names no beat.
    """
    ratio = values / np.asarray(limit)
    part = ratio.argmax(axis=1)
    strength = ratio.max(axis=1)

    # as usual in its record: what is foreign to the training beats, shape before timing
    unnamed = strength < 1
    part[unnamed] = PARTS.index("none")
    for name, title in (("latent_knn", "shape"), ("rhythm", "timing")):
        if name in scores:
            here = unnamed & (scores[name] >= thresholds[name])
            part[here] = PARTS.index(title)
            strength[here] = scores[name][here] / max(thresholds[name], LEAST_SPREAD)
            unnamed &= ~here
    return part, strength


def nearest_training(features, fitted, chosen, x, train):
    """(k, w) mean of the TEMPLATE_BEATS training beats nearest to the k chosen beats, by shape.

    x (m, w): all segments; train: the rows that are the references of `fitted`, in their order.
    """
    # the columns behind the latents are timing
    references = fitted["references"].float().numpy()[:, :features.z.shape[1]]
    _, near = neighbours(references, features.z[chosen] / fitted["z_scale"], TEMPLATE_BEATS)

    mean = np.zeros((len(chosen), x.shape[1]), x.dtype)
    for column in near.T:
        mean += x[train[column]] / near.shape[1]
    return mean


def shares(part, aami, flagged):
    """{class: {"n", part: share}} of the flagged beats of each class: which part leads."""
    result = {}

    for name in "NSVFQ":
        led_by = part[(aami == name) & flagged]
        result[name] = {"n": len(led_by)}
        for k, title in enumerate(PARTS):
            result[name][title] = float((led_by == k).mean()) if len(led_by) else None
    return result
