"""Step 2 of 4: train the autoencoder on the normal segments of the training split.

reads   data/segments.npz          python dataset.py
writes  checkpoints/beat.pt        the epoch with the lowest loss on normal validation segments,
                                   with all the scores need: references, scale and threshold
        results/beat/history.csv   one row an epoch, as it happens

A run that was killed goes on with --resume and ends with the weights it would have had.

    python train_mitbih.py --shards FOLDER           an archive larger than memory, to checkpoints/archive.pt
    torchrun --nproc-per-node=4 train_mitbih.py      several processes, each with its share of every batch
"""

import contextlib
import csv
import itertools
import time

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from scoring import beat_parts
from scoring import ec57
import config
from pipeline import errors, settings
from pipeline import processes
from scoring import detector
from scaling import shards
from pipeline.errors import UserError
from pipeline.artefacts import whole_file
from models import ConvAutoencoder, n_parameters, save_checkpoint, weights_digest
from dataset import command_of, load_segments
from pipeline.runtime import (FINISHED, STOPPED, machine, normal_validation, parsed, read_checkpoint, run_command,
                    stage_parser, stale, stamp_of)

HISTORY = ("epoch", "train_loss", "validation_loss", "learning_rate", "seconds", "segments_per_s", "kept")
EVALUATION_BATCH = 512
CALIBRATION = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # specificities whose thresholds of the default score are kept


# --- one run ------------------------------------------------------------------------------------

class Run:
    """All that changes while training: weights, optimiser, schedule, best epoch, history."""

    def __init__(self, seed, n_train, n_records, device):
        torch.manual_seed(seed)
        self.seed, self.device = seed, device
        taper = config.TAPER_SIGMA_S and config.TAPER_SIGMA_S * config.FS_HZ
        self.model = ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, taper).to(device)
        self.head = torch.nn.Linear(config.LATENT_DIM, n_records).to(device)  # thrown away after training
        self.batch_loss = processes.averaged(batch_loss, self.model, self.head)
        self.segments = min(config.EPOCH_SEGMENTS, n_train)
        self.steps = max(self.segments // config.BATCH_SIZE, 1)
        self.optimizer = torch.optim.AdamW([*self.model.parameters(), *self.head.parameters()], config.LEARNING_RATE,
                                           weight_decay=config.WEIGHT_DECAY, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.LEARNING_RATE, total_steps=self.steps * config.MAX_EPOCHS + 1,
            pct_start=config.WARMUP_FRACTION)
        self.history, self.best, self.best_state = [], float("inf"), None

    @property
    def finished(self):
        """All epochs done, or PATIENCE epochs without a better validation loss."""
        waited = len(self.history) - 1 - max((r["epoch"] for r in self.history if r["kept"]), default=0)
        return len(self.history) >= config.MAX_EPOCHS or waited >= config.PATIENCE

    def state(self):
        """Everything needed to go on as if never stopped."""
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(), "history": self.history, "best": self.best,
                "best_state": self.best_state}

    def restore(self, model, stored):
        """Take over weights and state of a stopped run."""
        self.model.load_state_dict(model.state_dict())
        self.head.load_state_dict(stored["head"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.schedule.load_state_dict(stored["schedule"])
        self.history, self.best, self.best_state = stored["history"], stored["best"], stored["best_state"]


def epoch_order(seed, epoch, n, size):
    """(size,) rows of epoch `epoch`: the next ones of an endless row of permutations of range(n).

    Every row is seen once before any is seen twice, however small an epoch is.
    """
    first, last = epoch * size // n, ((epoch + 1) * size - 1) // n
    rows = np.concatenate([np.random.default_rng([seed, k]).permutation(n) for k in range(first, last + 1)])
    return rows[epoch * size - first * n:][:size]


def memory_batches(run, x, record):
    """Endless (x (b, w), record (b,)) of rows in memory, this process's share of each batch, epoch after epoch."""
    for epoch in itertools.count(len(run.history)):
        order = torch.from_numpy(epoch_order(run.seed, epoch, len(x), run.segments))
        for step in range(run.steps):
            rows = processes.share(order[step * config.BATCH_SIZE:(step + 1) * config.BATCH_SIZE])
            yield x[rows].to(run.device), record[rows].to(run.device)


def shard_batches(run, stream):
    """The same of a shards.Stream, whose epochs follow each other without a gap."""
    for x, record in stream.batches(len(run.history) * run.steps * config.BATCH_SIZE):
        yield torch.from_numpy(x).to(run.device), torch.from_numpy(record).to(run.device)


def train_epoch(run, batches, progress):
    """An epoch over the next batches; returns the mean loss.

    Raises UserError with epoch and learning rate when a loss is not finite.
    """
    run.model.train()
    epoch, total = len(run.history), 0.0
    for step, (batch, record) in enumerate(itertools.islice(batches, run.steps)):
        run.optimizer.zero_grad()
        loss = run.batch_loss(batch, record)
        value = processes.total(loss.item(), run.device) / processes.count()
        if not np.isfinite(value):
            rate = run.schedule.get_last_lr()[0]
            raise UserError(f"the loss is {value} in epoch {epoch}, step {step}, at learning rate {rate:.3g}. "
                            "Lower LEARNING_RATE in config.py and start anew.")
        loss.backward()
        run.optimizer.step()
        run.schedule.step()
        total += value
        progress.set_postfix(loss=f"{value:.4f}", refresh=False)
        progress.update(len(batch) * processes.count())
    return total / run.steps


def batch_loss(model, head, x, record):
    """What a step makes smaller: the reconstruction error, and how badly the latents tell the records apart."""
    error, z = reconstruction_loss(model, x)
    return error + config.RECORD_LOSS * F.cross_entropy(head(z.float()), record)


def reconstruction_loss(model, x):
    """(mean squared error, latents): x (n, w) against what the network draws of the tapered beat."""
    with torch.autocast("cuda", torch.bfloat16, enabled=x.device.type == "cuda"):
        z = model.encode(x.unsqueeze(1))
        recon = model.decode(z).squeeze(1)
    return F.mse_loss(recon.float(), x * model.taper), z


@torch.inference_mode()
def validation_loss(run, x):
    """The reconstruction error over x (n, w), in evaluation mode; each process takes its share of the rows."""
    run.model.eval()
    total = sum(reconstruction_loss(run.model, part.to(run.device))[0].item() * len(part)
                for part in processes.share(x).split(EVALUATION_BATCH) if len(part))
    return processes.total(total, run.device) / len(x)


def train(run, batches, x_validation, paths, stamp):
    """Epochs until the run is finished; history.csv and the resume file are written after each."""
    while not run.finished:
        epoch, start = len(run.history), time.perf_counter()
        with tqdm(total=run.steps * config.BATCH_SIZE, unit="seg", desc=f"epoch {epoch}",
                  disable=None if processes.is_first() else True) as bar:
            train_loss = train_epoch(run, batches, bar)
        seconds = time.perf_counter() - start
        loss = validation_loss(run, x_validation)
        if not np.isfinite(loss):
            raise UserError(f"the validation loss is {loss} after epoch {epoch}, at learning rate "
                            f"{run.schedule.get_last_lr()[0]:.3g}. Lower LEARNING_RATE in config.py and start anew.")
        kept = bool(loss < run.best)
        if kept:
            run.best = loss
            run.best_state = {k: v.detach().cpu().clone() for k, v in run.model.state_dict().items()}
        run.history.append({"epoch": epoch, "train_loss": train_loss, "validation_loss": loss,
                            "learning_rate": run.schedule.get_last_lr()[0], "seconds": round(seconds, 2),
                            "segments_per_s": round(run.steps * config.BATCH_SIZE / seconds, 1),
                            "kept": int(kept)})
        if processes.is_first():
            save_checkpoint(paths["resume"], run.model, **stamp, **run.state())
            write_history(paths["history"], run.history)
        print(f"epoch {epoch}: train {train_loss:.5f}, validation {loss:.5f}{' kept' if kept else ''}, "
              f"{run.history[-1]['segments_per_s']:.0f} segments/s", flush=True)


def write_history(path, history):
    """history.csv, whole after every epoch."""
    with whole_file(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY)
        writer.writeheader()
        writer.writerows(history)


# --- the detector -------------------------------------------------------------------------------

def fit_scores(model, segments, protocol, device):
    """References of the scores from normal training beats; scale and thresholds from normal validation beats."""
    settings, rows = settings.snapshot(settings.SCORE_SETTINGS), segments.part(protocol, "validation")
    fitted = detector.fit(model, segments, segments.part(protocol, "train"), rows, config.WEIGHTS[protocol], settings,
                         config.FS_HZ, device)
    scores, view = detector.score(model, fitted, segments, rows, config.SCORES[protocol], config.FS_HZ, device)
    normal = np.isin(rows, normal_validation(segments, protocol))
    thresholds = {name: detector.threshold_at_specificity(s[normal], config.TARGET_SPECIFICITY)
                  for name, s in scores.items()}
    default = scores[config.DEFAULT_SCORE][normal]
    levels = detector.levels(scores[config.DEFAULT_SCORE], view, fitted)
    curve = ec57.level_curve(levels, segments.rows["y"][rows], segments.rows["record"][rows])
    unusual, _ = beat_parts.deviations(view, segments.x[rows], fitted, config.FS_HZ)
    return {"fitted": fitted, "thresholds": thresholds, "score_settings": settings, "levels": curve,
            "calibration": {asked: detector.threshold_at_specificity(default, asked) for asked in CALIBRATION},
            "part_limits": beat_parts.limits(unusual[normal], config.TARGET_SPECIFICITY).tolist()}


def stored_weights(path, stamp):
    """(model, stored) of a finished checkpoint that these segments and settings would give, or None."""
    try:
        model, stored = read_checkpoint(path, "", FINISHED)
    except UserError:
        return None
    return None if stale(stored, stamp) else (model, stored)


# --- the script ---------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = stage_parser(__doc__)
    parser.set_defaults(protocol=None)
    parser.add_argument("--shards", metavar="FOLDER", help="train on an archive of shards (dataset.py --shards)")
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run, if there is one")
    parser.add_argument("--force", action="store_true", help="train even if the checkpoint is up to date")
    args = parsed(parser, argv)
    if args.shards and args.protocol:
        parser.error("--protocol goes with data/segments.npz: an archive is split by record")
    args.protocol = "archive" if args.shards else args.protocol or config.PROTOCOL
    return args


def command_for(args, database, *flags):
    """The command line of this run."""
    if not args.shards:
        return run_command(database, "train_mitbih.py", args.protocol, args.seed, *flags)
    seed_flag = ["--seed", str(args.seed)] if args.seed != config.SEED else []
    return command_of(database, "--shards", args.shards, *seed_flag, *flags, script="train_mitbih.py")


def resumed(run, path, stamp, command):
    """Put a stopped run's state into `run` if its file is there and belongs to these settings."""
    if not path.exists():
        print("no stopped run to go on with: starting from the beginning")
        return
    model, stored = read_checkpoint(path, command, STOPPED)
    why = stale(stored, stamp)
    if why:
        raise UserError(f"{path}: the stopped run had other settings ({'; '.join(why)}). "
                        f"Set them back, or start anew with: {command} --force")
    run.restore(model, stored)
    print(f"going on after epoch {len(run.history) - 1}")


def main(argv=None):
    args = parse_args(argv)
    processes.silence_others()
    database, device = machine(args)
    data = load_archive(args, database) if args.shards else load_segments(database)
    command = command_for(args, database)
    checkpoint = database.checkpoint_path(args.protocol, args.seed)
    paths = {"resume": checkpoint.with_suffix(".resume.pt"),
             "history": database.results_dir(args.protocol, args.seed) / "history.csv"}
    stamp = stamp_of(data, args.protocol, args.seed)
    fits = settings.snapshot(settings.SCORE_SETTINGS + (("ARCHIVE_REFERENCES",) if args.shards else ()))
    goes_on = args.resume and paths["resume"].exists()
    done = None if args.force or goes_on else stored_weights(checkpoint, stamp)
    if done and not processes.is_first():
        return
    if done and done[1]["score_settings"] == fits:
        print(f"{checkpoint}: up to date, trained with these settings on these segments (--force trains again)")
        return write_history(paths["history"], done[1]["history"])
    if done:
        model, history = done[0].to(device), done[1]["history"]
        print(f"{checkpoint}: weights up to date; fitting the scores anew with today's settings")
    else:
        print(f"{data.meta['database']}, {args.protocol}{' protocol' if not args.shards else ' of shards'}")
        with processes.group(device, config.BATCH_SIZE, config.RANK_TIMEOUT_S, processes.torchrun(f"{command} --resume")):
            model, history = fresh(data, args, device, paths, stamp,
                                   lambda run: args.resume and resumed(run, paths["resume"], stamp, command))
    if not processes.is_first():
        return
    save_checkpoint(checkpoint, model, **stamp, history=history, weights=weights_digest(model),
                    **fitted_scores(model, data, args, device) | {"score_settings": fits})
    write_history(paths["history"], history)
    paths["resume"].unlink(missing_ok=True)
    print(f"wrote {checkpoint}\nnext: {next_command(args, database, checkpoint)}")


def load_archive(args, database):
    """The Archive of --shards, with what a checkpoint says of its origin."""
    title = f"shards in {args.shards}" + " (SIMULATED ECG, no patient)" * database.simulated
    return shards.load_archive(args.shards, config.BATCH_SIZE, title, database.simulated)


def next_command(args, database, checkpoint):
    """What a person does next: there are no test segments of an archive, but recordings."""
    if args.shards:
        return f"python detect.py RECORDING --checkpoint {checkpoint}"
    return run_command(database, "evaluate.py", args.protocol, args.seed)


def fresh(data, args, device, paths, stamp, prepare_run):
    """fresh_weights of the Segments or the Archive that the flags name."""
    if args.shards:
        return weights_from_shards(data, args.seed, device, paths, stamp, prepare_run)
    rows, normal = data.part(args.protocol, "train"), normal_validation(data, args.protocol)
    return fresh_weights(data, rows, normal, args.seed, device, paths, stamp, prepare_run)


def fitted_scores(model, data, args, device):
    """fit_scores on the Segments, or on a sample of the Archive that memory holds; an archive is split by patient."""
    if not args.shards:
        return fit_scores(model, data, args.protocol, device)
    limits = {"train": config.ARCHIVE_REFERENCES, "validation": config.ARCHIVE_VALIDATION}
    return fit_scores(model, shards.sample(data, limits), "patient", device)


def fresh_weights(segments, rows, normal, seed, device, paths, stamp, prepare_run=lambda run: None):
    """Train on `rows`, choose the epoch on `normal` (row numbers); returns (model with the best weights, history)."""
    x_train, x_validation = torch.from_numpy(segments.x[rows]), torch.from_numpy(segments.x[normal])
    names, record = np.unique(segments.rows["record"][rows], return_inverse=True)
    if device.type == "cuda":  # both fit on the device: no copy a step
        x_train, x_validation = x_train.to(device), x_validation.to(device)
    run = Run(seed, len(x_train), len(names), device)
    batches = lambda: memory_batches(run, x_train, torch.from_numpy(record))
    return trained(run, batches, x_validation, (len(x_train), len(names)), paths, stamp, prepare_run)


def weights_from_shards(archive, seed, device, paths, stamp, prepare_run):
    """The same on the normal training beats of an Archive, which stay on the disk."""
    stream = shards.Stream(archive, seed, config.BATCH_SIZE, config.ARCHIVE_BUFFER, processes.rank(), processes.count())
    held = shards.sample(archive, {"validation": config.ARCHIVE_VALIDATION})
    x_validation = torch.from_numpy(held.x[normal_validation(held, "patient")]).to(device)
    run = Run(seed, stream.rows, len(stream.names), device)
    return trained(run, lambda: shard_batches(run, stream), x_validation, (stream.rows, len(stream.names)), paths,
                   stamp, prepare_run)


def trained(run, batches, x_validation, size, paths, stamp, prepare_run):
    """(model with the best weights, history) of a Run over the iterator that `batches()` opens."""
    print(f"{size[0]:,d} segments of {size[1]} records to train on, {len(x_validation):,d} to validate, "
          f"seed {run.seed}; {n_parameters(run.model):,d} parameters on {run.device}, {processes.launched()} x "
          f"{torch.get_num_threads()} threads")
    if processes.count() > 1 and run.segments < config.BATCH_SIZE:
        raise UserError(f"{run.segments} segments are no whole batch to share out (config.py: BATCH_SIZE = "
                        f"{config.BATCH_SIZE}). Train in one process, or with a smaller BATCH_SIZE.")
    prepare_run(run)
    processes.check_agreement(
        {"epochs done": len(run.history), "segments": stamp["segments_id"][:12], "batches": run.steps},
        "Every process needs the same data and, to go on, the same checkpoints folder: share it.")
    with contextlib.closing(batches()) as opened:
        train(run, opened, x_validation, paths, stamp)
    run.model.load_state_dict(run.best_state)
    return run.model.eval(), run.history


if __name__ == "__main__":
    errors.run(main)
