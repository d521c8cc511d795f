"""What training less costs: the shipped networks beside the published recipe and a run many times as long.

reads   data/segments.npz                    python dataset.py
        checkpoints/beat.pt, patient.pt      shipped
writes  results/PROTOCOL/recipe.json         the recipe, epoch by epoch, and where its loss meets the shipped network's
        results/PROTOCOL/full.json           this project's training with FULL_EPOCHS passes over all normal beats
        checkpoints/recipe-*.pt, full-*.pt   their networks, not shipped; a stopped run goes on by itself

Hours on two cores. The recipe: up to 100 epochs over all normal training beats, batches of 256, AdamW at 1e-3, lower on
a plateau, stopped after 15 epochs without a better validation loss, reconstruction alone. It draws the same tapered
beat, so that its validation loss and the shipped network's are of the same thing. What an epoch of it takes is
timed by benchmark.py, with the plain form of the network in turn with ours: the steps here are ours, with the same losses.

Quality is on validation beats: the default score, fitted as train_mitbih.py fits it. The test split stays shut.
"""

import time

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

import config
from pipeline import errors, settings
from scoring import detector
import train_mitbih
from studies.ablation import settings
from pipeline.errors import UserError
from pipeline.artefacts import write_json
from models import ConvAutoencoder, save_checkpoint
from pipeline.runtime import (FINISHED, normal_validation, parsed, prepare, read_checkpoint, run_command, stage_parser, stale,
                    stamp_of)

BATCH_SIZE, LEARNING_RATE, EPOCHS, PATIENCE = 256, 1e-3, 100, 15    # as published
FACTOR, PLATEAU = 0.5, 5     # of ReduceLROnPlateau, which the publication names without them: a usual choice
FULL_EPOCHS = 20             # passes over all normal beats: 11 (beat) and 6 times (patient) the shipped networks' segments
AGAIN = "python benchmark_training.py --force"
RECIPE_STATE = ("optimizer", "schedule", "history", "best", "best_state", "equal_state")


class Recipe:
    """A run of the recipe: network, optimiser, schedule and history; `file` holds it after every epoch."""

    def __init__(self, x, x_validation, target, file, stamp):
        torch.manual_seed(config.SEED)
        taper = config.TAPER_SIGMA_S and config.TAPER_SIGMA_S * config.FS_HZ
        self.model = ConvAutoencoder(config.WINDOW_SIZE, config.LATENT_DIM, taper).to(x.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=FACTOR, patience=PLATEAU)
        self.x, self.x_validation, self.target, self.device = x, x_validation, target, x.device
        self.file, self.stamp = file, stamp
        self.history, self.best, self.best_state, self.equal_state = [], float("inf"), {}, {}

    @property
    def finished(self):
        """PATIENCE epochs without a better validation loss, or EPOCHS."""
        best = min(self.history, key=lambda r: r["validation_loss"], default={"epoch": 0})["epoch"]
        return len(self.history) >= EPOCHS or len(self.history) - best >= PATIENCE

    def epoch(self):
        """One pass over all rows; a row of the history."""
        self.model.train()
        start, total = time.perf_counter(), 0.0
        order = np.random.default_rng([config.SEED, len(self.history)]).permutation(len(self.x))
        for rows in tqdm(torch.from_numpy(order).split(BATCH_SIZE), desc=f"epoch {len(self.history)}", disable=None):
            self.optimizer.zero_grad()
            loss, _ = train_mitbih.reconstruction_loss(self.model, self.x[rows])
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(rows)
        seconds = time.perf_counter() - start
        loss = train_mitbih.validation_loss(self, self.x_validation)
        rate = self.optimizer.param_groups[0]["lr"]
        self.schedule.step(loss)
        return {"epoch": len(self.history) + 1, "train_loss": total / len(self.x), "validation_loss": loss,
                "learning_rate": rate, "seconds": round(seconds, 2)}

    def train(self, epochs):
        """Epochs until the recipe stops, or so many."""
        while not self.finished and len(self.history) < epochs:
            row = self.epoch()
            self.history.append(row)
            weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            if row["validation_loss"] < self.best:
                self.best, self.best_state = row["validation_loss"], weights
            if row["validation_loss"] <= self.target and not self.equal_state:
                self.equal_state = weights
            save_checkpoint(self.file, self.model, **self.stamp, **{k: getattr(self, k) for k in RECIPE_STATE[2:]},
                            target=self.target, optimizer=self.optimizer.state_dict(), schedule=self.schedule.state_dict())
            print(f"epoch {row['epoch']}: train {row['train_loss']:.5f}, validation {row['validation_loss']:.5f} "
                  f"(shipped {self.target:.5f}), learning rate {row['learning_rate']:.2g}", flush=True)

    def resume(self):
        """Go on with what `file` holds, if anything; UserError where that is of other settings, data or target."""
        if not self.file.exists():
            return
        model, stored = read_checkpoint(self.file, AGAIN, ("target", *self.stamp, *RECIPE_STATE))
        why = stale(stored, self.stamp) + ["another shipped network"] * (stored["target"] != self.target)
        if why:
            raise UserError(f"{self.file}: the stopped run had other settings ({'; '.join(why)}). "
                            f"Set them back, or start anew with: {AGAIN}")
        self.model.load_state_dict(model.state_dict())
        self.optimizer.load_state_dict(stored["optimizer"])
        self.schedule.load_state_dict(stored["schedule"])
        for name in RECIPE_STATE[2:]:
            setattr(self, name, stored[name])
        print(f"going on after epoch {len(self.history)}")


def quality(model, segments, protocol, device):
    """{"auroc", "auprc"} of the default score, and "mse_auroc" of the published one, on the validation beats."""
    rows, names = segments.part(protocol, "validation"), (config.DEFAULT_SCORE, "mse")
    fitted = detector.fit(model.eval(), segments, segments.part(protocol, "train"), rows, config.WEIGHTS[protocol],
                         settings.snapshot(settings.SCORE_SETTINGS), config.FS_HZ, device)
    scores, _ = detector.score(model, fitted, segments, rows, names, config.FS_HZ, device)
    y = segments.rows["y"][rows]
    return {"auroc": roc_auc_score(y, scores[config.DEFAULT_SCORE]),
            "auprc": average_precision_score(y, scores[config.DEFAULT_SCORE]),
            "mse_auroc": roc_auc_score(y, scores["mse"]), "n": len(y), "abnormal": int(y.sum())}


def shipped(database, segments, protocol, device):
    """(quality, validation loss, segments trained on) of the shipped network."""
    path = database.checkpoint_path(protocol, config.SEED)
    model, stored = read_checkpoint(path, run_command(database, "train_mitbih.py", protocol, config.SEED), FINISHED)
    history, asked = stored["history"], stored["training_settings"]
    n = min(asked["EPOCH_SEGMENTS"], len(segments.part(protocol, "train")))
    return {**quality(model.to(device), segments, protocol, device), "segments": n * len(history),
            "validation_loss": min(r["validation_loss"] for r in history)}


def run_recipe(database, protocol, segments, device, args):
    """The recipe of one protocol, to results/PROTOCOL/recipe.json."""
    ours = shipped(database, segments, protocol, device)
    to_device = lambda rows: torch.from_numpy(segments.x[rows]).to(device)
    recipe = Recipe(to_device(segments.part(protocol, "train")), to_device(normal_validation(segments, protocol)),
                    ours["validation_loss"], database.root / "checkpoints" / f"recipe-{protocol}.pt",
                    stamp_of(segments, protocol, config.SEED))
    if not args.force:
        recipe.resume()
    recipe.train(args.epochs)
    qualities = {}
    for name, state in (("best", recipe.best_state), ("equal", recipe.equal_state)):
        if state:
            recipe.model.load_state_dict(state)
            qualities[name] = quality(recipe.model, segments, protocol, device)
    reached = [r["epoch"] for r in recipe.history if r["validation_loss"] <= recipe.target]
    write_json(database.results_dir(protocol, config.SEED) / "recipe.json",
               {"shipped": ours, "history": recipe.history, "n_train": len(recipe.x), "finished": recipe.finished,
                "equal_epoch": min(reached, default=None), "quality": qualities, "epochs": EPOCHS})


def run_full(database, protocol, segments, device, args):
    """FULL_EPOCHS passes over all normal beats by this project's training, to results/PROTOCOL/full.json."""
    train, normal = segments.part(protocol, "train"), normal_validation(segments, protocol)
    path = database.root / "checkpoints" / f"full-{protocol}.pt"
    paths = {"resume": path.with_suffix(".resume.pt"), "history": path.with_suffix(".csv")}
    with settings(EPOCH_SEGMENTS=len(train), MAX_EPOCHS=FULL_EPOCHS, PATIENCE=FULL_EPOCHS):
        stamp = stamp_of(segments, protocol, config.SEED)
        resume = lambda run: args.force or train_mitbih.resumed(run, paths["resume"], stamp, AGAIN.removesuffix(" --force"))
        model, history = train_mitbih.fresh_weights(segments, train, normal, config.SEED, device, paths, stamp, resume)
    save_checkpoint(path, model, **stamp, history=history)
    write_json(database.results_dir(protocol, config.SEED) / "full.json",
               {"shipped": shipped(database, segments, protocol, device), "history": history, "n_train": len(train),
                "quality": quality(model, segments, protocol, device)})


RUNS = {"recipe": run_recipe, "full": run_full}


def parse_args(argv=None):
    parser = stage_parser(__doc__)
    parser.set_defaults(protocol=None)
    parser.add_argument("--run", choices=RUNS, help="one of the two; default: both")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the recipe, at most")
    parser.add_argument("--force", action="store_true", help="start anew even if there is a stopped run to go on with")
    return parsed(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device, segments = prepare(args)
    for protocol in [args.protocol] if args.protocol else config.PROTOCOLS:
        for name in [args.run] if args.run else RUNS:
            print(f"{name}, {protocol} protocol", flush=True)
            RUNS[name](database, protocol, segments, device, args)


if __name__ == "__main__":
    errors.run(main)
