"""Time of each stage against the amount of data: 1, 2, 4 and 8 times as much, in turn.

reads   data/mitdb/                      python dataset.py --download
        data/segments.npz                python dataset.py
        checkpoints/patient.pt           shipped
writes  results/size.json                every timing; the table is printed
        evaluation_plots/scaling.png     time against size
        SCALING.md                       with results/scaling.json (benchmark_scaling.py): what an archive would need

Build: `dataset.py --records --shards`; score: `detect.py`, whole processes over records of half an hour. Epoch:
training steps over so many segments. Each stage's fixed part (starting Python, loading libraries) is told from what
grows by a straight line through the four sizes. Run nothing beside it.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import config
from pipeline import errors, settings
import train_mitbih
from studies.benchmark_stages import stage
from pipeline.figures import CURVES, save
from pipeline.artefacts import whole_file, write_json
from pipeline.runtime import machine_parser, parsed, prepare
from pipeline.tables import aligned, load_result, markdown

TIMES = (1, 2, 4, 8)
RECORDS = 3           # of half an hour, in the smallest build and score: 24 in the largest, 12 hours
SEGMENTS = 2560       # of the smallest epoch: 20 batches of 128
REPEATS = 3


# --- what is timed --------------------------------------------------------------------------------

def build(paths, folder):
    """(seconds, bytes written) of shards of these records."""
    seconds = stage(settings.ROOT, "dataset.py", "--records", *paths, "--shards", folder / "shards")["seconds"]
    return seconds, folder_bytes(folder / "shards")


def score(paths, folder):
    """(seconds, bytes written) of detect.py over these records, one after the other, all threads for each."""
    seconds = stage(settings.ROOT, "detect.py", *paths, "--out", folder / "found", "--force")["seconds"]
    return seconds, folder_bytes(folder / "found")


def epoch(segments, n):
    """(seconds, None) of one training epoch over n normal training beats of the beat protocol."""
    rows = segments.part("beat", "train")[:n]
    names, record = np.unique(segments.rows["record"][rows], return_inverse=True)
    run = train_mitbih.Run(0, n, len(names), torch.device("cpu"))
    run.segments, run.steps = n, n // config.BATCH_SIZE
    batches = train_mitbih.memory_batches(run, torch.from_numpy(segments.x[rows]), torch.from_numpy(record))
    with tqdm(disable=True) as bar:
        start = time.perf_counter()
        train_mitbih.train_epoch(run, batches, bar)
    return time.perf_counter() - start, None


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(segments, repeats):
    """[{"stage", "times", "size", "unit", "seconds": [...], "bytes"}], sizes in turn within a repeat."""
    records = [settings.database("mitdb").records_dir() / f"{name}.hea" for name in settings.database("mitdb").records]
    found = {}
    for _ in tqdm(range(repeats), desc="repeats", disable=None):
        for times in TIMES:
            n = RECORDS * times
            for stage, size, unit, work in (("build", n / 2, "hours", lambda folder: build(records[:n], folder)),
                                            ("score", n / 2, "hours", lambda folder: score(records[:n], folder)),
                                            ("epoch", SEGMENTS * times, "segments",
                                             lambda folder: epoch(segments, SEGMENTS * times))):
                with tempfile.TemporaryDirectory() as folder:
                    seconds, size_bytes = work(Path(folder))
                row = found.setdefault((stage, times), {"stage": stage, "times": times, "size": size, "unit": unit,
                                                        "seconds": [], "bytes": size_bytes})
                row["seconds"].append(seconds)
    return list(found.values())


# --- the table and the picture --------------------------------------------------------------------

def line_of(rows):
    """(fixed seconds, seconds a unit) of the straight line through the medians, each weighing by its share."""
    size, seconds = (np.array([f(r) for r in rows], float) for f in (lambda r: r["size"], lambda r: median(r)))
    slope, fixed = np.polyfit(size, seconds, 1, w=1 / seconds)
    return float(fixed), float(slope)


def median(row):
    return float(np.median(row["seconds"]))


def table(rows):
    """Heading and a row a stage and size."""
    lines = [["stage", "data", "s, median", "straight line", "off it"]]
    for stage in dict.fromkeys(r["stage"] for r in rows):
        own = [r for r in rows if r["stage"] == stage]
        fixed, slope = line_of(own)
        for r in own:
            expected = fixed + slope * r["size"]
            lines.append([stage, f"{r['size']:,g} {r['unit']}", f"{median(r):.1f}", f"{expected:.1f}",
                          f"{100 * (median(r) / expected - 1):+.1f} %"])
    return lines


def per_unit(slope, unit):
    """"5.8 s an hour", "1.0 ms a segment"."""
    number = f"{slope:.2g} s" if slope >= 1 else f"{1000 * slope:.0f} ms" if slope >= 0.1 else f"{1000 * slope:.2g} ms"
    return f"{number} {'an' if unit == 'hour' else 'a'} {unit}"


def figure(rows):
    """Seconds against size, a panel a stage, every timing and the line."""
    picture = Figure(figsize=(10, 3.4), dpi=150, layout="constrained")
    stages = list(dict.fromkeys(r["stage"] for r in rows))
    for ax, stage, (colour, _) in zip(picture.subplots(1, len(stages)), stages, CURVES):
        own = [r for r in rows if r["stage"] == stage]
        fixed, slope = line_of(own)
        ends = np.array([0, own[-1]["size"]])
        for r in own:
            ax.plot([r["size"]] * len(r["seconds"]), r["seconds"], "o", color=colour, markersize=4)
        ax.plot(ends, fixed + slope * ends, color="black", linewidth=1,
                label=f"{fixed:.1f} s + {per_unit(slope, own[0]['unit'].removesuffix('s'))}")
        ax.set(title=stage, xlabel=f"data ({own[0]['unit']})", ylabel="time (s)", xlim=(0, None), ylim=(0, None))
        ax.legend(loc="upper left")
        ax.grid(True)
    return picture


# --- what a large archive would need --------------------------------------------------------------

def document(size, streamed):
    """SCALING.md, from results/size.json and results/scaling.json."""
    per, largest = {}, {}
    for stage in ("build", "score", "epoch"):
        own = [r for r in size["rows"] if r["stage"] == stage]
        per[stage], largest[stage] = line_of(own)[1], own[-1]
    cores = size["cores"]
    core_hours = {stage: per[stage] * 24 * 1e6 * cores / 3600 for stage in ("build", "score")}
    terabytes = {stage: largest[stage]["bytes"] / largest[stage]["size"] * 24 * 1e6 / 1e12 for stage in core_hours}
    beats = size["beats_per_hour"] * 24 * 1e6
    heading = ["a million recordings of 24 hours", "core-hours", "TB written"]
    needs = [heading, ["score them (`detect.py`)", f"{core_hours['score']:,.0f}", f"{terabytes['score']:,.0f}"],
             ["make shards of them (`dataset.py --shards`)", f"{core_hours['build']:,.0f}",
              f"{terabytes['build']:,.0f}"],
             [f"train on every beat once ({beats / 1e9:,.0f} billion)",
              f"{beats * per['epoch'] * cores / 3600:,.0f}", ""]]
    stream = [["source", "GB", "segments/s", "of memory's", "peak MB"], *(
        [r["source"], f"{r['gigabytes']:.1f}", f"{r['segments_per_s']:,.0f}", f"{r['share_of_memory']:.2f}",
         f"{max(t['peak_mb'] for t in r['timings']):,.0f}"] for r in streamed["rows"])]
    return "\n".join([
        "# Scaling", "", "Printed by `python benchmark_size.py` from `results/`; no number is typed by hand.", "",
        "## Time against size", "", f"{cores} cores, {len(largest['build']['seconds'])} turns, real records of half an "
        "hour, each with its own output. The straight line is through the medians; its fixed part is the start of "
        "Python and its libraries.", "",
        *markdown(table(size["rows"])), "", "![Time against size](evaluation_plots/scaling.png)", "",
        "## Training from shards against memory", "", f"`python benchmark_scaling.py`, {streamed['threads']} threads, "
        "page cache dropped before each timing.", "", *markdown(stream), "",
        "## What a million recordings need", "", "From the slopes above, at two leads of MIT-BIH's rate (360 Hz) of "
        "which one is scored; reading them is "
        f"{size['read_bytes_per_hour'] * 24 * 1e6 / 1e12:,.0f} TB more.", "", *markdown(needs), "",
        "Long recordings cost less to score: here every half hour has a picture and tables of its own.", "",
        "Scoring and building are one task a record and share nothing: they saturate where the store does. A core "
        f"scores {3600 / (per['score'] * cores):,.0f} hours of ECG an "
        f"hour and reads {size['read_bytes_per_hour'] / (per['score'] * cores) / 1e6:,.1f} MB/s for it; building takes "
        f"{size['read_bytes_per_hour'] / (per['build'] * cores) / 1e6:,.1f} MB/s a core and writes "
        f"{largest['build']['bytes'] / largest['build']['size'] / (per['build'] * cores) / 1e6:,.0f} MB/s, so that a "
        "shared disk of 1 GB/s is full at "
        f"{1e9 / (largest['build']['bytes'] / largest['build']['size'] / (per['build'] * cores)):,.0f} cores. Training "
        f"reads {4 * config.WINDOW_SIZE / per['epoch'] / 1e6:,.1f} MB/s of shards on these {cores} cores. It does not need "
        "every beat of an archive: normal beats repeat themselves, and MIT-BIH is learnt from "
        f"{config.MAX_EPOCHS * config.EPOCH_SEGMENTS:,d} segments.", ""])


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = machine_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--write", action="store_true", help="only SCALING.md and the picture anew, from saved results")
    args = parsed(parser, argv)
    if args.repeats < 1:
        parser.error("--repeats is a whole number from 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    path = settings.database("mitdb").root / "results" / "size.json"
    if not args.write:
        _, _, segments = prepare(args)
        rows = measure(segments, args.repeats)
        folder = settings.database("mitdb").records_dir()
        hours = len(settings.database("mitdb").records) / 2
        read = sum((folder / f"{name}.dat").stat().st_size for name in settings.database("mitdb").records)
        write_json(path, {"cores": torch.get_num_threads(), "rows": rows, "read_bytes_per_hour": read / hours,
                          "beats_per_hour": len(segments.x) / hours})
        print("\n".join(aligned(table(rows))))
    size = load_result(settings.database("mitdb"), "size.json", "benchmark_size.py")
    streamed = load_result(settings.database("mitdb"), "scaling.json", "benchmark_scaling.py --folder FOLDER")
    save(settings.database("mitdb").root / "evaluation_plots" / "scaling.png", lambda: figure(size["rows"]))
    with whole_file(settings.ROOT / "SCALING.md") as part:
        part.write_text(document(size, streamed))
    print("wrote SCALING.md")


if __name__ == "__main__":
    errors.run(main)
