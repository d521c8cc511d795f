"""How the default score was chosen: on validation data, before the test split was opened.

reads   data/segments.npz           python dataset.py
        checkpoints/beat*.pt        python train_mitbih.py --protocol beat (every seed)
writes  results/selection.json      every candidate tried and what it reached on validation
        checkpoints/fold*.pt        three networks for the patient protocol, not shipped

Beat protocol: the validation beats, mean over the trained seeds. Patient protocol: the patients of
DS1 (training and validation) in three folds, each scored by a network that saw only the other two;
no record of DS2 is touched. Merit: the mean of pooled ROC-AUC, mean ROC-AUC over records and PR-
AUC; for patients the mean of it, of the same with thinned records (normal beats of those that have
abnormal ones dropped until three of four are abnormal, since a detector must not take the majority
for normal) and of the same in noise, since silence is rare. One setting is varied at a time, then
the weights together on a grid: what config.py has is kept unless another gains half a point
(LEAST_GAIN); then the specificity asked of the threshold: the one at which the least of the
margins over the published accuracy, sensitivity, specificity and F1 is largest.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import config
from dataset import Segments, load_segments
from evaluate import load_detector
from pipeline import errors, runtime, settings
from pipeline.artefacts import write_json
from pipeline.corruption import Corruption
from pipeline.runtime import slices
from pipeline.tables import readable
from scoring import detector, metrics
from scoring.features import BeatFeatures, rows_by_record
from studies.other_settings import load_or_train, other_settings

FOLDS = 3            # of the patients of DS1: seven or so in each
# tried for the weight of every part, not all 0: as alternatives each counts for itself
STEPS = (0.0, 0.3, 0.5, 0.7, 1.0, 1.5)
PARTS = {"beat": ("nearest", "rhythm", "qrs_error"),
         "patient": ("self_shape", "self_reference", "rhythm")}
TRIED = {"beat": {"DENSITY_POWER": (0.0, 0.3, 0.5, 0.7, 1.0),
                  "KNN_NEIGHBOURS": (1, 3, 5, 10, 20)},
         "patient": {"TIMING_WEIGHT": (5.0, 8.0, 12.0, 15.0, 20.0),
                     "LOCAL_BEATS": (51, 101, 201, 301, 401),
                     "USUAL_PERCENTILE": (50, 75, 85, 90, 95),
                     "PAUSE_RATIO": (1.1, 1.2, 1.3, 1.5, 100.0),
                     "PAUSE_WEIGHT": (0.0, 0.1, 0.25, 0.5, 1.0),
                     "SPREAD_FLOOR": (0.02, 0.05, 0.1, 0.2),
                     "SELF_IRREGULARITY": (0.0, 0.05, 0.1, 0.25, 0.5, 1.0, 1000.0),
                     "SELF_NEIGHBOURS": (0.02, 0.05, 0.1, 0.2, 0.3)}}
SPECIFICITIES = (0.95, 0.955, 0.96, 0.965, 0.97, 0.975, 0.98, 0.985, 0.99)
RATES = ("specificity", "sensitivity", "accuracy", "f1")
# of the printed tables: {name in selection.json: heading}
HEADINGS = {"setting": "setting", "value": "value", "asked": "asked (%)",
            **{f"weights.{name}": name for parts in PARTS.values() for name in parts},
            "used": "in config.py", "auroc": "ROC-AUC (%)", "auroc_record_mean": "by record (%)",
            "auprc": "PR-AUC (%)", "thinned": "thinned (%)", "noisy": "noisy (%)",
            "merit": "merit (%)",
            **{name: f"{name} (%)" for name in (*RATES, "margin")}}
NOISY_DB = 12.0       # of modelled noise over every beat of a noisy copy
LEAST_GAIN = 0.005    # of the merit: a smaller one is no reason to change what config.py has
THINNED_NORMAL = 3    # abnormal beats for every normal one left in a thinned record
THINNED_LEAST = 30    # abnormal beats that a record must have to be thinned


@dataclass
class Sample:
    """Beats that the candidates are tried on, as one network sees them."""

    fitted: dict              # of the network, as scoring/detector.py fits it
    features: BeatFeatures    # of the beats that are scored
    columns: dict             # {name: (n,)} of all beats that their rhythm is taken from
    rows: np.ndarray          # which of these are scored


# --- the networks ---------------------------------------------------------------------------------

def sample_of(model, fitted, segments, rows, device):
    """The Sample of the row numbers `rows`."""
    features = BeatFeatures.of(model, segments, rows, fitted["settings"], config.FS_HZ, device,
                               keep_recon=False)
    return Sample(fitted, features, segments.rows, rows)


def beat_samples(database, segments, device):
    """[[Sample]]: the validation beats as the checkpoint of each seed sees them."""
    rows = segments.part("beat", "validation")
    samples = []

    # every seed: what helps one network by luck must not be chosen
    for seed in config.SEEDS:
        model, stored = load_detector(database, "beat", seed, segments)
        samples.append([sample_of(model.to(device), stored["fitted"], segments, rows, device)])
    return samples


def patient_samples(database, segments, device):
    """[[Sample, the same thinned, the same in noise]]: a third of the patients of DS1, by a
    network of the others."""
    patients = sorted(database.train + database.validation)
    record = segments.rows["record"]
    normal = segments.rows["y"] == 0
    samples = []
    for fold in range(FOLDS):
        held_out = np.isin(record, patients[fold::FOLDS])
        train = np.flatnonzero(np.isin(record, patients) & ~held_out & normal)

        # minutes of training: the network is kept for the next run
        path = database.out / "checkpoints" / f"fold{fold}.pt"
        model = load_or_train(path, segments, train, np.flatnonzero(held_out & normal), device)
        rows = np.flatnonzero(held_out)

        fitted = detector.fit(model, segments, train, rows, config.WEIGHTS["patient"],
                              settings.snapshot(settings.SCORE_SETTINGS), config.FS_HZ, device)
        whole = sample_of(model, fitted, segments, rows, device)
        noisy = sample_of(model, fitted, with_noise(segments, rows), rows, device)
        samples.append([whole, thin(whole), noisy])
    return samples


def with_noise(segments, rows):
    """The Segments with these rows corrupted as in training, noise of NOISY_DB over each."""
    x = segments.x.copy()
    with other_settings(CORRUPTED_SHARE=1.0, NOISE_SHARE=1.0, NOISE_SNR_DB=(NOISY_DB, NOISY_DB)):
        corrupt = Corruption(config.SEED, torch.device("cpu"))
        for step, batch in enumerate(slices(len(rows), config.BATCH_SIZE)):
            x[rows[batch]] = corrupt(torch.from_numpy(x[rows[batch]]), step)
    return Segments(x, segments.rows, segments.meta)


def thin(sample):
    """The Sample without most normal beats of the records with abnormal ones, as if never recorded.

    Each beat keeps its intervals; records with fewer than THINNED_LEAST abnormal beats stay whole.
    """
    y = sample.columns["y"][sample.rows]
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

    # the rhythm is taken from the beats that are left, as it would be of such a patient
    seen = (getattr(sample.features, name)[kept] for name in ("z", "mse", "qrs_error", "record"))
    columns = {name: values[sample.rows[kept]] for name, values in sample.columns.items()}
    return Sample(sample.fitted, BeatFeatures(*seen), columns, np.arange(len(kept)))


# --- the candidates -------------------------------------------------------------------------------

def parts_of(samples, changed, names):
    """[[DataFrame]] of each Sample: y, record and the parts `names`, with score settings changed.

    The parts are standardised on the normal beats of the network's first Sample: the thinned one is
    what the same detector meets elsewhere.
    """
    names = list(names)
    today = settings.snapshot(settings.SCORE_SETTINGS) | changed
    result = []
    for of_network in samples:
        tables = []
        for sample in of_network:
            # settings of the rhythm act here, all others in the scores below
            sample.features.set_rhythm(sample.columns, sample.rows, today, config.FS_HZ)
            fitted = sample.fitted | {"settings": today}

            table = pd.DataFrame({key: sample.columns[key][sample.rows] for key in ("y", "record")})
            for name in names:
                table[name] = detector.part_values(name, sample.features, fitted, False)
            tables.append(table)

        normal = tables[0].loc[tables[0].y == 0, names]
        for table in tables:
            table[names] = (table[names] - normal.mean()) / normal.std(ddof=0)
        result.append(tables)
    return result


def combination(table, weights):
    """(k,) the parts of a table combined as the detector does; weight 0 leaves one out."""
    return detector.alternatives(weight * table[name] for name, weight in weights.items() if weight)


def merit(table, weights):
    """{"auroc", "auroc_record_mean", "auprc", "merit"} of the combination of parts.

    Where no record has enough beats of both classes, the pooled figure stands for their mean.
    """
    scores = combination(table, weights)
    y = table.y.to_numpy()
    figures = metrics.areas(scores, y, metrics.by_record(scores, y, table.record.to_numpy()))

    # a mean with NaN in it could not be ranked
    if np.isnan(figures["auroc_record_mean"]):
        figures["auroc_record_mean"] = figures["auroc"]
    return figures | {"merit": float(np.mean(list(figures.values())))}


def merit_of(protocol, tables, weights):
    """Figures of a combination: mean over seeds, or all folds together, whole, thinned, noisy."""
    if protocol == "beat":
        return pd.DataFrame([merit(table, weights) for table, in tables]).mean().to_dict()

    # each patient is in one fold: together they are one set of scored beats
    whole, *others = (merit(pd.concat(folds), weights) for folds in zip(*tables))
    thinned, noisy = (other["merit"] for other in others)
    return whole | {"thinned": thinned, "noisy": noisy,
                    "merit": float(np.mean([whole["merit"], thinned, noisy]))}


def try_settings(protocol, samples):
    """[{"setting", "value", figures}]: the score of config.WEIGHTS with one setting changed."""
    weights = config.WEIGHTS[protocol]
    rows = []
    for name, values in TRIED[protocol].items():
        for value in tqdm(values, desc=f"{protocol}: {name}", disable=None):
            tables = parts_of(samples, {name: value}, weights)
            rows.append({"setting": name, "value": value, "used": value == getattr(config, name),
                         **merit_of(protocol, tables, weights)})
    return rows


def try_weights(protocol, tables):
    """[{"weights", figures}] of the whole grid, best first; of equals the smaller weights."""
    rows = []

    for steps in itertools.product(STEPS, repeat=len(PARTS[protocol])):
        weights = dict(zip(PARTS[protocol], steps))
        if any(steps):
            rows.append({"weights": weights, **merit_of(protocol, tables, weights)})

    # equal to four digits is equal: then the part that adds nothing is left out
    return sorted(rows, key=lambda row: (-round(row["merit"], 4), sum(row["weights"].values())))


def operating_points(tables):
    """[{"asked", RATES, "margin"}] of the beat protocol, mean over seeds."""
    points = []

    for asked in SPECIFICITIES:
        found = []
        for table, in tables:
            scores = combination(table, config.WEIGHTS["beat"])
            # by the rule of the checkpoint's own threshold: from normal beats alone
            threshold = detector.threshold_at_specificity(scores[table.y == 0], asked)
            found.append(metrics.rates(**metrics.confusion(table.y, scores >= threshold)))

        figures = pd.DataFrame(found, columns=RATES, dtype=float).mean().to_dict()
        points.append({"asked": asked, "used": asked == config.TARGET_SPECIFICITY, **figures,
                       "margin": min(figures[name] - config.PUBLISHED[name] for name in RATES)})
    return points


def to_use(rows, used):
    """Today's weights, or the best of the rows where those are LEAST_GAIN worse or not tried."""
    best = rows[0]
    for row in rows:
        if row["weights"] == used and best["merit"] - row["merit"] < LEAST_GAIN:
            return used
    return best["weights"]


# --- the script -----------------------------------------------------------------------------------

def print_best(what, found, used, setting):
    """Say whether config.py already has what was found best."""
    advice = "as in config.py"
    if found != used:
        advice = f"config.py has {used}: edit {setting} there, then: python train_mitbih.py"
    print(f"{what}: {found}; {advice}")


def main(argv=None):
    database, device = runtime.prepare(runtime.parse(runtime.machine_parser(__doc__), argv))
    segments = load_segments(database)
    result = {"segments_id": segments.meta["id"],
              "training_settings": settings.snapshot(settings.TRAINING_SETTINGS), "protocols": {}}

    for protocol, build in (("beat", beat_samples), ("patient", patient_samples)):
        # the networks see the beats once: candidates differ in what comes after
        samples = build(database, segments, device)
        tried = try_settings(protocol, samples)
        tables = parts_of(samples, {}, PARTS[protocol])
        weights = try_weights(protocol, tables)

        result["protocols"][protocol] = {"settings": tried, "weights": weights}
        for rows in (tried, weights[:5]):
            print(readable(rows, HEADINGS).to_string(index=False), end="\n\n")
        print_best(f"{protocol}: weights to use", to_use(weights, config.WEIGHTS[protocol]),
                   config.WEIGHTS[protocol], "WEIGHTS")

        # the threshold is compared with published figures, which are of random beats
        if protocol == "beat":
            points = operating_points(tables)
            result["operating_points"] = points
            print(readable(points, HEADINGS).to_string(index=False))
            best = max(points, key=lambda row: row["margin"])
            print_best("specificity with the best margin", best["asked"], config.TARGET_SPECIFICITY,
                       "TARGET_SPECIFICITY")

    path = database.out / "results" / "selection.json"
    write_json(path, result)
    print(f"wrote {path}\nnext: python -m studies.report --write")


if __name__ == "__main__":
    errors.run(main)
