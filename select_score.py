"""How the default score was chosen: on validation data, before the test split was opened. Runs again at will.

reads   data/segments.npz               python dataset.py
        checkpoints/beat*.pt            python train_mitbih.py --protocol beat (every seed)
writes  results/selection.json          every candidate tried and what it reached on validation
        checkpoints/fold*.pt            three networks for the patient protocol, not shipped

Beat protocol: the validation beats, mean over the trained seeds. Patient protocol: the patients of
DS1 (training and validation) in three folds, each scored by a network that saw only the other
two; no record of DS2 is touched. Merit: the mean of pooled ROC-AUC, mean ROC-AUC over records
and PR-AUC. One setting is varied at a time and kept unless another gains half a point (0.005);
then the weights together on a grid, of which the best is taken.
"""

import itertools

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from tqdm import tqdm

import config
import metrics
import scoring
import train_mitbih
from config import UserError
from evaluate import write_json
from stages import FINISHED, machine_parser, parsed, prepare, read_checkpoint, run_command

FOLDS = 3
STEPS = (0.0, 0.1, 0.2, 0.3, 0.5)  # tried for the weight of every part beside the first
TRIED = {"beat": {"DENSITY_POWER": (0.0, 0.3, 0.5, 0.7, 1.0), "NEIGHBOURS": (1, 3, 10)},
         "patient": {"OWN_SHARE": (0.3, 0.5, 0.7, 1.0), "OWN_NEIGHBOURS": (0.02, 0.05, 0.1, 0.2, 0.3),
                     "LOCAL_BEATS": (11, 21, 41)}}
PARTS = {"beat": ("nearest", "rhythm", "beat"), "patient": ("record", "rhythm", "excess")}


def merit(scores, y, record):
    """{"auroc", "auroc_record_mean", "auprc", "merit"} of scores (n,)."""
    own = [v for v in metrics.auroc_by_record(scores, y, record).values() if v is not None]
    figures = {"auroc": float(roc_auc_score(y, scores)), "auroc_record_mean": float(np.mean(own)),
               "auprc": float(average_precision_score(y, scores))}
    return figures | {"merit": float(np.mean(list(figures.values())))}


def averaged(figures):
    """Mean of each figure over several dicts."""
    return {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}


# --- the networks ---------------------------------------------------------------------------------

def beat_models(database, segments, device):
    """[(model, rows to score, training rows, fitted)]: the checkpoints of all seeds on the validation beats."""
    models = []
    for seed in config.SEEDS:
        command = run_command(database, "train_mitbih.py", "beat", seed)
        model, stored = read_checkpoint(config.checkpoint_path(database, "beat", seed), command, FINISHED)
        why = config.changed(stored["training_settings"], config.TRAINING_SETTINGS)
        if why or stored["segments_id"] != segments.meta["id"]:
            why = why or ["segments.npz is not the one it was trained on"]
            raise UserError(f"checkpoint of seed {seed}: out of date ({'; '.join(why)}). Make it with: {command}")
        models.append((model.to(device), segments.part("beat", "validation"), segments.part("beat", "train"),
                       stored["fitted"]))
    return models


def fold_models(database, segments, device):
    """[(model, rows to score, training rows, None)]: a third of the patients of DS1 each, trained on the others."""
    patients, models = sorted(database.train + database.validation), []
    record, normal = segments.rows["record"], segments.rows["y"] == 0
    for fold in range(FOLDS):
        held = np.isin(record, patients[fold::FOLDS])
        train = np.flatnonzero(np.isin(record, patients) & ~held & normal)
        path = database.root / "checkpoints" / f"fold{fold}.pt"
        stamp = {"segments_id": segments.meta["id"], "training_settings": config.snapshot(config.TRAINING_SETTINGS)}
        try:
            model, stored = read_checkpoint(path, "", tuple(stamp))
            if any(stored[key] != value for key, value in stamp.items()):
                raise UserError("of other settings")
        except UserError:
            paths = {"resume": path.with_suffix(".resume.pt"), "history": path.with_suffix(".csv")}
            model, _ = train_mitbih.fresh_weights(segments, train, np.flatnonzero(held & normal), config.SEED,
                                                  device, paths, stamp)
            train_mitbih.save_checkpoint(path, model, **stamp)
            for leftover in paths.values():
                leftover.unlink(missing_ok=True)
        models.append((model.to(device), np.flatnonzero(held), train, None))
    return models


# --- the candidates -------------------------------------------------------------------------------

def prepared(models, segments, protocol, device):
    """[(fitted, View)] of each model on its rows: all that does not change between candidates."""
    settings, result = config.snapshot(config.SCORE_SETTINGS), []
    for model, rows, train, fitted in models:
        fitted = fitted or scoring.fit(model, segments, train, rows, config.WEIGHTS[protocol], settings,
                                       config.FS_HZ, device)
        result.append((fitted, scoring.View(model, segments, rows, settings, config.FS_HZ, device)))
    return result


def parts_of(models, ready, segments, changed, names):
    """[{part: values}] of each model on its rows, each standardised on the normal beats among them."""
    settings, result = config.snapshot(config.SCORE_SETTINGS) | changed, []
    for (_, rows, _, _), (fitted, view) in zip(models, ready):
        view.set_rhythm(segments, rows, settings, config.FS_HZ)
        parts = {name: scoring.PARTS[name](view, fitted | {"settings": settings}, False) for name in names}
        normal = segments.rows["y"][rows] == 0
        result.append({name: (v - v[normal].mean()) / v[normal].std() for name, v in parts.items()})
    return result


def judged(protocol, models, segments, values):
    """Merit of one score an each model's rows: mean over seeds, or all folds together."""
    y, record = segments.rows["y"], segments.rows["record"]
    rows = [model[1] for model in models]
    if protocol == "beat":
        return averaged([merit(v, y[r], record[r]) for v, r in zip(values, rows)])
    return merit(np.concatenate(values), y[np.concatenate(rows)], record[np.concatenate(rows)])


def vary(protocol, models, ready, segments):
    """[{"setting", "value", figures}]: the protocol's first part alone, one setting changed at a time."""
    first, table = PARTS[protocol][0], []
    candidates = [(name, value) for name, values in TRIED[protocol].items() for value in values]
    for name, value in tqdm(candidates, desc=f"{protocol}: settings", disable=None):
        values = [p[first] for p in parts_of(models, ready, segments, {name: value}, (first,))]
        table.append({"setting": name, "value": value, "used": value == getattr(config, name),
                      **judged(protocol, models, segments, values)})
    return table


def weigh(protocol, models, ready, segments):
    """[{"weights", figures}] for all weights of the grid, best first; ties go to the smaller weights."""
    names = PARTS[protocol]
    parts = parts_of(models, ready, segments, {}, names)
    table = []
    for tail in itertools.product(STEPS, repeat=len(names) - 1):
        weights = dict(zip(names, (1.0, *tail)))
        values = [sum(w * p[name] for name, w in weights.items()) for p in parts]
        table.append({"weights": weights, **judged(protocol, models, segments, values)})
    return sorted(table, key=lambda row: (-round(row["merit"], 4), sum(row["weights"].values())))


def parse_args(argv=None):
    return parsed(machine_parser(__doc__), argv)


def main(argv=None):
    args = parse_args(argv)
    database, device, segments = prepare(args)
    result = {"segments_id": segments.meta["id"],
              "training_settings": config.snapshot(config.TRAINING_SETTINGS), "protocols": {}}
    for protocol, build in (("beat", beat_models), ("patient", fold_models)):
        models = build(database, segments, device)
        ready = prepared(models, segments, protocol, device)
        settings, weights = vary(protocol, models, ready, segments), weigh(protocol, models, ready, segments)
        result["protocols"][protocol] = {"settings": settings, "weights": weights}
        for row in settings + weights[:5]:
            what = f"{row['setting']} = {row['value']}" if "setting" in row else row["weights"]
            print(f"{row['merit']:.4f}  ROC-AUC {row['auroc']:.4f}, mean over records {row['auroc_record_mean']:.4f}, "
                  f"PR-AUC {row['auprc']:.4f}  {what}{'  (in config.py)' if row.get('used') else ''}")
        best = weights[0]["weights"]
        same = best == config.WEIGHTS[protocol]
        print(f"{protocol}: best weights {best}" + (", as in config.py" if same else
              f"; config.py has {config.WEIGHTS[protocol]}: edit WEIGHTS there, then: python train_mitbih.py"))
    path = database.root / "results" / "selection.json"
    write_json(path, result)
    print(f"wrote {path}")


if __name__ == "__main__":
    config.run(main)
