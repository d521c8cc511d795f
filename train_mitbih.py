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
from tqdm import tqdm

import config
import scoring
from config import UserError
from files import whole_file
from models import ConvAutoencoder, n_parameters, save_checkpoint, weights_digest
from preprocess import beat_weights
from stages import (FINISHED, STOPPED, normal_validation, parsed, prepare, read_checkpoint, run_command,
                    stage_parser, stale, stamp_of)

HISTORY = ("epoch", "train_loss", "validation_loss", "learning_rate", "seconds", "segments_per_s", "kept")
EVALUATION_BATCH = 512


# --- one run ------------------------------------------------------------------------------------

class Run:
    """All that changes while training: weights, optimiser, schedule, best epoch, history."""

    def __init__(self, seed, n_train, device):
        torch.manual_seed(seed)
        self.seed, self.device = seed, device
        self.model = ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM).to(device)
        self.steps = max(n_train // config.BATCH_SIZE, 1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), config.LEARNING_RATE,
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
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "history": self.history, "best": self.best, "best_state": self.best_state}

    def restore(self, model, stored):
        """Take over weights and state of a stopped run."""
        self.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict(stored["optimizer"])
        self.schedule.load_state_dict(stored["schedule"])
        self.history, self.best, self.best_state = stored["history"], stored["best"], stored["best_state"]


def train_epoch(run, x, weights, progress):
    """One pass over x (n, w) in an order set by seed and epoch; returns the mean loss.

    Raises UserError with epoch and learning rate when a loss is not finite.
    """
    run.model.train()
    epoch, total = len(run.history), 0.0
    order = torch.from_numpy(np.random.default_rng([run.seed, epoch]).permutation(len(x)))
    for step in range(run.steps):
        batch = x[order[step * config.BATCH_SIZE:(step + 1) * config.BATCH_SIZE]].to(run.device)
        run.optimizer.zero_grad()
        loss = weighted_loss(run.model, batch, weights)
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


def weighted_loss(model, x, weights):
    """Mean over samples of weights * squared error. x (n, w), weights (w,) of mean 1."""
    with torch.autocast("cuda", torch.bfloat16, enabled=x.device.type == "cuda"):
        recon = model(x.unsqueeze(1)).squeeze(1)
    return ((recon.float() - x).square() * weights).mean()


@torch.inference_mode()
def validation_loss(run, x, weights):
    """The same loss over x (n, w), in evaluation mode."""
    run.model.eval()
    total = sum(weighted_loss(run.model, part.to(run.device), weights).item() * len(part)
                for part in x.split(EVALUATION_BATCH))
    return total / len(x)


def train(run, x_train, x_validation, paths, stamp):
    """Epochs until the run is finished; history.csv and the resume file are written after each."""
    weights = torch.as_tensor(beat_weights(config.WINDOW_SIZE, config.BEAT_SIGMA_S * config.FS_HZ,
                                           config.LOSS_FLOOR), dtype=torch.float32, device=run.device)
    while not run.finished:
        epoch, start = len(run.history), time.perf_counter()
        with tqdm(total=run.steps * config.BATCH_SIZE, unit="seg", desc=f"epoch {epoch}", disable=None) as bar:
            train_loss = train_epoch(run, x_train, weights, bar)
        seconds = time.perf_counter() - start
        loss = validation_loss(run, x_validation, weights)
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
    settings, x_normal = config.snapshot(config.SCORE_SETTINGS), segments.x[normal_validation(segments, protocol)]
    fitted = scoring.fit(model, segments.x[segments.part(protocol, "train")], x_normal, settings,
                         config.FS_HZ, config.SEED, device)
    scores, _, _ = scoring.score(model, fitted, x_normal, device)
    thresholds = {name: scoring.threshold_at_specificity(s, config.TARGET_SPECIFICITY) for name, s in scores.items()}
    return {"fitted": fitted, "thresholds": thresholds, "score_settings": settings}


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
        model, history = fresh_weights(args, segments, device, paths, stamp, command)
    save_checkpoint(checkpoint, model, **stamp, history=history, weights=weights_digest(model),
                    **fit_scores(model, segments, args.protocol, device))
    write_history(paths["history"], history)
    paths["resume"].unlink(missing_ok=True)
    print(f"wrote {checkpoint}\nnext: {run_command(database, 'evaluate.py', args.protocol, args.seed)}")


def fresh_weights(args, segments, device, paths, stamp, command):
    """Train; returns (model with the best epoch's weights, history)."""
    x_train = torch.from_numpy(segments.x[segments.part(args.protocol, "train")])
    x_validation = torch.from_numpy(segments.x[normal_validation(segments, args.protocol)])
    if device.type == "cuda":  # both fit on the device: no copy a step
        x_train, x_validation = x_train.to(device), x_validation.to(device)
    run = Run(args.seed, len(x_train), device)
    print(f"{segments.meta['database']}, {args.protocol} protocol, seed {args.seed}: "
          f"{len(x_train):,d} normal segments to train, {len(x_validation):,d} to validate; "
          f"{n_parameters(run.model):,d} parameters on {device}, {torch.get_num_threads()} threads")
    if args.resume:
        resumed(run, paths["resume"], stamp, command)
    train(run, x_train, x_validation, paths, stamp)
    run.model.load_state_dict(run.best_state)
    return run.model.eval(), run.history


if __name__ == "__main__":
    config.run(main)
