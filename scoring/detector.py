"""From features of beats to scores, from scores to a threshold: what is fitted, and on what.

Nothing that is fitted here sees an abnormal label.
"""

from functools import cache

import numpy as np
import torch

from pipeline.errors import UserError
from scoring.features import BeatFeatures, rows_by_record
from scoring.scores import SCORES, density_scale, self_references

# lines whose specificity and sensitivity are kept
EXCESSES = np.round(np.arange(0, 12.01, 0.05), 2)


# --- combinations ---------------------------------------------------------------------------------

def parts_of(name, weights):
    """[(score, causal, weight)] that a combination of SCORES consists of."""
    # a score may put one part in another's place: the same patient's beats for everybody's
    score = SCORES[name]
    instead = score.instead or {}
    return [(instead.get(part, part), score.causal, weight)
            for part, weight in weights.items()
            if weight]


def standard_key(part, causal):
    """Name of a part's mean and deviation in `fitted["standard"]`."""
    return f"{part} causal" if causal else part


def part_values(part, features, fitted, causal):
    """(n,) values of a score as they enter a combination, before they are standardised."""
    score = SCORES[part]
    return score.as_part(score.values(features, fitted, causal))


def alternatives(parts):
    """(n,) log of the sum of the exponentials of weighted, standardised parts, each (n,).

    Nearly the largest of them: a beat is abnormal because it is early or because its shape is
    foreign. In a sum each of the two dilutes the other (docs/method.md).
    """
    return np.logaddexp.reduce(list(parts))


# --- fit and score --------------------------------------------------------------------------------

def fit(model, segments, train, validation, weights, settings, fs_hz, device):
    """What the scores need, as a dict that a checkpoint can hold.

    `train`: row numbers of normal training beats, the references. `validation`: rows of the
    validation part, unlabelled as a record is when it is scored; those that are normal set the
    scale of the parts of `combined`. `weights` {score: weight}; `settings` {name: value} of
    SCORE_SETTINGS.
    """
    features = BeatFeatures.of(model, segments, train, settings, fs_hz, device, keep_recon=False)

    # latents and log RR in one distance: the latents' spread within a record becomes 1
    z_scale = spread_within_records(features)
    # half precision: 60,000 references are 4 MB of a checkpoint instead of 8
    references = torch.from_numpy(features.vectors(z_scale)).half()
    density = density_scale(references.float().numpy(), settings["DENSITY_NEIGHBOURS"])
    names, index = np.unique(features.record, return_inverse=True)
    fitted = {"settings": settings, "weights": dict(weights), "z_scale": z_scale,
              "references": references, "density": torch.from_numpy(density),
              "reference_records": names.tolist(),
              "reference_record": torch.from_numpy(index.astype(np.int16))}
    del features  # the training beats' features and the validation beats' would stand side by side

    features = BeatFeatures.of(model, segments, validation, settings, fs_hz, device)
    normal = segments.rows["y"][validation] == 0

    # alternatives must be of one size: mean 0 and deviation 1 over normal validation beats
    fitted["standard"] = {}
    for name, score in SCORES.items():
        if score.values:
            continue
        for part, causal, _ in parts_of(name, weights):
            key = standard_key(part, causal)
            if key not in fitted["standard"]:
                values = part_values(part, features, fitted, causal)[normal]
                fitted["standard"][key] = (float(values.mean()), float(max(values.std(), 1e-6)))
    return fitted


def spread_within_records(features):
    """Deviation of latents from the median of their record, over all of them.

    How far patients are from each other does not count: a beat is compared with its own record's.
    """
    away = np.empty_like(features.z)
    for here in rows_by_record(features.record).values():
        away[here] = features.z[here] - np.median(features.z[here], axis=0)
    return float(max(away.std(), 1e-6))


def score(model, fitted, segments, rows, names, fs_hz, device):
    """({name: (n,) float64 scores} of the asked names, BeatFeatures) for the row numbers `rows`.

    Rows of the same record are each other's unlabelled reference in `self_reference` and
    `self_causal`.
    """
    features = BeatFeatures.of(model, segments, rows, fitted["settings"], fs_hz, device)
    return scores_of(features, fitted, names), features


def scores_of(features, fitted, names):
    """{name: (n,) float64 scores} of the beats of a BeatFeatures."""
    @cache  # a part is searched once, however many scores it is in
    def values_of(function, causal):
        return function(features, fitted, causal)

    result = {}
    for name in names:
        score = SCORES[name]
        if score.values:
            values = values_of(score.values, score.causal)
        else:
            parts = []
            for part, causal, weight in parts_of(name, fitted["weights"]):
                mean, deviation = fitted["standard"][standard_key(part, causal)]
                raw = SCORES[part].as_part(values_of(SCORES[part].values, causal))
                parts.append(weight * (raw - mean) / deviation)
            values = alternatives(parts)
        result[name] = np.asarray(values, np.float64)
    return result


# --- lines ----------------------------------------------------------------------------------------

def excess(scores, features, fitted, causal=False):
    """(n,) scores less their median over the record's own regular beats.

    Not in units of the spread of those: noise, ectopy and a second normal shape widen it, and
    every abnormal beat sinks below the line. At a line that flags at most 1.5 % of N in DS1 and in
    23 records of svdb (means over records, R peaks given), S/V/F are 82/93/75 % of DS1 and S/V
    62/96 % of svdb; in units of the spread 74/90/62 and 55/90 %.
    """
    result = np.empty(len(scores))
    for here, reference in self_references(features, fitted, causal):
        # the median: a few abnormal beats among them do not count
        result[here] = scores[here] - np.median(scores[here[reference]])
    return result


def excess_curve(excess, y, record):
    """{"excess", "specificity", "sensitivity"}: lists over EXCESSES; means over the records
    that have such beats.

    NaN where none has: an archive without labels knows no sensitivity.
    """
    curve = {"excess": EXCESSES.tolist()}
    for name, wanted in (("specificity", 0), ("sensitivity", 1)):
        # means over records: a record of 3,000 beats is one patient, as one of 1,500 is
        shares = []
        for r in np.unique(record):
            here = (record == r) & (y == wanted)
            if here.any():
                shares.append(np.searchsorted(np.sort(excess[here]), EXCESSES) / here.sum())
        below = np.mean(shares or [np.full(len(EXCESSES), np.nan)], axis=0)
        curve[name] = (below if name == "specificity" else 1 - below).tolist()
    return curve


def excess_at(curve, name, asked):
    """The lowest line with at least the asked specificity, or the highest with at least the
    asked sensitivity.

    The last of EXCESSES where none has that specificity, the first where none has that
    sensitivity. Raises UserError where the curve is of no beat.
    """
    if np.isnan(curve[name]).all():
        raise UserError(f"the checkpoint's validation part had no beat to know the {name} from. "
                        "Ask for an excess or for alarms an hour instead.")

    # specificity rises along the lines, sensitivity falls: the first that has it, or the last
    reached = np.flatnonzero(np.array(curve[name]) >= asked)
    if name == "specificity":
        return curve["excess"][reached[0] if len(reached) else -1]
    return curve["excess"][reached[-1] if len(reached) else 0]


def threshold_at_specificity(normal_scores, specificity):
    """The lowest score that flags at most 1 - specificity of these beats; flagged is score >=
    threshold.

    normal_scores (n,) of normal validation beats: no abnormal beat has a say in the threshold.
    Raises ValueError where there are none.
    """
    if not len(normal_scores):
        raise ValueError("a threshold needs normal beats in the validation part")

    # the next larger number than the last score that must not be flagged
    allowed = int(np.floor((1 - specificity) * len(normal_scores) + 1e-9))
    ranked = np.sort(normal_scores)[::-1]
    return float(np.nextafter(ranked[min(allowed, len(ranked) - 1)], np.inf))
