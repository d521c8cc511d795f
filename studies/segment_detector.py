"""SegmentDetector beside detectors without a network: learned in five minutes, asked after them.

    python -m studies.segment_detector --other SVDB

reads   the records of the patient protocol's training and validation patients, and --other's
writes  results/segment_detector.json

Each record has detectors of its own, fitted on the normal beats of its first SELF_CAUSAL_S by the
experts' labels, as a user would give them. The training patients' normal beats are among those the
network has learned from; no beat of --other is.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest
from tqdm import tqdm

import config
from pipeline import errors, runtime
from pipeline.artefacts import without_nan, write_json
from pipeline.tables import readable
from preprocess import gaussian
from scoring.distances import neighbours
from scoring.estimator import SegmentDetector
from studies import in_noise

LEAST_LEARNED = 20       # normal beats that a detector must have to learn from
NETWORK = "SegmentDetector"
FOREST = "isolation forest, same segments"
NEIGHBOURS = "10 nearest segments, times a Gaussian"
LINES = np.arange(2, 20, 0.1)
HEADINGS = {"data": "data", "detector": "detector", "V": "V (%)",
            "V_least": "V, lowest record (%)", "S": "S (%)", "records": "records"}
LINE_HEADINGS = {"data": "data", "records": "records", "flagged_N": "flagged N (%)",
                 "flagged_V": "flagged V (%)", "flagged_N_by_share": "N, by share (%)",
                 "line": "line for TARGET_SPECIFICITY"}


def detectors(learned, asked, gauss):
    """({detector: (n,) scores} of the segments `asked` (n, w), the first one's line by the share of
    `learned` beyond it, and its own); learned (m, w): normal ones; gauss (w,)."""
    detector = SegmentDetector().fit(learned)
    forest = IsolationForest(random_state=0).fit(learned)
    away, _ = neighbours(learned * gauss, asked * gauss, detector.n_neighbors)
    scores = {NETWORK: -detector.score_samples(asked), FOREST: -forest.score_samples(asked),
              NEIGHBOURS: away.mean(axis=1)}

    share = np.quantile(-detector.score_samples(learned), config.TARGET_SPECIFICITY)
    return scores, share, -detector.offset_


def measure(path, leads):
    """(rows of areas, shares) of one record; ([], None) where it has too few normal beats."""
    segments = in_noise.segments_of([path], leads)
    rows = segments.rows
    early = rows["sample"] < config.SELF_CAUSAL_S * config.FS_HZ
    normal = rows["aami"] == config.NORMAL_CLASS
    if (early & normal).sum() < LEAST_LEARNED or not (normal & ~early).any():
        return [], None

    gauss = gaussian(segments.x.shape[1], config.TAPER_SIGMA_S * config.FS_HZ)
    scores, share, line = detectors(segments.x[early & normal], segments.x[~early], gauss)

    later = {name: rows[name][~early] for name in ("aami", "record")}
    areas = []
    for name, values in scores.items():
        areas += [{"detector": name, "class": aami, "record": path.name, "auroc": area}
                  for (aami, _), area in in_noise.class_areas(values, later).items()]

    own = scores[NETWORK][later["aami"] == config.NORMAL_CLASS]
    ventricular = scores[NETWORK][later["aami"] == "V"]
    enough = len(ventricular) >= in_noise.LEAST
    return areas, {"flagged_N": (own > line).mean(),
                   "flagged_V": (ventricular > line).mean() if enough else np.nan,
                   "flagged_N_by_share": (own > share).mean(),
                   "below": [(own < distance).mean() for distance in LINES]}


def table_of(found):
    """[{detector, "V", "V_least", "S", "records"}]: means over records, the lowest of V, and how
    many records have V beats enough."""
    by_class = found.groupby(["detector", "class"], sort=False).auroc
    table = by_class.mean().unstack("class").reindex(columns=["V", "S"])
    table["V_least"] = by_class.min().unstack("class").get("V")
    table["records"] = by_class.count().unstack("class").get("V")
    return without_nan(table.reset_index().to_dict("records"))


def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("--other", type=Path, metavar="DIR",
                        help="WFDB records of another database, measured as well")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, _ = runtime.prepare(args)
    names = sorted((*database.train, *database.validation))

    table = []
    lines = []
    for title, (paths, leads) in in_noise.groups(database, names, args.other).items():
        measured = [measure(path, leads) for path in tqdm(paths, desc=title, disable=None)]
        areas = [row for rows, _ in measured for row in rows]
        shares = pd.DataFrame([row for _, row in measured if row])
        table += [{"data": title, **row} for row in table_of(pd.DataFrame(areas))]

        # the lowest line that the asked share of normal beats lies below, mean over records
        enough = np.mean(shares["below"].tolist(), axis=0) >= config.TARGET_SPECIFICITY
        means = shares.drop(columns="below").mean().to_dict()
        lines.append({"data": title, "records": len(shares), **means,
                      "line": round(float(LINES[enough.argmax()]), 1) if enough.any() else None})

    for rows, headings in ((table, HEADINGS), (lines, LINE_HEADINGS)):
        print(readable(rows, headings).to_string(index=False, na_rep="n/a"))

    path = database.out / "results" / "segment_detector.json"
    write_json(path, {"simulated": database.simulated, "table": table,
                      "lines": without_nan(lines)})
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
