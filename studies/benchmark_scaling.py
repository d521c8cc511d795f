"""Time against the amount of data: of each stage, and of training from an archive of shards.

reads   data/mitdb/, data/segments.npz   python dataset.py
        checkpoints/patient.pt           shipped
writes  results/size.json                time of 1, 2, 4 and 8 times as much data
        results/scaling.json             with --folder: training from shards, and from memory
        FOLDER                           with --folder: the shards, deleted at the end

Build: scaling.build_shards; score: detect.py, whole processes over records of half an hour. Epoch:
so many training steps. Run nothing beside it.

Archives are of 1, 2, 4 and 8 times --copies copies of the database. There each timing is a process
of its own, so that its peak memory is its own, and the shards are dropped from the page cache
before it: they come from the disk. It starts with the first block and goes on while the next one
is read, a larger share of reading than a whole epoch has.

Next: python -m studies.report --write
"""

import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import config
from dataset import load_segments
from pipeline import errors, runtime, settings
from pipeline.artefacts import load_json, write_json
from pipeline.errors import UserError
from scaling import shards
from studies.benchmark import our_step
from studies.stopwatch import time_command
from train_mitbih import BeatsInMemory

TIMES = (1, 2, 4, 8)
RECORDS = 3          # of half an hour, in the smallest build and score: 24 in the largest, 12 hours
STEPS_OF_SIZE = 20   # training steps of the smallest epoch
STEPS = 60           # training steps a timing of shards
REPEATS = 3


def time_steps(beats, steps):
    """(s of the first training step, which waits for a block of shards, s of `steps` more)."""
    step = our_step(len(beats.names))

    # one epoch as long as the timing; closed, since a stream of shards reads ahead
    size = (steps + 1) * config.BATCH_SIZE
    with closing(beats.batches(config.SEED, 0, steps + 1, size)) as batches:
        start = time.perf_counter()
        step(*next(batches))
        first = time.perf_counter()
        for batch in itertools.islice(batches, steps):
            step(*batch)

    return first - start, time.perf_counter() - first


# --- each stage -----------------------------------------------------------------------------------

def time_sizes(database, segments, repeats):
    """A row a stage and size: stage, times, size, unit, seconds [of each repeat], bytes written."""
    records = [database.records_dir() / f"{name}.hea" for name in database.records]
    train = segments.part("beat", "train")
    commands = {"build": ("-m", "scaling.build_shards"), "score": ("detect.py", "--force")}
    rows = {}

    def note(stage, times, size, unit, seconds, size_bytes):
        row = rows.setdefault((stage, times), {"stage": stage, "times": times, "size": size,
                                               "unit": unit, "seconds": [], "bytes": size_bytes})
        row["seconds"].append(seconds)

    for _ in tqdm(range(repeats), desc="repeats", disable=None):
        # sizes in turn: a machine's speed drifts
        for times in TIMES:
            chosen = records[:RECORDS * times]
            for stage, command in commands.items():
                # empty each time: what is done already would not be done again
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder) / stage
                    timing = time_command(settings.ROOT, *command, *chosen, "--out", out)
                    written = sum(path.stat().st_size for path in out.iterdir())
                note(stage, times, len(chosen) / 2, "hours", timing["seconds"], written)

            steps = STEPS_OF_SIZE * times
            n = steps * config.BATCH_SIZE
            # without the first step, which allocates what the others use again
            beats = BeatsInMemory(segments, train[:n], torch.device("cpu"))
            note("epoch", times, n, "segments", time_steps(beats, steps)[1], None)
    return list(rows.values())


def measure_sizes(database, segments, repeats):
    """What size.json holds."""
    # every record of MIT-BIH is half an hour long
    hours = len(database.records) / 2
    read = sum((database.records_dir() / f"{name}.dat").stat().st_size for name in database.records)
    return {"cores": torch.get_num_threads(), "rows": time_sizes(database, segments, repeats),
            "read_bytes_per_hour": read / hours, "beats_per_hour": len(segments.x) / hours}


# --- an archive to train on -----------------------------------------------------------------------

def write_copies(folder, database, copies):
    """Shards of the database's records, `copies` times, and their index."""
    paths = [database.records_dir() / f"{name}.hea" for name in database.records]
    time_command(settings.ROOT, "-m", "scaling.build_shards", *paths, "--out", folder)

    # copies of the files: each has its own pages in the cache, and its own record's name
    index = load_json(folder / "index.json", "")
    entries = []
    for copy in tqdm(range(copies), desc="copies", disable=None):
        for entry in index["shards"]:
            path = folder / f"{copy}-{entry['file']}"
            shutil.copyfile(folder / entry["file"], path)

            # trained on are the records that training from memory takes
            part = "validation" if entry["record"] in database.validation else "train"
            entries.append(entry | {"file": path.name, "record": f"{copy}-{entry['record']}",
                                    "part": part})
    write_json(folder / "index.json", index | {"shards": entries})
    os.sync()  # only what is on the disk can leave the page cache


def first_copies(folder, copies):
    """The Archive of the first so many copies."""
    archive = shards.load_archive(folder, config.BATCH_SIZE, "benchmark", False)
    # file names begin with the number of the copy
    archive.entries = [e for e in archive.entries if int(e["file"].split("-")[0]) < copies]
    return archive


def time_training(database, folder, copies, threads):
    """{"first_s", "segments_per_s", "peak_mb"} of STEPS training steps.

    On the first `copies` copies, or on the database in memory for 0.
    """
    runtime.use_threads(threads)
    start = time.perf_counter()
    if copies:
        beats = shards.Stream(first_copies(folder, copies), config.BATCH_SIZE,
                              config.ARCHIVE_BUFFER)
    else:
        segments = load_segments(database)
        rows = segments.rows
        # what the archive's index marks "train": all but the beats of the validation patients
        train = np.flatnonzero((rows["y"] == 0) & ~np.isin(rows["record"], database.validation))
        beats = BeatsInMemory(segments, train, torch.device("cpu"))
    loaded_s = time.perf_counter() - start
    first_s, seconds = time_steps(beats, STEPS)

    # the peak of this process, mapped files included (Linux)
    status = Path("/proc/self/status").read_text()
    return {"first_s": loaded_s + first_s, "segments_per_s": STEPS * config.BATCH_SIZE / seconds,
            "peak_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024}


def time_archives(database, folder, copies, threads, repeats):
    """A row an archive, memory first: timings, their medians, and of their ratios to memory's."""
    found = {n: [] for n in (0, *copies)}
    for _ in tqdm(range(repeats), desc="timings", disable=None):
        for n, timings in found.items():
            # the next read of each shard comes from the disk
            for path in folder.glob("*.npz"):
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

            # spawned: a fork would count this process's memory as its own
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                timings.append(alone.submit(time_training, database, folder, n, threads).result())

    rows = []
    memory = pd.DataFrame(found[0])
    for n, timings in found.items():
        files = [folder / entry["file"] for entry in first_copies(folder, n).entries] if n else []
        table = pd.DataFrame(timings)

        # turn by turn: a machine that slows down slows both
        rows.append({"source": f"{len(files)} shards" if n else "memory", "copies": n,
                     "timings": timings,
                     "gigabytes": sum(path.stat().st_size for path in files) / 1e9,
                     "share_of_memory": (table.segments_per_s / memory.segments_per_s).median(),
                     **table.median()})
    return rows


def measure_archives(database, segments, folder, copies, repeats):
    """What scaling.json holds; UserError where the folder exists, or the disk is too small."""
    if folder.exists():
        raise UserError(f"{folder}: exists already; expected a new folder, since it is deleted "
                        "at the end. Name another one.")

    needed = (TIMES[-1] * copies + 1) * segments.x.nbytes
    free = shutil.disk_usage(folder.resolve().parent).free
    if needed > free:
        raise UserError(f"{folder}: {needed / 1e9:.1f} GB of shards, {free / 1e9:.1f} GB free. "
                        "Choose fewer --copies or another disk.")

    # deleted whatever happens: 20 GB that nobody else looks for
    threads = torch.get_num_threads()
    try:
        write_copies(folder, database, TIMES[-1] * copies)
        rows = time_archives(database, folder, [copies * times for times in TIMES], threads,
                             repeats)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"threads": threads, "steps": STEPS, "batch": config.BATCH_SIZE, "rows": rows}


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("--folder", type=Path,
                        help="time training from shards: a new folder, on the disk to measure")
    parser.add_argument("--copies", type=int, default=1,
                        help="of the database in the smallest archive; 8: 20 GB in the largest")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, _ = runtime.prepare(args)
    segments = load_segments(database)

    if args.folder:
        name = "scaling.json"
        saved = measure_archives(database, segments, args.folder, args.copies, args.repeats)
    else:
        name = "size.json"
        saved = measure_sizes(database, segments, args.repeats)

    path = database.out / "results" / name
    write_json(path, saved)
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
