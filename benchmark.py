"""How fast, against plain PyTorch and against what the machine can do at all; alternating, medians and ratios.

reads   data/segments.npz           python dataset.py
        checkpoints/patient.pt      python train_mitbih.py --protocol patient
writes  results/benchmark.json      every timing; the table is printed

Each pair is timed in turn within one run, because a machine's speed drifts. Run nothing beside it.
"""

import copy
import resource
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import config
import scoring
import train_mitbih
from evaluate import load_detector
from files import write_json
from models import ENCODER_KERNELS
from report import aligned
from stages import machine_parser, parsed, prepare

REPEATS = 7
STEPS = 20            # training steps a timing
SEGMENTS = 4096       # a timing of inference
MATRIX = 2048         # side of the large matrix product: the machine's limit


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


def alternating(candidates, repeats):
    """{name: [seconds]} of functions called in turn, once before the clock runs."""
    times = {name: [] for name in candidates}
    for run in tqdm(range(repeats + 1), desc=" / ".join(candidates), disable=None):
        for name, work in candidates.items():
            start = time.perf_counter()
            work()
            if run:
                times[name].append(time.perf_counter() - start)
    return times


# --- what is timed --------------------------------------------------------------------------------

def training(x, record, n_records):
    """{"ours", "plain"}: STEPS training steps of a batch each, from batch to updated weights."""
    run = train_mitbih.Run(0, len(x), n_records, torch.device("cpu"))
    plain = PlainAutoencoder(run.model)
    optimizer = torch.optim.AdamW(plain.parameters(), config.LEARNING_RATE, weight_decay=config.WEIGHT_DECAY)
    size = config.BATCH_SIZE
    batches = [slice(k * size, (k + 1) * size) for k in range(STEPS)]

    def ours():
        run.model.train()
        for part in batches:
            run.optimizer.zero_grad()
            error, z = train_mitbih.reconstruction_loss(run.model, x[part])
            (error + config.RECORD_LOSS * F.cross_entropy(run.head(z), record[part])).backward()
            run.optimizer.step()

    def eager():
        plain.train()
        for part in batches:
            optimizer.zero_grad()
            tapered = (x[part] * run.model.taper).unsqueeze(1)
            F.mse_loss(plain(tapered), tapered).backward()
            optimizer.step()

    return {"ours": ours, "plain": eager}


def inference(model, x):
    """{"ours", "plain", "matrix product"}: forward passes of all of x, and a product of two large matrices."""
    plain, parts = PlainAutoencoder(model).eval(), x.split(scoring.BATCH)
    a = torch.randn(MATRIX, MATRIX)

    @torch.inference_mode()
    def eager():
        for part in parts:
            plain((part * model.taper).unsqueeze(1))

    @torch.inference_mode()
    def product():
        for _ in range(5):
            a @ a

    return {"ours": lambda: scoring.reconstruct(model, x.numpy(), scoring.BATCH, "cpu"), "plain": eager,
            "matrix product": product}


def detection(model, stored, segments):
    """{"forward pass", "default score after it", "all scores after it"} of the test beats of the patient protocol."""
    test, fitted = segments.part("patient", "test"), stored["fitted"]
    x = segments.x[test]
    view = scoring.View.of(model, segments, test, fitted["settings"], config.FS_HZ, "cpu")

    def score(names):
        view.set_rhythm(segments.rows, test, fitted["settings"], config.FS_HZ)
        scoring.scores_of(view, fitted, names)

    return {"forward pass": lambda: scoring.reconstruct(model, x, scoring.BATCH, "cpu"),
            "default score after it": lambda: score((config.DEFAULT_SCORE,)),
            "all scores after it": lambda: score(config.SCORES["patient"])}


# --- the table ------------------------------------------------------------------------------------

def row(what, times, per, unit, against):
    """One line: median of a candidate, its rate, and the median of the ratios to `against`, pair by pair."""
    def entry(name):
        ratio = statistics.median(b / a for a, b in zip(times[name], times[against]))
        return {"what": what, "name": name, "median_s": statistics.median(times[name]), "times_s": times[name],
                "rate": per.get(name, 0) / statistics.median(times[name]), "unit": unit.get(name, ""),
                "against": against, "times_as_fast": ratio}
    return [entry(name) for name in times]


def parse_args(argv=None):
    return parsed(machine_parser(__doc__), argv)


def main(argv=None):
    args = parse_args(argv)
    database, _, segments = prepare(args)
    model, stored = load_detector(database, "patient", config.SEED, segments)
    rows = segments.part("patient", "train")[:STEPS * config.BATCH_SIZE]
    names, record = np.unique(segments.rows["record"][rows], return_inverse=True)
    n, x = len(rows), torch.from_numpy(segments.x[rows])
    table = row("training step", alternating(training(x, torch.from_numpy(record), len(names)), REPEATS),
                {"ours": n, "plain": n}, {"ours": "segments/s", "plain": "segments/s"}, "plain")
    x = torch.from_numpy(segments.x[:SEGMENTS])
    flop = len(x) * flop_per_segment(model) / 1e9
    work = {"ours": flop, "plain": flop, "matrix product": 5 * 2 * MATRIX ** 3 / 1e9}
    table += row("inference", alternating(inference(model, x), REPEATS), work,
                 dict.fromkeys(work, "GFLOP/s"), "plain")
    n_test = len(segments.part("patient", "test"))
    candidates = detection(model, stored, segments)
    table += row("scoring the test beats", alternating(candidates, 3), dict.fromkeys(candidates, n_test),
                 dict.fromkeys(candidates, "beats/s"), "forward pass")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("\n".join(aligned([["", "", "median s", "rate", "", "times as fast as"], *(
        [r["what"], r["name"], f"{r['median_s']:.3f}", f"{r['rate']:,.0f}", r["unit"],
         f"{r['times_as_fast']:.2f} {r['against']}"] for r in table)])))
    print(f"peak memory of this script: {memory:.2f} GiB")
    write_json(database.root / "results" / "benchmark.json",
               {"threads": torch.get_num_threads(), "rows": table, "peak_gib": memory, "n_test": n_test})


if __name__ == "__main__":
    config.run(main)
