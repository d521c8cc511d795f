"""One recording, from its files to those of its lead or leads: what detect.py does of each, here
or on a worker of a cluster. What is done already, with the same files, flags and checkpoint, is not
done again.
"""

import argparse
import functools
import hashlib
from pathlib import Path

from tqdm import tqdm

import config
from pipeline import settings
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from pipeline.runtime import (best_device, device_of, importing, leave_out_tracing,
                              use_threads)
from recording import cluster, leads, output, pieces, places, reader
from recording.output import EXTENSION

OUTPUT = 14          # raise it with every change of what is found: earlier output is then stale
ALL = "all"          # of --lead: one after the other
LEADS = ".leads.json"   # which leads these are; written after all of their files
# flags that decide what is found, arguments of score_recording
ASKED = ("lead", "causal", "score_all", "excess", "alarms_per_hour", "sensitivity")


_loaded = {}     # {(path, name, size, time) of a checkpoint: load_detector of it}


# --- what it depends on ---------------------------------------------------------------------------

def checkpoint_of(args):
    """Its path on the machine of the user."""
    return Path(args.checkpoint or settings.database(args.database, args.run).checkpoint_path(
        "patient", config.SEED))


def load(args):
    """(model, stored) of the checkpoint; not loaded again while its file is the same."""
    if args.own_process:
        leave_out_tracing()
    with importing():
        from recording.api import load_detector
    described = settings.database(args.database, args.run)

    command = described.stage_command("train_mitbih.py", "patient", config.SEED)
    # on a worker of a cluster it is the copy that was sent there
    path = cluster.local(checkpoint_of(args))
    state = path.stat() if path.exists() else None
    key = path, checkpoint_of(args), state and (state.st_size, state.st_mtime_ns)
    if key not in _loaded:
        found = load_detector(path, command, checkpoint_of(args))
        _loaded.clear()
        _loaded[key] = found
    return _loaded[key]


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


# --- what is done already -------------------------------------------------------------------------

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


# --- one recording --------------------------------------------------------------------------------

def process(args, place, opened=reader.open_recording):
    """[summary] of one recording, whose files it writes, a summary a lead; place: Path or address;
    opened: opens it, here or in another process.

    Of what is not in the file a summary has "stem", where its files are; "page", whether a page is
    among them; and "earlier" where an earlier run has done it. Raises UserError after --timeout.
    """
    with cluster.within(args.timeout, place):
        return process_leads(args, place, opened)


def process_leads(args, place, opened):
    """`process` without a limit of time."""
    with importing():
        # what another process would do is done here
        if opened is reader.open_recording:
            pieces.load_libraries()
            output.load_picture()
    model, stored = load(args)
    use_threads(args.threads)
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

    with places.fetched(place, files) as path, opened(path, args.fs) as recording:
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
    from recording.scored import score_recording

    # a bar for the pieces of one recording, where it is the only one at a time
    progress = iter
    if args.jobs == 1 and not args.cluster:
        progress = functools.partial(tqdm, desc=recording.path.name, leave=False, disable=None)

    given_s = None
    if args.beats:
        given_s, _ = reader.annotated_beats(recording.path, args.beats, recording.fs_hz,
                                            settings.AAMI_OF,
                                            "Leave --beats out to have them detected.")

    device = device_of(args.device or best_device())
    found, scored = score_recording(recording, model, stored, given_s=given_s, device=device,
                                    progress=progress,
                                    **{name: getattr(args, name) for name in ASKED})

    with places.written(stem, last=".json") as here:
        summary_path = Path(f"{here}.{EXTENSION}.json")
        page_path = Path(f"{here}.{EXTENSION}.html")
        # of other flags: neither outlives what it was made from
        for old in (summary_path, page_path):
            old.unlink(missing_ok=True)

        output.write_all(here, scored, recording)
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
