"""Any number of annotated WFDB records to shards that training streams through.

reads   RECORD ...                WFDB records with annotations: files, folders, patterns, addresses
writes  FOLDER/NAME-000.npz ...   at most SHARD_BEATS beats of a record: the columns of
                                  dataset.read_record, and meta
        FOLDER/index.json         which shards there are, and the part of each; written last

    python -m scaling.build_shards RECORD ... --out FOLDER
    next: python -m scaling.train_on_shards FOLDER

A record is read piece by piece, so that memory does not grow with its length. Records at another
rate are resampled to FS_HZ; beats in stretches that cannot be read (recording/quality.py) are left
out. A record's part is drawn by its name: an archive may grow, and no record changes sides.
"""

import argparse
import functools
import glob
import hashlib
import json
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

import config
from dataset import beat_columns
from pipeline import errors, settings
from pipeline.artefacts import UNREADABLE, write_json, write_npz
from pipeline.errors import UserError
from preprocess import inside, rr_intervals_s
from recording import cluster, places, quality, reader
from recording.stretch import read_stretch

FORMAT = "ecg-shard-1"
INDEX_FORMAT = "ecg-shards-1"
PIECE_S = 1800                # read at a time


# --- one record ---------------------------------------------------------------------------------

def part_of(record, seed, train_fraction, validation_fraction):
    """"train", "validation" or "test": drawn by the record's name and the seed alone."""
    # a number in [0, 1) that is the same on every machine, whatever other records there are
    digest = hashlib.sha256(f"{seed}/{record}".encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64

    if drawn < train_fraction:
        return "train"
    return "validation" if drawn < train_fraction + validation_fraction else "test"


def choose_lead(recording, wanted, leads):
    """Index of the lead that is asked for, else the first of `leads`, else the only one.

    Raises UserError where it is none of these: leads of any kind are not to be mixed in training.
    """
    if wanted is not None:
        return reader.lead_index(recording, wanted)

    for name in leads:
        if name in recording.leads:
            return recording.leads.index(name)

    # the one lead of a Holter or a patch is taken whatever it is called
    if len(recording.leads) > 1:
        raise UserError(f"{recording.path}: has the leads {recording.leads}, expected one of "
                        f"{list(leads)}. Name one with --lead.")
    return 0


def piece_columns(recording, lead, start_s, beats):
    """Columns of the beats in one piece of a recording, those left out not among them.

    beats: {"time_s", "symbol", "rr_before_s", "rr_after_s"} of the whole recording, (k,) each.
    """
    time_s = beats["time_s"]

    def samples(first_s):
        """Every beat's R peak (k,) at the network's rate, from first_s on."""
        return np.rint((time_s - first_s) * config.FS_HZ).astype(np.int64)

    # noise is judged by the annotated beats: a detector would find some in the noise
    def annotated(raw, first_s):
        peaks = samples(first_s)
        return np.unique(peaks[(peaks >= 0) & (peaks < len(raw))])

    stop_s = start_s + PIECE_S
    stretch = read_stretch(recording, lead, start_s, stop_s, config.FS_HZ, config.BAND_HZ,
                           config.FILTER_ORDER, annotated)

    # not the margin's, not cut at an end, not in noise
    peaks = samples(stretch.start_s)
    keep = (time_s >= start_s) & (time_s < stop_s)
    keep &= inside(peaks, len(stretch.filtered), config.WINDOW_SIZE)
    window = ((time_s[keep] - start_s) / quality.VERDICT_S).astype(int)
    keep[keep] = stretch.unreadable[window] == 0

    # intervals are those of all annotated beats: a neighbour that is left out counts
    kept = {name: column[keep] for name, column in beats.items() if name != "time_s"}
    return beat_columns(stretch.filtered, peaks[keep], recording.name, samples(0)[keep], **kept)


def join(tables):
    """Tables ({name: rows}) of the same columns, one after the other."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def regroup(tables, size):
    """(table, whether it is the last) of `size` rows each, the last of fewer perhaps.

    tables: {name: rows} of the same columns, x among them, with any number of rows.
    """
    parts = []
    missing = size
    for table in tables:
        # not where they are equal: these rows may be the last
        while len(table["x"]) > missing:
            head = {name: rows[:missing] for name, rows in table.items()}
            yield join([*parts, head]), False
            table = {name: rows[missing:] for name, rows in table.items()}
            parts = []
            missing = size

        # joined only when they are whole: a block of the stream is never copied at once
        parts.append(table)
        missing -= len(table["x"])

    if missing < size:
        yield join(parts), True


def write_record(folder, recording, lead, beats, meta):
    """Write a record's shards in place of what there was of it; the entries of the index.

    The last shard says that it is the last: a record that was stopped in the middle is none.
    """
    # an index must not name what is about to change
    for path in shards_of(folder, recording.name):
        (folder / "index.json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    # a piece at a time, so that a recording of days takes no more memory than one of an hour
    pieces = (piece_columns(recording, lead, start_s, beats)
              for start_s in np.arange(0, recording.n_samples / recording.fs_hz, PIECE_S))
    entries = []
    for columns, last in regroup(pieces, config.SHARD_BEATS):
        entry = {"file": f"{recording.name}-{len(entries):03d}.npz", "record": recording.name,
                 "beats": len(columns["y"]), "normal": int((columns["y"] == 0).sum()),
                 "part": meta["part"]}
        columns["meta"] = np.array(json.dumps(meta | {"entry": entry, "last": last}))
        write_npz(folder / entry["file"], columns)
        entries.append(entry)

    if not entries:
        raise UserError(f"{recording.path}: none of {len(beats['time_s'])} annotated beats can be "
                        "read. Leave the record out, or name another --lead.")
    return entries


def build_record(folder, annotator, lead, leads, place):
    """The entries of the index of one record; its shards are written unless they are there."""
    # what the shards depend on beside the settings: the files and what is taken from them
    name = record_name(place)
    files = places.files_of(place, annotator)
    origin = repr((sorted(files.items()), annotator, lead))

    meta = {"format": FORMAT, "settings": settings.snapshot(settings.SEGMENT_SETTINGS),
            "origin": hashlib.sha256(origin.encode()).hexdigest(),
            "part": part_of(name, config.SPLIT_SEED, config.TRAIN_FRACTION,
                            config.VALIDATION_FRACTION)}

    # a run that was stopped goes on where it was: what is whole and of today stays as it is
    entries = stored_entries(folder, name, meta["origin"])
    if entries:
        return entries

    with places.fetched(place, files) as path, reader.open_recording(path) as recording:
        time_s, symbol = reader.annotated_beats(
            path, annotator, recording.fs_hz, settings.AAMI_OF,
            "Leave the record out, or name another --annotator.")
        before_s, after_s = rr_intervals_s(time_s, 1)
        beats = {"time_s": time_s, "symbol": symbol, "rr_before_s": before_s, "rr_after_s": after_s}
        chosen = choose_lead(recording, lead, leads)
        meta |= {"fs_hz": recording.fs_hz, "lead": recording.leads[chosen]}
        return write_record(folder, recording, chosen, beats, meta)


# --- what is there ------------------------------------------------------------------------------

def record_name(place):
    """"100" of .../100.hea."""
    return places.name_of(place).removesuffix(".hea")


def shards_of(folder, record):
    """Paths of a record's shards, whatever they hold."""
    # 100-000.npz may be of the record 100 or be the beginning of those of 100-000
    return sorted(path for path in folder.glob(f"{glob.escape(record)}-*.npz")
                  if path.stem[len(record) + 1:].isdigit())


def meta_of(stored):
    """The meta of an open shard; ValueError where it is not of today's format and settings."""
    meta = json.loads(str(stored["meta"]))
    today = settings.snapshot(settings.SEGMENT_SETTINGS)
    if meta["format"] != FORMAT or settings.differences(meta["settings"], today):
        raise ValueError(f"not of the format {FORMAT} or made with other settings")
    return meta


def stored_entries(folder, record, origin=None):
    """Entries of a record whose shards are all there and of today's settings, else None.

    origin: what they must come from; None: whatever the first of them comes from.
    """
    entries = []
    try:
        while True:
            path = folder / f"{record}-{len(entries):03d}.npz"
            with np.load(path, allow_pickle=False) as stored:
                meta = meta_of(stored)

            # a shard may have been renamed: its entry says which one it is
            origin = origin or meta["origin"]
            if (meta["origin"], meta["entry"]["file"]) != (origin, path.name):
                return None
            entries.append(meta["entry"])

            # without it the next shard must be there, or the record was stopped in the middle
            if meta["last"]:
                return entries
    except UNREADABLE:  # missing, damaged, or none of ours
        return None


# --- many records -------------------------------------------------------------------------------

def find_records(texts, absolute):
    """[Path or address] of the WFDB records that texts mean; UserError for none, two of a name."""
    found = places.find_places(texts, None, absolute)
    headers = [place for place in found if places.name_of(place).endswith(".hea")]

    # a record is known by its name: its shards, its part
    names = {}
    for place in headers:
        other = names.setdefault(places.name_of(place), place)
        if other != place:
            raise UserError(f"{place} and {other}: two records of one name. Rename one, or give "
                            "them different --out folders.")

    if not headers:
        raise UserError(f"{' '.join(texts)}: no WFDB record among them; expected .hea files with "
                        "annotations beside them.")
    if len(headers) < len(found):
        print(f"{len(found) - len(headers)} files of other formats are left out: "
              "they have no annotations")
    return headers


def report(folder, index, stale):
    """Print what is in the index, part by part."""
    for part in settings.PARTS:
        shards = [entry for entry in index["shards"] if entry["part"] == part]
        records = {entry["record"] for entry in shards}
        print(f"{part:<12}{len(records):>8,d} records {len(shards):>8,d} shards "
              f"{sum(entry['beats'] for entry in shards):>14,d} beats, "
              f"{sum(entry['normal'] for entry in shards):,d} normal")

    if stale:
        print(f"not in the index: {len(stale)} records of earlier runs, unfinished or of other "
              f"settings, {', '.join(stale[:5])} for example. Name them, too, or delete them.")
    print(f"wrote {folder / 'index.json'}\nnext: python -m scaling.train_on_shards {folder}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", nargs="+", metavar="RECORD",
                        help="WFDB files, folders, patterns, addresses")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where the shards go")
    parser.add_argument("--annotator", default="atr",
                        help="suffix of the annotation files [%(default)s]")
    parser.add_argument("--lead", help="name or number (from 1) [the first of the leads in "
                                       "config.py that there is]")
    parser.add_argument("--cluster", metavar="ADDRESS",
                        help="of a dask scheduler, whose workers do it")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    settings.check()
    if places.is_url(args.out):
        raise UserError(f"--out {args.out}: an address; expected a folder, which all workers of a "
                        "cluster share.")
    folder = Path(args.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    records = find_records(args.records, bool(args.cluster))
    leads = settings.database().leads

    # the records asked for
    done = cluster.each(functools.partial(build_record, folder, args.annotator, args.lead, leads),
                        records, config.THREADS or joblib.cpu_count(), args.cluster)
    entries = []
    failed = []
    for place, made, why in tqdm(done, total=len(records), desc="records", disable=None):
        if why:
            failed.append({"record": record_name(place), "why": why})
        else:
            entries += made

    # those of earlier runs
    known = {record_name(place) for place in records}
    stale = []
    for path in sorted(folder.glob("*-000.npz")):
        record = path.stem.removesuffix("-000")
        if record not in known:
            stored = stored_entries(folder, record)
            if stored:
                entries += stored
            else:
                stale.append(record)

    # the leads tell detect.py which lead of a recording is like those
    made_with = {"LEADS": [args.lead] if args.lead else leads}
    index = {"format": INDEX_FORMAT,
             "settings": settings.snapshot(settings.SEGMENT_SETTINGS) | made_with,
             "shards": sorted(entries, key=lambda entry: entry["file"]),
             "failed": sorted(failed, key=lambda fail: fail["record"])}
    write_json(folder / "index.json", index)
    report(folder, index, stale)
    if failed:
        lines = "\n  ".join(f"{fail['record']}: {fail['why']}" for fail in index["failed"])
        raise UserError(f"{len(failed)} of {len(records)} records failed, the others are in "
                        f"{folder / 'index.json'}:\n  {lines}")


if __name__ == "__main__":
    errors.run(main)
