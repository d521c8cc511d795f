"""The trained detector on any recording of the user's own: no training, no annotations needed.

reads   RECORDING ...            files of the formats in docs/recordings.md, folders, patterns,
                                 addresses
        checkpoints/patient.pt   shipped; python train_mitbih.py --protocol patient
writes  beside each recording, or in --out:
        NAME.ecgad               WFDB annotations: N; S, V, F or Q where flagged; ~ unreadable;
                                 + rhythm
        NAME.ecgad.csv           a row a beat: time, sample, RR, score, excess, flag, kind,
                                 group, review group
        NAME.ecgad.png           the recording at a glance, or the signal of a short one, and
                                 the most abnormal beats
        NAME.ecgad.html          with --html: a page to review what is flagged
        NAME.ecgad.json          summary, groups, episodes; written last: it says that the
                                 others are there
        NAME.LEAD.ecgad*         the same of every lead, with --lead all
        summary.html, .csv       of several: a row a recording, what needs a look first at the top
        NAME.reviewed, .json     with --reviewed: what a reviewer saved from the page, read back

How the signal is prepared and scored is the checkpoint's to say, whatever config.py says today. The
excess of a beat is its score less the median of the recording's own regular beats; from a line on
it is flagged, with the beats that are like it. Research code, not a medical device.
"""

import functools
from pathlib import Path

from tqdm import tqdm

from pipeline import errors, settings
from pipeline.errors import UserError
from pipeline.runtime import cores, machine_parser, parse
from recording import cluster, output, places, reader, summary
from recording.ahead import ReadingAhead
from recording.output import EXTENSION
from recording.process import ALL, check_places, checkpoint_of, load, output_stem, process
from recording.summary import lines_of, narrow

__all__ = ["main", "parse_args", "score", "write_demo"]

DEMO_S = 1800


def __getattr__(name):
    """`detect.score`, for notebooks (docs/python.md): it loads the network's library."""
    if name == "score":
        from recording.api import score
        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# --- what is asked for ----------------------------------------------------------------------------

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
                        help="also a page to review what is flagged")
    parser.add_argument("--reviewed", metavar="FILE", action="append",
                        help="say what a reviewer changed: NAME.reviewed.csv or NAME.reviewed, "
                             "saved from the page, or a folder of them")

    # what is done, and where
    parser.add_argument("--checkpoint", help="default: checkpoints/patient.pt of --database")
    parser.add_argument("--demo", action="store_true",
                        help="a simulated recording, to see the output")
    parser.add_argument("--jobs", type=int, default=1, help="recordings at a time")
    parser.add_argument("--timeout", type=float, metavar="SECONDS",
                        help="a recording that takes longer has failed; default: no limit")
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
    if args.timeout is not None and not 0 < args.timeout <= 1e8:
        parser.error("--timeout is a number of seconds above 0")
    if args.sensitivity is not None and not 0 < args.sensitivity < 1:
        parser.error("--sensitivity is a number between 0 and 1")
    if args.alarms_per_hour is not None and not args.alarms_per_hour >= 0:
        parser.error("--alarms-per-hour is a number from 0")

    # whether nothing else runs in it, as in a notebook, a test or a worker of a cluster
    args.own_process = __name__ == "__main__" and not args.cluster
    # a job's share of the cores; a worker of a cluster runs a task a thread
    args.threads = args.threads or (1 if args.cluster else max(1, cores() // args.jobs))
    if args.cluster:
        # paths that are good wherever a worker was started
        args.checkpoint = str(checkpoint_of(args).absolute())
        if args.out and not places.is_url(args.out):
            args.out = str(Path(args.out).absolute())
    return args


# --- what is done ---------------------------------------------------------------------------------

def recordings_of(args):
    """([place], {skipped file: why}) that the arguments mean; UserError where there is none."""
    if args.demo:
        args.recordings = [write_demo()]

    skipped = {}
    found = places.find_places(args.recordings, args.list, bool(args.cluster), skipped)
    # what detect.py wrote itself is no recording
    found = [place for place in found if f".{EXTENSION}" not in places.name_of(place)
             and not summary.is_own(place)]
    if not found:
        raise UserError("nothing there but what detect.py wrote itself. Name the recordings.")
    return found, skipped


def tell(args, done, total, folder):
    """(rows of the summary, {error: [place]}) of [(place, summaries, error)], each told as it
    comes.
    """
    rows = []
    failed = {}   # {error: [place]}
    for place, summaries, error in tqdm(done, total=total, desc="recordings",
                                        disable=None if total > 1 else True):
        label = summary.label_of(output_stem(place, args.out), folder)
        if error:
            failed.setdefault(error, []).append(place)
            rows.append(summary.failed_row(label, error))
            tqdm.write(narrow(f"{place}: FAILED"))
            continue

        for one in summaries:
            tqdm.write(lines_of(place, one))
            file = output.file_beside(one["stem"], ".html" if one["page"] else ".png")
            rows.append(summary.row_of(label, one, summary.label_of(file, folder)))
        if not args.out:
            name = "NAME.LEAD" if args.lead == ALL else places.name_of(one["stem"])
            tqdm.write(narrow(f"  wrote {places.beside(one['stem'], name)}.{EXTENSION}.*"))
    return rows, failed


def with_recordings(error, recordings):
    """The error after the recordings (places) that it is of, unless it begins with its own; one
    that many share, a damaged checkpoint for example, is said once.
    """
    first = str(recordings[0])
    if error.startswith(first):
        return error
    others = f" and {len(recordings) - 1} others" if len(recordings) > 1 else ""
    return f"{first}{others}: {error}"


def sum_up(folder, rows):
    """(file to open, trouble): the summary of several recordings is written."""
    if folder is None:
        print("no summary: the recordings have no folder in common. Give --out FOLDER for one.")
        return None, None

    # tried again where a store stumbles, as a recording is
    _, page, why = cluster.attempt(functools.partial(summary.write, folder), rows)
    if why:
        return None, narrow(f"the summary cannot be written: {why}. The files of the recordings "
                            "are whole; give --out a folder that can be written.")
    return page, None


def main(argv=None):
    args = parse_args(argv)
    if args.reviewed:
        from recording import reviewed  # here: pandas takes half a second to load
        for place in args.reviewed:
            for path in reviewed.reviews_of(place):
                print(reviewed.in_words(*reviewed.read_back(path, args.out)))
        return

    with ReadingAhead() as second:
        detect(args, second)


def detect(args, second):
    """Recordings are found, scored and summed up; second: the process that may read them."""
    found, skipped = recordings_of(args)
    check_places(found, args.out)

    # one recording at a time, and a core to spare
    work = functools.partial(process, args)
    if args.jobs == 1 and not args.cluster and args.threads > 1:
        second.start(found[0])
        work = functools.partial(process, args, opened=second.open_recording)
    # a missing checkpoint is one error, not one a recording; with --jobs the processes load it
    if args.jobs == 1 or not checkpoint_of(args).is_file():
        load(args)

    # several are summed up in one place, unless the recordings have no folder in common
    several = len(found) > 1 or args.lead == ALL
    folder = summary.folder_of(found, args.out)
    if several and folder is not None:
        summary.check(folder)

    done = cluster.each(work, found, args.jobs, args.cluster, [checkpoint_of(args)])
    rows, failed = tell(args, done, len(found), folder)

    if skipped:
        print(reader.sentence(skipped))
    # one folder for all: said once, of those that have their files there
    n_failed = sum(map(len, failed.values()))
    if args.out and n_failed < len(found):
        print(narrow(f"wrote NAME.{EXTENSION}.* into {args.out}"))

    # what failed, and last what to open next
    troubles = [narrow(f"  {with_recordings(*one)}") for one in failed.items()]
    if failed:
        troubles.insert(0, f"{n_failed} of {len(found)} recordings failed:")
    to_open = []
    if several:
        page, trouble = sum_up(folder, rows)
        troubles += [trouble] if trouble else []
        to_open = [page] if page else []
    elif not failed:
        stem = output_stem(found[0], args.out)
        to_open = [output.file_beside(stem, end) for end in (".png", *[".html"] * args.html)]

    to_open = [narrow(f"open {place}") for place in to_open]
    if troubles:
        raise UserError("\n".join([*troubles, *to_open]))
    for line in to_open:
        print(line)


if __name__ == "__main__":
    errors.run(main)
