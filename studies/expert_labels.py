"""detect.py's own output on recordings with expert labels, EC57-style: `python evaluate.py --recordings DIR`.

A detected beat within 150 ms of an expert's is that beat (wfdb's compare_annotations); the first
five minutes are not counted. Missed and extra beats are counted, not dropped: an abnormal beat that
was missed, unreadable or cut off at an end is not flagged, an extra beat that is flagged is a false alarm.
"""

import warnings
from argparse import Namespace

import numpy as np
from joblib import Parallel, delayed
from tqdm import tqdm
from wfdb.processing import compare_annotations

import config
import detect
from scoring import metrics
from recording import quality
from recording import reader
from scoring.ec57 import UNCOUNTED_S
from pipeline.errors import UserError
from dataset import AAMI_OF
from pipeline.runtime import device_of, use_threads

WINDOW_S = 0.15    # EC57
CLASSES = tuple(config.AAMI)


def expert_beats(path, annotator, fs_hz):
    """(time_s (k,), symbol (k,)) of the expert's beats beside a WFDB record."""
    return reader.annotated_beats(path, annotator, fs_hz, AAMI_OF, "Leave the record out, or name another "
                                      "--annotator.")


def matched(expert_s, found_s, fs_hz=1000):
    """(m,) index of the found beat of each expert beat, -1 where it was missed; one found beat has one expert beat."""
    result = np.full(len(expert_s), -1)
    if len(expert_s) and len(found_s):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pairs = compare_annotations(np.round(expert_s * fs_hz).astype(int), np.round(found_s * fs_hz).astype(int),
                                        int(WINDOW_S * fs_hz))
        result[:] = [-1 if k is None or k < 0 else k for k in pairs.matching_sample_nums]
    return result


def one_record(path, args, annotator):
    """Rows of one record: a dict of arrays of its counted expert beats, and counts of what was found beside them."""
    use_threads(args.threads)
    model, stored = detect.load(args)
    summary, findings = detect.detect(path, args, model.to(device_of(args.device)), stored)
    return compared(path.stem, summary["lead"], findings, *expert_beats(path, annotator, summary["fs_hz"]))


def compared(name, lead, findings, time_s, symbol, counts=lambda t: t >= UNCOUNTED_S):
    """(rows, record) of Findings against expert beats; `counts` says which times (in s) are counted."""
    found = findings.beats
    pair = matched(time_s, found.time_s)
    counted = counts(time_s)
    hit = pair >= 0

    def take(values, missing):
        values = np.append(values, missing)  # the last stands for a missed beat: index -1
        return values[pair]

    extra = np.setdiff1d(np.arange(len(found.time_s)), pair[hit])
    extra = extra[counts(found.time_s[extra])]
    rows = {"record": np.full(int(counted.sum()), name), "aami": np.array([AAMI_OF[s] for s in symbol])[counted],
            "found": hit[counted], "scored": take(found.scored, False)[counted].astype(bool),
            "score": take(findings.scores, np.nan)[counted], "level": take(findings.levels, np.nan)[counted],
            "flagged": take(findings.flagged, False)[counted].astype(bool)}
    windows = counts((np.arange(len(found.unreadable)) + 0.5) * quality.WINDOW_S)
    return rows, {"record": name, "lead": lead, "extra": len(extra),
                  "extra_flagged": int(findings.flagged[extra].sum()),
                  "hours": float(windows.sum() * quality.WINDOW_S / 3600),
                  "unreadable_share": float((found.unreadable[windows] > 0).mean()) if windows.any() else 0.0}


def share(values):
    return float(np.mean(values)) if len(values) else None


def figures(rows, records):
    """Everything the table shows, of the rows of all records together."""
    y, record = (rows["aami"] != config.NORMAL_CLASS).astype(int), rows["record"]
    names, extra = [r["record"] for r in records], np.array([r["extra"] for r in records])
    hits = np.array([rows["found"][record == n].sum() for n in names])
    beats = np.array([(record == n).sum() for n in names])
    ok = rows["scored"]
    result = {"records": len(names), "beats": len(y), "hours": float(sum(r["hours"] for r in records)),
              "qrs": {"sensitivity_gross": float(hits.sum() / max(beats.sum(), 1)),
                      "ppv_gross": float(hits.sum() / max((hits + extra).sum(), 1)),
                      "sensitivity_average": share(hits[beats > 0] / beats[beats > 0]),
                      "ppv_average": share((hits / np.maximum(hits + extra, 1))[beats > 0])},
              "unreadable_share": share([r["unreadable_share"] for r in records]), "classes": {}}
    for key in ("score", "level"):
        both = ok.any() and 0 < y[ok].sum() < ok.sum()
        own = metrics.auroc_by_record(rows[key][ok], y[ok], record[ok]).values() if both else []
        own = [v for v in own if v is not None]
        result[key] = {"auroc": float(metrics.auroc(*metrics.Ranking(rows[key][ok], y[ok]).counts())) if both else None,
                       "auroc_record_mean": share(own), "records": len(own)}
    for name in CLASSES:
        here = rows["aami"] == name
        own = [rows["flagged"][here & (record == n)].mean() for n in names if (here & (record == n)).any()]
        result["classes"][name] = {"n": int(here.sum()), "missed": int((here & ~rows["found"]).sum()),
                                   "not_scored": int((here & rows["found"] & ~ok).sum()),
                                   "gross": share(rows["flagged"][here]), "average": share(own), "records": len(own)}
    false = int((rows["flagged"] & (y == 0)).sum()) + sum(r["extra_flagged"] for r in records)
    result["false_alarms_per_hour"] = false / result["hours"] if result["hours"] else None
    return result


def table(result):
    """Lines of text."""
    percent = lambda v: "n/a" if v is None else f"{100 * v:.2f}"
    qrs = result["qrs"]
    lines = [f"{result['records']} records, {result['hours']:.1f} h, {result['beats']:,d} expert beats counted",
             f"QRS detection: sensitivity {percent(qrs['sensitivity_gross'])} % gross, "
             f"{percent(qrs['sensitivity_average'])} % average; "
             f"PPV {percent(qrs['ppv_gross'])} %, {percent(qrs['ppv_average'])} %",
             *(f"ROC-AUC of the {key}, scored beats: {percent(result[key]['auroc'])} % pooled, "
               f"{percent(result[key]['auroc_record_mean'])} % mean over {result[key]['records']} records"
               for key in ("score", "level")),
             f"unreadable: {percent(result['unreadable_share'])} % of the time; "
             f"false alarms: {result['false_alarms_per_hour']:.1f} an hour",
             "class      n  missed  not scored  flagged % gross  average"]
    lines += [f"{name:5s} {c['n']:7,d} {c['missed']:7,d} {c['not_scored']:11,d} {percent(c['gross']):>16s} "
              f"{percent(c['average']):>8s}" for name, c in result["classes"].items() if c["n"]]
    return "\n".join(lines)


def evaluate_recordings(paths, annotator, args, jobs):
    """(figures, records, rows) over all recordings; UserError of the first that fails."""
    work = Parallel(n_jobs=jobs, return_as="generator")(delayed(one_record)(path, args, annotator) for path in paths)
    found = list(tqdm(work, total=len(paths), desc="recordings", disable=None))
    rows = {name: np.concatenate([r[name] for r, _ in found]) for name in found[0][0]}
    records = [record for _, record in found]
    return figures(rows, records), records, rows


def run(folder, annotator, given, device, threads, jobs=None, **flags):
    """What `python evaluate.py --recordings` does; returns metrics.json's content."""
    jobs = jobs or threads
    args = Namespace(**{"fs": None, "lead": None, "beats": annotator if given else None, "level": None, "causal": False,
                        "score_all": False,
                        "alarms_per_hour": None, "sensitivity": None, "checkpoint": None, "simulated": False,
                        "device": str(device), "threads": max(1, threads // jobs)} | flags)
    paths = [path for path in reader.find_recordings([str(f) for f in folder]) if path.suffix == ".hea"]
    if not paths:
        raise UserError(f"{folder}: no WFDB record with expert labels. "
                        f"Give a folder of .hea, .dat and .{annotator} files.")
    result, records, _ = evaluate_recordings(paths, annotator, args, jobs)
    return {"annotator": annotator, "r_peaks": "given" if given else "detected", "by_record": records, **result}
