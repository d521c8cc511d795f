"""What the flags mean at the bedside: an EC57-style table, false alarms an hour, thresholds kept.

ANSI/AAMI EC57 as WFDB's bxb and sumstats apply it, as far as a detector of "abnormal" without
classes can be held against it: the first five minutes are not counted, records with paced beats
are left out, each class gets the share flagged, gross (all beats) and average (mean over records).
Two differences: `e` and `j` are normal here, S there, and R peaks are the annotated ones.
"""

import numpy as np

UNCOUNTED_S = 300                  # EC57: not counted
PACED_SYMBOLS = ("/", "f")
SENSITIVITIES = (0.5, 0.8, 0.9, 0.95)


def ec57(rows, flagged, paced_records, fs_hz):
    """{"records", "left_out", "classes": {class: {"n", "records", "gross", "average"}}}.

    rows: columns of the test beats; flagged (n,) bool. The figure of N is the false-positive rate,
    that of the others the sensitivity; `average` over the records that have the class.
    """
    # whole records, as EC57 asks: a paced heart's own beats are left out with the paced ones
    is_paced = np.isin(rows["record"], paced_records)
    counted = (rows["sample"] >= UNCOUNTED_S * fs_hz) & ~is_paced
    record = rows["record"][counted]
    flagged = flagged[counted]

    classes = {}
    for name in "NSVFQ":  # a class that no counted record has gets None
        here = rows["aami"][counted] == name
        # gross alone would be that of a few records: 1,382 of the 1,837 S beats of DS2 are in 232
        shares = [flagged[here & (record == r)].mean() for r in np.unique(record[here])]
        classes[name] = {"n": int(here.sum()), "records": len(shares),
                         "gross": float(flagged[here].mean()) if shares else None,
                         "average": float(np.mean(shares)) if shares else None}

    return {"records": len(np.unique(record)),
            "left_out": np.unique(rows["record"][is_paced]).tolist(), "classes": classes}


def paced(rows):
    """Names of the records that hold paced beats."""
    return np.unique(rows["record"][np.isin(rows["symbol"], PACED_SYMBOLS)]).tolist()


def hours(rr_before_s):
    """Time of the scored beats in hours: the sum of their RR intervals."""
    # not the length of the record: only a share of its beats is in the test part
    return float(np.nansum(np.asarray(rr_before_s, float)) / 3600)


def false_alarms(scores, y, n_hours):
    """[{"sensitivity", "reached", "specificity", "per_hour"}] for each of SENSITIVITIES.

    At the highest threshold of the test curve that has it: a property of the curve, not of a
    chosen threshold.
    """
    abnormal = np.sort(scores[y == 1])[::-1]
    normal = scores[y == 0]

    table = []
    for wanted in SENSITIVITIES:
        # rounding may not ask for a beat more
        threshold = abnormal[int(np.ceil(wanted * len(abnormal) - 1e-9)) - 1]
        false = int((normal >= threshold).sum())
        table.append({"sensitivity": wanted, "reached": float((abnormal >= threshold).mean()),
                      "specificity": 1 - false / max(len(normal), 1), "per_hour": false / n_hours})
    return table


def calibration(scores, y, thresholds):
    """[{"asked", "threshold", "specificity", "sensitivity"}] of these beats.

    thresholds {asked specificity: threshold} are those of the validation part.
    """
    return [{"asked": asked, "threshold": threshold,
             "specificity": float((scores[y == 0] < threshold).mean()),
             "sensitivity": float((scores[y == 1] >= threshold).mean())}
            for asked, threshold in thresholds.items()]
