"""Step 1 of 4: from the WFDB records to labelled segments with both splits.

reads   data/mitdb/*.{hea,dat,atr}  python dataset.py --download [--source DIR_OR_URL]
writes  data/segments.npz           one 720-sample segment a beat, its label, record and splits

With --simulated everything lies below simulated/ instead, and comes from `python synthetic.py`.
With --records and --shards any other annotated records become shards to train on: shards_build.py.
"""

import argparse
import hashlib
import json
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass

import joblib
import numpy as np
import wfdb
from tqdm import tqdm

import config
from pipeline import errors, settings
from pipeline import download
from scaling import build_shards
from pipeline.annotations import read_annotations
from pipeline.errors import UserError
from pipeline.artefacts import whole_file
from preprocess import (bandpass, cut_segments, inside, longest_flat_run, normalise, rr_intervals_s)

FORMAT = "ecg-segments-1"
DIGESTS = settings.ROOT / "mitdb_sha256.txt"
AAMI_OF = {symbol: aami for aami, symbols in config.AAMI.items() for symbol in symbols}
ROW_COLUMNS = ("y", "symbol", "aami", "record", "sample", "offset_mv", "scale_mv", "rr_before_s",
               "rr_after_s", "split_beat", "split_patient")


# --- records ------------------------------------------------------------------------------------

def verify(database):
    """Digest of every file of the database, {name: sha256}.

    Raises UserError naming the first missing or altered file and the command that mends it.
    """
    folder = database.records_dir()
    listed = folder / "SHA256SUMS.txt" if database.simulated else DIGESTS
    remedy = "python synthetic.py" if database.simulated else "python dataset.py --download"
    if not listed.exists():
        raise UserError(f"{listed}: missing. Make it with: {remedy}")
    digests = download.read_digests(listed)
    digests = {name: digest for name, digest in digests.items() if name.split(".")[0] in database.records}
    wrong = download.damaged(folder, digests)
    if wrong:
        state = "altered or truncated" if (folder / wrong[0]).exists() else "missing"
        raise UserError(f"{folder / wrong[0]}: {state} ({len(wrong)} of {len(digests)} files are not "
                        f"as in {listed.name}). Fetch what is missing or damaged with: {remedy}")
    return digests


def read_lead(path, leads):
    """(signal_mv (n,) float64, fs_hz, lead) of the first of `leads` the record at `path` has.

    Raises UserError for an unreadable record, one without the lead, NaN, or a flat line.
    """
    try:
        header = wfdb.rdheader(str(path))
        names = list(header.sig_name or [])
        lead = next((name for name in leads if name in names), None)
        if lead is None:
            raise UserError(f"{path}.hea: has the leads {names}, expected one of {list(leads)}. "
                            "Add the lead to LEADS in config.py or leave the record out.")
        signal = wfdb.rdrecord(str(path), channels=[names.index(lead)]).p_signal[:, 0]
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not a readable WFDB record ({error}). Fetch it again with: "
                        "python dataset.py --download (python synthetic.py for simulated ones)") from error
    if header.sig_len is not None and len(signal) != header.sig_len:
        raise UserError(f"{path}.dat: {len(signal)} samples, the header promises {header.sig_len}. "
                        "Fetch it again with: python dataset.py --download")
    return signal, float(header.fs), lead


def check_signal(path, signal_mv, fs_hz, lead):
    """Raise UserError for a rate other than FS_HZ, NaN, or a stretch flat for over FLAT_MAX_S."""
    if fs_hz != config.FS_HZ:
        raise UserError(f"{path}: sampled at {fs_hz:g} Hz, expected {config.FS_HZ} Hz (FS_HZ). "
                        "Resample the record or leave it out.")
    missing = np.flatnonzero(~np.isfinite(signal_mv))
    if len(missing):
        raise UserError(f"{path}: {len(missing)} samples of {lead} are missing (NaN), the first at "
                        f"{missing[0] / fs_hz:.1f} s. Repair the record or leave it out.")
    start, length = longest_flat_run(signal_mv)
    if length > config.FLAT_MAX_S * fs_hz:
        raise UserError(f"{path}: {lead} is flat for {length / fs_hz:.1f} s from {start / fs_hz:.1f} s "
                        f"(more than FLAT_MAX_S = {config.FLAT_MAX_S:g}): a disconnected lead. "
                        "Choose another lead or leave the record out.")


def read_beats(path):
    """(samples (k,), symbols (k,)) of the beats in the record's .atr; what is no beat is dropped."""
    try:
        samples, symbols = read_annotations(path, "atr")
    except (OSError, ValueError, IndexError, TypeError, KeyError) as error:
        raise UserError(f"{path}.atr: not a readable annotation file ({error}). Fetch it again with: "
                        "python dataset.py --download") from error
    keep = np.isin(symbols, list(AAMI_OF))
    if not keep.any():
        raise UserError(f"{path}.atr: none of its {len(keep)} annotations is a beat "
                        f"(expected symbols {' '.join(AAMI_OF)}). Leave the record out or fetch it again.")
    return samples[keep], symbols[keep]


def read_record(path, samples, symbols):
    """One WFDB record and its beats to the columns of segments.npz, as a dict of arrays with one row a beat."""
    signal_mv, fs_hz, lead = read_lead(path, config.LEADS)
    check_signal(path, signal_mv, fs_hz, lead)
    rr_before_s, rr_after_s = rr_intervals_s(samples, fs_hz)
    keep = inside(samples, len(signal_mv), config.WINDOW_SIZE)
    if not keep.any():
        raise UserError(f"{path}: no beat has a whole segment of {config.WINDOW_SIZE} samples around it. "
                        "Leave the record out.")
    filtered = bandpass(signal_mv, fs_hz, config.BAND_HZ, config.FILTER_ORDER)
    x, offset_mv, scale_mv = normalise(cut_segments(filtered, samples[keep], config.WINDOW_SIZE))
    aami = np.array([AAMI_OF[s] for s in symbols[keep]])
    return {"x": x, "y": (aami != config.NORMAL_CLASS).astype(np.int8), "symbol": symbols[keep],
            "aami": aami, "record": np.full(len(x), path.name), "sample": samples[keep].astype(np.int64),
            "offset_mv": offset_mv, "scale_mv": scale_mv,
            "rr_before_s": rr_before_s[keep].astype(np.float32),
            "rr_after_s": rr_after_s[keep].astype(np.float32)}


def read_records(database):
    """All records, in parallel over the cores, to one dict of arrays in the records' order.

    By threads: decoding, filtering and cutting are numpy's and scipy's own loops, and the segments of
    a process would have to be sent back, which takes as long as they took to make. Annotations come
    first: how many beats there are says how much memory the segments take.
    """
    paths = [database.records_dir() / name for name in database.records]
    beats = [read_beats(path) for path in paths]
    work = joblib.Parallel(n_jobs=config.THREADS or joblib.cpu_count(), return_as="generator", prefer="threads")
    tables = work(joblib.delayed(read_record)(path, *found) for path, found in zip(paths, beats))
    x = np.empty((sum(len(samples) for samples, _ in beats), config.WINDOW_SIZE), np.float32)
    columns, n = {}, 0
    for table in tqdm(tables, total=len(paths), desc="records", disable=None):
        part = table.pop("x")  # copied at once: to join them at the end would take twice the memory
        x[n:n + len(part)] = part
        n += len(part)
        for name, values in table.items():
            columns.setdefault(name, []).append(values)
    return {"x": x[:n]} | {name: np.concatenate(values) for name, values in columns.items()}



# --- splits -------------------------------------------------------------------------------------

def split_beats(y, seed, train_fraction, validation_fraction):
    """Random split of beats: (n,) of "train", "validation", "test" and "unused".

    The same patients are in all parts, as in the published work. Abnormal beats that fall into
    the training share are unused: training holds normal beats only.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    train_end = int(train_fraction * len(y))
    validation_end = int((train_fraction + validation_fraction) * len(y))
    split = np.empty(len(y), "U10")
    split[order[:train_end]] = "train"
    split[order[train_end:validation_end]] = "validation"
    split[order[validation_end:]] = "test"
    split[(split == "train") & (y != 0)] = "unused"
    return split


def split_patients(y, record, database):
    """Split by patient, same values: nobody is in two parts, records in no part are unused."""
    split = np.full(len(y), "unused", "U10")
    split[np.isin(record, database.train) & (y == 0)] = "train"
    split[np.isin(record, database.validation)] = "validation"
    split[np.isin(record, database.test)] = "test"
    return split


# --- the artefact -------------------------------------------------------------------------------

@dataclass
class Segments:
    """data/segments.npz: x (n, 720) float32 at mean 0 and deviation 1, and one row a beat.

    x * scale_mv + offset_mv is the filtered signal in mV. `y` is 0 normal, 1 abnormal; `sample`
    the R peak in the record; RR times are NaN at a record's ends.
    """

    x: np.ndarray
    rows: dict
    meta: dict

    def part(self, protocol, name):
        """(k,) row numbers of one part ("train", "validation", "test") of a protocol."""
        return np.flatnonzero(self.rows[f"split_{protocol}"] == name)


def patients_of(database):
    """Records and patient split as plain JSON values."""
    return {part: list(getattr(database, part)) for part in ("records", "train", "validation", "test")}


def segments_id(database, digests):
    """Digest of all that determines the segments: files, settings, format; same on every machine."""
    what = [FORMAT, database.title, sorted(digests.items()), settings.snapshot(settings.SEGMENT_SETTINGS),
            patients_of(database)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def save_segments(path, table, meta):
    """Write columns (name -> array, x among them) and meta as one .npz."""
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez(file, meta=np.array(json.dumps(meta)), **table)


def load_npz(path, command):
    """{name: array} of an .npz, never unpickled; UserError naming `command` if missing or damaged."""
    if not path.exists():
        raise UserError(f"{path}: missing. Make it with: {command}")
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile,
            zlib.error) as error:
        raise UserError(f"{path}: damaged or not an .npz of plain arrays ({error}). Delete it and make it "
                        f"again with: {command}") from error


def read_segments(database):
    """The stored segments, whatever settings they were made with (see load_segments)."""
    path, command = database.segments_path(), command_of(database, "--force")
    table = load_npz(path, command_of(database))
    try:
        meta = json.loads(str(table.pop("meta")))
        sound = meta["format"] == FORMAT and all(len(table[c]) == len(table["x"]) for c in ROW_COLUMNS)
    except (KeyError, ValueError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not a segments file of this project (format {FORMAT}). "
                        f"Make it again with: {command}")
    return Segments(table.pop("x"), table, meta)


def load_segments(database):
    """The segments, sure to be made with today's settings; UserError saying which differ if not."""
    segments = read_segments(database)
    differ = settings.differences(segments.meta["settings"], settings.SEGMENT_SETTINGS)
    differ += [f"the list `{part}` of the database" for part, names in patients_of(database).items()
               if segments.meta["patients"].get(part) != names]
    if differ:
        raise UserError(f"{database.segments_path()}: made with other settings "
                        f"({'; '.join(differ)}). Make it again with: {command_of(database)}")
    return segments


def command_of(database, *flags, script="dataset.py"):
    """The command line a person types to run a script on this database."""
    return " ".join(["python", script, *flags, *(["--simulated"] if database.simulated else [])])


def build(database, digests):
    """Read, cut, split and save; returns the Segments."""
    table = read_records(database)
    table["split_beat"] = split_beats(table["y"], config.SPLIT_SEED, config.TRAIN_FRACTION,
                                      config.VALIDATION_FRACTION)
    table["split_patient"] = split_patients(table["y"], table["record"], database)
    meta = {"format": FORMAT, "database": database.title, "simulated": database.simulated,
            "id": segments_id(database, digests), "settings": settings.snapshot(settings.SEGMENT_SETTINGS),
            "patients": patients_of(database),
            "versions": {"numpy": np.__version__, "wfdb": wfdb.__version__}}
    save_segments(database.segments_path(), table, meta)
    return Segments(table.pop("x"), table, meta)


def up_to_date(database, digests):
    """The stored Segments if their content is what a build would give today, else None."""
    try:
        segments = load_segments(database)
    except UserError:
        return None
    return segments if segments.meta["id"] == segments_id(database, digests) else None


# --- the table ----------------------------------------------------------------------------------

def count_table(segments):
    """Beats per class, per split and record, as text."""
    classes, rows = list(config.AAMI), segments.rows
    head = f"{'':22s}" + "".join(f"{c:>9s}" for c in classes) + f"{'all':>9s}"

    def line(name, where):
        counts = Counter(rows["aami"][where].tolist())
        return f"{name:22s}" + "".join(f"{counts[c]:9,d}" for c in classes) + f"{sum(counts.values()):9,d}"

    lines = [segments.meta["database"], head]
    for protocol in config.PROTOCOLS:
        lines += [line(f"{protocol} {part}", segments.part(protocol, part))
                  for part in ("train", "validation", "test", "unused")]
    lines += [line(f"record {name}", rows["record"] == name) for name in dict.fromkeys(rows["record"])]
    lines += [line("all records", slice(None))]
    return "\n".join(lines)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--download", action="store_true", help="fetch and verify the database, then stop")
    parser.add_argument("--source", help="with --download: folder, mirror address or zip to take it from")
    parser.add_argument("--simulated", action="store_true", help="use the simulated database")
    parser.add_argument("--force", action="store_true", help="build even if the segments are up to date")
    other = parser.add_argument_group("shards of other records")
    other.add_argument("--records", nargs="+", metavar="RECORD", help="WFDB files, folders, patterns, addresses")
    other.add_argument("--shards", metavar="FOLDER", help="where they go")
    other.add_argument("--annotator", default="atr", help="suffix of the annotation files [%(default)s]")
    other.add_argument("--lead", help="name or number (from 1) [the first of LEADS that there is]")
    other.add_argument("--cluster", metavar="ADDRESS", help="of a dask scheduler, whose workers do it: cluster.py")
    args = parser.parse_args(argv)
    if bool(args.records) != bool(args.shards):
        parser.error("--records and --shards go together")
    if args.records and (args.download or args.simulated or args.force):
        parser.error("--records is not for --download, --simulated or --force: what is up to date is told by content")
    if not args.records and (args.lead or args.cluster):
        parser.error("--lead and --cluster go with --records")
    if args.source and not args.download:
        parser.error("--source goes with --download")
    if args.download and args.simulated:
        parser.error("the simulated database is not downloaded: python synthetic.py")
    return args


def fetch(source):
    """Download or copy the MIT-BIH database, every file verified."""
    download.fetch_database(settings.database("mitdb").records_dir(), download.read_digests(DIGESTS),
                            download.choose_sources(source), config.DOWNLOAD_CONNECTIONS,
                            config.DOWNLOAD_TIMEOUT_S, config.DOWNLOAD_RETRIES)
    print("next: python dataset.py")


def main(argv=None):
    args = parse_args(argv)
    settings.check()
    if args.records:
        return build_shards.build(args)
    if args.download:
        return fetch(args.source)
    database = settings.database("simulated") if args.simulated else settings.database("mitdb")
    path = database.segments_path()
    digests = verify(database)
    print(f"{database.title}: {len(digests)} files verified")
    segments = None if args.force else up_to_date(database, digests)
    if segments:
        print(f"{path}: up to date, not built again (--force builds it)")
    else:
        segments = build(database, digests)
        print(f"wrote {path}: {len(segments.x):,d} segments")
    print(count_table(segments))
    print(f"next: {command_of(database, script='train_mitbih.py')}")


if __name__ == "__main__":
    errors.run(main)
