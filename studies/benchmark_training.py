"""What training less costs: the shipped networks beside the published recipe and a far longer run.

reads   data/segments.npz                    python dataset.py
        checkpoints/beat.pt, patient.pt      shipped
writes  results/PROTOCOL/recipe.json         the recipe, and where it meets the shipped loss
        results/PROTOCOL/full.json           our training, FULL_EPOCHS passes over all normal beats
        checkpoints/recipe-*.pt, full-*.pt   their networks, not shipped

Hours on two cores; a stopped run goes on by itself. The recipe: up to 100 epochs over all normal
training beats, batches of 256, AdamW at 1e-3, lower on a plateau, stopped after 15 epochs without a
better validation loss, reconstruction alone. It draws the same tapered beat, so that its validation
loss and the shipped network's are of the same thing. What an epoch of it takes is timed by
studies/benchmark.py: the steps here are ours.

Quality is on validation beats: the default score, fitted as train_mitbih.py fits it. The test split
stays shut. Next: python -m studies.benchmark
"""

import time

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

import config
import train_mitbih
from dataset import load_segments
from evaluate import load_detector
from models import new_network, save_checkpoint, stamp_of
from pipeline import errors, runtime, settings
from pipeline.artefacts import write_json
from pipeline.errors import UserError
from scoring import detector
from studies.other_settings import other_settings

BATCH_SIZE = 256             # as published, like the next three
LEARNING_RATE = 1e-3
EPOCHS = 100
PATIENCE = 15
FACTOR = 0.5                 # of ReduceLROnPlateau, published without its two: a usual choice
PLATEAU = 5
STOPPED = (*train_mitbih.STAMP, "kept", "target", "optimizer", "schedule")
FULL_EPOCHS = 20             # 11 (beat) and 6 times (patient) the shipped networks' segments


# --- the recipe -----------------------------------------------------------------------------------

def train_recipe(x, x_validation, target, path, stamp, epochs, resume=None):
    """(model, history, {"best": weights, "equal": weights}) of at most so many epochs.

    "equal" are the weights of the first epoch whose validation loss is at most `target`. `path`
    holds the run after every epoch; resume: (model, stored) of a stopped run to go on with.
    """
    # --- network, optimiser, schedule
    torch.manual_seed(config.SEED)
    model = new_network().to(x.device)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=FACTOR,
                                                          patience=PLATEAU)

    # --- where it begins
    history = []
    kept = {}
    if resume:
        stopped, stored = resume
        if stored["target"] != target:
            raise UserError(f"{path}: the stopped run had another shipped network to meet. "
                            "Start anew with --force.")

        # rate and patience of the schedule go on as well, or the run would be another
        model.load_state_dict(stopped.state_dict())
        optimizer.load_state_dict(stored["optimizer"])
        schedule.load_state_dict(stored["schedule"])
        history, kept = stored["history"], stored["kept"]

        print(f"going on after epoch {len(history)}")

    # --- epochs
    while len(history) < epochs and not is_finished(history):
        model.train()
        start = time.perf_counter()
        total = 0.0

        # by epoch and seed alone: a run that was stopped draws the same order
        order = np.random.default_rng([config.SEED, len(history)]).permutation(len(x))
        batches = torch.from_numpy(order).split(BATCH_SIZE)

        for rows in tqdm(batches, desc=f"epoch {len(history)}", disable=None):
            optimizer.zero_grad()
            loss, _ = train_mitbih.reconstruction_loss(model, x[rows], x[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        seconds = time.perf_counter() - start

        # on normal validation beats, as ours: the plateau, the end and the best weights hang on it
        loss = train_mitbih.validation_loss(model, x_validation, x.device)
        rate = optimizer.param_groups[0]["lr"]
        schedule.step(loss)
        # copies: the next epoch writes to the same tensors
        weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

        if loss < min((row["validation_loss"] for row in history), default=np.inf):
            kept["best"] = weights
        if loss <= target:
            kept.setdefault("equal", weights)

        history.append({"epoch": len(history) + 1, "train_loss": total / len(x),
                        "validation_loss": loss, "learning_rate": rate,
                        "seconds": round(seconds, 2)})
        # hours on two cores: an epoch is the most that a stop costs
        save_checkpoint(path, model, **stamp, history=history, kept=kept, target=target,
                        optimizer=optimizer.state_dict(), schedule=schedule.state_dict())
        print(f"epoch {len(history)}: train {total / len(x):.5f}, validation {loss:.5f} "
              f"(shipped {target:.5f}), learning rate {rate:.2g}", flush=True)
    return model, history, kept


def is_finished(history):
    """Whether the recipe stops: PATIENCE epochs without a better validation loss, or EPOCHS."""
    losses = [row["validation_loss"] for row in history]
    # epochs since the best one
    waited = len(losses) - 1 - losses.index(min(losses)) if losses else 0
    return len(losses) >= EPOCHS or waited >= PATIENCE


# --- what a network is worth ----------------------------------------------------------------------

def quality(model, segments, protocol, device):
    """Areas of the default score and of the published one on the validation beats."""
    # everything behind the network is fitted anew: distances are of this network's latents
    rows = segments.part(protocol, "validation")
    names = (config.DEFAULT_SCORE, "mse")
    fitted = detector.fit(model.eval(), segments, segments.part(protocol, "train"), rows,
                          config.WEIGHTS[protocol], settings.snapshot(settings.SCORE_SETTINGS),
                          config.FS_HZ, device)
    scores, _ = detector.score(model, fitted, segments, rows, names, config.FS_HZ, device)

    default, mse = (scores[name] for name in names)
    y = segments.rows["y"][rows]
    return {"auroc": roc_auc_score(y, default), "auprc": average_precision_score(y, default),
            "mse_auroc": roc_auc_score(y, mse), "n": len(y), "abnormal": int(y.sum())}


def shipped(database, segments, protocol, device):
    """Quality, validation loss and segments trained on of the shipped network."""
    model, stored = load_detector(database, protocol, config.SEED, segments)
    history = stored["history"]

    # a set smaller than an epoch is gone over once
    epoch = min(stored["training_settings"]["EPOCH_SEGMENTS"],
                len(segments.part(protocol, "train")))
    return {**quality(model.to(device), segments, protocol, device),
            "segments": epoch * len(history),
            "validation_loss": min(row["validation_loss"] for row in history)}


# --- the two runs ---------------------------------------------------------------------------------

def run_recipe(database, protocol, segments, x_validation, epochs, stopped_run):
    """The recipe of one protocol, to results/PROTOCOL/recipe.json."""
    device = x_validation.device
    ours = shipped(database, segments, protocol, device)
    target = ours["validation_loss"]
    x = torch.from_numpy(segments.x[segments.part(protocol, "train")]).to(device)

    path = database.out / "checkpoints" / f"recipe-{protocol}.pt"
    stamp = stamp_of(segments, protocol, config.SEED)
    model, history, kept = train_recipe(x, x_validation, target, path, stamp, epochs,
                                        stopped_run(path, stamp, STOPPED))

    # of the best epoch, and of the first that is as good as the shipped network
    qualities = {}
    for name, weights in kept.items():
        model.load_state_dict(weights)
        qualities[name] = quality(model, segments, protocol, device)
    equal = next((row["epoch"] for row in history if row["validation_loss"] <= target), None)
    write_json(database.results_dir(protocol, config.SEED) / "recipe.json",
               {"shipped": ours, "history": history, "n_train": len(x), "epochs": EPOCHS,
                "finished": is_finished(history), "equal_epoch": equal,
                "quality": qualities})


def run_full(database, protocol, segments, x_validation, epochs, stopped_run):
    """FULL_EPOCHS passes over all normal beats by our training, to results/PROTOCOL/full.json."""
    device = x_validation.device
    path = database.out / "checkpoints" / f"full-{protocol}.pt"
    paths = {"resume": path.with_suffix(".resume.pt"), "history": path.with_suffix(".csv")}
    beats = train_mitbih.BeatsInMemory(segments, segments.part(protocol, "train"), device)

    # an epoch is a pass, and none is left out: the learning rate's cycle ends with the last
    with other_settings(EPOCH_SEGMENTS=beats.n, MAX_EPOCHS=FULL_EPOCHS, PATIENCE=FULL_EPOCHS):
        stamp = stamp_of(segments, protocol, config.SEED)
        model, history = train_mitbih.train(beats, x_validation, config.SEED, device, paths, stamp,
                                            stopped_run(paths["resume"], stamp))

    save_checkpoint(path, model, **stamp, history=history)
    write_json(database.results_dir(protocol, config.SEED) / "full.json",
               {"shipped": shipped(database, segments, protocol, device), "history": history,
                "n_train": beats.n, "quality": quality(model, segments, protocol, device)})


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.machine_parser(__doc__)
    parser.add_argument("--protocol", choices=config.PROTOCOLS, help="default: all")
    parser.add_argument("--epochs", type=int, default=EPOCHS,
                        help="of the recipe, at most [%(default)s]")
    parser.add_argument("--force", action="store_true",
                        help="start anew even if there is a stopped run")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    segments = load_segments(database)
    command = database.command("-m studies.benchmark_training")

    def stopped_run(path, stamp, *needs):
        return None if args.force else train_mitbih.stopped_run(path, stamp, command, *needs)

    # one after the other: what is finished is written before the next begins
    for protocol in [args.protocol] if args.protocol else config.PROTOCOLS:
        normal = segments.normal_validation(protocol)
        x_validation = torch.from_numpy(segments.x[normal]).to(device)
        for run in (run_recipe, run_full):
            print(f"{run.__name__}, {protocol} protocol", flush=True)
            run(database, protocol, segments, x_validation, args.epochs, stopped_run)
    print(f"next: {database.command('-m studies.benchmark')}")


if __name__ == "__main__":
    errors.run(main)
