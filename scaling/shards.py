"""An archive of shards, larger than memory, as training reads it: an endless stream of mixed normal beats.

reads   FOLDER/index.json, FOLDER/*.npz    python dataset.py --records RECORDING ... --shards FOLDER

A pass goes over every normal training beat once. The archive is cut into chunks of CHUNK
neighbouring beats; the chunks of all records, in random order, are dealt out to blocks of about
ARCHIVE_BUFFER beats, and the beats of a block are mixed. A block holds chunks of hundreds of records,
so that a batch is nearly as mixed as a permutation of all beats would make it, at a few hundred kB a
read. One thread reads the next block while the network trains on this one.

Order depends on the seed, the pass and the archive alone: a run that goes on, or one of several
processes, sees the same batches.
"""

import functools
import hashlib
import itertools
import json
import os
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import config
from pipeline import settings
from pipeline.errors import UserError
from dataset import ROW_COLUMNS, Segments
from scaling.build_shards import FORMAT as SHARD
from scaling.build_shards import INDEX_FORMAT as INDEX

CHUNK = 128       # neighbouring beats read at once: 370 kB, and below the 1024 buffers that one read may fill
LONGEST = 1000    # first beats of a record in a sample held in memory: many records, each with its rhythm
COLUMNS = tuple(name for name in ROW_COLUMNS if not name.startswith("split_"))
COMMAND = "python dataset.py --records RECORDING ... --shards"
DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, struct.error, zipfile.BadZipFile, zlib.error)


# --- the index ----------------------------------------------------------------------------------

@dataclass
class Archive:
    """The shards of a folder: entries [{"file", "record", "beats", "normal", "part"}], and meta as Segments have it."""

    folder: Path
    entries: list
    meta: dict

    def part(self, name):
        """Entries of "train", "validation" or "test", in order of their files."""
        return sorted((e for e in self.entries if e["part"] == name), key=lambda e: e["file"])

    def normal(self, name):
        """Number of normal beats of a part."""
        return sum(e["normal"] for e in self.part(name))


def load_archive(folder, least, title, simulated):
    """The Archive in `folder`, sure to be of today's settings and to hold `least` normal beats to train on
    and one to validate with; UserError naming the file and the command that makes it otherwise."""
    path, command = Path(folder) / "index.json", f"{COMMAND} {folder}"
    if not path.exists():
        raise UserError(f"{path}: missing. Make it with: {command}")
    try:
        index = json.loads(path.read_text())
        sound = index["format"] == INDEX and all(
            isinstance(e["file"], str) and isinstance(e["record"], str) and 0 <= e["normal"] <= e["beats"]
            and e["part"] in ("train", "validation", "test") for e in index["shards"])
        settings = dict(index["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: not an index of shards (format {INDEX}). Make it again with: {command}")
    differ = settings.differences(settings, settings.SEGMENT_SETTINGS)
    if differ:
        raise UserError(f"{path}: made with other settings ({'; '.join(differ)}). Make it again with: {command}")
    digest = hashlib.sha256(json.dumps([settings, index["shards"]], sort_keys=True).encode()).hexdigest()
    archive = Archive(Path(folder), index["shards"], {
        "database": title, "simulated": simulated, "id": digest, "settings": settings})
    for part, needed in (("train", least), ("validation", 1)):
        if archive.normal(part) < needed:
            raise UserError(f"{path}: {archive.normal(part)} normal beats in the {part} part, expected at least "
                            f"{needed}. Add records: {command}")
    return archive


# --- one shard ----------------------------------------------------------------------------------

def damaged(path, why):
    """UserError that says how to mend a shard."""
    state = "missing" if isinstance(why, FileNotFoundError) else f"damaged ({why})"
    return UserError(f"{path}: {state}. Delete it and make it again with: {COMMAND} {path.parent}")


def read_columns(path, names):
    """{name: array} of some columns of a shard of today's settings, checked by their CRC."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            meta = json.loads(str(stored["meta"]))
            if meta["format"] != SHARD or settings.differences(meta["settings"], settings.SEGMENT_SETTINGS):
                raise ValueError(f"not of the format {SHARD} or made with other settings")
            return {name: stored[name] for name in names}
    except DAMAGED as error:
        raise damaged(path, error) from error


def start_of_rows(path, beats):
    """Byte of the file at which the first row of x begins; rows are float32, one after the other."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            member = archive.getinfo("x.npy")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("x is compressed, expected np.savez")
            file.seek(member.header_offset)
            lengths = struct.unpack("<26x2H", file.read(30))  # of name and extra field, then the data
            file.seek(sum(lengths), os.SEEK_CUR)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if shape != (beats, config.WINDOW_SIZE) or fortran or dtype != np.dtype("<f4"):
                raise ValueError(f"x is {dtype} {shape}, expected float32 {(beats, config.WINDOW_SIZE)}")
            return file.tell()
    except DAMAGED as error:
        raise damaged(path, error) from error


@functools.lru_cache(maxsize=4096)  # 16 kB each: most chunks find their shard known
def layout(path, beats, normal):
    """(start_of_rows, (normal,) row numbers of the normal beats) of a shard that should hold so many."""
    rows = np.flatnonzero(read_columns(path, ("y",))["y"] == 0).astype(np.int16 if beats < 2**15 else np.int64)
    if len(rows) != normal:
        raise damaged(path, f"{len(rows)} normal beats, index.json says {normal}")
    return start_of_rows(path, beats), rows


def read_rows(path, start, rows, x, places):
    """Rows (k,) of a shard, ascending, straight into x[places], one read a run of neighbours; at place -1: skipped."""
    spare = np.empty(x.shape[1], x.dtype)
    try:
        with open(path, "rb", buffering=0) as file:
            for run in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1):
                into = [x[place] if place >= 0 else spare for place in places[run]]
                got = os.preadv(file.fileno(), into, start + int(rows[run[0]]) * spare.nbytes)
                if got != len(run) * spare.nbytes:
                    raise EOFError(f"ends in the middle of row {rows[run[0]] + got // spare.nbytes}")
    except (OSError, EOFError) as error:
        raise damaged(path, error) from error


# --- the stream ---------------------------------------------------------------------------------

def chunks_of(normal):
    """(c, 3): shard, first of its normal beats and number of them in every chunk; normal (s,) beats a shard."""
    return np.array([(shard, first, min(CHUNK, n - first))
                     for shard, n in enumerate(normal) for first in range(0, n, CHUNK)])


def blocks_from(chunks, seed, size, position):
    """Endless ([seed, pass, block], chunk numbers, first row's place in the stream, rows to leave out)
    of the blocks from row `position` of the stream on, each of about `size` rows."""
    n = int(chunks[:, 2].sum())
    for k in itertools.count(position // n):
        start = k * n
        order = np.random.default_rng([seed, k]).permutation(len(chunks))
        for b, block in enumerate(np.array_split(order, -(-n // size))):
            rows = int(chunks[block, 2].sum())
            if start + rows > position:
                yield [seed, k, b], np.sort(block), start, max(0, position - start)  # sorted: files one by one
            start += rows


def places_of(key, rows, start, skip, batch, rank, count):
    """((rows,) place of each row among the block's rows of this process or -1, number of those).

    The block's rows are mixed; of every `batch` rows of the stream each process has its share.
    """
    place = np.random.default_rng(key).permutation(rows)
    mine = ((start + np.arange(rows)) % batch // (batch // count) == rank) & (np.arange(rows) >= skip)
    return np.where(mine, np.cumsum(mine) - 1, -1)[place], int(mine.sum())


class Stream:
    """Batches of an archive's normal training beats: x (b, w) float32 and the number of each one's record (b,)."""

    def __init__(self, archive, seed, batch, size, rank=0, count=1):
        self.folder, self.entries = archive.folder, [e for e in archive.part("train") if e["normal"]]
        self.names, self.record = np.unique([e["record"] for e in self.entries], return_inverse=True)
        self.chunks = chunks_of([e["normal"] for e in self.entries])
        self.rows, self.seed, self.size = int(self.chunks[:, 2].sum()), seed, size
        self.batch, self.rank, self.count = batch, rank, count

    def read(self, key, block, start, skip):
        """(x, record) of this process's rows of one block, in their mixed order; each row is copied once."""
        where, n = places_of(key, self.chunks[block, 2].sum(), start, skip, self.batch, self.rank, self.count)
        x, record, done = np.empty((n, config.WINDOW_SIZE), np.float32), np.empty(n, np.int64), 0
        for shard, first, length in self.chunks[block].tolist():
            entry, places = self.entries[shard], where[done:done + length]
            path = self.folder / entry["file"]
            begin, normal = layout(path, entry["beats"], entry["normal"])
            read_rows(path, begin, normal[first:first + length], x, places)
            record[places[places >= 0]] = self.record[shard]
            done += length
        return x, record

    def blocks(self, position):
        """Endless blocks from a row of the stream on; a thread reads the next one meanwhile."""
        plan = blocks_from(self.chunks, self.seed, self.size, position)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.read, *next(plan))
            while True:
                block = ahead.result()
                ahead = reader.submit(self.read, *next(plan))
                yield block

    def batches(self, position):
        """Endless (x, record) of this process's share of the batches from `position` on, a multiple of `batch`."""
        size, rest = self.batch // self.count, None
        for x, record in self.blocks(position):
            first = 0
            if rest is not None:  # a batch that began in the last block
                first = min(size - len(rest[0]), len(x))
                rest = tuple(np.concatenate([a, b[:first]]) for a, b in zip(rest, (x, record)))
                if len(rest[0]) < size:
                    continue
                yield rest
            whole = first + (len(x) - first) // size * size
            for at in range(first, whole, size):
                yield x[at:at + size], record[at:at + size]
            rest = (x[whole:].copy(), record[whole:].copy()) if whole < len(x) else None


# --- what is held in memory ---------------------------------------------------------------------

def chosen_records(entries, limit):
    """{record: its entries} whose first beats make a sample of at most about `limit` beats, and how many of each.

    In order of a hash of the name: an archive that grows keeps most of its sample.
    """
    records = {}
    for entry in entries:
        records.setdefault(entry["record"], []).append(entry)
    longest = max(LONGEST, limit // len(records))
    chosen, total = {}, 0
    for name in sorted(records, key=lambda name: hashlib.sha256(name.encode()).digest()):
        total += min(longest, sum(e["beats"] for e in records[name]))
        if chosen and total > limit:
            break
        chosen[name] = records[name]
    return chosen, longest


def first_beats(folder, entries, limit):
    """Columns, x among them, of the first `limit` beats of a record whose shards are `entries`."""
    parts = []
    for entry in entries:
        path, n = folder / entry["file"], min(limit, entry["beats"])
        columns = {name: values[:n] for name, values in read_columns(path, COLUMNS).items()}
        start = start_of_rows(path, entry["beats"])
        x = np.fromfile(path, "<f4", n * config.WINDOW_SIZE, offset=start)
        if len(x) != n * config.WINDOW_SIZE or len(columns["y"]) != n:
            raise damaged(path, f"fewer than {n} beats")
        parts.append({"x": x.reshape(n, config.WINDOW_SIZE), **columns})
        limit -= n
        if not limit:
            break
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def sample(archive, limits):
    """Segments of the first beats of some records: {part: number of beats}, with the patients' split.

    Abnormal beats of training records are there for their rhythm, in the part "unused".
    """
    tables = []
    for part, limit in limits.items():
        records, longest = chosen_records(archive.part(part), limit)
        for entries in records.values():
            table = first_beats(archive.folder, entries, longest)
            unused = (table["y"] != 0) & (part == "train")
            table["split_patient"] = table["split_beat"] = np.where(unused, "unused", part).astype("U10")
            tables.append(table)
    columns = {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}
    return Segments(columns.pop("x"), columns, archive.meta)
