"""Step 3 of 4: score the test split, once, and report with intervals.

reads   data/segments.npz             python dataset.py
        checkpoints/beat.pt           python train_mitbih.py  (threshold chosen on validation)
writes  results/beat/scores.npz       the score of each test beat, what the pictures need
        results/beat/metrics.json     everything a table shows

Next: python visualize.py
"""

import numpy as np
import torch
from tqdm import tqdm

import config
from dataset import load_segments
from models import load_checkpoint, stale, stamp_of
from pipeline import errors, runtime, settings, tables
from pipeline.artefacts import load_json, load_npz, refuse_stale, write_json, write_npz
from pipeline.errors import UserError
from scoring import beat_parts, detector, ec57, examples, metrics
from scoring.scores import SCORES

# 1,382 of the 1,837 S beats of DS2 are in it: pooled figures are shown with and without
HARD_RECORD = "232"


# --- figures of one score -------------------------------------------------------------------------

def figures_of(scores, rows, threshold):
    """All about one score of the test beats: (metrics.json's entry, bands for scores.npz, {figure:
    its values in resampled records}).
    """
    y = rows["y"]
    flagged = scores >= threshold

    own = metrics.by_record(scores, y, rows["record"])
    drawn, bands = metrics.resampled(scores, y, rows["record"], own, threshold,
                                     config.BOOTSTRAP_RESAMPLES, config.BOOTSTRAP_SEED)

    entry = {"threshold": threshold,
             **{name: metrics.interval(values) for name, values in drawn.items()},
             "confusion": metrics.confusion(y, flagged),
             "by_class": metrics.by_class(scores, y, rows["aami"], abnormal_classes(), flagged),
             "by_symbol": metrics.by_symbol(scores, rows["symbol"], flagged),
             "by_record": own,
             "without_232": metrics.without_record(HARD_RECORD, scores, rows, own)}
    return entry, bands, drawn


def abnormal_classes():
    """AAMI classes but the normal one."""
    return [name for name in config.AAMI if name != config.NORMAL_CLASS]


# --- baselines ------------------------------------------------------------------------------------

def baseline_sigma_s():
    """The baselines look through the window that the network looks through."""
    return config.TAPER_SIGMA_S or config.QRS_SIGMA_S


def baseline_origin(segments):
    """What the baselines' scores depend on: no checkpoint among it."""
    from scoring import baselines   # for --baselines alone
    return {
        "segments_id": segments.meta["id"], "sigma_s": baseline_sigma_s(),
        "specificity": config.TARGET_SPECIFICITY, "settings": settings.plain(baselines.SETTINGS)
    }


def stored_baselines(folder, segments):
    """(thresholds, test scores) of all baselines from an earlier run on these segments, or None."""
    from scoring import baselines
    try:
        stored = load_metrics(folder, "")
        table = load_npz(folder / "scores.npz", "")
        if settings.differences(stored["baseline_origin"], baseline_origin(segments)):
            return None
        names = list(baselines.BASELINES)
        thresholds = {name: stored["baselines"][name]["threshold"] for name in names}
        return thresholds, {name: table[f"baseline_{name}"] for name in names}
    except (UserError, KeyError):
        return None


def fresh_baselines(segments, protocol):
    """Fit all baselines on the normal training beats; thresholds by the same rule."""
    from scoring import baselines
    train = segments.part(protocol, "train")
    validation = segments.normal_validation(protocol)
    rows = np.concatenate([validation, segments.part(protocol, "test")])

    # both parts in one call: the principal components are fitted once
    scores = baselines.score_all(segments, train, rows, baseline_sigma_s() * config.FS_HZ,
                                 lambda names: tqdm(names, desc="baselines", disable=None))

    # the same rule and the same beats as the network's thresholds have
    n = len(validation)
    thresholds = {name: detector.threshold_at_specificity(values[:n], config.TARGET_SPECIFICITY)
                  for name, values in scores.items()}
    return thresholds, {name: values[n:] for name, values in scores.items()}


def add_baselines(result, table, thresholds, scores, segments):
    """Put the baselines' figures into the results, and the default score's difference to each."""
    from scoring import baselines
    rows = {name: table[name] for name in ("record", "symbol", "aami")} | {"y": table["label"]}
    _, _, default = figures_of(table[f"score_{config.DEFAULT_SCORE}"], rows, np.inf)
    result["baseline_origin"] = baseline_origin(segments)
    result["baselines"] = {}

    for name, values in scores.items():
        entry, _, drawn = figures_of(values, rows, thresholds[name])
        # paired: both on the same resampled records, so what makes a draw easy cancels out
        entry["default_minus_it"] = {area: metrics.interval(default[area] - drawn[area])
                                     for area in ("auroc", "auprc")}
        result["baselines"][name] = {"title": baselines.BASELINES[name].title, **entry}
        table[f"baseline_{name}"] = values


# --- the test split -------------------------------------------------------------------------------

def evaluate(segments, model, stored, protocol, device):
    """Score the test split; returns (metrics.json's content, scores.npz's content)."""
    test = segments.part(protocol, "test")
    rows = {name: values[test] for name, values in segments.rows.items()}

    # the test rows of a record are each other's unlabelled reference, as they are in detect.py
    scores, features = detector.score(model, stored["fitted"], segments, test,
                                      config.SCORES[protocol], config.FS_HZ, device)

    # --- every score: figures, curves, thresholds chosen on validation
    table = {name: rows[name] for name in ("record", "sample", "symbol", "aami")}
    table |= {
        "label": rows["y"], "weights": np.array(stored["weights"]), "fs_hz": np.array(config.FS_HZ),
        "roc_fpr": metrics.GRID, "pr_recall": metrics.GRID
    }

    entries = {}
    for name in config.SCORES[protocol]:
        entry, bands, _ = figures_of(scores[name], rows, stored["thresholds"][name])
        entries[name] = {"title": SCORES[name].title, **entry}
        for band, curve in bands.items():
            table[f"{band}_{name}"] = curve
        table[f"score_{name}"] = scores[name].astype(np.float32)

    # --- the default score: which part of the beat leads, examples for the pictures
    default = scores[config.DEFAULT_SCORE]
    flagged = default >= stored["thresholds"][config.DEFAULT_SCORE]

    deviations, typical = beat_parts.deviations(features, segments.x[test], stored["fitted"],
                                                config.FS_HZ)
    part, strength = beat_parts.leading(deviations, stored["part_limits"], scores,
                                        stored["thresholds"])
    # drawn over what it was compared with
    by_shape = np.flatnonzero(flagged & (part == beat_parts.PARTS.index("shape")))
    if len(by_shape):
        typical[by_shape] = beat_parts.nearest_training(
            features, stored["fitted"], by_shape, segments.x, segments.part(protocol, "train"))
    table |= {"part": part.astype(np.int8), "part_strength": strength.astype(np.float32)}

    # chosen by rule from all test beats: nobody picks an example
    table |= examples.examples(default, rows, segments.x[test], features.recon,
                               model.taper.cpu().numpy())
    table |= examples.strip(segments, test, default, config.FS_HZ)
    table |= examples.latent_plane(features.z)
    table |= examples.part_examples(part, strength, flagged, rows, segments.x[test], typical,
                                    abnormal_classes())

    # --- what metrics.json holds
    hours = ec57.hours(rows["rr_before_s"])
    n_abnormal = int(rows["y"].sum())
    result = {"database": segments.meta["database"], "simulated": segments.meta["simulated"],
              "protocol": protocol, "seed": stored["seed"], "default_score": config.DEFAULT_SCORE,
              "n": {"test": len(test), "normal": len(test) - n_abnormal, "abnormal": n_abnormal,
                    "records": len(np.unique(rows["record"]))},
              "published": config.PUBLISHED, "scores": entries, "origin": origin_of(stored),
              "ec57": ec57.ec57(rows, flagged, ec57.paced(segments.rows), config.FS_HZ),
              "hours": hours,
              "false_alarms": ec57.false_alarms(default, rows["y"], hours),
              "calibration": ec57.calibration(default, rows["y"], stored["calibration"]),
              "parts": beat_parts.shares(part, rows["aami"], flagged),
              "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}
    return result, table


# --- artefacts ------------------------------------------------------------------------------------

def origin_of(stored):
    """What makes the results of a checkpoint stale when it changes."""
    names = ("weights", "segments_id", "network_code", "training_settings", "score_settings")
    return {name: stored[name] for name in names} | {
        "evaluation_settings": settings.snapshot(settings.EVALUATION_SETTINGS)}


def load_metrics(folder, command):
    """metrics.json of one run; UserError naming the command if it is missing or damaged."""
    stored = load_json(folder / "metrics.json", command)
    if not isinstance(stored.get("scores"), dict) or not isinstance(stored.get("origin"), dict):
        raise UserError(
            f"{folder / 'metrics.json'}: damaged (no scores in it). Make it again with: {command}")
    return stored


def load_seeds(database, protocol, like=None):
    """{seed: metrics} of every evaluated seed that was made like the metrics `like` (None: those
    of SEED): only equal runs are pooled."""
    runs = {}
    for seed in (config.SEED, *config.SEEDS):
        folder = database.results_dir(protocol, seed)
        if (folder / "metrics.json").exists():
            runs[seed] = load_metrics(folder, database.stage_command("evaluate.py", protocol, seed))
    if not runs:
        return {}

    # weights differ from seed to seed; all else must not, or a median would be over two detectors
    like = like or next(iter(runs.values()))
    origin = {k: v for k, v in like["origin"].items() if k != "weights"}
    return {seed: runs[seed] for seed in config.SEEDS if seed in runs and runs[seed]["seed"] == seed
            and not settings.differences(runs[seed]["origin"], origin)}


def stored_result(folder, origin):
    """The stored metrics if they are of this checkpoint with today's settings, else None."""
    try:
        stored = load_metrics(folder, "")
        table = load_npz(folder / "scores.npz", "")
    except UserError:
        return None
    same = not settings.differences(stored["origin"], origin) and str(
        table.get("weights")) == origin["weights"]
    return stored if same else None


def load_detector(database, protocol, seed, segments):
    """(model, stored) of the checkpoint, sure to belong to these segments and today's settings."""
    path = database.checkpoint_path(protocol, seed)
    command = database.stage_command("train_mitbih.py", protocol, seed)
    model, stored = load_checkpoint(path, command)

    why = stale(stored, stamp_of(segments, protocol, seed))
    why += settings.differences(stored["score_settings"],
                                settings.snapshot(settings.SCORE_SETTINGS))
    refuse_stale(path, why, command)
    return model, stored


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    parser = runtime.stage_parser(__doc__)
    parser.add_argument("--baselines", action="store_true",
                        help="add detectors without a network to the results")
    parser.add_argument("--force", action="store_true",
                        help="score again even if the results are up to date")
    return runtime.parse(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    database, device = runtime.prepare(args)
    segments = load_segments(database)
    model, stored = load_detector(database, args.protocol, args.seed, segments)
    folder = database.results_dir(args.protocol, args.seed)

    result = None if args.force else stored_result(folder, origin_of(stored))
    if args.baselines and result:
        from scoring.baselines import BASELINES
        # one that was added since is not in the results
        result = result if BASELINES.keys() <= result.get("baselines", {}).keys() else None
    if result:
        print(f"{folder / 'metrics.json'}: up to date, not scored again (--force scores)")
    else:
        result, table = evaluate(segments, model.to(device), stored, args.protocol, device)

        # baselines know no checkpoint: those of an earlier run on these segments stay good
        known = None if args.force and args.baselines else stored_baselines(folder, segments)
        if args.baselines and not known:
            known = fresh_baselines(segments, args.protocol)
        if known:
            add_baselines(result, table, *known, segments)

        # first: metrics.json says that both are there
        write_npz(folder / "scores.npz", table, compress=True)
        write_json(folder / "metrics.json", result)
        print(f"wrote {folder / 'metrics.json'}, {folder / 'scores.npz'}")

    print(tables.of_result(result, load_seeds(database, args.protocol, result)))
    # the pictures are of SEED; the others are for the tables
    after = "python -m studies.report --write"
    if args.seed == config.SEED:
        after = database.command("visualize.py", "--protocol", args.protocol)
    print(f"next: {after}")


if __name__ == "__main__":
    errors.run(main)
