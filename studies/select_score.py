"""How the default score was chosen: on validation data, before the test split was opened. Runs again at will.

reads   data/segments.npz               python dataset.py
        checkpoints/beat*.pt            python train_mitbih.py --protocol beat (every seed)
writes  results/selection.json          every candidate tried and what it reached on validation
        checkpoints/fold*.pt            three networks for the patient protocol, not shipped

Beat protocol: the validation beats, mean over the trained seeds. Patient protocol: the patients of
DS1 (training and validation) in three folds, each scored by a network that saw only the other
two; no record of DS2 is touched. Merit: the mean of pooled ROC-AUC, mean ROC-AUC over records and
PR-AUC; for patients the mean of it and of the same with thinned records: normal beats of those that
have abnormal ones dropped until three of four are abnormal, since a detector must not take the
majority for normal. One setting is varied at a time and kept unless another gains half a point
(0.005); then the weights together on a grid, of which the best is taken; then the specificity asked of
the threshold: the one at which the least of the margins over the published accuracy, sensitivity,
specificity and F1 is largest.
"""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from tqdm import tqdm

import config
from pipeline import errors, settings
from scoring import metrics
from scoring import detector
import train_mitbih
from pipeline.errors import UserError
from pipeline.artefacts import write_json
from pipeline.runtime import FINISHED, machine_parser, parsed, prepare, read_checkpoint, run_command

FOLDS = 3
FIGURES = ("auroc", "auroc_record_mean", "auprc", "thinned", "merit")
STEPS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # tried for the weight of every part beside the first
TRIED = {"beat": {"DENSITY_POWER": (0.0, 0.3, 0.5, 0.7, 1.0), "KNN_NEIGHBOURS": (1, 3, 10)},
         "patient": {"LOCAL_BEATS": (21, 51, 101, 201, 401), "USUAL_PERCENTILE": (50, 80, 85, 90, 95),
                     "PAUSE_WEIGHT": (0.0, 0.25, 0.5, 1.0), "SPREAD_FLOOR": (0.02, 0.05, 0.1, 0.2),
                     "SELF_IRREGULARITY": (0.0, 0.1, 0.25, 0.5, 1.0, 1000.0),
                     "SELF_NEIGHBOURS": (0.02, 0.05, 0.1, 0.2, 0.3)}}
SPECIFICITIES = (0.95, 0.955, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99)
THINNED_NORMAL = 3    # abnormal beats for every normal one left in a thinned record
THINNED_LEAST = 30    # abnormal beats that a record must have
PARTS = {"beat": ("nearest", "rhythm", "qrs_error"), "patient": ("self_reference", "rhythm", "nearest_centred")}


def merit(scores, y, record):
    """{"auroc", "auroc_record_mean", "auprc", "merit"} of scores (n,).

    Where no record has enough beats of both classes, the pooled figure stands for the mean over them.
    """
    pooled = float(roc_auc_score(y, scores))
    own = [v for v in metrics.auroc_by_record(scores, y, record).values() if v is not None]
    figures = {"auroc": pooled, "auroc_record_mean": float(np.mean(own or [pooled])),
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
        model, stored = read_checkpoint(database.checkpoint_path("beat", seed), command, FINISHED)
        why = settings.differences(stored["training_settings"], settings.TRAINING_SETTINGS)
        if why or stored["segments_id"] != segments.meta["id"]:
            why = why or ["segments.npz is not the one it was trained on"]
            raise UserError(f"checkpoint of seed {seed}: out of date ({'; '.join(why)}). Make it with: {command}")
        fitted = stored["fitted"] if stored["score_settings"] == settings.snapshot(settings.SCORE_SETTINGS) else None
        models.append((model.to(device), segments.part("beat", "validation"), segments.part("beat", "train"), fitted))
    return models


def fold_models(database, segments, device):
    """[(model, rows to score, training rows, None)]: a third of the patients of DS1 each, trained on the others."""
    patients, models = sorted(database.train + database.validation), []
    record, normal = segments.rows["record"], segments.rows["y"] == 0
    for fold in range(FOLDS):
        held = np.isin(record, patients[fold::FOLDS])
        train = np.flatnonzero(np.isin(record, patients) & ~held & normal)
        path = database.root / "checkpoints" / f"fold{fold}.pt"
        stamp = {"segments_id": segments.meta["id"], "training_settings": settings.snapshot(settings.TRAINING_SETTINGS)}
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
    """[[Sample, ...]] of each model: its rows, and for patients the same thinned.

    A Sample has `fitted`, `view`, `table` (rows of the beats of its records) and `at` (those scored).
    """
    settings, result = settings.snapshot(settings.SCORE_SETTINGS), []
    for model, rows, train, fitted in models:
        fitted = fitted or detector.fit(model, segments, train, rows, config.WEIGHTS[protocol], settings,
                                       config.FS_HZ, device)
        view = detector.BeatFeatures.of(model, segments, rows, settings, config.FS_HZ, device)
        result.append([SimpleNamespace(fitted=fitted, view=view, table=segments, at=rows)])
        if protocol == "patient":
            result[-1].append(thinned(result[-1][0]))
    return result


def thinned(sample):
    """The Sample with most normal beats of records with abnormal ones dropped, as if they had not been there.

    Each beat keeps its intervals; the other records stay as they are.
    """
    y, rng, kept = sample.table.rows["y"][sample.at], np.random.default_rng(0), []
    for here in detector.by_record(sample.view.record).values():
        abnormal, normal = here[y[here] == 1], here[y[here] == 0]
        if len(abnormal) >= THINNED_LEAST:
            normal = rng.choice(normal, min(len(normal), len(abnormal) // THINNED_NORMAL), replace=False)
        kept.append(np.sort(np.concatenate([abnormal, normal])))
    kept, view = np.concatenate(kept), copy.copy(sample.view)
    for name in ("recon", "z", "mse", "qrs_error", "record"):
        setattr(view, name, getattr(view, name)[kept])
    table = SimpleNamespace(rows={name: values[sample.at[kept]] for name, values in sample.table.rows.items()})
    return SimpleNamespace(fitted=sample.fitted, view=view, table=table, at=np.arange(len(kept)))


def parts_of(ready, changed, names):
    """[[{part: values}]] of each Sample, standardised on the normal beats of its model's first."""
    settings, result = settings.snapshot(settings.SCORE_SETTINGS) | changed, []
    for samples in ready:
        raw = []
        for sample in samples:
            sample.view.set_rhythm(sample.table.rows, sample.at, settings, config.FS_HZ)
            raw.append({name: detector.PARTS[name](sample.view, sample.fitted | {"settings": settings}, False)
                        for name in names})
        normal = samples[0].table.rows["y"][samples[0].at] == 0
        scale = {name: (v[normal].mean(), v[normal].std()) for name, v in raw[0].items()}
        result.append([{name: (v - scale[name][0]) / scale[name][1] for name, v in parts.items()} for parts in raw])
    return result


def judged(protocol, ready, parts, weights):
    """Figures of the weighted sum of parts: mean over seeds, or all folds together and thinned beside."""
    values = [[sum(w * part[name] for name, w in weights.items()) for part in own] for own in parts]
    labels = [[(s.table.rows["y"][s.at], s.table.rows["record"][s.at]) for s in samples] for samples in ready]
    if protocol == "beat":
        return averaged([merit(v[0], *own[0]) for v, own in zip(values, labels)])
    plain, few = (merit(np.concatenate([v[k] for v in values]), *map(np.concatenate, zip(*(own[k] for own in labels))))
                  for k in range(2))
    return plain | {"thinned": few["merit"], "merit": (plain["merit"] + few["merit"]) / 2}


def vary(protocol, ready):
    """[{"setting", "value", figures}]: the score of config.WEIGHTS with one setting changed at a time."""
    candidates = [(name, value) for name, values in TRIED[protocol].items() for value in values]
    weights = config.WEIGHTS[protocol]
    return [{"setting": name, "value": value, "used": value == getattr(config, name),
             **judged(protocol, ready, parts_of(ready, {name: value}, weights), weights)}
            for name, value in tqdm(candidates, desc=f"{protocol}: settings", disable=None)]


def weigh(protocol, ready):
    """[{"weights", figures}] for all weights of the grid, best first; ties go to the smaller weights."""
    names, table = PARTS[protocol], []
    parts = parts_of(ready, {}, names)
    for tail in itertools.product(STEPS, repeat=len(names) - 1):
        weights = dict(zip(names, (1.0, *tail)))
        table.append({"weights": weights, **judged(protocol, ready, parts, weights)})
    return sorted(table, key=lambda row: (-round(row["merit"], 4), sum(row["weights"].values())))


def operating_points(ready):
    """[{"specificity", "sensitivity", "accuracy", "f1", "margin"}] of the beat protocol, mean over seeds."""
    parts, weights, table = parts_of(ready, {}, PARTS["beat"]), config.WEIGHTS["beat"], []
    for asked in SPECIFICITIES:
        rows = []
        for (sample,), (own,) in zip(ready, parts):
            y, scores = sample.table.rows["y"][sample.at], sum(w * own[name] for name, w in weights.items())
            flagged = scores >= detector.threshold_at_specificity(scores[y == 0], asked)
            rows.append({"specificity": 1 - flagged[y == 0].mean(), "sensitivity": flagged[y == 1].mean(),
                         "accuracy": (flagged == y).mean(), "f1": f1_score(y, flagged)})
        figures = averaged(rows)
        table.append({"asked": asked, "used": asked == config.TARGET_SPECIFICITY, **figures,
                      "margin": min(v - config.PUBLISHED[name] for name, v in figures.items())})
    return table


def report_best(what, found, used, setting):
    """Print whether config.py already has what was found best."""
    print(f"{what}: {found}" + (", as in config.py" if found == used else
          f"; config.py has {used}: edit {setting} there, then: python train_mitbih.py"))


def parse_args(argv=None):
    return parsed(machine_parser(__doc__), argv)


def main(argv=None):
    args = parse_args(argv)
    database, device, segments = prepare(args)
    result = {"segments_id": segments.meta["id"],
              "training_settings": settings.snapshot(settings.TRAINING_SETTINGS), "protocols": {}}
    for protocol, build in (("beat", beat_models), ("patient", fold_models)):
        ready = prepared(build(database, segments, device), segments, protocol, device)
        settings, weights = vary(protocol, ready), weigh(protocol, ready)
        result["protocols"][protocol] = {"settings": settings, "weights": weights}
        for row in settings + weights[:5]:
            what = f"{row['setting']} = {row['value']}" if "setting" in row else row["weights"]
            print(", ".join(f"{k} {row[k]:.4f}" for k in FIGURES if k in row),
                  f" {what}{'  (in config.py)' if row.get('used') else ''}")
        report_best(f"{protocol}: best weights", weights[0]["weights"], config.WEIGHTS[protocol], "WEIGHTS")
        if protocol == "beat":
            result["operating_points"] = operating_points(ready)
            best = max(result["operating_points"], key=lambda row: row["margin"])["asked"]
            report_best("specificity with the best margin", best, config.TARGET_SPECIFICITY, "TARGET_SPECIFICITY")
    path = database.root / "results" / "selection.json"
    write_json(path, result)
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
