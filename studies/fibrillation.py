"""Fibrillation, flutter and tachycardia as detect.py marks them, held against rhythm annotations.

reads   FOLDER                          PhysioNet's vfdb: WFDB records with rhythms in .atr
        checkpoints/patient.pt          shipped
writes  results/fibrillation.json       by rhythm: share of the time by verdict; printed too

The values of recording/fibrillation.py were chosen on every other record (`chosen on`); the others
are the test. Next: python -m studies.report --write
"""

from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from joblib import delayed

import detect
from pipeline import errors, runtime
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from recording import reader
from recording.quality import VERDICT_S
from studies.expert_labels import load_detector, run

# of the table: names of the annotators' rhythms, which vary
GROUPS = {"fibrillation, flutter": ("(VF", "(VFIB", "(VFL"), "tachycardia": ("(VT",),
          "asystole": ("(ASYS",), "noise": ("(NOISE",), "normal": ("(N", "(NSR"),
          "atrial fibrillation": ("(AFIB",)}
HEADINGS = {"half": "records", "rhythm": "experts' rhythm", "seconds": "seconds",
            "without_qrs": "without QRS (%)", "episode": "any episode (%)",
            "unreadable": "only unreadable (%)"}


def seconds_of(path, model, stored, device):
    """DataFrame, a row a second: rhythm, without_qrs, episode, unreadable of one record."""
    runtime.use_threads(1)
    with reader.open_recording(path) as recording:
        _, scored = detect.score_recording(recording, model, stored, device=device)
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
                         "unreadable": unreadable})


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
    rows = [*shares("chosen on", tables[::2]), *shares("others", tables[1::2])]

    shown = pd.DataFrame(rows).rename(columns=HEADINGS)
    percents = [heading for heading in shown if "%" in heading]
    shown[percents] = (100 * shown[percents]).round(1)
    print(shown.to_string(index=False))

    path = database.out / "results" / "fibrillation.json"
    write_json(path, {"records": len(paths), "table": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
