"""The trained detector on any recording of the user's own: no training, no annotations needed.

reads   RECORDING ...               WFDB, EDF, BDF, CSV, TSV or NumPy files, folders, glob patterns, addresses
        checkpoints/patient.pt      shipped; python train_mitbih.py --protocol patient
writes  beside each recording, or in --out:
        NAME.ecgad                  WFDB annotations: N, or Q where flagged, score in the aux field; ~ unreadable
        NAME.ecgad.csv              a row a beat: time, sample, RR, score, level, flag, lead
        NAME.ecgad.png              the recording at a glance, and its most abnormal beats
        NAME.ecgad.json             summary, written last: it says that the others are there
        NAME.ecgad.html             with --html: all of it as one page, to zoom and to look at each flagged beat

The level of a beat is its score against those of the recording's own regular beats, in units of
their spread; it is flagged at or above a level. Research code, not a medical device.
"""

import argparse
import functools
import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from recording import scan
from scoring import ec57
from recording import cluster
import config
from pipeline import errors, settings
from recording import output
from recording import quality
from recording import reader
from recording import places
from pipeline import simulated_ecg
from pipeline.errors import UserError
from pipeline.artefacts import write_json
from pipeline.runtime import FINISHED, device_of, read_checkpoint, use_threads

LEAD_TRIAL_S = 600   # the first minutes, on which the lead is chosen where no name decides
OUTPUT = 2           # raise it with every change that changes what is found: earlier output is then stale
LEAST_BEATS = 30     # scored beats below which there is no rhythm to compare with
DEMO_S = 1800


# --- one recording --------------------------------------------------------------------------------

def choose_lead(recording, wanted):
    """(index, why) of the lead to score: asked for; else named as in training; else the most readable.

    The most readable has the largest share of readable stretches in the first LEAD_TRIAL_S; of
    equals the first.
    """
    if wanted is not None:
        return reader.lead_index(recording, wanted), "asked for"
    names = [name.upper() for name in recording.leads]
    for name in (*config.LEADS, "II"):
        if name.upper() in names:
            return names.index(name.upper()), "named as in training"
    if len(names) == 1:
        return 0, "the only one"
    share = []
    for lead in range(len(names)):
        trial = [scan.read_piece(recording, lead, start, config.FS_HZ, config.BAND_HZ, config.FILTER_ORDER)
                 for start in np.arange(0, min(LEAD_TRIAL_S, recording.n_samples / recording.fs_hz), scan.PIECE_S)]
        verdict = np.concatenate([piece.unreadable for piece in trial])
        share.append(float((verdict == 0).mean()) if any(len(piece.peaks) for piece in trial) else -1.0)
    return int(np.argmax(share)), f"most readable of {len(names)}"


def level_to_flag(levels, duration_s, args, curve):
    """(level, where it is from): levels (n,) NaN where not scored, curve of the checkpoint's validation patients."""
    known = np.sort(levels[np.isfinite(levels)])[::-1]
    if args.level is not None:
        return args.level, "asked for"
    if args.alarms_per_hour is not None:
        allowed = int(args.alarms_per_hour * duration_s / 3600)
        level = np.nextafter(known[allowed], np.inf) if allowed < len(known) else -np.inf
        return float(level), f"at most {args.alarms_per_hour:g} flags an hour"
    if args.sensitivity is not None:
        return ec57.robust_z_at(curve, "sensitivity", args.sensitivity), (
            f"sensitivity {args.sensitivity:g} on validation patients")
    return ec57.robust_z_at(curve, "specificity", config.ROBUST_Z_SPECIFICITY), (
        f"specificity {config.ROBUST_Z_SPECIFICITY:g}, mean over validation patients")


def detect(path, args, model, stored, progress=lambda pieces: pieces):
    """(summary dict, Findings) of one recording's file."""
    with reader.open_recording(path, args.fs) as recording:
        given = reader.annotated_beats(path, args.beats, recording.fs_hz, "".join(config.AAMI.values()), "Leave "
                                           "--beats out to have them detected.")[0] if args.beats else None
        return examine(recording, given, args, model, stored, progress)


def examine(recording, given_s, args, model, stored, progress=lambda pieces: pieces):
    """The same of an open Recording; given_s (k,): its R peaks in s where they are known, else None."""
    fitted, name = stored["fitted"], "combined_causal" if args.causal else "combined"
    lead, why = choose_lead(recording, args.lead)
    found = scan.scan(recording, lead, model, fitted, config.FS_HZ, config.BAND_HZ, config.FILTER_ORDER,
                          device_of(args.device), given_s, progress, args.score_all)
    scores, levels, _ = scan.score(found, fitted, name, config.FS_HZ)
    threshold, rule = level_to_flag(levels, found.duration_s, args, stored["levels"])
    findings = output.ScoredBeats(recording.name, recording.leads[lead], recording.fs_hz, recording.start,
                                      found, scores, levels, levels >= threshold, threshold)
    findings.examples = output.most_abnormal(findings, recording, lead, model, fitted)
    return summary_of(findings, recording, why, rule, given_s is not None, stored), findings


def summary_of(findings, recording, why, rule, given, stored):
    """What NAME.ecgad.json holds, besides its origin."""
    found, n_scored = findings.beats, int(findings.beats.scored.sum())
    hours = found.duration_s / 3600
    reasons = {name: float((found.unreadable == k).mean()) for k, name in enumerate(quality.REASONS) if k}
    return {"recording": recording.name, "duration_s": found.duration_s, "fs_hz": recording.fs_hz,
            "leads": list(recording.leads), "lead": findings.lead, "lead_chosen": why,
            "calibrated": bool(recording.calibrated[recording.leads.index(findings.lead)]),
            "beats": len(found.time_s), "scored": n_scored, "flagged": int(findings.flagged.sum()),
            "flagged_share": float(findings.flagged.sum() / n_scored) if n_scored else None,
            "flagged_per_hour": float(findings.flagged.sum() / hours) if hours else None,
            "unreadable_share": float((found.unreadable > 0).mean()), "unreadable": reasons,
            "level": findings.threshold, "level_rule": rule, "r_peaks": "given" if given else "detected (sleepecg)",
            "too_few_beats": n_scored < LEAST_BEATS, "simulated_training": stored["simulated"],
            "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}


# --- many recordings ------------------------------------------------------------------------------

def output_stem(place, out):
    """Where a recording's files go, without their suffix: Path or address."""
    name = places.name_of(place)
    name = name[:-len(Path(name).suffix)] if Path(name).suffix else name
    return places.below(places.place_of(out), name) if out else places.beside(place, name)


def origin_of(files, args, stored):
    """What makes a recording's output stale when it changes: its files, the checkpoint, the flags."""
    asked = [args.fs, args.lead, args.beats, args.level, args.alarms_per_hour, args.sensitivity, args.causal,
             args.score_all]
    what = repr((OUTPUT, sorted(files.items()), asked, stored["weights"], stored["score_settings"],
                 config.ROBUST_Z_SPECIFICITY))
    return hashlib.sha256(what.encode()).hexdigest()


def write_page(stem, path, args):
    """NAME.ecgad.html from the recording's other files and its signal."""
    from recording import page  # here: bokeh takes a second to load, and only pages need it
    with reader.open_recording(path, args.fs) as recording:
        page.write_page(stem, recording, choose_lead(recording, args.lead)[0])


def process(args, place):
    """Summary of one recording, whose files it writes; place: Path or address."""
    use_threads(args.threads)
    model, stored = load(args)
    stem, files = output_stem(place, args.out), places.files_of(place, args.beats)
    origin = origin_of(files, args, stored)
    earlier = None if args.force else output.stored_summary(stem, origin)
    lacks_page = args.html and not places.is_file(places.beside(stem, f"{places.name_of(stem)}.ecgad.html"))
    if earlier and lacks_page and isinstance(stem, Path):  # at an address all is made anew
        with places.fetched(place, files) as path:
            write_page(stem, path, args)
        lacks_page = False
    if earlier and not lacks_page:
        return earlier | {"earlier": True}
    alone = args.jobs == 1 and not args.cluster
    bar = (lambda pieces: tqdm(pieces, desc=places.name_of(place), leave=False, disable=None)) if alone else iter
    with places.fetched(place, files) as path, places.written(stem, last=".json") as here:
        summary, findings = detect(path, args, model.to(device_of(args.device)), stored, bar)
        Path(f"{here}.{output.EXTENSION}.html").unlink(missing_ok=True)  # of other flags: a page fits its files
        output.write_all(here, findings)
        write_json(Path(f"{here}.{output.EXTENSION}.json"), summary | {"origin": origin})
        if args.html:
            write_page(here, path, args)
    return summary


def checkpoint_of(args):
    """Its path on the machine of the user."""
    database = settings.database("simulated") if args.simulated else settings.database("mitdb")
    return Path(args.checkpoint) if args.checkpoint else database.checkpoint_path("patient", config.SEED)


def load(args):
    """(model, stored) of the checkpoint."""
    return read_checkpoint(cluster.local(checkpoint_of(args)), "python train_mitbih.py --protocol patient", FINISHED)


def check_places(places, out):
    """UserError where two recordings would write the same files, or nothing can be written."""
    if any(places.is_url(place) and place.startswith("http") for place in places if not out) or (
            out and out.startswith("http")):
        raise UserError("nothing can be written to http(s) addresses: give --out FOLDER or s3://BUCKET/FOLDER.")
    stems = {}
    for path in places:
        other = stems.setdefault(output_stem(path, out), path)
        if other != path:
            raise UserError(f"{path} and {other} would both write {output_stem(path, out)}.ecgad.*: "
                            "give them different names, or run them with different --out folders.")


def line(path, summary):
    """One line of the terminal's list."""
    if summary["scored"] == 0:
        return f"{path}: no readable beat in {summary['duration_s'] / 60:.1f} min of {summary['lead']}"
    note = ", FEW BEATS: no rhythm to compare with" * summary["too_few_beats"]
    return (f"{path}: {summary['lead']}, {summary['duration_s'] / 3600:.2f} h, {summary['scored']:,d} beats, "
            f"{summary['flagged']:,d} flagged ({100 * summary['flagged_share']:.1f} %, "
            f"{summary['flagged_per_hour']:.0f} an hour), {100 * summary['unreadable_share']:.1f} % unreadable"
            f"{note}{' (done before)' * summary.get('earlier', False)}")


def demo(args):
    """A simulated recording in simulated/demo, as if the user had brought it."""
    folder = settings.database("simulated").root / "demo"
    parameters = {"duration_s": DEMO_S, "seed": simulated_ecg.SEED, "snr_db": simulated_ecg.SNR_DB}
    if not simulated_ecg.is_complete(folder, ("s01",), **parameters):
        simulated_ecg.write_database(folder, ("s01",), **parameters)
    print(f"*** SIMULATED recording {folder / 's01'}: no patient ***")
    args.recordings = [str(folder / "s01.hea")]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recordings", nargs="*", metavar="RECORDING", help="file, folder, pattern, s3:// or http(s)://")
    parser.add_argument("--list", metavar="FILE", action="append", help="a text file with such a RECORDING a line")
    parser.add_argument("--out", help="folder or s3:// address for the output; default: beside each recording")
    parser.add_argument("--fs", type=float, help="sampling rate in Hz of CSV, TSV and NumPy files")
    parser.add_argument("--lead", help="name or number (from 1); default: MLII, V5 or II, else the most readable")
    parser.add_argument("--beats", metavar="ANNOTATOR", help="R peaks from this annotation file, atr for example")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--level", type=float, help="flag from this level on")
    which.add_argument("--alarms-per-hour", type=float, help="flag the highest levels, at most so many an hour")
    which.add_argument("--sensitivity", type=float, help="level with this sensitivity on validation patients")
    parser.add_argument("--score-all", action="store_true", help="nothing is unreadable: noise is scored too")
    parser.add_argument("--causal", action="store_true", help="from the past alone, one beat behind")
    parser.add_argument("--html", action="store_true", help="also one page to zoom and look at each flagged beat")
    parser.add_argument("--checkpoint", help="default: checkpoints/patient.pt")
    parser.add_argument("--simulated", action="store_true", help="the checkpoint of the simulated database")
    parser.add_argument("--demo", action="store_true", help="a simulated recording, to see the output")
    parser.add_argument("--jobs", type=int, default=1, help="recordings at a time")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a dask scheduler, whose workers do it: cluster.py")
    parser.add_argument("--force", action="store_true", help="also what is done already")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=config.THREADS,
                        help="a job; 0: the cores shared out, with --cluster one")
    args = parser.parse_args(argv)
    if bool(args.recordings or args.list) == args.demo:
        parser.error("give recordings, or --demo")
    if args.cluster and args.jobs != 1:
        parser.error("--jobs or --cluster: the workers of a cluster take as many at a time as they have threads")
    if args.jobs < 1 or args.threads < 0:
        parser.error("--jobs is a whole number from 1, --threads from 0")
    if args.sensitivity is not None and not 0 < args.sensitivity < 1:
        parser.error("--sensitivity is a number between 0 and 1")
    if args.alarms_per_hour is not None and not args.alarms_per_hour >= 0:
        parser.error("--alarms-per-hour is a number from 0")
    args.threads = args.threads or (1 if args.cluster else max(1, os.cpu_count() // args.jobs))
    if args.cluster:
        args.out = str(Path(args.out).absolute()) if args.out and not places.is_url(args.out) else args.out
        args.checkpoint = str(checkpoint_of(args).absolute())
    return args


def main(argv=None):
    settings.check()
    args = parse_args(argv)
    if args.demo:
        demo(args)
    load(args)  # a missing checkpoint is one error, not one a recording
    places = [place for place in places.find_places(args.recordings, args.list, bool(args.cluster))
              if ".ecgad" not in places.name_of(place)]
    check_places(places, args.out)
    done = cluster.each(functools.partial(process, args), places, args.jobs, args.cluster, [checkpoint_of(args)])
    failed = []
    for place, summary, error in tqdm(done, total=len(places), desc="recordings",
                                      disable=None if len(places) > 1 else True):
        failed += [error if error.startswith(str(place)) else f"{place}: {error}"] if error else []
        tqdm.write(line(place, summary) if summary else f"{place}: FAILED")
        if summary and not args.out:
            tqdm.write(f"  wrote {output_stem(place, args.out)}.ecgad.*")
    if failed:
        raise UserError(f"{len(failed)} of {len(places)} recordings failed:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    errors.run(main)
