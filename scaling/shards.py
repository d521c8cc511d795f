"""An archive of shards, larger than memory, as training reads it: a stream of mixed normal beats.

reads   FOLDER/index.json, FOLDER/*.npz    python -m scaling.build_shards RECORD ... --out FOLDER

A pass goes over every normal training beat once. The archive is cut into chunks of CHUNK
neighbouring beats; the chunks of all records, in random order, are dealt out to blocks of about
ARCHIVE_BUFFER beats, and the beats of a block are mixed. A block holds chunks of hundreds of
records, so that a batch is nearly as mixed as a permutation of all beats would make it, at a few
hundred kB a read. One thread reads the next block while the network trains on this one.

Order depends on the seed, the pass and the archive alone: a run that goes on, or one of several
processes, sees the same batches.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import config
from dataset import ROW_COLUMNS, Segments
from pipeline import settings
from pipeline.artefacts import UNREADABLE, load_json, refuse_stale
from pipeline.errors import UserError
from scaling.build_shards import INDEX_FORMAT, join, meta_of, regroup

CHUNK = 128       # neighbouring beats read at once: 370 kB
LONGEST = 1000    # first beats of a record in a sample: many records, each with its rhythm
COLUMNS = tuple(name for name in ROW_COLUMNS if not name.startswith("split_"))
ENTRY = {"file", "record", "beats", "normal", "part"}
COMMAND = "python -m scaling.build_shards RECORD ... --out"


# --- the index ----------------------------------------------------------------------------------

@dataclass
class Archive:
    """The shards of a folder: entries (dicts, see ENTRY) of the index, meta as Segments have it."""

    folder: Path
    entries: list
    meta: dict

    def part(self, name):
        """Entries of "train", "validation" or "test"."""
        return [entry for entry in self.entries if entry["part"] == name]


def load_archive(folder, least, title, simulated):
    """The Archive in `folder`, sure to be of today's settings.

    It holds `least` normal beats to train on and one to validate with, or more. Raises UserError
    naming the file and the command that makes it.
    """
    path = Path(folder) / "index.json"
    command = f"{COMMAND} {folder}"
    index = load_json(path, command)
    try:
        stored = dict(index["settings"])
        shards = index["shards"]
        if index["format"] != INDEX_FORMAT or not all(ENTRY <= set(entry) for entry in shards):
            raise ValueError("other fields")
    except UNREADABLE as error:
        raise UserError(f"{path}: not an index of shards (format {INDEX_FORMAT}). "
                        f"Make it again with: {command}") from error

    today = settings.snapshot(settings.SEGMENT_SETTINGS)
    refuse_stale(path, settings.differences(stored, today), command)

    # a checkpoint keeps the digest: which archive it was trained on
    digest = hashlib.sha256(json.dumps([stored, shards], sort_keys=True).encode()).hexdigest()
    archive = Archive(path.parent, shards, {"database": title, "simulated": simulated,
                                            "id": digest, "settings": stored})

    for part, needed in (("train", least), ("validation", 1)):
        normal = sum(entry["normal"] for entry in archive.part(part))
        if normal < needed:
            raise UserError(f"{path}: {normal} normal beats in the {part} part, expected at least "
                            f"{needed}. Add records: {command}")
    return archive


# --- one shard ----------------------------------------------------------------------------------

@contextlib.contextmanager
def explain_damage(path):
    """What reading a shard raises becomes a UserError that says how to mend it."""
    try:
        yield
    except UNREADABLE as error:
        state = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise UserError(f"{path}: {state}. Delete it and make it again with: "
                        f"{COMMAND} {path.parent}") from error


def read_columns(path, names):
    """{name: array} of some columns of a shard of today's settings, checked by their CRC."""
    # np.load opens what it is asked for: x is left on the disk unless it is named
    with np.load(path, allow_pickle=False) as stored:
        meta_of(stored)
        return {name: stored[name] for name in names}


@functools.lru_cache(maxsize=8192)  # 8 kB each: most chunks find their shard known
def layout(path, beats, normal):
    """(byte at which the first row of x begins, (beats,) bool: which are normal) of a shard.

    It should hold so many. x is stored as np.savez does it, not compressed: float32 rows, one after
    the other.
    """
    # the index and the shard must be of one run
    is_normal = read_columns(path, ("y",))["y"] == 0
    if (len(is_normal), is_normal.sum()) != (beats, normal):
        raise ValueError(f"{is_normal.sum()} normal beats of {len(is_normal)}, index.json says "
                         f"{normal} of {beats}")

    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as file:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        member = archive.getinfo("x.npy")
        header_bytes = file.tell()

    # only then can a row be read where it lies
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("x is compressed, expected np.savez")
    if shape != (beats, config.WINDOW_SIZE) or fortran or dtype != "<f4":
        raise ValueError(f"x is {dtype} {shape}, expected float32 {(beats, config.WINDOW_SIZE)}")

    # before the data: 30 bytes, the last four of them the lengths of a name and a field that follow
    lengths = np.fromfile(path, "<u2", 2, offset=member.header_offset + 26)
    return member.header_offset + 30 + int(lengths.sum()) + header_bytes, is_normal


def read_rows(path, start, rows):
    """Rows (k,) of x, ascending: (k, w), by one read from the first to the last.

    start: see `layout`. Abnormal beats between them are read and left out: they are few.
    """
    width = config.WINDOW_SIZE
    first = rows[0]

    # numpy gives what there is: a file cut short since its layout was read is told by the count
    count = (rows[-1] - first + 1) * width
    found = np.fromfile(path, "<f4", count, offset=start + 4 * first * width)
    if len(found) < count:
        raise EOFError(f"ends in the middle of row {first + len(found) // width}")

    return found.reshape(-1, width)[rows - first]


# --- the stream ---------------------------------------------------------------------------------

def chunks_of(normal):
    """(c, 3): shard, first of its normal beats, and number of them, of every chunk.

    normal: (s,) numbers of normal beats of the shards.
    """
    chunks = []
    for shard, n in enumerate(normal):
        for first in range(0, n, CHUNK):
            chunks.append((shard, first, min(CHUNK, n - first)))
    return np.array(chunks)


def blocks_from(chunks, seed, size, position):
    """Endless plans of the blocks from row `position` of the stream on, each of about `size` rows.

    A plan is ([seed, pass, block], chunk numbers, first row's place in the stream, rows to leave
    out at the beginning).
    """
    n = int(chunks[:, 2].sum())
    for k in itertools.count(position // n):
        start = k * n

        # a pass is a permutation of all chunks of its own
        order = np.random.default_rng([seed, k]).permutation(len(chunks))
        for b, block in enumerate(np.array_split(order, -(-n // size))):
            rows = int(chunks[block, 2].sum())
            if start + rows > position:

                # sorted, so that the files are read one by one
                yield [seed, k, b], np.sort(block), start, max(0, position - start)
            start += rows


class Stream:
    """An archive's normal training beats for train_mitbih.train: n, names of records, batches.

    buffer: beats mixed at a time; rank, count: which of how many processes this is.
    """

    def __init__(self, archive, batch_size, buffer, rank=0, count=1):
        self.folder = archive.folder
        self.entries = [e for e in archive.part("train") if e["normal"]]

        # training asks how badly latents tell records apart: each beat comes with its record
        self.names, self.record = np.unique([e["record"] for e in self.entries],
                                            return_inverse=True)
        self.chunks = chunks_of([e["normal"] for e in self.entries])
        self.n = int(self.chunks[:, 2].sum())

        self.batch_size = batch_size
        self.buffer = buffer
        self.rank, self.count = rank, count

    def read(self, key, block, start, skip):
        """{"x": (k, w), "record": (k,)}: this process's rows of one block of the plan, mixed."""
        # of every batch of the stream each process has its share
        share = self.batch_size // self.count
        rows = self.chunks[block, 2].sum()
        mine = (start + np.arange(rows)) % self.batch_size // share == self.rank

        # a run that goes on in the middle of a block has seen its first rows
        mine[:skip] = False

        # place of each row, as it is read, among the mixed ones; -1: another process's
        mixed = np.random.default_rng(key).permutation(rows)
        places = np.where(mine, np.cumsum(mine) - 1, -1)[mixed]
        x = np.empty((mine.sum(), config.WINDOW_SIZE), np.float32)
        record = np.empty(len(x), np.int64)

        done = 0
        for shard, first, length in self.chunks[block].tolist():
            place = places[done:done + length]
            done += length
            mine = place >= 0
            if not mine.any():
                continue

            # straight to their places: a block is held once, not sorted into a second one
            entry = self.entries[shard]
            path = self.folder / entry["file"]
            with explain_damage(path):
                begin, is_normal = layout(path, entry["beats"], entry["normal"])
                rows = np.flatnonzero(is_normal)[first:first + length]
                x[place[mine]] = read_rows(path, begin, rows[mine])
            record[place[mine]] = self.record[shard]
        return {"x": x, "record": record}

    def blocks(self, seed, position):
        """Endless blocks from a row of the stream on; a thread reads the next one meanwhile."""
        plan = blocks_from(self.chunks, seed, self.buffer, position)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self.read, *next(plan))
            while True:
                block = ahead.result()
                ahead = reader.submit(self.read, *next(plan))
                yield block

    def batches(self, seed, first_epoch, steps, size):
        """Endless (x (b, w), record (b,)): this process's share of each batch, epoch after epoch.

        An epoch is `steps` batches, whatever its `size`: they follow without a gap.
        """
        # a batch may begin in one block and end in the next
        blocks = self.blocks(seed, first_epoch * steps * self.batch_size)
        for batch, _ in regroup(blocks, self.batch_size // self.count):
            yield torch.from_numpy(batch["x"]), torch.from_numpy(batch["record"])


# --- what is held in memory ---------------------------------------------------------------------

def choose_records(entries, limit):
    """({record: its entries}, how many first beats of each): a sample of at most about `limit`.

    In order of a hash of the name: an archive that grows keeps most of its sample.
    """
    records = {}
    for entry in entries:
        records.setdefault(entry["record"], []).append(entry)

    # of few records more of each, so that the sample is as large as it may be
    longest = max(LONGEST, limit // len(records))

    # at least one, however long it is: a part without a record could not be fitted
    chosen = {}
    total = 0
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
        path = folder / entry["file"]
        n = min(limit, entry["beats"])
        limit -= n

        with explain_damage(path):
            start, _ = layout(path, entry["beats"], entry["normal"])
            columns = {name: values[:n] for name, values in read_columns(path, COLUMNS).items()}
            parts.append({"x": read_rows(path, start, np.arange(n)), **columns})
        if not limit:
            break
    return join(parts)


def sample(archive, limits):
    """Segments of the first beats of some records, with the patients' split.

    limits: {part: number of beats}. Abnormal beats of training records are there for their rhythm,
    in the part "unused".
    """
    tables = []
    for part, limit in limits.items():
        records, longest = choose_records(archive.part(part), limit)
        for entries in records.values():
            table = first_beats(archive.folder, entries, longest)

            # training holds normal beats only
            unused = (table["y"] != 0) & (part == "train")
            split = np.where(unused, "unused", part).astype("U10")
            table["split_patient"] = table["split_beat"] = split
            tables.append(table)
    columns = join(tables)
    return Segments(columns.pop("x"), columns, archive.meta)
