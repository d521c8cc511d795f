"""How the default score was chosen: on validation data, before the test split was opened.

reads   data/segments.npz           python dataset.py
        checkpoints/beat*.pt        python train_mitbih.py --protocol beat (every seed)
writes  results/selection.json      every candidate tried and what it reached on validation
        checkpoints/fold*.pt        three networks for the patient protocol, not shipped

Beat protocol: the validation beats, mean over the trained seeds. Patient protocol: the patients of
DS1 (training and validation) in three folds, each scored by a network that saw only the other
two; no record of DS2 is touched. Merit: the mean of pooled ROC-AUC, mean ROC-AUC over records and
PR-AUC; for patients the mean of it and of the same with thinned records: normal beats of those that
have abnormal ones dropped until three of four are abnormal, since a detector must not take the
majority for normal. One setting is varied at a time and kept unless another gains half a point
(0.005); then the weights together on a grid, of which the best is taken; then the specificity asked
of the threshold: the one at which the least of the margins over the published accuracy,
sensitivity, specificity and F1 is largest.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import config
from dataset import load_segments
from models import load_checkpoint, stale, stamp_of
from pipeline import errors, runtime, settings
from pipeline.artefacts import refuse_stale, write_json
from scoring import detector, metrics
from scoring.features import BeatFeatures, rows_by_record
from studies.other_settings import load_or_train

FOLDS = 3
STEPS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # tried for the weight of every part beside the first
PARTS = {"beat": ("nearest", "rhythm", "qrs_error"),
         "patient": ("self_reference", "rhythm", "nearest_centred")}
TRIED = {"beat": {"DENSITY_POWER": (0.0, 0.3, 0.5, 0.7, 1.0),
                  "KNN_NEIGHBOURS": (1, 3, 10)},
         "patient": {"LOCAL_BEATS": (21, 51, 101, 201, 401),
                     "USUAL_PERCENTILE": (50, 80, 85, 90, 95),
                     "PAUSE_WEIGHT": (0.0, 0.25, 0.5, 1.0),
                     "SPREAD_FLOOR": (0.02, 0.05, 0.1, 0.2),
                     "SELF_IRREGULARITY": (0.0, 0.1, 0.25, 0.5, 1.0, 1000.0),
                     "SELF_NEIGHBOURS": (0.02, 0.05, 0.1, 0.2, 0.3)}}
SPECIFICITIES = (0.95, 0.955, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99)
RATES = ("specificity", "sensitivity", "accuracy", "f1")
THINNED_NORMAL = 3    # abnormal beats for every normal one left in a thinned record
THINNED_LEAST = 30    # abnormal beats that a record must have to be thinned


@dataclass
class Sample:
    """Beats that the candidates are tried on, as one network sees them."""

    fitted: dict              # of the network, as scoring/detector.py fits it
    features: BeatFeatures    # of the beats that are scored
    columns: dict             # {name: (n,)} of all beats that their rhythm is taken from
    rows: np.ndarray          # which of these are scored

    def column(self, name):
        """(k,) of the scored beats."""
        return self.columns[name][self.rows]


# --- the networks ---------------------------------------------------------------------------------

def sample_of(model, fitted, segments, rows, train, protocol, device):
    """The Sample of a network; fitted with today's settings where it is not (None)."""
    today = settings.snapshot(settings.SCORE_SETTINGS)
    fitted = fitted or detector.fit(model, segments, train, rows, config.WEIGHTS[protocol], today,
                                    config.FS_HZ, device)
    features = BeatFeatures.of(model, segments, rows, today, config.FS_HZ, device, keep_recon=False)
    return Sample(fitted, features, segments.rows, rows)


def beat_samples(database, segments, device):
    """[[Sample]]: the validation beats as the checkpoint of each seed sees them."""
    today = settings.snapshot(settings.SCORE_SETTINGS)
    train = segments.part("beat", "train")
    rows = segments.part("beat", "validation")
    samples = []
    for seed in config.SEEDS:
        path = database.checkpoint_path("beat", seed)
        command = database.stage_command("train_mitbih.py", "beat", seed)
        model, stored = load_checkpoint(path, command)
        refuse_stale(path, stale(stored, stamp_of(segments, "beat", seed)), command)

        fitted = None
        if not settings.differences(stored["score_settings"], today):
            fitted = stored["fitted"]
        model.to(device)
        samples.append([sample_of(model, fitted, segments, rows, train, "beat", device)])
    return samples


def patient_samples(database, segments, device):
    """[[Sample, the same thinned]]: a third of the patients of DS1, by a network of the others."""
    patients = sorted(database.train + database.validation)
    record = segments.rows["record"]
    normal = segments.rows["y"] == 0
    samples = []
    for fold in range(FOLDS):
        held_out = np.isin(record, patients[fold::FOLDS])
        train = np.flatnonzero(np.isin(record, patients) & ~held_out & normal)
        path = database.out / "checkpoints" / f"fold{fold}.pt"
        model = load_or_train(path, segments, train, np.flatnonzero(held_out & normal), device)
        rows = np.flatnonzero(held_out)
        whole = sample_of(model, None, segments, rows, train, "patient", device)
        samples.append([whole, thin(whole)])
    return samples


def thin(sample):
    """The Sample without most normal beats of the records with abnormal ones, as if never recorded.

    Each beat keeps its intervals; records with fewer than THINNED_LEAST abnormal beats stay whole.
    """
    y = sample.column("y")
    rng = np.random.default_rng(0)
    kept = []
    for here in rows_by_record(sample.features.record).values():
        abnormal = here[y[here] == 1]
        normal = here[y[here] == 0]
        if len(abnormal) >= THINNED_LEAST:
            left = min(len(normal), len(abnormal) // THINNED_NORMAL)
            normal = rng.choice(normal, left, replace=False)
        kept.append(np.sort(np.concatenate([abnormal, normal])))
    kept = np.concatenate(kept)

    seen = (getattr(sample.features, name)[kept] for name in ("z", "mse", "qrs_error", "record"))
    columns = {name: values[sample.rows[kept]] for name, values in sample.columns.items()}
    return Sample(sample.fitted, BeatFeatures(*seen), columns, np.arange(len(kept)))


# --- the candidates -------------------------------------------------------------------------------

def parts_of(samples, changed, names):
    """[[{part: (k,) values}]] of each Sample with some score settings changed.

    They are standardised on the normal beats of the network's first Sample: the thinned one is
    what the same detector meets elsewhere.
    """
    today = settings.snapshot(settings.SCORE_SETTINGS) | changed
    result = []
    for of_network in samples:
        parts = []
        for sample in of_network:
            sample.features.set_rhythm(sample.columns, sample.rows, today, config.FS_HZ)
            fitted = sample.fitted | {"settings": today}
            parts.append({name: detector.part_values(name, sample.features, fitted, False)
                          for name in names})

        normal = of_network[0].column("y") == 0
        for name in names:
            mean = parts[0][name][normal].mean()
            deviation = parts[0][name][normal].std()
            for values in parts:
                values[name] = (values[name] - mean) / deviation
        result.append(parts)
    return result


def weighted(parts, weights):
    """(k,) sum of parts {name: (k,)}."""
    return sum(weight * parts[name] for name, weight in weights.items())


def merit(scores, y, record):
    """{"auroc", "auroc_record_mean", "auprc", "merit"} of scores (n,).

    Where no record has enough beats of both classes, the pooled figure stands for their mean.
    """
    ranked = metrics.Ranking(scores, y).counts()
    pooled = metrics.auroc(*ranked)
    by_record = [v for v in metrics.auroc_by_record(scores, y, record).values() if v is not None]
    figures = {"auroc": pooled, "auroc_record_mean": float(np.mean(by_record or [pooled])),
               "auprc": metrics.auprc(*ranked)}
    return figures | {"merit": float(np.mean(list(figures.values())))}


def average(figures):
    """Mean of each figure over several dicts."""
    return {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}


def merit_of(protocol, samples, parts, weights):
    """Figures of a weighted sum: mean over seeds, or all folds together and the same thinned."""
    if protocol == "beat":
        return average([merit(weighted(own, weights), sample.column("y"), sample.column("record"))
                        for (sample,), (own,) in zip(samples, parts)])

    figures = []
    for k in range(2):  # whole, thinned
        scores = np.concatenate([weighted(own[k], weights) for own in parts])
        y, record = (np.concatenate([own[k].column(name) for own in samples])
                     for name in ("y", "record"))
        figures.append(merit(scores, y, record))
    whole, thinned = (f["merit"] for f in figures)
    return figures[0] | {"thinned": thinned, "merit": (whole + thinned) / 2}


def try_settings(protocol, samples):
    """[{"setting", "value", figures}]: the score of config.WEIGHTS with one setting changed."""
    weights = config.WEIGHTS[protocol]
    candidates = [(name, value) for name, values in TRIED[protocol].items() for value in values]
    rows = []
    for name, value in tqdm(candidates, desc=f"{protocol}: settings", disable=None):
        parts = parts_of(samples, {name: value}, weights)
        rows.append({"setting": name, "value": value, "used": value == getattr(config, name),
                     **merit_of(protocol, samples, parts, weights)})
    return rows


def try_weights(protocol, samples):
    """[{"weights", figures}] of the whole grid, best first; of equals the smaller weights."""
    names = PARTS[protocol]
    parts = parts_of(samples, {}, names)
    rows = []
    for others in itertools.product(STEPS, repeat=len(names) - 1):
        weights = dict(zip(names, (1.0, *others)))
        rows.append({"weights": weights, **merit_of(protocol, samples, parts, weights)})
    return sorted(rows, key=lambda row: (-round(row["merit"], 4), sum(row["weights"].values())))


def operating_points(samples):
    """[{"asked", RATES, "margin"}] of the beat protocol, mean over seeds."""
    parts = parts_of(samples, {}, PARTS["beat"])
    table = []
    for asked in SPECIFICITIES:
        found = []
        for (sample,), (own,) in zip(samples, parts):
            y = sample.column("y")
            scores = weighted(own, config.WEIGHTS["beat"])
            threshold = detector.threshold_at_specificity(scores[y == 0], asked)
            rates = metrics.rates(**metrics.confusion(y, scores >= threshold))
            found.append({name: rates[name] for name in RATES})
        figures = average(found)
        table.append({"asked": asked, "used": asked == config.TARGET_SPECIFICITY, **figures,
                      "margin": min(figures[name] - config.PUBLISHED[name] for name in RATES)})
    return table


# --- the script -----------------------------------------------------------------------------------

def print_best(what, found, used, setting):
    """Say whether config.py already has what was found best."""
    print(f"{what}: {found}", end="")
    if found == used:
        print(", as in config.py")
    else:
        print(f"; config.py has {used}: edit {setting} there, then: python train_mitbih.py")


def print_rows(rows):
    """A line a candidate: its figures and what it is."""
    for row in rows:
        figures = [f"{name} {value:.4f}" for name, value in row.items()
                   if name not in ("setting", "value", "used", "weights")]
        what = row["weights"] if "weights" in row else f"{row['setting']} = {row['value']}"
        mark = "  (in config.py)" if row.get("used") else ""
        print(f"{', '.join(figures)}  {what}{mark}")


def parse_args(argv=None):
    return runtime.parse(runtime.machine_parser(__doc__), argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    segments = load_segments(database)
    result = {"segments_id": segments.meta["id"],
              "training_settings": settings.snapshot(settings.TRAINING_SETTINGS), "protocols": {}}

    for protocol, build in (("beat", beat_samples), ("patient", patient_samples)):
        samples = build(database, segments, device)
        table = {"settings": try_settings(protocol, samples),
                 "weights": try_weights(protocol, samples)}
        result["protocols"][protocol] = table
        print_rows(table["settings"] + table["weights"][:5])
        print_best(f"{protocol}: best weights", table["weights"][0]["weights"],
                   config.WEIGHTS[protocol], "WEIGHTS")

        if protocol == "beat":
            result["operating_points"] = operating_points(samples)
            best = max(result["operating_points"], key=lambda row: row["margin"])
            print_best("specificity with the best margin", best["asked"], config.TARGET_SPECIFICITY,
                       "TARGET_SPECIFICITY")

    path = database.out / "results" / "selection.json"
    write_json(path, result)
    print(f"wrote {path}")


if __name__ == "__main__":
    errors.run(main)
