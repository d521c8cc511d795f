"""How training from shards keeps up with training from memory, and with archives of growing size; alternating.

reads   data/segments.npz        python dataset.py
writes  results/scaling.json     every timing; the table is printed
        FOLDER                   shards: the records again and again with a little noise; deleted at the end

Archives of 1, 2, 4 and 8 times COPIES copies of the database. Each timing is a process of its own, so
that its peak memory is its own, and the shards are dropped from the page cache before it: they come
from the disk. It starts with the first block and goes on while the next one is read, a larger share of
reading than a whole epoch has. Run nothing beside it.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import config
from pipeline import errors, settings
from scaling import shards
import train_mitbih
from pipeline.errors import UserError
from dataset import load_segments
from pipeline.artefacts import write_json
from pipeline.runtime import machine_parser, parsed, prepare, use_threads
from pipeline.tables import aligned

TIMES = (1, 2, 4, 8)
REPEATS = 3
STEPS = 60           # training steps a timing
NOISE = 0.02         # of a segment's deviation: no two copies are the same


# --- an archive to train on -----------------------------------------------------------------------

def write_copies(folder, database, copies):
    """Shards and index of `copies` copies of the database's records, one shard a record and copy."""
    segments, entries = load_segments(database), []
    settings = settings.snapshot(settings.SEGMENT_SETTINGS)
    meta = np.array(json.dumps({"format": shards.SHARD, "settings": settings, "origin": "benchmark"}))
    records = {name: segments.rows["record"] == name for name in database.records}
    folder.mkdir(parents=True)
    for copy in tqdm(range(copies), desc="copies", disable=None):
        rng = np.random.default_rng(copy)
        for name, here in records.items():
            columns = {column: segments.rows[column][here] for column in shards.COLUMNS}
            columns["record"], x = np.full(int(here.sum()), f"{name}-{copy}"), segments.x[here]
            x += np.float32(NOISE) * rng.standard_normal(x.shape, np.float32)
            path = folder / f"{name}-{copy}-000.npz"
            with open(path, "wb") as file:
                np.savez(file, x=x, meta=meta, **columns)
                os.fsync(file.fileno())  # only what is on the disk can be dropped from the page cache
            part = "validation" if name in database.validation else "train"
            entries.append({"file": path.name, "record": f"{name}-{copy}", "beats": len(x),
                            "normal": int((columns["y"] == 0).sum()), "part": part})
    write_json(folder / "index.json", {"format": shards.INDEX, "settings": settings, "shards": entries, "failed": []})


def first_copies(folder, copies):
    """The Archive of the first so many copies."""
    archive = shards.load_archive(folder, config.BATCH_SIZE, "benchmark", False)
    archive.entries = [e for e in archive.entries if int(e["record"].rsplit("-", 1)[1]) < copies]
    return archive


def drop_from_cache(folder):
    """Have the next read of each file come from the disk."""
    for path in folder.glob("*.npz"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- what is timed --------------------------------------------------------------------------------

def peak_mb():
    """Most memory of this process so far, mapped files included (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def from_memory(database):
    """(Run, its batches): the training beats of all records in memory."""
    segments = load_segments(database)
    rows = np.flatnonzero((segments.rows["y"] == 0) & ~np.isin(segments.rows["record"], database.validation))
    names, record = np.unique(segments.rows["record"][rows], return_inverse=True)
    x = torch.from_numpy(segments.x[rows])
    run = train_mitbih.Run(0, len(x), len(names), torch.device("cpu"))
    return run, train_mitbih.memory_batches(run, x, torch.from_numpy(record))


def from_shards(folder, copies):
    """The same of the first `copies` copies, left on the disk."""
    stream = shards.Stream(first_copies(folder, copies), 0, config.BATCH_SIZE, config.ARCHIVE_BUFFER)
    run = train_mitbih.Run(0, stream.rows, len(stream.names), torch.device("cpu"))
    return run, train_mitbih.shard_batches(run, stream)


def timing(database, folder, copies, threads):
    """{"first_s", "segments_per_s", "peak_mb"} of STEPS training steps; copies 0: from memory."""
    use_threads(threads)
    start = time.perf_counter()
    run, batches = from_shards(folder, copies) if copies else from_memory(database)
    with tqdm(disable=True) as bar:
        for steps in (1, STEPS):  # the first batch waits for the first block
            first, run.steps, run.segments = time.perf_counter(), steps, steps * config.BATCH_SIZE
            train_mitbih.train_epoch(run, batches, bar)
    seconds = time.perf_counter() - first
    batches.close()
    return {"first_s": first - start, "segments_per_s": STEPS * config.BATCH_SIZE / seconds, "peak_mb": peak_mb()}


def alternating(database, folder, copies, threads, repeats):
    """{number of copies (0: memory): [timing]}, each in a fresh process, in turn."""
    found = {n: [] for n in (0, *copies)}
    for _ in tqdm(range(repeats), desc="timings", disable=None):
        for n, results in found.items():
            drop_from_cache(folder)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                results.append(alone.submit(timing, database, folder, n, threads).result())
    return found


def table_of(found, folder):
    """One row an archive: medians, and the median of the ratios to memory of the same turn."""
    rows = []
    for n, results in found.items():
        ratios = [r["segments_per_s"] / m["segments_per_s"] for r, m in zip(results, found[0])]
        files = [folder / e["file"] for e in first_copies(folder, n).entries] if n else []
        rows.append({"source": f"{len(files)} shards" if n else "memory", "copies": n, "timings": results,
                     "gigabytes": sum(path.stat().st_size for path in files) / 1e9,
                     "share_of_memory": statistics.median(ratios)}
                    | {name: statistics.median(r[name] for r in results) for name in results[0]})
    return rows


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = machine_parser(__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder, on the disk to measure")
    parser.add_argument("--copies", type=int, default=1, help="of the database in the smallest archive; 8: 20 GB in "
                        "the largest")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parsed(parser, argv)
    if args.copies < 1 or args.repeats < 1:
        parser.error("--copies and --repeats are whole numbers from 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.folder.exists():
        raise UserError(f"{args.folder}: exists already; expected a new folder, since it is deleted at the end.")
    database, _, segments = prepare(args)
    needed, free = TIMES[-1] * args.copies * segments.x.nbytes, shutil.disk_usage(args.folder.resolve().parent).free
    if needed > free:
        raise UserError(f"{args.folder}: {needed / 1e9:.1f} GB of shards, {free / 1e9:.1f} GB free. "
                        "Choose fewer --copies or another disk.")
    del segments
    try:
        write_copies(args.folder, database, TIMES[-1] * args.copies)
        copies = [args.copies * times for times in TIMES]
        found = alternating(database, args.folder, copies, torch.get_num_threads(), args.repeats)
        rows = table_of(found, args.folder)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print("\n".join(aligned([["source", "GB", "s to first batch", "segments/s", "of memory's", "peak MB"], *(
        [r["source"], f"{r['gigabytes']:.1f}", f"{r['first_s']:.1f}", f"{r['segments_per_s']:,.0f}",
         f"{r['share_of_memory']:.2f}", f"{r['peak_mb']:,.0f}"] for r in rows)])))
    path = database.root / "results" / "scaling.json"
    write_json(path, {"threads": torch.get_num_threads(), "steps": STEPS, "batch": config.BATCH_SIZE, "rows": rows})
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
