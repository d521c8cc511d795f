"""detect.py whole, started anew each time: a day, a week, half an hour, short strips, on a cluster.

reads   data/mitdb/               python dataset.py --download
        checkpoints/patient.pt    shipped
writes  results/detect.json       seconds and memory of every turn

The day is the database's records one after another. Beside it stands what its beats cost the
encoder at the least: the same number of operations as products of two large matrices. With --before
an earlier version takes turns with this one. Memory is the most that all processes had together, in
a run of its own: to look at it takes time.
python -m studies.benchmark runs this, too. Run nothing beside it.
Next: python -m studies.report --write
"""

import contextlib
import json
import multiprocessing
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import config
from models import load_checkpoint
from pipeline import errors, runtime, settings
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from studies import report
from studies.stopwatch import PRODUCT_GFLOP, matrix_product, prepare, time_command, time_once

REPEATS = 5
DAYS = 7            # the longest recording; once, it takes minutes
STRIPS = 200
STRIP_S = 30
HALF_HOURS = 12     # records that a cluster is given
LOOK_S = 0.05       # between two looks at the memory
FORMAT = "212"      # of the records: two samples in three bytes


# --- recordings -----------------------------------------------------------------------------------

def header_of(database):
    """(sampling rate, bytes of a sample of all leads, signal lines without file and checksums) of
    the first record; all are alike.
    """
    path = database.records_dir() / f"{database.records[0]}.hea"
    first, *lines = [line.split() for line in path.read_text().splitlines()
                     if line and not line.startswith("#")]
    if {line[1] for line in lines} != {FORMAT} or len(lines) != 2:
        raise UserError(f"{path}: expected two signals in format {FORMAT}. Take a database that "
                        "has them.")
    return int(first[2]), 3, [f"{line[2]} {line[3]} {line[4]} 0 0 0 {line[-1]}" for line in lines]


def write_record(stem, data, header):
    """A record of these bytes; its header."""
    fs_hz, frame, lines = header
    stem.with_suffix(".dat").write_bytes(data)
    text = [f"{stem.name} {len(lines)} {fs_hz} {len(data) // frame}",
            *(f"{stem.name}.dat {FORMAT} {line}" for line in lines)]
    stem.with_suffix(".hea").write_text("\n".join(text) + "\n")
    return stem.with_suffix(".hea")


def write_recordings(database, folder):
    """(header of the day, of the days, [header of a strip]) in a folder."""
    header = header_of(database)
    data = [(database.records_dir() / f"{name}.dat").read_bytes() for name in database.records]
    day = write_record(folder / "day", b"".join(data), header)
    days = write_record(folder / "days", b"".join(data * DAYS), header)

    strips = []
    length = STRIP_S * header[0] * header[1]
    for k in range(STRIPS):
        # evenly over the records and their time
        record = data[k % len(data)]
        start = (k // len(data) + 1) * length % (len(record) - length)
        strip = record[start // header[1] * header[1]:][:length]
        strips.append(write_record(folder / f"strip{k:03d}", strip, header))
    return day, days, strips


# --- turns ----------------------------------------------------------------------------------------

@contextlib.contextmanager
def earlier_version(commit):
    """{"before": folder of that version's code}, nothing for None."""
    if commit is None:
        yield {}
        return

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "before")
        git = ["git", "-C", str(settings.ROOT), "worktree"]
        done = subprocess.run([*git, "add", "--detach", str(place), commit], capture_output=True,
                              text=True)
        if done.returncode:
            raise UserError(f"--before {commit}: {done.stderr.strip()} Name a commit of this "
                            "repository.")
        try:
            yield {"before": place}
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], capture_output=True)


def encoder_gflop(database, beats):
    """Operations of the encoder for so many beats, as torch counts them, in 10^9."""
    model, _ = load_checkpoint(database.checkpoint_path("patient", config.SEED), "")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.encode(torch.zeros(1, 1, config.WINDOW_SIZE))
    return counter.get_total_flops() * beats / 1e9


def found_of(folder):
    """(summary of the day, bytes of its files) of the output in a folder."""
    written = sum(path.stat().st_size for path in folder.iterdir())
    return json.loads((folder / "day.ecgad.json").read_text()), written


def detect(folder, out, *arguments, look_s=None):
    """time_command of detect.py into a new folder."""
    with tempfile.TemporaryDirectory(dir=out) as fresh:
        return time_command(folder, "detect.py", *arguments, "--out", fresh, look_s=look_s)


def measure(database, threads, repeats, before):
    """What detect.json holds."""
    with tempfile.TemporaryDirectory() as folder, earlier_version(before) as versions:
        folder = Path(folder)
        versions = {"now": settings.ROOT} | versions
        day, days, strips = write_recordings(database, folder)

        # how many beats the encoder sees
        time_command(settings.ROOT, "detect.py", day, "--out", folder / "once")
        found, written = found_of(folder / "once")
        read = day.with_suffix(".dat").stat().st_size
        gflop = encoder_gflop(database, found["scored"])

        cases = {"a day": [day], "half an hour": [database.records_dir() /
                                                 f"{database.records[0]}.hea"],
                 f"{len(strips)} strips": [*strips, "--jobs", threads]}
        rows = {(case, version): [] for case in cases for version in versions}
        products = []

        spawn = multiprocessing.get_context("spawn")
        product = matrix_product, (threads, round(gflop / PRODUCT_GFLOP))
        with ProcessPoolExecutor(1, spawn, prepare, product) as pool:
            for _ in range(repeats):
                products.append(pool.submit(time_once).result())
                for (case, version), timings in rows.items():
                    timings.append(detect(versions[version], folder, *cases[case]))

        cases[f"{DAYS} days"] = [days]
        rows[f"{DAYS} days", "now"] = [detect(settings.ROOT, folder, days)]
        # in runs of their own, whose time does not count
        memory = {(case, version): detect(versions[version], folder, *cases[case],
                                          look_s=LOOK_S)["peak_mb"] for case, version in rows}
        rows |= on_cluster(database, folder, threads)
    return {"threads": threads, "hours": found["duration_s"] / 3600, "beats": found["scored"],
            "bytes_read": read, "bytes_written": written,
            "gflop": gflop, "products_s": products, "strips": STRIPS, "days": DAYS,
            "cluster_hours": HALF_HOURS * found["duration_s"] / 3600 / len(database.records),
            "before": before,
            "rows": [{"case": case, "version": version,
                      "seconds": [timing["seconds"] for timing in timings],
                      "peak_mb": memory.get((case, version))}
                     for (case, version), timings in rows.items()]}


def on_cluster(database, folder, cores):
    """{(case, "now"): [timing]} of records by dask, one worker to as many as there are cores."""
    try:
        import distributed
    except ImportError:
        print("dask is not installed: nothing is timed on a cluster. Install it with: "
              "pip install -r requirements/cluster.txt")
        return {}

    records = [database.records_dir() / f"{name}.hea" for name in database.records[:HALF_HOURS]]
    rows = {}
    for workers in range(1, cores + 1):
        with distributed.LocalCluster(n_workers=workers, threads_per_worker=1,
                                      dashboard_address=None) as cluster:
            timing = ["--cluster", cluster.scheduler_address, *records]
            # the first recording of a worker waits for its libraries
            detect(settings.ROOT, folder, *timing)
            rows[f"cluster of {workers}", "now"] = [detect(settings.ROOT, folder, *timing)]
    return rows


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns [%(default)s]")
    parser.add_argument("--before", metavar="COMMIT", help="a version that takes turns with this")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, _ = runtime.prepare(args)
    write(database, torch.get_num_threads(), args.repeats, args.before)
    print("next: python -m studies.report --write")


def write(database, threads, repeats, before=None):
    """results/detect.json, and what it says printed."""
    path = database.out / "results" / "detect.json"
    write_json(path, measure(database, threads, repeats, before))
    print(report.render("detect.md", **report.detect_values(database)))
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
