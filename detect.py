"""The trained detector on any recording of the user's own: no training, no annotations needed.

reads   RECORDING ...            WFDB, EDF, BDF, CSV, TSV, NumPy files, folders, patterns, addresses
        checkpoints/patient.pt   shipped; python train_mitbih.py --protocol patient
writes  beside each recording, or in --out:
        NAME.ecgad               WFDB annotations: N; S, V, F or Q where flagged; ~ unreadable;
                                 + rhythm
        NAME.ecgad.csv           a row a beat: time, sample, RR, score, excess, flag, kind,
                                 group
        NAME.ecgad.png           the recording at a glance, and its most abnormal beats
        NAME.ecgad.html          with --html: a page to zoom and look at each flagged beat
        NAME.ecgad.json          summary, groups, episodes; written last: it says that the
                                 others are there
        NAME.LEAD.ecgad*         the same of every lead, with --lead all
        summary.html, .csv       of several: a row a recording, what needs a look first at the top

How the signal is prepared and scored is the checkpoint's to say, whatever config.py says today. The
excess of a beat is its score less the median of the recording's own regular beats; from a line on
it is flagged, with the beats that are like it. Research code, not a medical device.
"""

import argparse
import functools
import hashlib
from pathlib import Path

from tqdm import tqdm

import config
from pipeline import errors, settings
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from pipeline.runtime import cores, device_of, machine_parser, parse, use_threads
from recording import cluster, leads, output, places, reader, reviewed, summary
from recording.api import load_detector, score    # score: for notebooks, docs/python.md
from recording.output import EXTENSION
from recording.scored import score_recording
from recording.summary import lines_of, narrow

OUTPUT = 11          # raise it with every change of what is found: earlier output is then stale
DEMO_S = 1800
ALL = "all"          # of --lead: one after the other
LEADS = ".leads.json"   # which leads these are; written after all of their files
# flags that decide what is found, arguments of score_recording
ASKED = ("lead", "causal", "score_all", "excess", "alarms_per_hour", "sensitivity")


# --- many recordings ------------------------------------------------------------------------------

def checkpoint_of(args):
    """Its path on the machine of the user."""
    return Path(args.checkpoint or settings.database(args.database, args.run).checkpoint_path(
        "patient", config.SEED))


def load(args):
    """(model, stored) of the checkpoint."""
    described = settings.database(args.database, args.run)

    command = described.stage_command("train_mitbih.py", "patient", config.SEED)
    # on a worker of a cluster it is the copy that was sent there
    return load_detector(cluster.local(checkpoint_of(args)), command, checkpoint_of(args))


def origin_of(files, args, stored):
    """What makes a recording's output stale: its files, the checkpoint, the flags."""
    # a line of one's own (config) and what the checkpoint says count as flags do
    asked = [getattr(args, name) for name in ("fs", "beats", *ASKED)]
    return hashlib.sha256(repr((
        OUTPUT, sorted(files.items()), asked, stored["weights"], stored["segment_settings"],
        stored["score_settings"], config.EXCESS_SPECIFICITY)).encode()).hexdigest()


def output_stem(place, out):
    """Where a recording's files go, without their suffix: Path or address."""
    name = Path(places.name_of(place)).stem
    return places.below(places.place_of(out), name) if out else places.beside(place, name)


def earlier(args, stem, origin):
    """The summary of an earlier run with the same files, flags and checkpoint, or None."""
    if args.force:
        return None
    found = output.stored_summary(stem, origin, args.html)
    if found:
        page = output.file_beside(stem, ".html")
        found |= {"earlier": True, "stem": stem, "page": args.html or places.is_file(page)}
    return found


def earlier_leads(args, stem, files, stored):
    """[summary] of every lead, where an earlier run has done them all, else None."""
    index = output.stored_dict(output.file_beside(stem, LEADS), origin_of(files, args, stored))
    if args.force or not index:
        return None

    summaries = []
    for name, wanted in index["leads"].items():
        one = for_lead(args, wanted)
        found = earlier(one, stem_of_lead(stem, name), origin_of(files, one, stored))
        if not found:
            return None
        summaries.append(found)
    return summaries


def stem_of_lead(stem, name):
    """Where the files of one lead of several go, without their suffix."""
    return places.beside(stem, f"{places.name_of(stem)}.{name}")


def for_lead(args, wanted):
    """The flags that ask for this lead alone."""
    return argparse.Namespace(**vars(args) | {"lead": wanted})


def process(args, place):
    """[summary] of one recording, whose files it writes, a summary a lead; place: Path or address.

    Of what is not in the file a summary has "stem", where its files are; "page", whether a page is
    among them; and "earlier" where an earlier run has done it.
    """
    use_threads(args.threads)
    model, stored = load(args)
    stem = output_stem(place, args.out)
    files = places.files_of(place, args.beats)
    origin = origin_of(files, args, stored)
    every = args.lead == ALL

    # done before with the same files, flags and checkpoint
    if every:
        done = earlier_leads(args, stem, files, stored)
    else:
        done = [found] if (found := earlier(args, stem, origin)) else None
    if done:
        return done

    with places.fetched(place, files) as path, reader.open_recording(path, args.fs) as recording:
        if not every:
            return [write_lead(args, recording, stem, model, stored, origin)]

        # a run that was stopped goes on with the next lead
        wanted = dict(zip(leads.file_names(recording.leads), leads.requests(recording)))
        summaries = []
        for name, text in wanted.items():
            one = for_lead(args, text)
            lead_stem = stem_of_lead(stem, name)
            lead_origin = origin_of(files, one, stored)
            found = earlier(one, lead_stem, lead_origin)
            summaries.append(found or write_lead(one, recording, lead_stem, model, stored,
                                                 lead_origin))

    with places.written(stem, last=LEADS) as here:
        write_json(Path(f"{here}.{EXTENSION}{LEADS}"), {"leads": wanted, "origin": origin})
    return summaries


def write_lead(args, recording, stem, model, stored, origin):
    """Summary of one lead of an open recording; its files are written."""
    # a bar for the pieces of one recording, where it is the only one at a time
    progress = iter
    if args.jobs == 1 and not args.cluster:
        progress = functools.partial(tqdm, desc=recording.path.name, leave=False, disable=None)

    given_s = None
    if args.beats:
        given_s, _ = reader.annotated_beats(recording.path, args.beats, recording.fs_hz,
                                            settings.AAMI_OF,
                                            "Leave --beats out to have them detected.")

    found, scored = score_recording(recording, model, stored, given_s=given_s,
                                    device=device_of(args.device), progress=progress,
                                    **{name: getattr(args, name) for name in ASKED})

    with places.written(stem, last=".json") as here:
        summary_path = Path(f"{here}.{EXTENSION}.json")
        page_path = Path(f"{here}.{EXTENSION}.html")
        # of other flags: neither outlives what it was made from
        for old in (summary_path, page_path):
            old.unlink(missing_ok=True)

        output.write_all(here, scored)
        if args.html:
            from recording import page  # here: bokeh takes a second to load, and only pages need it
            page.write_page(page_path, scored, found, recording)
        write_json(summary_path, found | {"origin": origin})
    return found | {"stem": stem, "page": args.html}


def check_places(found, out):
    """UserError where two recordings would write the same files, or nothing can be written."""
    # without --out each recording's own folder is written to
    for target in [out] if out else found:
        if str(target).startswith("http"):
            raise UserError("nothing can be written to http(s) addresses: give --out FOLDER or "
                            "s3://BUCKET/FOLDER.")

    # the same name from two folders
    stems = {}
    for place in found:
        other = stems.setdefault(output_stem(place, out), place)
        if other != place:
            raise UserError(f"{place} and {other} would both write "
                            f"{output_stem(place, out)}.{EXTENSION}.*: give them different names, "
                            "or run them with different --out folders.")


def write_demo():
    """Path of a simulated recording in simulated/demo, as if the user had brought it."""
    from pipeline import simulated_ecg
    folder = settings.database("simulated").home / "demo"
    if not (folder / "SHA256SUMS.txt").exists():
        simulated_ecg.write_database(folder, ("s01",), DEMO_S)
    print(f"*** SIMULATED recording {folder / 's01'}: no patient ***")
    return folder / "s01.hea"


def parse_args(argv=None):
    parser = machine_parser(__doc__)
    parser.add_argument("recordings", nargs="*", metavar="RECORDING",
                        help="file, folder, pattern, s3:// or http(s)://")
    parser.add_argument("--list", metavar="FILE", action="append",
                        help="a text file with such a RECORDING a line")
    parser.add_argument("--out", help="folder or s3:// address; default: beside each recording")
    parser.add_argument("--fs", type=float, help="sampling rate in Hz of CSV, TSV and NumPy files")
    parser.add_argument(
        "--lead", help="name or number (from 1), or all, one after the other; default: as in "
                       "training, else the most readable")
    parser.add_argument("--beats", metavar="ANNOTATOR",
                        help="R peaks from this annotation file, atr for example")

    # the line to flag, one of three
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--excess", type=float, help="flag from this excess on")
    which.add_argument("--alarms-per-hour", type=float,
                       help="flag the highest scores, at most so many an hour")
    which.add_argument("--sensitivity", type=float,
                       help="flag from where validation patients have this sensitivity")

    # what is scored, and how
    parser.add_argument("--score-all", action="store_true",
                        help="nothing is unreadable: noise is scored too")
    parser.add_argument("--causal", action="store_true",
                        help="from the past alone, one beat behind")
    parser.add_argument("--html", action="store_true",
                        help="also one page to zoom and look at each flagged beat")

    parser.add_argument("--reviewed", metavar="FILE", action="append",
                        help="say what a reviewer changed: NAME.reviewed.csv or NAME.reviewed, "
                             "saved from the page")

    # what is done, and where
    parser.add_argument("--checkpoint", help="default: checkpoints/patient.pt of --database")
    parser.add_argument("--demo", action="store_true",
                        help="a simulated recording, to see the output")
    parser.add_argument("--jobs", type=int, default=1, help="recordings at a time")
    parser.add_argument("--cluster", metavar="ADDRESS",
                        help="of a dask scheduler, whose workers do it")
    parser.add_argument("--force", action="store_true", help="also what is done already")

    args = parse(parser, argv)
    asked = [args.recordings or args.list, args.demo, args.reviewed]
    if sum(map(bool, asked)) != 1:
        parser.error("give recordings, --demo, or --reviewed FILE")
    if args.cluster and args.jobs != 1:
        parser.error("--jobs or --cluster: the workers of a cluster take as many at a time as they "
                     "have threads")
    if args.jobs < 1:
        parser.error("--jobs is a whole number from 1")
    if args.sensitivity is not None and not 0 < args.sensitivity < 1:
        parser.error("--sensitivity is a number between 0 and 1")
    if args.alarms_per_hour is not None and not args.alarms_per_hour >= 0:
        parser.error("--alarms-per-hour is a number from 0")

    # a job's share of the cores; a worker of a cluster runs a task a thread
    args.threads = args.threads or (1 if args.cluster else max(1, cores() // args.jobs))
    if args.cluster:
        # paths that are good wherever a worker was started
        args.checkpoint = str(checkpoint_of(args).absolute())
        if args.out and not places.is_url(args.out):
            args.out = str(Path(args.out).absolute())
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.reviewed:
        for path in args.reviewed:
            print(reviewed.in_words(*reviewed.read_back(path, args.out)))
        return

    load(args)  # a missing checkpoint is one error, not one a recording
    if args.demo:
        args.recordings = [write_demo()]

    # what detect.py wrote itself is no recording
    skipped = {}
    found = places.find_places(args.recordings, args.list, bool(args.cluster), skipped)
    found = [place for place in found if f".{EXTENSION}" not in places.name_of(place)
             and not summary.is_own(place)]
    if not found:
        raise UserError("nothing there but what detect.py wrote itself. Name the recordings.")
    check_places(found, args.out)

    # several rows are summed up in one place, unless the recordings have no folder in common
    folder = summary.folder_of(found, args.out)
    several = len(found) > 1 or args.lead == ALL
    if several and folder is not None:
        summary.check(folder)

    done = cluster.each(functools.partial(process, args), found, args.jobs, args.cluster,
                        [checkpoint_of(args)])

    rows = []
    failed = []
    for place, summaries, error in tqdm(done, total=len(found), desc="recordings",
                                        disable=None if len(found) > 1 else True):
        label = summary.label_of(output_stem(place, args.out), folder)
        if error:
            failed.append(error if error.startswith(str(place)) else f"{place}: {error}")
            rows.append(summary.failed_row(label, error))
            tqdm.write(narrow(f"{place}: FAILED"))
            continue
        for one in summaries:
            tqdm.write(lines_of(place, one))
            last = one["stem"]
            file = output.file_beside(last, ".html" if one["page"] else ".png")
            rows.append(summary.row_of(label, one, summary.label_of(file, folder)))
        if not args.out:
            name = "NAME.LEAD" if args.lead == ALL else places.name_of(last)
            tqdm.write(narrow(f"  wrote {places.beside(last, name)}.{EXTENSION}.*"))

    if skipped:
        print(reader.sentence(skipped))
    # one folder for all: said once, of those that have their files there
    if args.out and len(failed) < len(found):
        print(narrow(f"wrote NAME.{EXTENSION}.* into {args.out}"))

    troubles = []
    if failed:
        lines = [narrow(f"  {line}") for line in failed]
        troubles.append("\n".join([f"{len(failed)} of {len(found)} recordings failed:", *lines]))

    # last what to open next
    to_open = []
    if several and folder is None:
        print("no summary: the recordings have no folder in common. Give --out FOLDER for one.")
    elif several:
        # tried again where a store stumbles, as a recording is
        _, page, why = cluster.attempt(functools.partial(summary.write, folder), rows)
        if why:
            troubles.append(narrow(f"the summary cannot be written: {why}. The files of the "
                                   "recordings are whole; give --out a folder that can be "
                                   "written."))
        else:
            to_open = [page]
    elif not failed:
        to_open = [output.file_beside(last, end) for end in (".png", *[".html"] * args.html)]

    to_open = [narrow(f"open {place}") for place in to_open]
    if troubles:
        raise UserError("\n".join([*troubles, *to_open]))
    for line in to_open:
        print(line)


if __name__ == "__main__":
    errors.run(main)
