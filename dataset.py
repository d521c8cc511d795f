"""Step 1 of 4: from the WFDB records to labelled segments with both splits.

reads   data/mitdb/*.{hea,dat,atr}  python dataset.py --download [--source DIR_OR_URL]
writes  data/segments.npz           one 720-sample segment a beat, its label, record and splits

`--database NAME` takes another database that config.py describes; `simulated` is written here
when it is missing. Next: python train_mitbih.py
"""

import argparse
import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import joblib
import numpy as np
import wfdb
from tqdm import tqdm

import config
from pipeline import errors, settings
from pipeline.artefacts import load_npz, refuse_stale, write_npz
from pipeline.errors import UserError
from preprocess import (bandpass, cut_segments, inside, longest_flat_run, normalise, resample,
                        rr_intervals_s)

FORMAT = "ecg-segments-2"
ROW_COLUMNS = ("y", "symbol", "aami", "record", "sample", "offset_mv", "scale_mv", "rr_before_s",
               "rr_after_s", "split_beat", "split_patient")


# --- records ------------------------------------------------------------------------------------

def verify(database):
    """Digest of every file of the database, {name: sha256}.

    Raises UserError naming the first missing or altered file and the command that mends it.
    """
    from pipeline import download   # later steps, which read segments alone, load no downloader
    folder = database.records_dir()
    remedy = f"Fetch what is wrong with: {database.command('dataset.py', '--download')}"
    if database.simulated:
        from pipeline import simulated_ecg
        simulated_ecg.write_if_missing(database)
        remedy = f"Delete {folder} and run: {database.command('dataset.py')}"

    if not database.digests.exists():
        raise UserError(f"{database.digests}: missing, the list of SHA-256 of {database.title}. "
                        "Take it from where the database comes from.")
    digests = download.digests_of(database)

    # all files before the first is read: a record altered on the disk must not reach the segments
    wrong = download.damaged(folder, digests)
    if wrong:
        state = "altered or truncated" if (folder / wrong[0]).exists() else "missing"
        raise UserError(
            f"{folder / wrong[0]}: {state} ({len(wrong)} of {len(digests)} files are not as in "
            f"{database.digests.name}). {remedy}")
    return digests


def read_lead(path, leads, remedy):
    """(signal (n,) in mV, rate in Hz, name) of the first of `leads` that a WFDB record has.

    Raises UserError, ending in `remedy`, where none is there or the record cannot be read.
    """
    try:
        # by name: column 0 of record 114 is V5, its MLII is column 1
        header = wfdb.rdheader(str(path))
        names = header.sig_name or []
        lead = next((name for name in leads if name in names), None)
        if lead is None:
            raise UserError(
                f"{path}.hea: has the leads {names}, expected one of {list(leads)}. "
                "Add the lead to the database's leads in config.py or leave the record out.")
        signal = wfdb.rdrecord(str(path), channels=[names.index(lead)]).p_signal[:, 0]
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not a readable WFDB record ({error}). {remedy}") from error

    # wfdb reads a file that was cut short without a word
    if header.sig_len is not None and len(signal) != header.sig_len:
        raise UserError(
            f"{path}.dat: {len(signal)} samples, the header promises {header.sig_len}. {remedy}")
    return signal, float(header.fs), lead


def check_signal(path, signal_mv, fs_hz, lead):
    """Raise UserError for NaN, or a stretch flat for over FLAT_MAX_S."""
    missing = np.flatnonzero(~np.isfinite(signal_mv))
    if len(missing):
        raise UserError(f"{path}: {len(missing)} samples of {lead} are missing (NaN), the first at "
                        f"{missing[0] / fs_hz:.1f} s. Repair the record or leave it out.")

    start, length = longest_flat_run(signal_mv)
    if length > config.FLAT_MAX_S * fs_hz:
        raise UserError(
            f"{path}: {lead} is flat for {length / fs_hz:.1f} s from {start / fs_hz:.1f} s "
            f"(more than FLAT_MAX_S = {config.FLAT_MAX_S:g}): a disconnected lead. "
            "Choose another lead or leave the record out.")


def read_beats(path, remedy):
    """(samples (k,), symbols (k,)) of the beats in the record's .atr, nothing else."""
    try:
        notes = wfdb.rdann(str(path), "atr")
    except (OSError, ValueError, IndexError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}.atr: not a readable annotation file ({error}). {remedy}") from error

    # rhythm changes, comments and the waves of flutter are annotations, not beats
    samples = np.asarray(notes.sample)
    symbols = np.asarray(notes.symbol)
    keep = np.isin(symbols, list(settings.AAMI_OF))
    if not keep.any():
        raise UserError(
            f"{path}.atr: none of its {len(keep)} annotations is a beat "
            f"(expected symbols {' '.join(settings.AAMI_OF)}). "
            "Leave the record out or fetch it again.")
    return samples[keep], symbols[keep]


def read_record(path, leads, samples, symbols, remedy, change=lambda filtered: filtered):
    """One WFDB record and its beats to the columns of segments.npz, one row a beat.

    Records at another rate are resampled to FS_HZ; `sample` is then in samples of that rate.
    change: what a study does to the filtered signal (n,).
    """
    signal_mv, fs_hz, lead = read_lead(path, leads, remedy)
    check_signal(path, signal_mv, fs_hz, lead)

    # from all beats, before those without a whole segment fall away
    rr_before_s, rr_after_s = rr_intervals_s(samples, fs_hz)
    if fs_hz != config.FS_HZ:
        signal_mv = resample(signal_mv, fs_hz, config.FS_HZ)
        samples = np.rint(samples * (config.FS_HZ / fs_hz)).astype(np.int64)

    keep = inside(samples, len(signal_mv), config.WINDOW_SIZE)
    if not keep.any():
        raise UserError(
            f"{path}: no beat has a whole segment of {config.WINDOW_SIZE} samples around it. "
            "Leave the record out.")

    # the whole signal at once: a filter over a segment would ring at both its ends
    filtered = bandpass(signal_mv, config.FS_HZ, config.BAND_HZ, config.FILTER_ORDER)
    return beat_columns(change(filtered), samples[keep], path.name, samples[keep], symbols[keep],
                        rr_before_s[keep], rr_after_s[keep])


def beat_columns(filtered, peaks, record, sample, symbol, rr_before_s, rr_after_s):
    """Columns of segments.npz, without the splits, of beats (k,) whose windows lie in `filtered`.

    peaks: their R peaks in samples of `filtered` (n,); sample: the same in the whole record.
    """
    x, offset_mv, scale_mv = normalise(cut_segments(filtered, peaks, config.WINDOW_SIZE))
    aami = np.array([settings.AAMI_OF[s] for s in symbol], str)
    return {
        "x": x, "y": (aami != config.NORMAL_CLASS).astype(np.int8), "symbol": symbol,
        "aami": aami, "record": np.full(len(x), record), "sample": sample.astype(np.int64),
        "offset_mv": offset_mv, "scale_mv": scale_mv,
        "rr_before_s": rr_before_s.astype(np.float32),
        "rr_after_s": rr_after_s.astype(np.float32)}


def read_records(database):
    """All records, in parallel over the cores, to one dict of arrays in the records' order.

    By threads: decoding, filtering and cutting are numpy's and scipy's own loops, and the
    segments of a process would have to be sent back, which takes as long as they took to make.
    Annotations come first: how many beats there are says how much memory the segments take.
    """
    paths = [database.records_dir() / name for name in database.records]
    remedy = f"Fetch it again with: {database.command('dataset.py', '--download')}"
    beats = [read_beats(path, remedy) for path in paths]

    n_jobs = config.THREADS or joblib.cpu_count()
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator", prefer="threads")
    tables = work(joblib.delayed(read_record)(path, database.leads, *found, remedy)
                  for path, found in zip(paths, beats))

    x = np.empty((sum(len(samples) for samples, _ in beats), config.WINDOW_SIZE), np.float32)
    columns = {}
    n = 0
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

    # training holds normal beats only; what is left out of it is not tested either
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

    def normal_validation(self, protocol):
        """(k,) row numbers of the normal validation beats: early stopping, scale, thresholds."""
        rows = self.part(protocol, "validation")
        rows = rows[self.rows["y"][rows] == 0]
        if not len(rows):
            raise UserError(
                f"{protocol} protocol: no normal beat in the validation part. Choose other "
                "validation patients or fractions in config.py, then: python dataset.py")
        return rows


def segments_id(database, digests):
    """Digest of all that determines the segments: files, settings, format."""
    what = [FORMAT, database.title, sorted(digests.items()), settings.segment_settings(database)]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def read_segments(database):
    """The stored segments, whatever settings they were made with (see load_segments)."""
    path = database.segments_path()
    command = database.command("dataset.py")

    table = load_npz(path, command)
    try:
        meta = json.loads(str(table.pop("meta")))
        sound = meta["format"] == FORMAT and all(
            len(table[c]) == len(table["x"]) for c in ROW_COLUMNS)
    except (KeyError, ValueError, TypeError):
        sound = False

    if not sound:
        raise UserError(f"{path}: not a segments file of this project (format {FORMAT}). "
                        f"Make it again with: {command}")
    return Segments(table.pop("x"), table, meta)


def load_segments(database):
    """The segments, sure to be made with today's settings; UserError saying which differ if not."""
    segments = read_segments(database)
    why = settings.differences(segments.meta["settings"], settings.segment_settings(database))
    refuse_stale(database.segments_path(), why, database.command("dataset.py"))
    return segments


def build(database, digests):
    """Read, cut, split and save; returns the Segments."""
    table = read_records(database)
    table["split_beat"] = split_beats(table["y"], config.SPLIT_SEED, config.TRAIN_FRACTION,
                                      config.VALIDATION_FRACTION)
    table["split_patient"] = split_patients(table["y"], table["record"], database)

    # the file says itself what it was made of: whoever reads it compares
    meta = {"format": FORMAT, "database": database.title, "simulated": database.simulated,
            "id": segments_id(database, digests), "settings": settings.segment_settings(database)}
    write_npz(database.segments_path(), {"meta": np.array(json.dumps(meta)), **table})
    return Segments(table.pop("x"), table, meta)


def stored_segments(database, digests):
    """The stored Segments if their content is what a build would give today, else None."""
    try:
        segments = load_segments(database)
    except UserError:
        return None
    return segments if segments.meta["id"] == segments_id(database, digests) else None


# --- the script ---------------------------------------------------------------------------------

def count_table(segments):
    """Beats per class, per split and record, as text."""
    classes = list(config.AAMI)
    rows = segments.rows
    head = f"{'':22s}" + "".join(f"{c:>9s}" for c in classes) + f"{'all':>9s}"

    def line(name, where):
        counts = Counter(rows["aami"][where].tolist())
        cells = [counts[c] for c in classes]
        return f"{name:22s}" + "".join(f"{n:9,d}" for n in (*cells, sum(counts.values())))


    lines = [segments.meta["database"], head]
    for protocol in config.PROTOCOLS:
        for part in ("train", "validation", "test", "unused"):
            lines.append(line(f"{protocol} {part}", segments.part(protocol, part)))
    for name in dict.fromkeys(rows["record"]):
        lines.append(line(f"record {name}", rows["record"] == name))
    lines.append(line("all records", slice(None)))
    return "\n".join(lines)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--download", action="store_true",
                        help="fetch and verify the database, then stop")
    parser.add_argument("--source",
                        help="with --download: folder, mirror address or zip to take it from")
    parser.add_argument("--database", default=config.DATABASE, choices=list(config.DATABASES),
                        help="one that config.py describes [%(default)s]")
    parser.add_argument("--force", action="store_true",
                        help="build even if the segments are up to date")
    args = parser.parse_args(argv)
    if args.source and not args.download:
        parser.error("--source goes with --download")
    return args


def main(argv=None):
    args = parse_args(argv)
    settings.check()
    database = settings.database(args.database)

    if args.download:
        from pipeline import download
        download.fetch_database(database, args.source, config.DOWNLOAD_CONNECTIONS,
                                config.DOWNLOAD_TIMEOUT_S, config.DOWNLOAD_RETRIES)
        return print(f"next: {database.command('dataset.py')}")

    digests = verify(database)
    print(f"{database.title}: {len(digests)} files verified")

    # by content: the files' digests and the settings, not their dates
    path = database.segments_path()
    segments = None if args.force else stored_segments(database, digests)
    if segments:
        print(f"{path}: up to date, not built again (--force builds it)")
    else:
        segments = build(database, digests)
        print(f"wrote {path}: {len(segments.x):,d} segments")

    print(count_table(segments))
    print(f"next: {database.command('train_mitbih.py')}")


if __name__ == "__main__":
    errors.run(main)
