"""All that a checkpoint holds beside the network: references, scale, thresholds, and what they
were fitted with."""

import numpy as np

import config
from pipeline import settings
from scoring import beat_parts, detector, scores as score_table

# specificities whose thresholds of the default score are kept
CALIBRATION = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def check_names(protocol):
    """Raise UserError where config.py names a score that there is not."""
    score_table.check_names(config.SCORES[protocol], "SCORES")
    score_table.check_names(config.WEIGHTS[protocol], "WEIGHTS")


def fit_scores(model, segments, protocol, device):
    """References of the scores from normal training beats; scale and thresholds from normal
    validation beats.

    Returns the fields of the checkpoint that hold them.
    """
    score_settings = settings.snapshot(settings.SCORE_SETTINGS)
    rows = segments.part(protocol, "validation")
    fitted = detector.fit(model, segments, segments.part(protocol, "train"), rows,
                          config.WEIGHTS[protocol], score_settings, config.FS_HZ, device)
    scores, features = detector.score(model, fitted, segments, rows, config.SCORES[protocol],
                                      config.FS_HZ, device)

    # from here on normal beats alone: no abnormal one has a say in a threshold
    normal = np.isin(rows, segments.normal_validation(protocol))
    thresholds = {name: detector.threshold_at_specificity(values[normal], config.TARGET_SPECIFICITY)
                  for name, values in scores.items()}
    default = scores[config.DEFAULT_SCORE]
    calibration = {asked: detector.threshold_at_specificity(default[normal], asked)
                   for asked in CALIBRATION}

    # abnormal validation beats are in it, for who asks for a sensitivity; the line of
    # EXCESS_SPECIFICITY, which is used unless one is asked for, looks at normal ones alone
    curve = detector.excess_curve(detector.excess(default, features, fitted),
                                    segments.rows["y"][rows], segments.rows["record"][rows])

    # a part is unusual beyond what the same share of normal beats stays below as of the score
    deviations, _ = beat_parts.deviations(features, segments.x[rows], fitted, config.FS_HZ)
    limits = beat_parts.limits(deviations[normal], config.TARGET_SPECIFICITY)
    return {"fitted": fitted, "thresholds": thresholds, "calibration": calibration,
            "excess": curve, "part_limits": limits.tolist(), "score_settings": score_settings}
