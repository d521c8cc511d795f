"""Any number of annotated WFDB records to shards that training streams through.

reads   RECORD ...                WFDB records with annotations: files, folders, patterns, addresses
writes  FOLDER/NAME-000.npz ...   at most SHARD_BEATS beats of a record: the columns of dataset.read_record, and meta
        FOLDER/index.json         which shards there are and to which part their record belongs; written last

    python dataset.py --records RECORD ... --shards FOLDER

A record is read piece by piece, so that memory does not grow with its length. Records at another rate are
resampled to FS_HZ; beats in stretches that cannot be read (quality.py) are left out. A record's part is drawn by
its name: an archive may grow, and no record changes sides.
"""

import functools
import hashlib
import itertools
import json
import re
import zipfile
from pathlib import Path

import joblib
import numpy as np
from tqdm import tqdm

from recording import cluster
import config
from pipeline import settings
from recording import quality
from recording import reader
from recording import places
from pipeline.errors import UserError
from pipeline.artefacts import whole_file, write_json
from preprocess import bandpass, cut_segments, fill_gaps, inside, normalise, resample, rr_intervals_s

FORMAT, INDEX_FORMAT = "ecg-shard-1", "ecg-shards-1"
PIECE_S = 1800                # a multiple of quality.WINDOW_S
MARGIN_S = quality.MARGIN_S   # filters ring for about a second
AAMI_OF = {symbol: aami for aami, symbols in config.AAMI.items() for symbol in symbols}


# --- one record ---------------------------------------------------------------------------------

def part_of(record, seed, train_fraction, validation_fraction):
    """"train", "validation" or "test": drawn by the record's name and the seed alone."""
    digest = hashlib.sha256(f"{seed}/{record}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < train_fraction:
        return "train"
    return "validation" if place < train_fraction + validation_fraction else "test"


def choose_lead(recording, wanted):
    """Index of the lead that is asked for, else the first of LEADS, else the only one; UserError if none of these."""
    if wanted is not None:
        return reader.lead_index(recording, wanted)
    lead = next((name for name in config.LEADS if name in recording.leads), None)
    if lead is None and len(recording.leads) > 1:
        raise UserError(f"{recording.path}: has the leads {recording.leads}, expected one of {list(config.LEADS)}. "
                        "Name one with --lead.")
    return recording.leads.index(lead) if lead else 0


def piece_columns(recording, lead, start_s, beats):
    """Columns of the beats in one piece of a recording, those left out not among them.

    beats: {"time_s", "symbol", "rr_before_s", "rr_after_s"} of the whole recording, (k,) each.
    """
    own_hz, fs_hz = recording.fs_hz, config.FS_HZ
    first = max(0, round((start_s - MARGIN_S) * own_hz))
    last = min(recording.n_samples, round((start_s + PIECE_S + MARGIN_S) * own_hz))
    given = recording.read(lead, first, last)
    raw = resample(fill_gaps(given), own_hz, fs_hz)
    band = config.BAND_HZ, config.FILTER_ORDER
    filtered = bandpass(raw, fs_hz, *band) if len(raw) > 6 * config.FILTER_ORDER + 3 else np.zeros(len(raw))
    peaks = np.rint((beats["time_s"] - first / own_hz) * fs_hz).astype(np.int64)
    missing = np.rint(np.flatnonzero(~np.isfinite(given)) * fs_hz / own_hz).astype(int)
    raw[missing[missing < len(raw)]] = np.nan  # what was filled is told to the rule again
    around = np.unique(peaks[(peaks >= 0) & (peaks < len(raw))])
    verdict = quality.unreadable(raw, filtered, fs_hz, around)
    keep = (beats["time_s"] >= start_s) & (beats["time_s"] < start_s + PIECE_S)
    keep &= inside(peaks, len(filtered), config.WINDOW_SIZE)
    keep[keep] = verdict[(peaks[keep] / (quality.WINDOW_S * fs_hz)).astype(int)] == 0
    x, offset_mv, scale_mv = normalise(cut_segments(filtered, peaks[keep], config.WINDOW_SIZE))
    aami = np.array([AAMI_OF[symbol] for symbol in beats["symbol"][keep]], "U1")
    return {"x": x, "y": (aami != config.NORMAL_CLASS).astype(np.int8), "symbol": beats["symbol"][keep], "aami": aami,
            "record": np.full(len(x), recording.name),
            "sample": np.rint(beats["time_s"][keep] * fs_hz).astype(np.int64),
            "offset_mv": offset_mv, "scale_mv": scale_mv,
            "rr_before_s": beats["rr_before_s"][keep].astype(np.float32),
            "rr_after_s": beats["rr_after_s"][keep].astype(np.float32)}


def record_columns(recording, lead, beats):
    """The columns of a recording's pieces, one after the other."""
    for start_s in np.arange(0, recording.n_samples / recording.fs_hz, PIECE_S):
        yield piece_columns(recording, lead, start_s, beats)


def batches(tables, size):
    """(columns, whether they are the last) of at most `size` rows from tables of any number; nothing from no rows."""
    waiting, rows, ready = [], 0, None
    for table in itertools.chain(tables, [None]):
        if table is not None:
            waiting.append(table)
            rows += len(table["x"])
        while rows > 0 and (rows >= size or table is None):
            columns = {name: np.concatenate([t[name] for t in waiting]) for name in waiting[0]}
            if ready is not None:
                yield ready, False
            ready = {name: column[:size] for name, column in columns.items()}
            waiting, rows = [{name: column[size:] for name, column in columns.items()}], max(0, rows - size)
    if ready is not None:
        yield ready, True


def write_record(folder, recording, lead, beats, meta):
    """Write a record's shards in place of what there was of it; the entries of the index.

    The last shard says that it is the last: a record that was stopped in the middle is none.
    """
    old = shards_of(folder, recording.name)
    if old:  # an index must not name what is about to change
        (folder / "index.json").unlink(missing_ok=True)
    for path in old:
        path.unlink(missing_ok=True)
    entries = []
    for columns, last in batches(record_columns(recording, lead, beats), config.SHARD_BEATS):
        entries.append({"file": f"{recording.name}-{len(entries):03d}.npz", "record": recording.name,
                        "beats": len(columns["y"]), "normal": int((columns["y"] == 0).sum()), "part": meta["part"]})
        with whole_file(folder / entries[-1]["file"]) as part, open(part, "wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta | {"entry": entries[-1], "last": last})), **columns)
    if not entries:
        raise UserError(f"{recording.path}: none of {len(beats['time_s'])} annotated beats can be read. "
                        "Leave the record out, or name another --lead.")
    return entries


def build_record(folder, annotator, lead, place):
    """The entries of the index of one record, whose shards are written unless they are there already."""
    name = places.name_of(place).removesuffix(".hea")
    files = places.files_of(place, annotator)
    what = repr((sorted(files.items()), annotator, lead))
    meta = {"format": FORMAT, "settings": settings.snapshot(settings.SEGMENT_SETTINGS),
            "origin": hashlib.sha256(what.encode()).hexdigest(),
            "part": part_of(name, config.SPLIT_SEED, config.TRAIN_FRACTION, config.VALIDATION_FRACTION)}
    entries = stored_entries(folder, name, meta["settings"], meta["origin"])
    if entries:
        return entries
    with places.fetched(place, files) as path, reader.open_recording(path) as recording:
        time_s, symbol = reader.annotated_beats(path, annotator, recording.fs_hz, AAMI_OF,
                                                    "Leave the record out, or name another --annotator.")
        before_s, after_s = rr_intervals_s(time_s, 1)
        beats = {"time_s": time_s, "symbol": symbol, "rr_before_s": before_s, "rr_after_s": after_s}
        chosen = choose_lead(recording, lead)
        meta |= {"fs_hz": recording.fs_hz, "lead": recording.leads[chosen], "annotated": len(time_s)}
        return write_record(folder, recording, chosen, beats, meta)


# --- what is there ------------------------------------------------------------------------------

def shards_of(folder, record):
    """Paths of a record's shards, whatever they hold."""
    paths = folder.glob(f"{glob_safe(record)}-*.npz")
    return sorted(path for path in paths if re.fullmatch(r"-\d{3,}", path.stem[len(record):]))


def glob_safe(name):
    """A name in which no character is a pattern."""
    return re.sub(r"([*?[])", r"[\1]", name)


def read_meta(path):
    """meta of a shard, None where it is none of ours or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
        return meta if meta["format"] == FORMAT and meta["entry"]["file"] == path.name else None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def stored_entries(folder, record, settings, origin=None):
    """Entries of a record whose shards are all there, of these settings and, where given, this origin; else None."""
    entries = []
    while True:
        meta = read_meta(folder / f"{record}-{len(entries):03d}.npz")
        if meta is None or meta["settings"] != settings or meta["origin"] != (origin := origin or meta["origin"]):
            return None
        entries.append(meta["entry"])
        if meta["last"]:
            return entries


def others(folder, known):
    """(entries of the records of earlier runs, [name] of those that are not whole or have other settings)."""
    settings, entries, stale = settings.snapshot(settings.SEGMENT_SETTINGS), [], []
    for path in sorted(folder.glob("*-000.npz")):
        record = path.stem.removesuffix("-000")
        if record not in known:
            stored = stored_entries(folder, record, settings)
            entries += stored or []
            stale += [] if stored else [record]
    return entries, stale


# --- many records -------------------------------------------------------------------------------

def find_records(args):
    """[Path or address] of the WFDB records asked for; UserError for none, or for two of one name."""
    places = places.find_places(args.records, None, bool(args.cluster))
    headers = [place for place in places if places.name_of(place).endswith(".hea")]
    names = {}
    for place in headers:
        other = names.setdefault(places.name_of(place), place)
        if other != place:
            raise UserError(f"{place} and {other}: two records of one name. Rename one, or give them different "
                            "--shards folders.")
    if not headers:
        raise UserError(f"--records {' '.join(args.records)}: no WFDB record among them; expected .hea files with "
                        "annotations beside them.")
    if len(headers) < len(places):
        print(f"{len(places) - len(headers)} files of other formats are left out: they have no annotations")
    return headers


def build(args):
    """Make the shards that are not there, then the index of all that are. UserError listing the records that failed."""
    if places.is_url(args.shards):
        raise UserError(f"--shards {args.shards}: an address; expected a folder, which all workers of a cluster share.")
    folder = Path(args.shards).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    places = find_records(args)
    task = functools.partial(build_record, folder, args.annotator, args.lead)
    done = cluster.each(task, places, config.THREADS or joblib.cpu_count(), args.cluster)
    entries, failed = [], []
    for place, made, why in tqdm(done, total=len(places), desc="records", disable=None):
        entries += made or []
        failed += [{"record": places.name_of(place).removesuffix(".hea"), "why": why}] if why else []
    known = {places.name_of(place).removesuffix(".hea") for place in places}
    earlier, stale = others(folder, known)
    index = {"format": INDEX_FORMAT, "settings": settings.snapshot(settings.SEGMENT_SETTINGS),
             "shards": sorted(entries + earlier, key=lambda entry: entry["file"]),
             "failed": sorted(failed, key=lambda fail: fail["record"])}
    write_json(folder / "index.json", index)
    report(folder, index, stale)
    if failed:
        raise UserError(f"{len(failed)} of {len(places)} records failed, the others are in {folder / 'index.json'}:\n  "
                        + "\n  ".join(f"{fail['record']}: {fail['why']}" for fail in index["failed"]))


def report(folder, index, stale):
    """What is in the index, part by part."""
    for part in ("train", "validation", "test"):
        shards = [entry for entry in index["shards"] if entry["part"] == part]
        print(f"{part:<12}{len({entry['record'] for entry in shards}):>8,d} records {len(shards):>8,d} shards "
              f"{sum(entry['beats'] for entry in shards):>14,d} beats, "
              f"{sum(entry['normal'] for entry in shards):,d} normal")
    if stale:
        print(f"not in the index: {len(stale)} records of earlier runs, unfinished or of other settings "
              f"({', '.join(stale[:5])}{', ...' * (len(stale) > 5)}). Name them with --records, too, or delete them.")
    print(f"wrote {folder / 'index.json'}\nnext: python train_mitbih.py --shards {folder}")
