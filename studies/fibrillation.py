"""Fibrillation, flutter and tachycardia as detect.py marks them, held against rhythm annotations.

reads   FOLDER                          PhysioNet's vfdb: WFDB records with rhythms in .atr
        checkpoints/patient.pt          shipped
writes  results/fibrillation.json       by rhythm: share of the time by verdict, of the spells that
                                        are marked; ROC-AUC of the score of a window; printed too

The values of recording/fibrillation.py were chosen on every other record (`chosen on`); the others
are the test. Next: python -m studies.report --write
"""

from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from joblib import delayed

from pipeline import errors, runtime
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from recording import reader
from recording.episodes import ASYSTOLE_S, spells
from recording.quality import VERDICT_S
from recording.scored import score_recording
from scoring import metrics
from studies.expert_labels import load_detector, run

# of the table: names of the annotators' rhythms, which vary
GROUPS = {"fibrillation, flutter": ("(VF", "(VFIB", "(VFL"), "tachycardia": ("(VT",),
          "asystole": ("(ASYS",), "noise": ("(NOISE",), "normal": ("(N", "(NSR"),
          "atrial fibrillation": ("(AFIB",)}
HEADINGS = {"half": "records", "rhythm": "experts' rhythm", "seconds": "seconds",
            "without_qrs": "without QRS (%)", "episode": "any episode (%)",
            "unreadable": "only unreadable (%)"}


def seconds_of(path, model, stored, device):
    """DataFrame, a row a second: rhythm, without_qrs, episode, unreadable, score of a record."""
    runtime.use_threads(1)
    with reader.open_recording(path) as recording:
        _, scored = score_recording(recording, model, stored, device=device)
        fs_hz = recording.fs_hz

    length = int(scored.beats.duration_s)
    rhythm = np.full(length, "", object)
    notes = wfdb.rdann(str(path.with_suffix("")), "atr")
    for sample, aux in zip(notes.sample, notes.aux_note):
        if aux:
            rhythm[int(sample / fs_hz):] = aux.strip("\x00")

    episode = np.zeros(length, bool)
    for row in scored.episodes:
        episode[int(row["start_s"]):int(row["end_s"]) + 1] = True

    window = (np.arange(length) // VERDICT_S).astype(int)
    without_qrs = scored.beats.without_qrs[window]
    unreadable = (scored.beats.unreadable > 0)[window] & ~without_qrs
    return pd.DataFrame({"rhythm": rhythm, "without_qrs": without_qrs, "episode": episode,
                         "unreadable": unreadable, "score": scored.beats.oscillation[window]})


def shares(half, tables):
    """[{"half", "rhythm", "seconds", and shares of them}] of the seconds of some records."""
    seconds = pd.concat(tables)
    rows = []
    for name, rhythms in GROUPS.items():
        own = seconds[seconds.rhythm.isin(rhythms)]
        if len(own):
            means = own[["without_qrs", "episode", "unreadable"]].mean()
            rows.append({"half": half, "rhythm": name, "seconds": len(own), **means.to_dict()})
    return rows


def spells_marked(half, tables):
    """[{"half", "rhythm", "spells", "marked"}]: spells of a rhythm, of asystole those of 5 s and
    more, and how many of them some episode touches.
    """
    rows = []
    for name, least_s in (("tachycardia", 1), ("asystole", ASYSTOLE_S)):
        marked = []
        for seconds in tables:
            for first, last in spells(seconds.rhythm.isin(GROUPS[name]).to_numpy()):
                if last + 1 - first >= least_s:
                    marked.append(seconds.episode[first:last + 1].any())
        rows.append({"half": half, "rhythm": name, "spells": len(marked),
                     "marked": int(sum(marked))})
    return rows


def areas(half, tables):
    """{"half", "windows", "fibrillating", "auroc", "auroc_but_tachycardia"} of the score of windows
    of one rhythm: fibrillation and flutter against the rest, and against the rest but ventricular
    tachycardia.
    """
    windows = []
    for seconds in tables:
        number = seconds.index // int(VERDICT_S)
        one = seconds.groupby(number).rhythm.nunique() == 1
        windows.append(seconds.groupby(number).first()[one])
    windows = pd.concat(windows)
    # -inf, no oscillation at all, is the least
    value = windows.score.clip(lower=-100).to_numpy()
    y = windows.rhythm.isin(GROUPS["fibrillation, flutter"]).to_numpy()
    other = ~windows.rhythm.isin(GROUPS["tachycardia"]).to_numpy()

    def area(rows):
        return metrics.auroc(*metrics.Ranking(value[rows], y[rows]).counts())
    return {"half": half, "windows": len(y), "fibrillating": int(y.sum()),
            "auroc": area(np.ones(len(y), bool)), "auroc_but_tachycardia": area(other)}


def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="vfdb")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    detector = load_detector(database)
    paths = [path for path in reader.find_recordings([args.folder]) if path.suffix == ".hea"]
    if len(paths) < 2:
        raise UserError(f"{args.folder}: expected the records of vfdb, found {len(paths)}. "
                        "Download them from physionet.org/content/vfdb.")

    tables = run([delayed(seconds_of)(Path(path), *detector, device) for path in paths],
                 args.threads)
    rows = []
    spells_found = []
    window_areas = []
    for half, own in (("chosen on", tables[::2]), ("others", tables[1::2])):
        rows += shares(half, own)
        spells_found += spells_marked(half, own)
        window_areas.append(areas(half, own))

    shown = pd.DataFrame(rows).rename(columns=HEADINGS)
    percents = [heading for heading in shown if "%" in heading]
    shown[percents] = (100 * shown[percents]).round(1)
    print(shown.to_string(index=False))
    print(pd.DataFrame(spells_found).to_string(index=False))
    print(pd.DataFrame(window_areas).round(4).to_string(index=False))

    path = database.out / "results" / "fibrillation.json"
    write_json(path, {"records": len(paths), "table": rows, "spells": spells_found,
                      "windows": window_areas})
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
