"""Figures of merit and their 95 % intervals over records: pure functions over arrays.

Abnormal (1) is the positive class; a beat is flagged where score >= threshold. Beats of one
record resemble each other, so intervals come from resampling records, not beats (Efron &
Tibshirani 1993, percentile bootstrap): a record drawn k times weighs k.
"""

from collections import Counter

import numpy as np

from pipeline.runtime import slices

GRID = np.linspace(0, 1, 101)  # where the bands of the curves are stored
DRAWN = 20                     # resamples at a time
MIN_BEATS = 5                  # of each class, for a record to have a ROC-AUC of its own


def confusion(y, flagged):
    """{"tn", "fp", "fn", "tp"} of y (n,) and flagged (n,) bool."""
    # 0 to 3 in this order: a beat's label is the higher digit, its flag the lower one
    counts = np.bincount(2 * y + flagged, minlength=4)
    return dict(zip(("tn", "fp", "fn", "tp"), counts.tolist()))


def rates(tn, fp, fn, tp):
    """{"accuracy", "sensitivity", "specificity", "ppv", "f1"} of counts or arrays of counts.

    NaN where a rate has no denominator.
    """
    tn, fp, fn, tp = (np.asarray(v, float) for v in (tn, fp, fn, tp))

    with np.errstate(divide="ignore", invalid="ignore"):
        return {"accuracy": (tp + tn) / (tn + fp + fn + tp), "sensitivity": tp / (tp + fn),
                "specificity": tn / (tn + fp), "ppv": tp / (tp + fp),
                "f1": 2 * tp / (2 * tp + fp + fn)}


class Ranking:
    """Beats sorted by falling score, so that areas and curves of any choice of records take one
    pass over the scores at which a curve bends; group (n,): number of each beat's record.
    """

    def __init__(self, scores, y, group=None):
        order = np.argsort(-np.asarray(scores), kind="stable")
        ranked = np.asarray(scores)[order]
        y = np.asarray(y, bool)[order]
        group = np.zeros(len(y), int) if group is None else np.asarray(group)[order]

        # equal scores are flagged together: only the last of them is a point of a curve
        ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
        # between two points that add true positives it runs straight: one in ten beats bends it
        rises = np.diff(np.cumsum(y)[ends], prepend=0) > 0
        rises[-1] = True
        bends = ends[rises | np.append(rises[1:], False)]

        # first the point at which nothing is flagged
        numbers = np.unique(group)
        self.tp = np.zeros((len(numbers), 1 + len(bends)))
        self.fp = np.zeros_like(self.tp)
        for k, number in enumerate(numbers):
            self.tp[k, 1:] = np.cumsum(y & (group == number))[bends]
            self.fp[k, 1:] = np.cumsum(~y & (group == number))[bends]

    def counts(self, times=None):
        """Cumulated (true positives, false positives), each (..., k), at each score where a curve
        bends, falling, from 0 on; times (..., groups): how often each counts, once where it is
        None.
        """
        times = np.ones(len(self.tp)) if times is None else np.asarray(times, float)
        return times @ self.tp, times @ self.fp


def auroc(tp, fp):
    """(...) area under the ROC curve from Ranking.counts; NaN where one class is missing."""
    # trapezoids
    area = (np.diff(fp) * (tp[..., 1:] + tp[..., :-1])).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return area / 2 / (tp[..., -1] * fp[..., -1])


def auprc(tp, fp):
    """(...) average precision, sum of precision x rise of recall; NaN where one class is missing.
    """
    flagged = tp + fp
    total = np.where((tp[..., -1] > 0) & (fp[..., -1] > 0), tp[..., -1], np.nan)

    # a resampled set of records may lack the beats of the highest scores: nothing is flagged there
    precision = tp / np.maximum(flagged, 1)
    return (np.diff(tp) * precision[..., 1:]).sum(axis=-1) / total


def roc_curve(scores, y):
    """(false-positive rate (k,), sensitivity (k,)) where the ROC curve bends."""
    tp, fp = Ranking(scores, y).counts()
    return fp / fp[-1], tp / tp[-1]


def precision_recall_curve(scores, y):
    """(recall (k,), precision (k,)) where their curve bends, from the highest score on."""
    tp, fp = Ranking(scores, y).counts()
    precision = np.append(1, tp[1:] / (tp[1:] + fp[1:]))
    return tp / tp[-1], precision


def roc_at(tp, fp):
    """Sensitivity at the false-positive rates of GRID."""
    return np.interp(GRID * fp[-1], fp, tp) / tp[-1]


def precision_at(tp, fp):
    """Precision at the recalls of GRID."""
    tp, fp = tp[1:], fp[1:]
    return np.interp(GRID * tp[-1], tp, tp / np.maximum(tp + fp, 1))


def by_record(scores, y, record):
    """{record: {"n_normal", "n_abnormal", "auroc"}}; None with too few beats of a class."""
    result = {}
    for name in np.unique(record).tolist():
        rows = record == name
        n_normal, n_abnormal = np.bincount(y[rows], minlength=2).tolist()
        # of two or three beats an area is 0 or 1 by chance, and would weigh as much as one of 500
        enough = min(n_normal, n_abnormal) >= MIN_BEATS
        area = auroc(*Ranking(scores[rows], y[rows]).counts()) if enough else None
        result[name] = {"n_normal": n_normal, "n_abnormal": n_abnormal, "auroc": area}
    return result


def areas(scores, y, own):
    """{"auroc", "auroc_record_mean", "auprc"}; NaN where beats or records are too few for one; own:
    `by_record` of them.
    """
    counts = Ranking(scores, y).counts()
    known = [row["auroc"] for row in own.values() if row["auroc"] is not None]
    mean = float(np.mean(known)) if known else np.nan
    return {"auroc": auroc(*counts), "auroc_record_mean": mean, "auprc": auprc(*counts)}


def resampled(scores, y, record, own, threshold, resamples, seed):
    """All figures of one score, of all records and of resampled ones.

    scores, y, record (n,), own: `by_record` of them -> ({name: (1 + resamples,)}, {band name:
    (101,)}) for auroc, auprc, auroc_record_mean and the rates at the threshold; bands of both
    curves. Two scores of the same beats have the same resamples: their difference is paired, and
    what makes a draw easy cancels out.
    """
    names, codes = np.unique(record, return_inverse=True)
    ranking = Ranking(scores, y, codes)
    # a confusion matrix a record: (records, 4), as in `confusion`
    cells = 4 * codes + 2 * y + (scores >= threshold)
    counts = np.bincount(cells, minlength=4 * len(names)).reshape(-1, 4)
    of_record = np.array([row["auroc"] for row in own.values()], float)  # None becomes NaN

    curves = []

    def figures(times):
        # one sort serves all resamples: only the weights of the records change
        tp, fp = ranking.counts(times)
        for own_tp, own_fp in zip(tp, fp):
            if own_tp[-1] and own_fp[-1]:
                curves.append((roc_at(own_tp, own_fp), precision_at(own_tp, own_fp)))

        # records without an area of their own do not count in the mean over records
        weight = np.where(np.isnan(of_record), 0, times)
        with np.errstate(invalid="ignore"):
            mean = weight @ np.nan_to_num(of_record) / weight.sum(axis=1)

        # the threshold stays: only how often each record's beats count is drawn again
        return {"auroc": auroc(tp, fp), "auprc": auprc(tp, fp), "auroc_record_mean": mean,
                **rates(*(times @ counts).T)}

    drawn = bootstrap(figures, len(names), resamples, seed)
    curves = curves[1:]  # the first one is that of all records
    if not curves:  # one class only: no curve, no band
        curves = np.full((1, 2, len(GRID)), np.nan)

    low, high = np.percentile(curves, (2.5, 97.5), axis=0)
    return drawn, {"roc_tpr_low": low[0], "roc_tpr_high": high[0],
                   "pr_precision_low": low[1], "pr_precision_high": high[1]}


def bootstrap(figures, n, resamples, seed):
    """{name: (1 + resamples,)}: of all n records, then of resampled ones.

    figures: how often each record counts in each of m resamples (m, n) -> {name: (m,)}.
    """
    # all draws at once from one seed: the same resamples for every score that is compared
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    # some at a time: what lies in the cache is not fetched again
    parts = [figures(np.ones((1, n))), *(figures(draws[part]) for part in slices(resamples, DRAWN))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(values):
    """{"value", "low", "high"}: of all records, and the 95 % interval of resampled ones; values
    from `resampled`.
    """
    value, *drawn = values
    # resamples without a beat of one class have no area: the interval is that of the others
    known = np.isfinite(drawn).any()
    low, high = np.nanpercentile(drawn, (2.5, 97.5)) if known else (np.nan, np.nan)
    return {"value": float(value), "low": float(low), "high": float(high)}


def by_class(scores, y, aami, classes, flagged):
    """{class: {"n", "auroc", "sensitivity"}} of each abnormal class against all normal beats."""
    result = {}
    normal = y == 0
    for name in classes:
        here = (aami == name) & ~normal
        rows = here | normal
        n = int(here.sum())
        value = auroc(*Ranking(scores[rows], y[rows]).counts()) if n else None
        result[name] = {"n": n, "auroc": value,
                        "sensitivity": float(flagged[here].mean()) if n else None}
    return result


def by_symbol(scores, symbol, flagged):
    """{symbol: {"n", "flagged", "median"}}, most frequent first."""
    result = {}
    for name, n in Counter(symbol.tolist()).most_common():
        here = symbol == name
        result[name] = {"n": n, "flagged": float(flagged[here].mean()),
                        "median": float(np.median(scores[here]))}
    return result


def without_record(name, scores, rows, own):
    """{"auroc", "auprc", "auroc_record_mean"} of all other records; None where it is not there;
    own: `by_record` of all.
    """
    kept = rows["record"] != name
    if kept.all() or not kept.any():
        return None

    # one record can carry a pooled area: 232 holds 1,382 of the 1,837 S beats of DS2
    others = {record: row for record, row in own.items() if record != name}
    return areas(scores[kept], rows["y"][kept], others)
