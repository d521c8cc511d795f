"""How many decisions the review queue asks for, and what right ones are worth, by experts' labels.

reads   FOLDER ...           WFDB records with expert labels; default: the test patients
        checkpoints/patient.pt
writes  --out FILE.json, else results/review-test.json
next    python -m studies.report --write

A decision is of a review group (recording/review.py). The right one is the class that most of its
beats have for the expert: V and S are accepted as such, F and Q as such, all else is rejected. The
figures are the kinds' before review and after it, gross, as in studies.expert_labels: R peaks are
detect.py's own, and the first five minutes do not count.
"""

import numpy as np
import pandas as pd
from joblib import delayed

from pipeline import errors, runtime
from pipeline.artefacts import write_json
from pipeline.settings import AAMI_OF
from pipeline.tables import readable
from recording import reader
from recording.scored import score_recording
from scoring.ec57 import UNCOUNTED_S
from studies.expert_labels import (FALSE_WHERE, expert_beats, labelled_records, labels_parser,
                                   load_detector, match, parse_labels, run)

ABNORMAL = "SVFQ"
NO_BEAT = "x"             # class of a detection where the expert has no beat
HEADINGS = {"records": "records", "beats": "beats", "flagged": "flagged",
            "decisions_median": "decisions (median)", "decisions_most": "decisions (most)",
            "hours": "hours"}
KIND_HEADINGS = {"kind": "kind", "n": "beats", "sensitivity": "sensitivity (%)",
                 "ppv": "PPV (%)", "sensitivity_reviewed": "reviewed (%)",
                 "ppv_reviewed": "reviewed PPV (%)"}


def beats_of(path, model, stored, annotator, device):
    """(rows, hours) of one record: a row a detected beat and a row an expert's beat missed."""
    runtime.use_threads(1)
    with reader.open_recording(path) as recording:
        time_s, symbol = expert_beats(path, annotator, recording.fs_hz)
        _, scored = score_recording(recording, model, stored, device=device)

    pair = match(time_s, scored.beats.time_s)
    aami = np.array([AAMI_OF[one] for one in symbol])
    found = np.full(len(scored.kind), NO_BEAT)
    found[pair[pair >= 0]] = aami[pair >= 0]
    rows = pd.DataFrame({
        "record": path.stem,
        "time_s": np.concatenate([scored.beats.time_s, time_s[pair < 0]]),
        "aami": np.concatenate([found, aami[pair < 0]]),
        "kind": np.concatenate([scored.kind, np.full((pair < 0).sum(), "")]),
        "review_group": np.concatenate([scored.review_group, np.zeros((pair < 0).sum(), int)])})
    return rows, scored.beats.duration_s / 3600


def reviewed_kinds(rows):
    """(n,) kind of each beat of one record after the right decision on every review group."""
    kind = np.array(rows["kind"], object)
    for number, group in rows[rows["review_group"] > 0].groupby("review_group"):
        # of equals the first letter
        most = group["aami"].mode()[0]
        here = (rows["review_group"] == number).to_numpy()
        kind[here] = most if most in ABNORMAL else "N"
    return kind


def kind_figures(rows, column, kind):
    """(sensitivity, PPV) of the beats that `column` gives as `kind`, gross."""
    given = rows[column] == kind
    wanted = rows["aami"] == kind
    false = given & rows["aami"].isin([*FALSE_WHERE[kind], NO_BEAT])
    hits = (given & wanted).sum()
    return (hits / wanted.sum() if wanted.any() else np.nan,
            hits / (hits + false.sum()) if hits + false.sum() else np.nan)


def figures_of(found):
    """What is reported of [(rows, hours)] of all records."""
    reviewed = [rows.assign(reviewed=reviewed_kinds(rows)) for rows, _ in found]
    decisions = np.array([rows["review_group"].max() for rows in reviewed])
    rows = pd.concat(reviewed)
    flagged = rows[rows["review_group"] > 0]

    counted = rows[rows["time_s"] >= UNCOUNTED_S]
    kinds = []
    for kind in FALSE_WHERE:
        before = kind_figures(counted, "kind", kind)
        after = kind_figures(counted, "reviewed", kind)
        kinds.append({"kind": kind, "n": int((counted["aami"] == kind).sum()),
                      "sensitivity": before[0], "ppv": before[1],
                      "sensitivity_reviewed": after[0], "ppv_reviewed": after[1]})

    by_group = flagged.groupby(["record", "review_group"])["aami"].value_counts()
    largest = by_group.groupby(level=["record", "review_group"]).max().sum()
    return {"records": len(found), "hours": sum(hours for _, hours in found), "beats": len(rows),
            "flagged": len(flagged), "decisions_median": float(np.median(decisions)),
            "decisions_most": int(decisions.max()), "decisions": decisions.tolist(),
            "purity": largest / len(flagged) if len(flagged) else None, "kinds": kinds}


def main(argv=None):
    args = parse_labels(labels_parser(__doc__), argv)
    database, device = runtime.prepare(args)
    detector = load_detector(database)
    paths = labelled_records(args, database)

    found = run([delayed(beats_of)(path, *detector, args.annotator, device) for path in paths],
                args.threads)
    result = figures_of(found)
    print(readable(result, HEADINGS).T.to_string(header=False, na_rep="n/a"))
    print(readable(result["kinds"], KIND_HEADINGS).to_string(index=False, na_rep="n/a"))

    path = args.out or database.out / "results" / "review-test.json"
    write_json(path, result)
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
