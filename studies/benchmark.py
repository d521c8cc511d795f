"""How fast, against what a user would write or take instead, and what the machine can do at all.

reads   data/mitdb, data/segments.npz       python dataset.py --download; python dataset.py
        checkpoints/beat.pt, patient.pt     python train_mitbih.py --protocol beat (and patient)
        results/*/recipe.json, full.json    python -m studies.benchmark_training: the long runs
writes  results/benchmark.json              every timing
        results/detect.json                 those of detect.py (studies.benchmark_detect)

Candidates of a group take turns, each in a process of its own: a machine's speed drifts, and memory
kept by one would help the other. The commands run in a copy of the project, so that nothing of
yours is made anew; their memory is the largest sum over their processes. Run nothing beside it.
Next: python -m studies.report --write
"""

import shutil
import tempfile
from pathlib import Path

import joblib
import numpy as np
import torch
import wfdb
from scipy.signal import butter, filtfilt
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import config
import dataset
import train_mitbih
from evaluate import load_detector
from models import ConvAutoencoder, load_checkpoint, new_network, reconstruct
from pipeline import errors, runtime, settings
from pipeline.artefacts import write_json
from pipeline.corruption import Corruption
from preprocess import bandpass
from scoring import detector
from scoring.features import BATCH, BeatFeatures
from studies import (benchmark_detect, benchmark_peers, benchmark_report, benchmark_training,
                     report)
from studies.stopwatch import PRODUCT_GFLOP, matrix_product, time_command, time_group

REPEATS = 9
PEER_REPEATS = 3      # of other detectors, some of which take a minute
STEPS = 20            # training steps a timing
LOOK_S = 1            # between two looks at the memory of a command that takes minutes
SEGMENTS = 4096       # a timing of inference
BATCHES = (64, 128, 256, 512, 1024)
ROOMS = ("pipeline", "scoring", "recording", "scaling")


class PlainAutoencoder(ConvAutoencoder):
    """The same network as everybody would write it: torch's own layers in eager mode."""

    def __init__(self, **model_args):
        super().__init__(**model_args)

        # the layers but this last one come from conv and conv_transpose
        self.decoder[-1] = nn.ConvTranspose1d(32, 1, 4, stride=2, padding=1)

    @staticmethod
    def layout(h):
        return h

    @staticmethod
    def conv(inputs, outputs, kernel):
        return [nn.Conv1d(inputs, outputs, kernel, stride=2, padding=kernel // 2),
                nn.BatchNorm1d(outputs), nn.ReLU()]

    @staticmethod
    def conv_transpose(inputs, outputs):
        return [nn.ConvTranspose1d(inputs, outputs, 4, stride=2, padding=1),
                nn.BatchNorm1d(outputs), nn.ReLU()]


def plain_of(model):
    """A PlainAutoencoder with the weights of a ConvAutoencoder."""
    plain = PlainAutoencoder(**model.model_args)
    # our layers name their weights as torch's do, so that any checkpoint fits
    plain.load_state_dict(model.state_dict())
    return plain


# --- candidates: each gives the work that is timed, made in its own process -----------------------

def our_step(n_records):
    """A function (x, record) that takes one training step, from batch to updated weights."""
    model = new_network()
    head = nn.Linear(config.LATENT_DIM, n_records)
    # at the library's learning rate: it changes no time
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], fused=True)

    corrupt = Corruption(config.SEED, torch.device("cpu"))

    def step(x, record):
        # corruption and both losses, the records' as well: what a step of train_mitbih.py does
        seen = corrupt(x, 0)
        optimizer.zero_grad()
        train_mitbih.batch_loss(model, head, seen, x, record).backward()
        optimizer.step()
    return step


def our_training(threads, x, record):
    """One training step for each batch of x."""
    runtime.use_threads(threads)
    names, record = np.unique(record, return_inverse=True)
    step = our_step(len(names))

    # cut before the clock runs: a batch is a view, and neither side pays for it
    batches = list(zip(torch.from_numpy(x).split(config.BATCH_SIZE),
                       torch.from_numpy(record).split(config.BATCH_SIZE)))
    return lambda: [step(*batch) for batch in batches]


def plain_training(threads, x, size):
    """The same steps of the plain form, as PyTorch comes, reconstruction alone."""
    # not runtime.use_threads, which also has the C library keep memory: that is ours
    torch.set_num_threads(threads)
    plain = plain_of(new_network())
    optimizer = torch.optim.AdamW(plain.parameters())

    def work():
        for batch in torch.from_numpy(x).split(size):
            optimizer.zero_grad()
            loss, _ = train_mitbih.reconstruction_loss(plain, batch, batch)
            loss.backward()
            optimizer.step()
    return work


def our_inference(threads, checkpoint, x, batch):
    """Forward passes of all of x."""
    runtime.use_threads(threads)
    model, _ = load_checkpoint(checkpoint, "")
    return lambda: reconstruct(model, x, batch, "cpu")


def plain_inference(threads, checkpoint, x, batch):
    """The same by the plain form."""
    torch.set_num_threads(threads)
    plain = plain_of(load_checkpoint(checkpoint, "")[0]).eval()
    batches = torch.from_numpy(x).unsqueeze(1).split(batch)

    # no gradients in either: what everybody knows to switch off is not counted as ours
    @torch.inference_mode()
    def work():
        for part in batches:
            plain(part)
    return work


def our_building(threads, database):
    """Columns of segments.npz from the records."""
    config.THREADS = threads
    return lambda: dataset.read_records(database)


def plain_building(threads, database):
    """The same in one loop over records and beats, as everybody would write it."""
    def work():
        half = config.WINDOW_SIZE // 2
        x = []
        labels = []
        for name in database.records:
            path = str(database.records_dir() / name)
            record = wfdb.rdrecord(path)
            notes = wfdb.rdann(path, "atr")

            lead = next(lead for lead in database.leads if lead in record.sig_name)
            b, a = butter(config.FILTER_ORDER, config.BAND_HZ, "bandpass", fs=record.fs)
            signal = filtfilt(b, a, record.p_signal[:, record.sig_name.index(lead)])

            # a beat at the edge, without its whole segment, is left out by both
            for sample, symbol in zip(notes.sample, notes.symbol):
                if symbol in settings.AAMI_OF and half <= sample <= len(signal) - half:
                    segment = signal[sample - half:sample + half]
                    x.append((segment - segment.mean()) / segment.std())
                    labels.append(symbol)
        return np.array(x, np.float32), np.array(labels)
    return work


def decoding_and_filtering(threads, database):
    """What building cannot do without: signals and annotations decoded, signals filtered."""
    def one(path):
        signal, fs_hz, _ = dataset.read_lead(path, database.leads, "")
        wfdb.rdann(str(path), "atr")
        return bandpass(signal, fs_hz, config.BAND_HZ, config.FILTER_ORDER)

    paths = [database.records_dir() / name for name in database.records]
    work = joblib.Parallel(n_jobs=threads, prefer="threads")
    return lambda: work(joblib.delayed(one)(path) for path in paths)


def our_scoring(threads, database, names):
    """Scores of the patient protocol's test beats after the network; the network alone for ()."""
    runtime.use_threads(threads)
    segments = dataset.load_segments(database)
    model, stored = load_detector(database, "patient", config.SEED, segments)
    test = segments.part("patient", "test")
    x = segments.x[test]

    # the first row of the group: the others are what comes on top
    if not names:
        return lambda: reconstruct(model, x, BATCH, "cpu")

    fitted = stored["fitted"]
    features = BeatFeatures.of(model, segments, test, fitted["settings"], config.FS_HZ, "cpu")

    def work():
        # made above already, but it is part of what comes after the network
        features.set_rhythm(segments.rows, test, fitted["settings"], config.FS_HZ)
        detector.scores_of(features, fitted, names)
    return work


# --- the groups -----------------------------------------------------------------------------------

def measure(database, segments, threads, repeats):
    """Rows of all groups of candidates."""
    checkpoint = database.checkpoint_path("patient", config.SEED)
    plain = plain_of(load_checkpoint(checkpoint, "")[0]).eval()
    # multiplications and additions of a forward pass of one segment, as torch counts them
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        plain(torch.zeros(1, 1, config.WINDOW_SIZE))
    gflop = counter.get_total_flops() / 1e9

    # --- training; the gradients are twice the work of a forward pass
    chosen = segments.part("patient", "train")[:STEPS * config.BATCH_SIZE]
    x = segments.x[chosen]
    products = round(3 * gflop * len(x) / PRODUCT_GFLOP)
    rows = time_group("training step", {
        "ours": (our_training, (threads, x, segments.rows["record"][chosen])),
        "plain": (plain_training, (threads, x, config.BATCH_SIZE)),
        "plain, recipe": (plain_training, (threads, x, benchmark_training.BATCH_SIZE)),
        "as much in matrix products": (matrix_product, (threads, products))},
        (len(x), "segments"), "plain", repeats)

    # --- inference, at batch sizes around the one that is used
    x = segments.x[:SEGMENTS]
    products = round(gflop * len(x) / PRODUCT_GFLOP)
    candidates = {}
    for size in BATCHES:
        # the tables and the summary find ours by this word
        used = " (used)" if size == BATCH else ""
        candidates[f"ours, batch {size}{used}"] = our_inference, (threads, checkpoint, x, size)
    candidates["plain"] = plain_inference, (threads, checkpoint, x, BATCH)
    candidates["matrix product"] = matrix_product, (threads, products)

    # in operations, so that the matrix product stands beside the network at all
    amount = dict.fromkeys(candidates, gflop * len(x))
    amount["matrix product"] = products * PRODUCT_GFLOP
    rows += time_group("inference", candidates, (amount, "GFLOP"), "plain", repeats)

    # --- building and scoring: several seconds a turn, so fewer turns
    rows += time_group("building the segments", {
        "ours": (our_building, (threads, database)),
        "one loop": (plain_building, (threads, database)),
        "decoding and filtering alone": (decoding_and_filtering, (threads, database))},
        (len(segments.x), "segments"), "one loop", min(repeats, 5))

    return rows + time_group("scoring the test beats", {
        "network": (our_scoring, (threads, database, ())),
        "default score after it": (our_scoring, (threads, database, [config.DEFAULT_SCORE])),
        "all scores after it": (our_scoring, (threads, database, config.SCORES["patient"]))},
        (len(segments.part("patient", "test")), "beats"), "network", min(repeats, 3))


# --- whole commands -------------------------------------------------------------------------------

def time_commands(database):
    """Each command of the pipeline in a copy of the project: its code, its records by a link."""
    records = database.records_dir()
    commands = ["dataset.py"]
    for protocol in config.PROTOCOLS:
        for script in ("train_mitbih.py", "evaluate.py", "visualize.py"):
            commands.append(f"{script} --protocol {protocol}")
    commands.append(f"detect.py data/{records.name}/{database.records[0]}.hea --out found")

    # without checkpoints and results: what is up to date would not be done again
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for path in settings.ROOT.glob("*.py"):
            shutil.copy(path, folder)
        for room in ROOMS:
            shutil.copytree(settings.ROOT / room, folder / room)

        # 92 MB that no command writes to
        (folder / "data").mkdir()
        (folder / "data" / records.name).symlink_to(records)

        # in the order of the pipeline: each finds what the one before it wrote
        return [time_command(folder, *command.split(), look_s=LOOK_S)
                for command in tqdm(commands, disable=None)]


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns, at most [%(default)s]")
    parser.add_argument("--before", metavar="COMMIT",
                        help="a version whose detect.py takes turns with this one's")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, _ = runtime.prepare(args)

    # what is missing or stale is told of before half an hour has gone
    benchmark_report.long_runs(database)
    segments = dataset.load_segments(database)
    for protocol in config.PROTOCOLS:
        load_detector(database, protocol, config.SEED, segments)
    if not benchmark_peers.of_pyod():
        print("PyOD is not installed and stays out of the table. "
              f"Install it with: {benchmark_peers.INSTALL}")

    # the same number in every candidate, whose process knows nothing of this one's flags
    threads = torch.get_num_threads()
    rows = measure(database, segments, threads, args.repeats)

    # validation beats alone: nothing of the test split is looked at for a comparison of speed
    detectors = []
    for protocol in config.PROTOCOLS:
        detectors += benchmark_peers.time_detectors(database, protocol, segments, PEER_REPEATS)

    benchmark_detect.write(database, threads, args.repeats, args.before)

    path = database.out / "results" / "benchmark.json"
    write_json(path, {"threads": threads, "rows": rows, "detectors": detectors,
                      "qrs": benchmark_peers.time_qrs_detectors(database, PEER_REPEATS),
                      "stages": time_commands(database), "batch": config.BATCH_SIZE,
                      "recipe_batch": benchmark_training.BATCH_SIZE,
                      "n_test": len(segments.part("patient", "test"))})
    print(report.render("speed.md", **report.speed_values(database)))
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
