"""detect.py on short strips, as a watch or an ECG of ten seconds gives them, against expert labels.

reads   data/mitdb/               python dataset.py --download
        checkpoints/patient.pt    shipped
writes  results/strips.json       by length and part of the database: flagged beats of each class,
                                  strips in atrial fibrillation that are found; printed too

A strip is cut out every EVERY_S of each record and scored as a recording of its own, the rest of
the record unknown. A second at both ends is not counted: the network needs it beside a beat.
What is said of short recordings in recording/episodes.py was settled on the patients that are no
test. Next: python -m studies.report --write
"""

import numpy as np
import pandas as pd
import wfdb
from joblib import delayed

from pipeline import errors, runtime
from pipeline.artefacts import write_json
from pipeline.tables import readable
from recording import api, reader
from recording.episodes import RHYTHMS
from recording.output import RHYTHM_SYMBOL
from recording.scored import score_recording
from studies.expert_labels import (FIBRILLATION, compare, expert_beats, figures_of, load_detector,
                                   run)

LENGTHS_S = (30, 10)
EVERY_S = 150
FIRST_S = 60
END_S = 1.0
MOSTLY = 0.9               # of a strip in fibrillation; a strip with less, but some, is neither
IN_PART = ("(AFIB", "(AFL")
HEADINGS = {"seconds": "seconds", "part": "patients", "strips": "strips",
            "false_share": "N flagged (%)", "false_share_average": "by strip (%)",
            "S": "S flagged (%)", "V": "V flagged (%)", "fibrillating": "in fibrillation",
            "found": "found", "others": "without", "found_without": "called so"}


def in_rhythm(notes, rhythms, start, stop):
    """Share of the samples from start to stop whose rhythm is one of `rhythms`, by the annotations
    of a record.
    """
    changes = [(sample, aux.strip("\x00") in rhythms) for sample, symbol, aux
               in zip(notes.sample, notes.symbol, notes.aux_note) if symbol == RHYTHM_SYMBOL]
    ends = [sample for sample, _ in changes[1:]] + [stop]
    inside = sum(max(0, min(end, stop) - max(sample, start))
                 for (sample, wanted), end in zip(changes, ends) if wanted)
    return inside / (stop - start)


def score_strips(path, length_s, model, stored, device):
    """[(rows, record)] of expert_labels of the strips of a record; record with `fibrillating`,
    True, False or None, and `found`.
    """
    runtime.use_threads(1)
    notes = wfdb.rdann(str(path.with_suffix("")), "atr")
    with reader.open_recording(path) as recording:
        fs_hz = recording.fs_hz
        leads = recording.leads
        signal = np.column_stack([recording.read(k, 0, recording.n_samples)
                                  for k in range(len(leads))])
    time_s, symbol = expert_beats(path, "atr", fs_hz)

    results = []
    for start_s in np.arange(FIRST_S, len(signal) / fs_hz - length_s, EVERY_S):
        start, stop = (round(at_s * fs_hz) for at_s in (start_s, start_s + length_s))
        strip = api.array_recording(signal[start:stop], fs_hz, leads)
        _, scored = score_recording(strip, model, stored, device=device)

        here = (time_s >= start_s) & (time_s < start_s + length_s)
        rows, record = compare(
            f"{path.stem} {start_s:.0f}", scored, time_s[here] - start_s, symbol[here],
            lambda at_s: (at_s >= END_S) & (at_s < length_s - END_S))

        some = in_rhythm(notes, IN_PART, start, stop)
        most = in_rhythm(notes, (FIBRILLATION,), start, stop) >= MOSTLY
        found = any(RHYTHMS.get(row["kind"]) == FIBRILLATION for row in scored.episodes)
        record |= {"fibrillating": True if most else None if some else False, "found": found}
        results.append((rows, record))
    return results


def row_of(length_s, part, found):
    """A row of the table, of [(rows, record)] of strips."""
    classes = figures_of(found)["classes"]
    records = pd.DataFrame([record for _, record in found])
    inside = records.found[records.fibrillating.isin([True])]     # None is neither
    outside = records.found[records.fibrillating.isin([False])]
    return {"seconds": length_s, "part": part, "strips": len(found),
            "n": {name: classes[name]["n"] for name in "NSV"},
            "false_share": classes["N"]["gross"], "false_share_average": classes["N"]["average"],
            "S": classes["S"]["gross"], "V": classes["V"]["gross"],
            "fibrillating": len(inside), "found": int(inside.sum()),
            "others": len(outside), "found_without": int(outside.sum())}


def main(argv=None):
    args = runtime.parse(runtime.machine_parser(__doc__), argv)
    database, device = runtime.prepare(args)
    detector = load_detector(database)
    parts = {"training and validation": [*database.train, *database.validation],
             "test": database.test}

    table = []
    for length_s in LENGTHS_S:
        for part, names in parts.items():
            found = run([delayed(score_strips)(database.records_dir() / f"{name}.hea", length_s,
                                               *detector, device) for name in names], args.threads)
            table.append(row_of(length_s, part, [strip for strips in found for strip in strips]))

    print(readable(table, HEADINGS).to_string(index=False))
    path = database.out / "results" / "strips.json"
    write_json(path, {"every_s": EVERY_S, "table": table})
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
