"""Step 2 of 4: train the autoencoder on normal training segments, then fit the scores.

reads   data/segments.npz          python dataset.py
writes  checkpoints/beat.pt        the epoch with the lowest loss on normal validation segments,
                                   with all the scores need: references, scale and threshold
        results/beat/history.csv   one row an epoch, as it happens

A run that was killed goes on with --resume and ends with the weights it would have had. Several
processes, each with its share of every batch: torchrun --nproc-per-node=4 train_mitbih.py
Next: python evaluate.py
"""

import csv
import itertools
import time
from contextlib import closing

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import config
from dataset import load_segments
from models import (load_checkpoint, n_parameters, new_network, save_checkpoint, stale, stamp_of,
                    weights_digest)
from pipeline import errors, processes, runtime, settings
from pipeline.artefacts import whole_file
from pipeline.corruption import Corruption
from pipeline.errors import UserError

HISTORY = ("epoch", "train_loss", "validation_loss", "learning_rate", "seconds", "segments_per_s",
           "kept")
STAMP = ("segments_id", "segment_settings", "training_settings", "protocol", "seed", "history")
STOPPED = (*STAMP, "head", "optimizer", "schedule", "best", "best_state")
VALIDATION_BATCH = 512


# --- data -----------------------------------------------------------------------------------------

class BeatsInMemory:
    """Normal training beats x (n, w), the record of each, in the order of seed and epoch."""

    def __init__(self, segments, rows, device):
        self.names, record = np.unique(segments.rows["record"][rows], return_inverse=True)
        self.x = torch.from_numpy(segments.x[rows])
        self.record = torch.from_numpy(record)
        self.n = len(rows)
        if device.type == "cuda":  # all of it fits on the device: no copy a step
            self.x = self.x.to(device)
            self.record = self.record.to(device)

    def batches(self, seed, first_epoch, steps, size):
        """Endless (x (b, w), record (b,)): this process's share of each batch."""
        for epoch in itertools.count(first_epoch):
            order = torch.from_numpy(epoch_order(seed, epoch, self.n, size))
            for step in range(steps):
                start = step * config.BATCH_SIZE
                rows = processes.share(order[start:start + config.BATCH_SIZE])
                yield self.x[rows], self.record[rows]


def epoch_order(seed, epoch, n, size):
    """(size,) rows of epoch `epoch`: the next ones of an endless row of permutations of range(n).

    Every row is seen once before any is seen twice, however small an epoch is.
    """
    # epochs follow each other in one endless row: a small epoch leaves no beat out for good
    first = epoch * size // n
    last = ((epoch + 1) * size - 1) // n
    orders = [np.random.default_rng([seed, k]).permutation(n) for k in range(first, last + 1)]
    rows = np.concatenate(orders)
    return rows[epoch * size - first * n:][:size]


# --- losses ---------------------------------------------------------------------------------------

def batch_loss(model, head, seen, clean, record):
    """What a step makes smaller: reconstruction error, and how badly latents tell records apart."""
    error, z = reconstruction_loss(model, seen, clean)
    return error + config.RECORD_LOSS * F.cross_entropy(head(z.float()), record)


def reconstruction_loss(model, seen, clean):
    """(mean squared error, latents): what the network draws of the beats seen (n, w) against the
    clean ones (n, w), tapered."""
    with torch.autocast("cuda", torch.bfloat16, enabled=seen.device.type == "cuda"):
        z = model.encode(seen.unsqueeze(1))
        recon = model.decode(z).squeeze(1)
    return F.mse_loss(recon.float(), clean * model.taper), z


@torch.inference_mode()
def validation_loss(model, x, device):
    """The reconstruction error over clean x (n, w), in evaluation mode; each process takes its
    share."""
    model.eval()
    total = 0.0

    for part in processes.share(x).split(VALIDATION_BATCH):
        if len(part):
            part = part.to(device)
            total += reconstruction_loss(model, part, part)[0].item() * len(part)
    return processes.total(total, device) / len(x)


# --- training -------------------------------------------------------------------------------------

def train(beats, x_validation, seed, device, paths, stamp, resume=None, loss_of_batch=batch_loss,
          corruption=Corruption):
    """(model with the best weights, history) of a run over all epochs.

    beats: BeatsInMemory, or the Stream of scaling/shards.py. x_validation (k, w): normal beats that
    choose the epoch. paths: {"resume", "history"} of the files written after every epoch, which
    hold `stamp`. resume: (model, stored) of a stopped run to go on with. loss_of_batch and
    corruption: others, which a study compares with these.
    Raises UserError, with epoch and learning rate, when a loss is not finite.
    """
    # --- network, optimiser, schedule
    torch.manual_seed(seed)  # the same initial weights on every machine
    model = new_network().to(device)
    # thrown away after training
    head = torch.nn.Linear(config.LATENT_DIM, len(beats.names)).to(device)
    loss_of = processes.averaged(loss_of_batch, model, head)
    corrupt = corruption(seed, device)

    # normal beats repeat themselves: 20,000 of them a pass are as good as all (docs/results.md)
    epoch_size = min(config.EPOCH_SEGMENTS, beats.n)
    steps = max(epoch_size // config.BATCH_SIZE, 1)

    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, config.LEARNING_RATE,
                                  weight_decay=config.WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.LEARNING_RATE, total_steps=steps * config.MAX_EPOCHS + 1,
        pct_start=config.WARMUP_FRACTION)

    # --- where it begins: anew, or where it was stopped
    history = []
    best = float("inf")
    best_state = None
    if resume:
        stopped, stored = resume
        model.load_state_dict(stopped.state_dict())
        head.load_state_dict(stored["head"])
        optimizer.load_state_dict(stored["optimizer"])
        schedule.load_state_dict(stored["schedule"])
        history, best, best_state = stored["history"], stored["best"], stored["best_state"]
        print(f"going on after epoch {len(history) - 1}")

    print(f"{beats.n:,d} segments of {len(beats.names)} records to train on, "
          f"{len(x_validation):,d} to validate, seed {seed}; {n_parameters(model):,d} parameters "
          f"on {device}, {runtime.launched()} x {torch.get_num_threads()} threads")
    check_batches(epoch_size, steps, history, stamp)

    # --- epochs: one bar for all of them, which may end early
    bar = tqdm(total=config.MAX_EPOCHS * steps, initial=len(history) * steps, unit="batch",
               desc=f"at most {config.MAX_EPOCHS} epochs",
               disable=None if runtime.is_first() else True)
    with bar, closing(beats.batches(seed, len(history), steps, epoch_size)) as batches:
        while len(history) < config.MAX_EPOCHS and epochs_waited(history) < config.PATIENCE:
            epoch = len(history)
            start = time.perf_counter()
            model.train()

            train_loss = 0.0
            for step, (x, record) in enumerate(itertools.islice(batches, steps)):
                clean = x.to(device)
                seen = corrupt(clean, epoch * steps + step)
                optimizer.zero_grad()
                loss = loss_of(seen, clean, record.to(device))

                # the mean over the processes: all of them stop, or none
                value = processes.total(loss.item(), device) / processes.count()
                check_finite(value, "loss", epoch, schedule)

                loss.backward()
                optimizer.step()
                schedule.step()
                train_loss += value / steps
                bar.update()
            seconds = time.perf_counter() - start

            # the epoch of the lowest loss on normal validation beats: no label but "normal"
            loss = validation_loss(model, x_validation, device)
            check_finite(loss, "validation loss", epoch, schedule)
            kept = loss < best
            if kept:
                best = loss
                best_state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

            rate = steps * config.BATCH_SIZE / seconds
            history.append({
                "epoch": epoch, "train_loss": train_loss, "validation_loss": loss,
                "learning_rate": schedule.get_last_lr()[0], "seconds": round(seconds, 2),
                "segments_per_s": round(rate, 1), "kept": int(kept)
            })

            # all that a killed run needs to end with the weights it would have had
            if runtime.is_first():
                save_checkpoint(
                    paths["resume"], model, **stamp, history=history, best=best,
                    best_state=best_state, head=head.state_dict(),
                    optimizer=optimizer.state_dict(), schedule=schedule.state_dict())
                write_history(paths["history"], history)
            mark = " kept" if kept else ""
            bar.set_postfix_str(f"epoch {epoch}, validation loss {loss:.5f}")
            with tqdm.external_write_mode():  # the bar makes room for the line
                print(f"epoch {epoch}: train {train_loss:.5f}, validation {loss:.5f}{mark}, "
                      f"{rate:.0f} segments/s", flush=True)

    model.load_state_dict(best_state)
    return model.eval(), history


def epochs_waited(history):
    """Epochs since the last one that was kept."""
    kept = [row["epoch"] for row in history if row["kept"]]
    return len(history) - 1 - max(kept, default=0)


def check_batches(epoch_size, steps, history, stamp):
    """Raise UserError where processes cannot share the batches, or do not start from the same."""
    if processes.count() > 1 and epoch_size < config.BATCH_SIZE:
        raise UserError(
            f"{epoch_size} segments are no whole batch to share out (config.py: BATCH_SIZE = "
            f"{config.BATCH_SIZE}). Train in one process, or with a smaller BATCH_SIZE.")
    processes.check_agreement(
        {"epochs done": len(history), "segments": stamp["segments_id"], "batches": steps},
        "Every process needs the same data and, to go on, the same checkpoints folder: share it.")


def check_finite(value, name, epoch, schedule):
    """Raise UserError where a loss is not a finite number."""
    if not np.isfinite(value):
        raise UserError(
            f"the {name} is {value} in epoch {epoch}, at learning rate "
            f"{schedule.get_last_lr()[0]:.3g}. Lower LEARNING_RATE in config.py and start anew.")


def write_history(path, history):
    """history.csv, whole after every epoch."""
    with whole_file(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, HISTORY)
        writer.writeheader()
        writer.writerows(history)


# --- is it up to date -----------------------------------------------------------------------------

def stored_weights(paths, stamp, resume):
    """(model, stored) of a checkpoint that these segments and settings would give, or None.

    None too where a stopped run is asked for and there is one.
    """
    if resume and paths["resume"].exists():
        return None
    try:
        model, stored = load_checkpoint(paths["checkpoint"], "")
    except UserError:
        return None
    return None if stale(stored, stamp) else (model, stored)


def scores_up_to_date(found, paths, also=()):
    """Whether the scores of the found checkpoint were fitted with today's settings; says so.

    also: names of settings beside SCORE_SETTINGS that the scores depend on.
    """
    _, stored = found
    today = settings.snapshot((*settings.SCORE_SETTINGS, *also))
    same = not settings.differences(stored["score_settings"], today)
    if runtime.is_first() and same:
        write_history(paths["history"], stored["history"])
        print(f"{paths['checkpoint']}: up to date, trained with these settings on these segments "
              "(--force trains again)")
    elif not same:
        print(f"{paths['checkpoint']}: weights up to date; "
              "fitting the scores anew with today's settings")
    return same


def stopped_run(path, stamp, command, needs=STOPPED):
    """(model, stored) of a stopped run to go on with; None where there is none.

    Raises UserError where it belongs to other segments or settings.
    """
    if not path.exists():
        print("no stopped run to go on with: starting from the beginning")
        return None

    model, stored = load_checkpoint(path, f"{command} --force", needs)
    why = stale(stored, stamp)
    if why:
        raise UserError(f"{path}: the stopped run had other settings ({'; '.join(why)}). "
                        f"Set them back, or start anew with: {command} --force")
    return model, stored


# --- the script -----------------------------------------------------------------------------------

def paths_of(checkpoint, results):
    """Where a run writes: {"checkpoint", "resume", "history"}."""
    return {"checkpoint": checkpoint, "resume": checkpoint.with_suffix(".resume.pt"),
            "history": results / "history.csv"}


def training_group(device, command):
    """The processes of torchrun as one group; nothing for one process."""
    again = processes.torchrun(f"{command} --resume")
    return processes.group(device, config.BATCH_SIZE, config.RANK_TIMEOUT_S, again)


def finish(paths, model, history, stamp, scores):
    """Write the checkpoint, its history, and take the file of the stopped run away."""
    save_checkpoint(paths["checkpoint"], model, **stamp, history=history,
                    weights=weights_digest(model), **scores)
    write_history(paths["history"], history)
    paths["resume"].unlink(missing_ok=True)
    print(f"wrote {paths['checkpoint']}")


def parse_args(argv=None):
    parser = runtime.stage_parser(__doc__)
    parser.add_argument("--resume", action="store_true",
                        help="go on with a stopped run, if there is one")
    parser.add_argument("--force", action="store_true",
                        help="train even if the checkpoint is up to date")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    from scoring import fit   # scikit-learn takes a second to load: a wrong flag is told before
    processes.silence_others()
    fit.check_names(args.protocol)

    # --- data, and what a checkpoint of it must say
    database, device = runtime.prepare(args)
    segments = load_segments(database)
    stamp = stamp_of(segments, args.protocol, args.seed)
    command = database.stage_command("train_mitbih.py", args.protocol, args.seed)
    paths = paths_of(database.checkpoint_path(args.protocol, args.seed),
                     database.results_dir(args.protocol, args.seed))

    # --- what is up to date is not done again: weights and scores are looked at apart
    found = None if args.force else stored_weights(paths, stamp, args.resume)
    after = database.stage_command("evaluate.py", args.protocol, args.seed)
    if found and scores_up_to_date(found, paths):
        if runtime.is_first():
            print(f"next: {after}")
        return

    # --- train
    if found:
        model, history = found[0], found[1]["history"]
    else:
        print(f"{stamp['database']}, {args.protocol} protocol")
        beats = BeatsInMemory(segments, segments.part(args.protocol, "train"), device)
        validation = segments.normal_validation(args.protocol)
        x_validation = torch.from_numpy(segments.x[validation]).to(device)
        resume = stopped_run(paths["resume"], stamp, command) if args.resume else None
        with training_group(device, command):
            model, history = train(beats, x_validation, args.seed, device, paths, stamp, resume)

    # --- fit the scores and write; several processes train together, one of them does this
    if runtime.is_first():
        scores = fit.fit_scores(model.to(device), segments, args.protocol, device)
        finish(paths, model, history, stamp, scores)
        print(f"next: {after}")


if __name__ == "__main__":
    errors.run(main)
