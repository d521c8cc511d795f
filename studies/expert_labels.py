"""detect.py's own output held against expert labels, EC57-style; nothing is refitted.

reads   FOLDER ...                      WFDB records with .atr files, whatever rate and leads;
                                        none: the test patients of the database
        checkpoints/patient.pt          shipped
writes  results/recordings-test.json    or --out FILE.json; printed too

A detected beat within 150 ms of an expert's is that beat (wfdb's compare_annotations); the first
five minutes are not counted. Missed and extra beats are counted, not dropped: an abnormal beat that
was missed, unreadable or cut off at an end is not flagged, an extra beat that is flagged is a false
alarm. Next: python -m studies.report --write
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from joblib import Parallel, delayed
from tqdm import tqdm
from wfdb.processing import compare_annotations

import config
from models import load_checkpoint
from pipeline import errors, runtime, settings
from pipeline.artefacts import without_nan, write_json
from pipeline.errors import UserError
from pipeline.tables import readable
from recording import reader
from recording.episodes import RHYTHMS
from recording.output import RHYTHM_SYMBOL
from recording.quality import VERDICT_S
from recording.scored import score_recording
from scoring import metrics
from scoring.ec57 import UNCOUNTED_S

MATCH_S = 0.15     # EC57
MATCH_HZ = 1000    # beats are matched in ms
# of the printed tables: {name in the file: heading}
HEADINGS = {"records": "records", "beats": "beats of the experts", "hours": "hours counted",
            "unreadable_share": "unreadable (% of the time)",
            "false_alarms_per_hour": "false alarms an hour",
            "fibrillation.sensitivity": "atrial fibrillation by time: sensitivity (%)",
            "fibrillation.ppv": "atrial fibrillation by time: PPV (%)",
            "fibrillation.found_without": "found where there is none (% of the time)",
            "groups.median": "groups of beats, median",
            "groups.purity": "beats of their group's most frequent class (%)",
            "qrs.sensitivity_gross": "R peaks: sensitivity (%)",
            "qrs.ppv_gross": "R peaks: PPV (%)",
            "score.auroc": "score: ROC-AUC (%)",
            "score.auroc_record_mean": "score: ROC-AUC (%), mean over records",
            "excess.auroc": "excess: ROC-AUC (%)",
            "excess.auroc_record_mean": "excess: ROC-AUC (%), mean over records"}
# a beat given so counts as false where the expert has one of these classes, or no beat: as bxb
# does, F and Q given as V and Q given as S are forgiven (EC57)
FALSE_WHERE = {"V": ("N", "S"), "S": ("N", "V", "F")}
KIND_HEADINGS = {"kind": "kind", "n": "beats", "sensitivity_gross": "sensitivity (%)",
                 "ppv_gross": "PPV (%)", "false_positive_rate": "false-positive rate (%)",
                 "sensitivity_average": "sensitivity by record (%)",
                 "ppv_average": "PPV by record (%)"}
FIBRILLATION = "(AFIB"
CLASS_HEADINGS = {"class": "class", "n": "beats", "missed": "missed", "not_scored": "not scored",
                  "gross": "flagged (%)", "average": "by record (%)", "records": "records"}


# --- one record -----------------------------------------------------------------------------------

def expert_beats(path, annotator, fs_hz):
    """(time_s (k,), symbol (k,)) of the expert's beats beside a WFDB record."""
    return reader.annotated_beats(path, annotator, fs_hz, settings.AAMI_OF,
                                  "Leave the record out, or name another --annotator.")


def match(expert_s, found_s):
    """(m,) index of the found beat of each expert beat, -1 where missed; no beat is taken twice."""
    if not len(expert_s) or not len(found_s):
        return np.full(len(expert_s), -1)

    # the two may have other rates: both are compared in ms
    expert, found = (np.round(times * MATCH_HZ).astype(int) for times in (expert_s, found_s))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rates without a denominator, which nobody asks for
        return compare_annotations(expert, found, int(MATCH_S * MATCH_HZ)).matching_sample_nums


def compare(name, scored, time_s, symbol, counts=lambda time_s: time_s >= UNCOUNTED_S):
    """(rows, record): a row a counted expert beat, and what was found beside them.

    scored: ScoredBeats; time_s, symbol (k,) of the expert's beats; counts: which times (s) count,
    those after EC57's minutes of learning unless another function is given.
    """
    beats = scored.beats

    # --- every expert beat, found or not
    pair = match(time_s, beats.time_s)
    rows = {"record": name, "aami": [settings.AAMI_OF[s] for s in symbol], "found": pair >= 0}
    for column, values, missed in (("scored", beats.scored, False),
                                   ("flagged", scored.flagged, False),
                                   ("score", scored.found.score, np.nan),
                                   ("excess", scored.excess, np.nan)):
        rows[column] = np.append(values, missed)[pair]  # a missed beat's index is -1: the last
    rows["kind"] = np.append(scored.kind, "")[pair]
    rows["group"] = np.append(scored.found.group, 0)[pair]

    # --- found where no expert has a beat
    extra = np.setdiff1d(np.flatnonzero(counts(beats.time_s)), pair)

    # --- how much of the counted time could be read
    middles = (np.arange(len(beats.unreadable)) + 0.5) * VERDICT_S
    unreadable = pd.Series(beats.unreadable > 0)[counts(middles)]

    record = {"record": name, "lead": scored.lead, "extra": len(extra),
              "extra_flagged": int(scored.flagged[extra].sum()),
              "extra_kinds": {kind: int((scored.kind[extra] == kind).sum())
                              for kind in FALSE_WHERE},
              "hours": len(unreadable) * VERDICT_S / 3600, "unreadable_share": unreadable.mean()}
    return pd.DataFrame(rows)[counts(time_s)], record


def score_record(path, model, stored, annotator, given, device, **asked):
    """(rows, record) of one WFDB record; given: its R peaks are the expert's; asked: arguments of
    score_recording.
    """
    runtime.use_threads(1)
    with reader.open_recording(path) as recording:
        time_s, symbol = expert_beats(path, annotator, recording.fs_hz)
        _, scored = score_recording(recording, model, stored, device=device,
                                    given_s=time_s if given else None, **asked)

    rows, record = compare(path.stem, scored, time_s, symbol)
    notes = wfdb.rdann(str(path.with_suffix("")), annotator)
    return rows, record | fibrillation_seconds(notes, scored, recording.fs_hz)


def fibrillation_seconds(notes, scored, fs_hz):
    """Counted seconds of atrial fibrillation by the expert's rhythm annotations, found, and both.

    Atrial flutter counts as neither.
    """
    length = int(scored.beats.duration_s)
    rhythm = np.full(length, "", object)
    for sample, symbol, aux in zip(notes.sample, notes.symbol, notes.aux_note):
        if symbol == RHYTHM_SYMBOL:
            rhythm[int(sample / fs_hz):] = aux.strip("\x00")

    found = np.zeros(length, bool)
    for episode in scored.episodes:
        if RHYTHMS.get(episode["kind"]) == FIBRILLATION:
            found[int(episode["start_s"]):int(episode["end_s"]) + 1] = True

    counts = (np.arange(length) >= UNCOUNTED_S) & (rhythm != "(AFL")
    truth = rhythm == FIBRILLATION
    return {"fibrillation_s": int((truth & counts).sum()),
            "found_s": int((found & counts).sum()),
            "both_s": int((truth & found & counts).sum()), "counted_s": int(counts.sum())}


# --- figures --------------------------------------------------------------------------------------

def areas(rows, name):
    """Pooled ROC-AUC of a column of the scored rows, and its mean over records."""
    values = rows[name].to_numpy()
    y = (rows.aami != config.NORMAL_CLASS).to_numpy()
    pooled = metrics.auroc(*metrics.Ranking(values, y).counts()) if len(rows) else None
    records = metrics.by_record(values, y, rows.record.to_numpy()).values()
    own = pd.Series([row["auroc"] for row in records], dtype=float)
    return {"auroc": pooled, "auroc_record_mean": own.mean(), "records": int(own.count())}


def kind_figures(rows, records, kind):
    """Sensitivity and PPV of the beats given as `kind`, gross and average over records, as bxb
    counts them.
    """
    hits = rows[(rows.aami == kind) & (rows.kind == kind)].groupby("record").size()
    wanted = rows[rows.aami == kind].groupby("record").size()
    others = rows[rows.aami.isin(FALSE_WHERE[kind])]
    false = others[others.kind == kind].groupby("record").size()

    table = pd.DataFrame({"hits": hits, "wanted": wanted, "false": false},
                         index=records.record).fillna(0)
    table["false"] += [extra[kind] for extra in records.extra_kinds]
    given = table.hits + table.false
    total = table.sum()
    return {"n": int(total.wanted),
            "sensitivity_gross": total.hits / total.wanted if total.wanted else np.nan,
            "ppv_gross": total.hits / given.sum() if given.sum() else np.nan,
            "false_positive_rate": (others.kind == kind).mean(),
            "sensitivity_average": (table.hits / table.wanted.where(table.wanted > 0)).mean(),
            "ppv_average": (table.hits / given.where(given > 0)).mean()}


def fibrillation_figures(records):
    """Atrial fibrillation by time: sensitivity, PPV, and share found in records that have none."""
    without = records[records.fibrillation_s == 0]
    total = records[["fibrillation_s", "found_s", "both_s"]].sum()
    return {"records": int((records.fibrillation_s > 0).sum()),
            "hours": total.fibrillation_s / 3600,
            "sensitivity": total.both_s / total.fibrillation_s if total.fibrillation_s else np.nan,
            "ppv": total.both_s / total.found_s if total.found_s else np.nan,
            "found_without": without.found_s.sum() / max(without.counted_s.sum(), 1)}


def group_figures(rows):
    """How many groups a record has, and how many of the scored beats are of the most frequent class
    of theirs; those that stand alone are groups by their kind.
    """
    scored = rows[rows.scored & rows.aami.isin(list("NSVF"))]
    together = scored.assign(alone=scored.kind.where(scored.group == 0, ""))
    sizes = together.groupby(["record", "group", "alone"]).aami.value_counts()
    largest = sizes.groupby(level=["record", "group", "alone"]).max().sum()
    count = scored[scored.group > 0].groupby("record").group.nunique()
    return {"median": float(count.median()), "most": int(count.max()) if len(count) else 0,
            "purity": largest / len(scored) if len(count) else np.nan,
            "alone": (scored.group == 0).mean()}


def figures_of(found):
    """Everything that is reported of [(rows, record)] of all records; None where nothing counts."""
    rows = pd.concat([rows for rows, _ in found])
    records = pd.DataFrame([record for _, record in found])
    hours = float(records.hours.sum())

    # --- R peaks: gross over all beats, average over records
    by_record = rows.groupby("record").found
    hits = by_record.sum()
    all_found = hits + records.groupby("record").extra.sum()

    # --- flagged share of each class: of N it is the false-positive rate
    classes = {}
    for name in config.AAMI:
        own = rows[rows.aami == name]
        classes[name] = {"n": len(own), "missed": int((~own.found).sum()),
                         "not_scored": int((own.found & ~own.scored).sum()),
                         "gross": own.flagged.mean(),
                         "average": own.groupby("record").flagged.mean().mean(),
                         "records": own.record.nunique()}

    # an extra beat that is flagged is a false alarm too
    scored = rows[rows.scored]
    false = rows[rows.aami == config.NORMAL_CLASS].flagged.sum() + records.extra_flagged.sum()
    return without_nan({
        "records": len(records), "beats": len(rows), "hours": hours,
        "qrs": {"sensitivity_gross": rows.found.mean(),
                "ppv_gross": hits.sum() / (hits.sum() + records.extra.sum()),
                "sensitivity_average": by_record.mean().mean(),
                "ppv_average": (hits / all_found).mean()},
        "unreadable_share": records.unreadable_share.mean(),
        "false_alarms_per_hour": false / hours if hours else None,
        "score": areas(scored, "score"), "excess": areas(scored, "excess"), "classes": classes,
        "groups": group_figures(rows),
        "kinds": {kind: kind_figures(rows, records, kind) for kind in FALSE_WHERE},
        "fibrillation": fibrillation_figures(records) if "found_s" in records else None})


# --- the script -----------------------------------------------------------------------------------

def load_detector(database):
    """(model, stored) of the database's checkpoint for unseen patients."""
    return load_checkpoint(database.checkpoint_path("patient", config.SEED),
                           database.stage_command("train_mitbih.py", "patient", config.SEED))


def run(tasks, threads):
    """What joblib's delayed tasks return, in their order, so many at a time."""
    return list(tqdm(Parallel(n_jobs=threads or runtime.cores(), return_as="generator")(tasks),
                     total=len(tasks), desc="recordings", disable=None))


def labels_parser(text):
    """The flags of a study of records with expert labels; text: its docstring."""
    parser = runtime.machine_parser(text)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="records with expert labels")
    parser.add_argument("--annotator", default="atr", help="suffix of the labels [%(default)s]")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="needed with FOLDER")
    return parser


def parse_labels(parser, argv):
    """The arguments of a labels_parser, checked."""
    args = runtime.parse(parser, argv)
    if args.folders and not args.out:
        parser.error("--out FILE.json: say where the figures of your own recordings go")
    return args


def labelled_records(args, database):
    """[Path] of the headers in args.folders, else of the test patients; UserError without any."""
    folders = args.folders or [database.records_dir() / name for name in database.test]
    paths = [path for path in reader.find_recordings(folders) if path.suffix == ".hea"]
    if not paths:
        raise UserError(f"{', '.join(args.folders)}: no WFDB record. "
                        f"Give a folder of .hea, .dat and .{args.annotator} files.")
    return paths


def parse_args(argv=None):
    parser = labels_parser(__doc__)
    parser.add_argument("--given-beats", action="store_true", help="R peaks of the labels")
    parser.add_argument("--score-all", action="store_true",
                        help="without the rule of what cannot be read (recording/quality.py)")
    parser.add_argument("--causal", action="store_true", help="from the past alone")
    parser.add_argument("--by-beat", action="store_true",
                        help="each beat is flagged for itself, not its group")
    return parse_labels(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    detector = load_detector(database)
    paths = labelled_records(args, database)

    asked = {"score_all": args.score_all, "causal": args.causal, "by_group": not args.by_beat}
    found = run([delayed(score_record)(path, *detector, args.annotator, args.given_beats, device,
                                       **asked) for path in paths], args.threads)
    result = figures_of(found)
    classes = [{"class": name, **row} for name, row in result["classes"].items()]
    print(readable(result, HEADINGS).T.to_string(header=False, na_rep="n/a"))
    given = [{"kind": name, **row} for name, row in result["kinds"].items()]
    print(readable(given, KIND_HEADINGS).to_string(index=False, na_rep="n/a"))
    print(readable(classes, CLASS_HEADINGS).to_string(index=False, na_rep="n/a"))

    name = "recordings-test"
    if args.given_beats:
        name += "-given"
    if args.score_all:
        name += "-all"
    if args.causal:
        name += "-causal"
    if args.by_beat:
        name += "-by-beat"

    path = args.out or database.out / "results" / f"{name}.json"
    write_json(path, {"annotator": args.annotator,
                      "r_peaks": "given" if args.given_beats else "detected",
                      "by_record": [record for _, record in found], **result})
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
