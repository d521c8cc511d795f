"""Step 2 of 4: train the autoencoder on the normal segments of the training split.

reads   data/segments.npz          python dataset.py
writes  checkpoints/beat.pt        the epoch with the lowest loss on normal validation segments,
                                   with all the scores need: references, scale and threshold
        results/beat/history.csv   one row an epoch, as it happens

A run that was killed goes on with --resume and ends with the weights it would have had.
"""

import csv
import time

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import attribution
import clinical
import config
import scoring
from config import UserError
from files import whole_file
from models import ConvAutoencoder, n_parameters, save_checkpoint, weights_digest
from stages import (FINISHED, STOPPED, normal_validation, parsed, prepare, read_checkpoint, run_command,
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


def train_epoch(run, x, record, progress):
    """An epoch over x (n, w) and record (n,) in an order set by the seed; returns the mean loss.

    Raises UserError with epoch and learning rate when a loss is not finite.
    """
    run.model.train()
    epoch, total = len(run.history), 0.0
    order = torch.from_numpy(epoch_order(run.seed, epoch, len(x), run.segments))
    for step in range(run.steps):
        rows = order[step * config.BATCH_SIZE:(step + 1) * config.BATCH_SIZE]
        batch = x[rows].to(run.device)
        run.optimizer.zero_grad()
        error, z = reconstruction_loss(run.model, batch)
        loss = error + config.RECORD_LOSS * F.cross_entropy(run.head(z.float()), record[rows].to(run.device))
        value = loss.item()
        if not np.isfinite(value):
            rate = run.schedule.get_last_lr()[0]
            raise UserError(f"the loss is {value} in epoch {epoch}, step {step}, at learning rate {rate:.3g}. "
                            "Lower LEARNING_RATE in config.py and start anew.")
        loss.backward()
        run.optimizer.step()
        run.schedule.step()
        total += value
        progress.set_postfix(loss=f"{value:.4f}", refresh=False)
        progress.update(len(batch))
    return total / run.steps


def reconstruction_loss(model, x):
    """(mean squared error, latents): x (n, w) against what the network draws of the tapered beat."""
    with torch.autocast("cuda", torch.bfloat16, enabled=x.device.type == "cuda"):
        z = model.encode(x.unsqueeze(1))
        recon = model.decode(z).squeeze(1)
    return F.mse_loss(recon.float(), x * model.taper), z


@torch.inference_mode()
def validation_loss(run, x):
    """The reconstruction error over x (n, w), in evaluation mode."""
    run.model.eval()
    total = sum(reconstruction_loss(run.model, part.to(run.device))[0].item() * len(part)
                for part in x.split(EVALUATION_BATCH))
    return total / len(x)


def train(run, x_train, record, x_validation, paths, stamp):
    """Epochs until the run is finished; history.csv and the resume file are written after each."""
    while not run.finished:
        epoch, start = len(run.history), time.perf_counter()
        with tqdm(total=run.steps * config.BATCH_SIZE, unit="seg", desc=f"epoch {epoch}", disable=None) as bar:
            train_loss = train_epoch(run, x_train, record, bar)
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
    settings, rows = config.snapshot(config.SCORE_SETTINGS), segments.part(protocol, "validation")
    fitted = scoring.fit(model, segments, segments.part(protocol, "train"), rows, config.WEIGHTS[protocol], settings,
                         config.FS_HZ, device)
    scores, view = scoring.score(model, fitted, segments, rows, config.SCORES[protocol], config.FS_HZ, device)
    normal = np.isin(rows, normal_validation(segments, protocol))
    thresholds = {name: scoring.threshold_at_specificity(s[normal], config.TARGET_SPECIFICITY)
                  for name, s in scores.items()}
    default = scores[config.DEFAULT_SCORE][normal]
    levels = scoring.levels(scores[config.DEFAULT_SCORE], view, fitted)
    curve = clinical.level_curve(levels, segments.rows["y"][rows], segments.rows["record"][rows])
    unusual, _ = attribution.deviations(view, segments.x[rows], fitted, config.FS_HZ)
    return {"fitted": fitted, "thresholds": thresholds, "score_settings": settings, "levels": curve,
            "calibration": {asked: scoring.threshold_at_specificity(default, asked) for asked in CALIBRATION},
            "part_limits": attribution.limits(unusual[normal], config.TARGET_SPECIFICITY).tolist()}


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
    parser.add_argument("--resume", action="store_true", help="go on with a stopped run, if there is one")
    parser.add_argument("--force", action="store_true", help="train even if the checkpoint is up to date")
    return parsed(parser, argv)


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
    database, device, segments = prepare(args)
    command = run_command(database, "train_mitbih.py", args.protocol, args.seed)
    checkpoint = config.checkpoint_path(database, args.protocol, args.seed)
    paths = {"resume": checkpoint.with_suffix(".resume.pt"),
             "history": config.results_dir(database, args.protocol, args.seed) / "history.csv"}
    stamp = stamp_of(segments, args.protocol, args.seed)
    goes_on = args.resume and paths["resume"].exists()
    done = None if args.force or goes_on else stored_weights(checkpoint, stamp)
    if done and done[1]["score_settings"] == config.snapshot(config.SCORE_SETTINGS):
        print(f"{checkpoint}: up to date, trained with these settings on these segments (--force trains again)")
        return write_history(paths["history"], done[1]["history"])
    if done:
        model, history = done[0].to(device), done[1]["history"]
        print(f"{checkpoint}: weights up to date; fitting the scores anew with today's settings")
    else:
        print(f"{segments.meta['database']}, {args.protocol} protocol")
        model, history = fresh_weights(
            segments, segments.part(args.protocol, "train"), normal_validation(segments, args.protocol), args.seed,
            device, paths, stamp, lambda run: args.resume and resumed(run, paths["resume"], stamp, command))
    save_checkpoint(checkpoint, model, **stamp, history=history, weights=weights_digest(model),
                    **fit_scores(model, segments, args.protocol, device))
    write_history(paths["history"], history)
    paths["resume"].unlink(missing_ok=True)
    print(f"wrote {checkpoint}\nnext: {run_command(database, 'evaluate.py', args.protocol, args.seed)}")


def fresh_weights(segments, rows, normal, seed, device, paths, stamp, prepare_run=lambda run: None):
    """Train on `rows`, choose the epoch on `normal` (row numbers); returns (model with the best weights, history)."""
    x_train, x_validation = torch.from_numpy(segments.x[rows]), torch.from_numpy(segments.x[normal])
    names, record = np.unique(segments.rows["record"][rows], return_inverse=True)
    if device.type == "cuda":  # both fit on the device: no copy a step
        x_train, x_validation = x_train.to(device), x_validation.to(device)
    run = Run(seed, len(x_train), len(names), device)
    print(f"{len(x_train):,d} segments of {len(names)} records to train on, {len(x_validation):,d} to validate, "
          f"seed {seed}; {n_parameters(run.model):,d} parameters on {device}, {torch.get_num_threads()} threads")
    prepare_run(run)
    train(run, x_train, torch.from_numpy(record), x_validation, paths, stamp)
    run.model.load_state_dict(run.best_state)
    return run.model.eval(), run.history


if __name__ == "__main__":
    config.run(main)
