"""How fast, against what a user would write or take instead, and against what the machine can do at all.

reads   data/mitdb, data/segments.npz   python dataset.py --download; python dataset.py
        checkpoints/beat.pt, patient.pt python train_mitbih.py --protocol beat (and patient)
        results/*/recipe.json, full.json    python benchmark_training.py: the long runs beside ours
writes  results/benchmark.json          every timing; the tables are printed
        evaluation_plots/benchmark.png  quality against training time

Candidates of a group take turns, each in a process of its own, because a machine's speed drifts and
because memory kept by one would help the other. The stages run in a copy of the project, so that
nothing of yours is made anew; their memory is the largest sum over their processes. Run nothing beside it.
"""

import copy
import multiprocessing
import statistics
import time

import joblib
import numpy as np
import torch
import torch.nn.functional as F
import wfdb
from scipy.signal import butter, filtfilt
from torch import nn
from tqdm import tqdm

from studies import benchmark_peers
from studies import benchmark_report
from studies import benchmark_training
import config
from pipeline import errors
import dataset
from scoring import detector
import train_mitbih
from studies.benchmark_stages import stages
from pipeline.figures import save
from evaluate import load_detector
from pipeline.artefacts import write_json
from models import ENCODER_KERNELS, load_checkpoint, reconstruct
from preprocess import bandpass
from pipeline.runtime import machine_parser, parsed, prepare, use_threads
from pipeline.tables import aligned

REPEATS = 9
JOIN_S = 10           # for a candidate's process to end by itself
PEER_REPEATS = 3      # of other detectors, some of which take a minute
STEPS = 20            # training steps a timing
SEGMENTS = 4096       # a timing of inference
MATRIX = 2048         # side of the large matrix product: the machine's limit
BATCHES = (64, 128, 256, 512, 1024)


class PlainAutoencoder(nn.Module):
    """The same network as everybody would write it: layers of nn.Conv1d in eager mode, same weights."""

    def __init__(self, model):
        super().__init__()
        model = copy.deepcopy(model)
        down = [layer for pair in zip(model.down, model.down_norm) for layer in (*pair, nn.ReLU())]
        up = [model.up[0]]
        for norm, conv in zip(model.up_norm, model.up[1:]):
            up += [norm, nn.ReLU(), conv]
        self.encoder = nn.Sequential(*down, nn.Flatten(), model.to_latent)
        self.decoder = nn.Sequential(model.from_latent, nn.Unflatten(1, (-1, model.length)), *up)

    def forward(self, x):
        """x (n, 1, w), already tapered -> recon (n, 1, w)"""
        return self.decoder(self.encoder(x))


def flop_per_segment(model):
    """Multiplications and additions of one forward pass, from the layers' shapes."""
    length, total = model.model_args["window_size"], 0
    for conv, kernel in zip(model.down, ENCODER_KERNELS):
        length //= 2
        total += 2 * length * conv.in_channels * conv.out_channels * kernel
    total += 2 * 2 * model.to_latent.in_features * model.to_latent.out_features
    for conv in model.up:
        total += 2 * length * conv.in_channels * conv.out_channels * conv.kernel_size[0]
        length *= 2
    return total


# --- candidates: each gives the work that is timed, made in its own process -----------------------

def training_batches(x, record):
    """(x, record, number of records) of STEPS batches of normal training beats."""
    names, record = np.unique(record, return_inverse=True)
    return torch.from_numpy(x), torch.from_numpy(record), len(names)


def batches():
    return [slice(k * config.BATCH_SIZE, (k + 1) * config.BATCH_SIZE) for k in range(STEPS)]


def our_training(threads, x, record):
    """STEPS training steps, from batch to updated weights, with the part of the loss that the plain form lacks."""
    use_threads(threads)
    x, record, n = training_batches(x, record)
    run = train_mitbih.Run(0, len(x), n, torch.device("cpu"))

    def work():
        run.model.train()
        for part in batches():
            run.optimizer.zero_grad()
            train_mitbih.batch_loss(run.model, run.head, x[part], record[part]).backward()
            run.optimizer.step()
    return work


def plain_training(threads, x, record, size=None):
    """The same steps of the plain form, as PyTorch comes; with `size`, in batches of so many."""
    torch.set_num_threads(threads)
    x, record, n = training_batches(x, record)
    model = train_mitbih.Run(0, len(x), n, torch.device("cpu")).model
    plain, taper = PlainAutoencoder(model).train(), model.taper
    optimizer = torch.optim.AdamW(plain.parameters(), config.LEARNING_RATE, weight_decay=config.WEIGHT_DECAY)

    def work():
        for rows in torch.arange(len(x)).split(size or config.BATCH_SIZE):
            optimizer.zero_grad()
            tapered = (x[rows] * taper).unsqueeze(1)
            F.mse_loss(plain(tapered), tapered).backward()
            optimizer.step()
    return work


def our_inference(threads, checkpoint, x, batch):
    """Forward passes of all of x."""
    use_threads(threads)
    model, _ = load_checkpoint(checkpoint)
    return lambda: reconstruct(model, x, batch, "cpu")


def plain_inference(threads, checkpoint, x, batch):
    """The same by the plain form."""
    torch.set_num_threads(threads)
    model, _ = load_checkpoint(checkpoint)
    plain, parts = PlainAutoencoder(model).eval(), torch.from_numpy(x).split(batch)

    @torch.inference_mode()
    def work():
        for part in parts:
            plain((part * model.taper).unsqueeze(1))
    return work


def matrix_product(threads, times):
    """So many products of two large matrices."""
    use_threads(threads)
    a, out = torch.randn(MATRIX, MATRIX), torch.empty(MATRIX, MATRIX)
    return lambda: [torch.mm(a, a, out=out) for _ in range(times)]


def our_building(threads, database):
    """Columns of segments.npz from the records."""
    config.THREADS = threads
    return lambda: dataset.read_records(database)


def plain_building(threads, database):
    """The same in one loop over records and beats, as everybody would write it."""
    def work():
        x, labels = [], []
        for name in database.records:
            path = str(database.records_dir() / name)
            record, notes = wfdb.rdrecord(path), wfdb.rdann(path, "atr")
            lead = next(record.sig_name.index(lead) for lead in config.LEADS if lead in record.sig_name)
            b, a = butter(config.FILTER_ORDER, config.BAND_HZ, "bandpass", fs=record.fs)
            signal, half = filtfilt(b, a, record.p_signal[:, lead]), config.WINDOW_SIZE // 2
            for sample, symbol in zip(notes.sample, notes.symbol):
                if symbol in dataset.AAMI_OF and half <= sample <= len(signal) - half:
                    segment = signal[sample - half:sample + half]
                    x.append((segment - segment.mean()) / segment.std())
                    labels.append(symbol)
        return np.array(x, np.float32), np.array(labels)
    return work


def decoding_and_filtering(threads, database):
    """What building cannot do without: signals and annotations decoded by wfdb, signals filtered, over the cores."""
    def one(path):
        signal, fs_hz, _ = dataset.read_lead(path, config.LEADS)
        wfdb.rdann(str(path), "atr")
        return bandpass(signal, fs_hz, config.BAND_HZ, config.FILTER_ORDER)
    paths = [database.records_dir() / name for name in database.records]
    return lambda: joblib.Parallel(n_jobs=threads, prefer="threads")(joblib.delayed(one)(path) for path in paths)


def our_scoring(threads, database, what):
    """Scores of the test beats of the patient protocol: the network alone, or what comes after it."""
    use_threads(threads)
    segments = dataset.load_segments(database)
    model, stored = load_detector(database, "patient", config.SEED, segments)
    test, fitted = segments.part("patient", "test"), stored["fitted"]
    x = segments.x[test]
    if what == "network":
        return lambda: reconstruct(model, x, detector.BATCH, "cpu")
    view = detector.BeatFeatures.of(model, segments, test, fitted["settings"], config.FS_HZ, "cpu")

    def work():
        view.set_rhythm(segments.rows, test, fitted["settings"], config.FS_HZ)
        detector.scores_of(view, fitted, (config.DEFAULT_SCORE,) if what == "default" else config.SCORES["patient"])
    return work


# --- taking turns -----------------------------------------------------------------------------------

def serve(pipe, make, args):
    """Body of a candidate's process: once before the clock runs, then a timing for each word from the pipe."""
    work = make(*args)
    work()
    pipe.send(None)
    while pipe.recv():
        start = time.perf_counter()
        work()
        pipe.send(time.perf_counter() - start)


def alternating(candidates, repeats):
    """{name: [seconds]} of {name: (function that makes the work, its arguments)}, in turn, each in its own process."""
    context, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    try:
        for name, (make, args) in candidates.items():
            pipes[name], other = context.Pipe()
            processes.append(context.Process(target=serve, args=(other, make, args), daemon=True))
            processes[-1].start()
            other.close()       # a candidate that dies ends the run with EOFError, not by waiting
            pipes[name].recv()
        times = {name: [] for name in candidates}
        for _ in tqdm(range(repeats), desc=" / ".join(candidates), disable=None):
            for name, pipe in pipes.items():
                pipe.send(True)
                times[name].append(pipe.recv())
        for pipe, process in zip(pipes.values(), processes):
            pipe.send(False)
            process.join(JOIN_S)  # what is killed leaves warnings behind
    finally:
        for process in processes:
            process.kill()
    return times


def rows_of(what, times, amount, against):
    """A row a candidate: median, rate, and the median of the ratios to `against`, turn by turn.

    amount: {name: (what is done in a timing, its unit)}
    """
    return [{"what": what, "name": name, "times_s": seconds, "median_s": statistics.median(seconds),
             "rate": amount[name][0] / statistics.median(seconds), "unit": f"{amount[name][1]}/s", "against": against,
             "times_as_fast": statistics.median(b / a for a, b in zip(seconds, times[against]))}
            for name, seconds in times.items()]


# --- the script -----------------------------------------------------------------------------------

def measure(database, segments, model, threads, repeats):
    """Rows of all groups of candidates."""
    checkpoint = database.checkpoint_path("patient", config.SEED)
    chosen = segments.part("patient", "train")[:STEPS * config.BATCH_SIZE]
    x, record, flop = segments.x[chosen], segments.rows["record"][chosen], flop_per_segment(model) / 1e9
    product = 2 * MATRIX ** 3 / 1e9
    times = round(3 * flop * len(x) / product)  # as much work as the steps: gradients are twice a forward pass
    rows = rows_of("training step", alternating(
        {"ours": (our_training, (threads, x, record)), "plain": (plain_training, (threads, x, record)),
         "plain, recipe": (plain_training, (threads, x, record, benchmark_training.BATCH_SIZE)),
         "as much in matrix products": (matrix_product, (threads, times))}, repeats),
        dict.fromkeys(("ours", "plain", "plain, recipe", "as much in matrix products"), (len(x), "segments")), "plain")
    x = segments.x[:SEGMENTS]
    times = round(flop * len(x) / product)
    names = {f"ours, batch {n}" + " (used)" * (n == detector.BATCH): n for n in BATCHES}
    candidates = {name: (our_inference, (threads, checkpoint, x, n)) for name, n in names.items()}
    candidates |= {"plain": (plain_inference, (threads, checkpoint, x, detector.BATCH)),
                   "matrix product": (matrix_product, (threads, times))}
    work = dict.fromkeys(candidates, (flop * len(x), "GFLOP")) | {"matrix product": (times * product, "GFLOP")}
    rows += rows_of("inference", alternating(candidates, repeats), work, "plain")
    candidates = {"ours": (our_building, (threads, database)), "one loop": (plain_building, (threads, database)),
                  "decoding and filtering alone": (decoding_and_filtering, (threads, database))}
    rows += rows_of("building the segments", alternating(candidates, 5), dict.fromkeys(
        candidates, (len(segments.x), "segments")), "one loop")
    candidates = {"network": (our_scoring, (threads, database, "network")),
                  "default score after it": (our_scoring, (threads, database, "default")),
                  "all scores after it": (our_scoring, (threads, database, "all"))}
    return rows + rows_of("scoring the test beats", alternating(candidates, 3), dict.fromkeys(
        candidates, (len(segments.part("patient", "test")), "beats")), "network")


def parse_args(argv=None):
    parser = machine_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    args = parsed(parser, argv)
    if args.repeats < 1:
        parser.error("--repeats is a whole number from 1")
    return args


def main(argv=None):
    args = parse_args(argv)
    database, _, segments = prepare(args)
    benchmark_report.long_runs(database)  # missing ones are told of before half an hour has gone
    if not benchmark_peers.of_pyod():
        print(f"PyOD is not installed and stays out of the table. Install it with: {benchmark_peers.INSTALL}")
    model, _ = load_detector(database, "patient", config.SEED, segments)
    rows = measure(database, segments, model, torch.get_num_threads(), args.repeats)
    print("\n".join(aligned(benchmark_report.speed_rows(rows))))
    detectors = [row for protocol in config.PROTOCOLS
                 for row in benchmark_peers.detectors(database, protocol, segments, PEER_REPEATS)]
    print("\n".join(aligned(benchmark_report.detector_rows(detectors))))
    qrs = benchmark_peers.qrs_detectors(database, PEER_REPEATS)
    print("\n".join(aligned(benchmark_report.qrs_rows(qrs))))
    found = stages(database)
    print("\n".join(aligned(benchmark_report.stage_rows(found))))
    path = database.root / "results" / "benchmark.json"
    saved = {"threads": torch.get_num_threads(), "rows": rows, "stages": found, "batch": config.BATCH_SIZE,
             "recipe_batch": benchmark_training.BATCH_SIZE, "n_test": len(segments.part("patient", "test")),
             "detectors": detectors, "qrs": qrs}
    write_json(path, saved)
    print("\n".join(aligned(benchmark_report.training_rows(benchmark_report.trainings(saved, database)))))
    save(database.root / "evaluation_plots" / "benchmark.png", lambda: benchmark_report.figure(saved, database))


if __name__ == "__main__":
    errors.run(main)
