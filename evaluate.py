"""Step 3 of 4: score the test split, once, and report with intervals.

reads   data/segments.npz             python dataset.py
        checkpoints/beat.pt           python train_mitbih.py  (threshold chosen on validation)
writes  results/beat/scores.npz       the score of each test beat, what the pictures need
        results/beat/metrics.json     everything a table shows
        evaluation_plots/beat/*.png   by visualize.py
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from tqdm import tqdm

from scoring import beat_parts
from scoring import baselines
from scoring import ec57
import config
from pipeline import errors, settings
from scoring import metrics
from studies import expert_labels
from studies import report
from scoring import detector
import visualize
from pipeline.errors import UserError
from dataset import load_npz
from pipeline.artefacts import whole_file, write_json
from pipeline.runtime import (FINISHED, normal_validation, parsed, prepare, read_checkpoint, run_command,
                    stage_parser, stale, stamp_of)

STRIP_S = 30
HARD_RECORD = "232"  # 1,382 of the 1,837 S beats of DS2 are in it: pooled figures are shown with and without
EXAMPLE_SYMBOLS = "NLRAV/Ff"  # the most common of each kind; the median-score beat of each is drawn


# --- figures ------------------------------------------------------------------------------------

def by_group(scores, y, groups, names, flagged):
    """{name: {"n", "auroc", "sensitivity"}} of each abnormal group against all normal beats."""
    result, normal = {}, y == 0
    for name in names:
        here = (groups == name) & ~normal
        rows = here | normal
        value = metrics.auroc(*metrics.Ranking(scores[rows], y[rows]).counts()) if here.any() else None
        result[name] = {"n": int(here.sum()), "auroc": value,
                        "sensitivity": float(flagged[here].mean()) if here.any() else None}
    return result


def by_symbol(scores, symbol, flagged):
    """{symbol: {"n", "flagged", "median"}}, most frequent first."""
    return {s: {"n": n, "flagged": float(flagged[symbol == s].mean()),
                "median": float(np.median(scores[symbol == s]))}
            for s, n in Counter(symbol.tolist()).most_common()}


def by_record(scores, y, record):
    """{record: {"n_normal", "n_abnormal", "auroc" or None}}"""
    own = metrics.auroc_by_record(scores, y, record)
    return {name: {"n_normal": int((y[record == name] == 0).sum()),
                   "n_abnormal": int((y[record == name] == 1).sum()), "auroc": value}
            for name, value in own.items()}


def without(record, scores, rows):
    """{"auroc", "auprc", "auroc_record_mean"} of all other records, or None where it is not among them."""
    kept = rows["record"] != record
    if kept.all() or not kept.any():
        return None
    y, names = rows["y"][kept], rows["record"][kept]
    ranked = metrics.Ranking(scores[kept], y).counts()
    own = [v for v in metrics.auroc_by_record(scores[kept], y, names).values() if v is not None]
    return {"auroc": metrics.auroc(*ranked), "auprc": metrics.auprc(*ranked), "auroc_record_mean": float(np.mean(own))}


def figures_of(scores, rows, threshold):
    """Everything about one score of the test beats: (metrics.json's entry, bands for scores.npz)."""
    y, flagged = rows["y"], scores >= threshold
    figures, bands = metrics.with_intervals(scores, y, rows["record"], threshold,
                                            config.BOOTSTRAP_RESAMPLES, config.BOOTSTRAP_SEED)
    abnormal = [c for c in config.AAMI if c != config.NORMAL_CLASS]
    entry = {"threshold": threshold, **figures, "confusion": metrics.confusion(y, flagged),
             "by_class": by_group(scores, y, rows["aami"], abnormal, flagged),
             "by_symbol": by_symbol(scores, rows["symbol"], flagged),
             "by_record": by_record(scores, y, rows["record"]),
             "without_232": without(HARD_RECORD, scores, rows)}
    return entry, bands


# --- what the pictures need ---------------------------------------------------------------------

def examples(scores, rows, x, recon, taper):
    """One beat a symbol, the one of median score: nobody picked it. Tapered, as the network sees it, in mV."""
    chosen = []
    for symbol in EXAMPLE_SYMBOLS:
        here = np.flatnonzero(rows["symbol"] == symbol)
        if len(here):
            chosen.append(here[np.argsort(scores[here])[len(here) // 2]])
    chosen = np.array(chosen, int)
    scale, offset = rows["scale_mv"][chosen, None], rows["offset_mv"][chosen, None]
    return {"example_row": chosen, "example_signal": x[chosen] * taper * scale + offset,
            "example_recon": recon[chosen] * scale + offset}


def part_examples(part, strength, flagged, rows, x, typical):
    """A flagged beat of each abnormal class: of those led by the class's most frequent part, the one of
    median strength. Signals in mV, with the record's regular beats that it was compared with."""
    chosen = []
    for name in [c for c in config.AAMI if c != config.NORMAL_CLASS]:
        here = np.flatnonzero((rows["aami"] == name) & flagged)
        if len(here):
            here = here[part[here] == np.bincount(part[here]).argmax()]
            chosen.append(here[np.argsort(strength[here], kind="stable")[len(here) // 2]])
    chosen = np.array(chosen, int)
    scale, offset = rows["scale_mv"][chosen, None], rows["offset_mv"][chosen, None]
    return {"part_row": chosen, "part_signal": x[chosen] * scale + offset,
            "part_usual": typical[chosen] * scale + offset}


def choose_strip(rows):
    """(record, first sample) of the 30 s with most different symbols, then most beats of both classes."""
    best = (0, 0, "", 0)
    length = STRIP_S * config.FS_HZ
    for name in dict.fromkeys(rows["record"].tolist()):
        here = rows["record"] == name
        window = rows["sample"][here] // length
        for k in np.unique(window):
            y, symbols = rows["y"][here][window == k], rows["symbol"][here][window == k]
            best = max(best, (len(set(symbols.tolist())), int(min(y.sum(), (1 - y).sum())), name, int(k)))
    return best[2], best[3] * length


def strip(segments, test, scores):
    """30 seconds of a record, stitched from its segments, with all its beats; scores of test beats."""
    rows = {k: v[test] for k, v in segments.rows.items()}
    record, start = choose_strip(rows)
    half, length = config.WINDOW_SIZE // 2, STRIP_S * config.FS_HZ
    signal = np.full(length + 4 * half, np.nan, np.float32)  # two half windows of margin a side
    all_rows, near = segments.rows, segments.rows["sample"] - start
    for k in np.flatnonzero((all_rows["record"] == record) & (near >= -half) & (near < length + half)):
        at = near[k] + half
        signal[at:at + 2 * half] = segments.x[k] * all_rows["scale_mv"][k] + all_rows["offset_mv"][k]
    shown = np.flatnonzero((all_rows["record"] == record) & (near >= 0) & (near < length))
    score_of = np.full(len(near), np.nan, np.float32)
    score_of[test] = scores
    return {"strip_signal": signal[2 * half:2 * half + length], "strip_start": np.array(start),
            "strip_record": np.array(record), "strip_sample": all_rows["sample"][shown],
            "strip_symbol": all_rows["symbol"][shown], "strip_score": score_of[shown],
            "strip_in_test": np.isin(shown, test)}


def latent_plane(z):
    """First two principal components of z (n, d), and their share of the variance."""
    pca = PCA(2, random_state=0).fit(z)
    return {"latent_2d": pca.transform(z).astype(np.float32), "latent_explained": pca.explained_variance_ratio_}


# --- baselines ----------------------------------------------------------------------------------

def baseline_sigma_s():
    """The baselines look through the window that the network looks through."""
    return config.TAPER_SIGMA_S or config.QRS_SIGMA_S


def baseline_origin(segments):
    """What the baselines' scores depend on: no checkpoint among it."""
    return {"segments_id": segments.meta["id"], "sigma_s": baseline_sigma_s(),
            "specificity": config.TARGET_SPECIFICITY,
            "settings": baselines.SETTINGS}


def stored_baselines(folder, segments):
    """(thresholds, test scores) saved by an earlier run on the same segments, or None."""
    try:
        stored, table = report.load_metrics(folder), load_npz(folder / "scores.npz", "")
        same = stored["baseline_origin"] == baseline_origin(segments)
        names = list(stored["baselines"]) if same else []
        return ({n: stored["baselines"][n]["threshold"] for n in names},
                {n: table[f"baseline_{n}"] for n in names}) if names else None
    except (UserError, KeyError):
        return None


def fresh_baselines(segments, protocol):
    """Fit all baselines on the normal training beats; thresholds by the same rule."""
    train, test = segments.part(protocol, "train"), segments.part(protocol, "test")
    validation = normal_validation(segments, protocol)
    scores = baselines.score_all(segments, train, np.concatenate([validation, test]),
                                 baseline_sigma_s() * config.FS_HZ,
                                 lambda detectors: tqdm(detectors, desc="baselines", disable=None))
    n = len(validation)
    return ({name: detector.threshold_at_specificity(s[:n], config.TARGET_SPECIFICITY) for name, s in scores.items()},
            {name: s[n:] for name, s in scores.items()})


def add_baselines(result, table, thresholds, scores, segments):
    """Put the baselines' figures, and the default score's paired difference to each, into the results."""
    rows = {k: table[k] for k in ("record", "symbol", "aami")} | {"y": table["label"]}
    default = table[f"score_{config.DEFAULT_SCORE}"]
    result["baseline_origin"], result["baselines"] = baseline_origin(segments), {}
    for name, values in scores.items():
        entry, _ = figures_of(values, rows, thresholds[name])
        entry["default_minus_it"] = metrics.paired_difference(
            default, values, rows["y"], rows["record"], config.BOOTSTRAP_RESAMPLES, config.BOOTSTRAP_SEED)
        result["baselines"][name] = {"title": baselines.BASELINES[name], **entry}
        table[f"baseline_{name}"] = values


# --- artefacts ----------------------------------------------------------------------------------

def save_scores(path, table):
    """scores.npz, whole or not at all."""
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **table)


def origin_of(stored):
    """What makes the results stale when it changes."""
    return {"weights": stored["weights"], "segments_id": stored["segments_id"],
            "training_settings": stored["training_settings"], "score_settings": stored["score_settings"],
            "evaluation_settings": settings.snapshot(settings.EVALUATION_SETTINGS)}


def up_to_date(folder, origin):
    """The stored metrics if they are of this checkpoint with today's settings, else None."""
    try:
        stored, table = report.load_metrics(folder), load_npz(folder / "scores.npz", "")
    except UserError:
        return None
    same = stored["origin"] == origin and str(table.get("weights")) == origin["weights"]
    return stored if same else None


def load_detector(database, protocol, seed, segments):
    """(model, stored) of the checkpoint, sure to belong to these segments and today's settings."""
    path = database.checkpoint_path(protocol, seed)
    command = run_command(database, "train_mitbih.py", protocol, seed)
    model, stored = read_checkpoint(path, command, FINISHED)
    why = stale(stored, stamp_of(segments, protocol, seed))
    why += settings.differences(stored["score_settings"], settings.SCORE_SETTINGS)
    if why:
        raise UserError(f"{path}: made with other settings ({'; '.join(why)}). Make it again with: {command}")
    return model, stored


def evaluate(segments, model, stored, protocol, device):
    """Score the test split; returns (metrics.json's content, scores.npz's content)."""
    test = segments.part(protocol, "test")
    rows = {k: v[test] for k, v in segments.rows.items()}
    scores, view = detector.score(model, stored["fitted"], segments, test, config.SCORES[protocol], config.FS_HZ, device)
    table = {k: rows[k] for k in ("record", "sample", "symbol", "aami")} | {"label": rows["y"]}
    table |= {"weights": np.array(stored["weights"]), "fs_hz": np.array(config.FS_HZ),
              "roc_fpr": metrics.GRID, "pr_recall": metrics.GRID}
    entries = {}
    for name in config.SCORES[protocol]:
        values = scores[name]
        entry, bands = figures_of(values, rows, stored["thresholds"][name])
        entries[name] = {"title": detector.TITLES[name], **entry}
        table |= {f"{band}_{name}": curve for band, curve in bands.items()}
        table[f"score_{name}"] = values.astype(np.float32)
    default = scores[config.DEFAULT_SCORE]
    table |= examples(default, rows, segments.x[test], view.recon, model.taper.cpu().numpy())
    table |= strip(segments, test, default) | latent_plane(view.z)
    unusual, typical = beat_parts.deviations(view, segments.x[test], stored["fitted"], config.FS_HZ)
    part, strength = beat_parts.leading(unusual, stored["part_limits"])
    table |= {"part": part.astype(np.int8), "part_strength": strength.astype(np.float32)}
    flagged, n_abnormal = default >= stored["thresholds"][config.DEFAULT_SCORE], int(rows["y"].sum())
    table |= part_examples(part, strength, flagged, rows, segments.x[test], typical)
    result = {"database": segments.meta["database"], "simulated": segments.meta["simulated"],
              "protocol": protocol, "seed": stored["seed"], "default_score": config.DEFAULT_SCORE,
              "n": {"test": len(test), "normal": len(test) - n_abnormal, "abnormal": n_abnormal,
                    "records": len(np.unique(rows["record"]))},
              "published": config.PUBLISHED, "scores": entries, "origin": origin_of(stored),
              "ec57": ec57.ec57(rows, flagged, ec57.paced(segments.rows), config.FS_HZ),
              "hours": ec57.hours(rows["rr_before_s"]),
              "false_alarms": ec57.false_alarms(default, rows["y"], ec57.hours(rows["rr_before_s"])),
              "calibration": ec57.calibration(default, rows["y"], stored["calibration"]),
              "parts": beat_parts.shares(part, rows["aami"], flagged),
              "versions": {"torch": str(torch.__version__), "numpy": np.__version__}}
    return result, table


def parse_args(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("--baselines", action="store_true", help="add detectors without a network to the results")
    parser.add_argument("--force", action="store_true", help="score again even if the results are up to date")
    parser.add_argument("--recordings", nargs="*", metavar="DIR", help="detect.py's own output on WFDB records with "
                        "expert labels instead, whatever their rate and leads; without DIR the test patients")
    parser.add_argument("--annotator", default="atr", help="of the expert labels")
    parser.add_argument("--given-beats", action="store_true",
                        help="with --recordings: R peaks of the labels, not detected")
    parser.add_argument("--score-all", action="store_true",
                        help="with --recordings: without the rule of what cannot be read (quality.py)")
    return parsed(parser, argv)


def evaluate_recordings(args):
    """detect.py against expert labels; the table is printed, results/recordings-*.json written."""
    threads = args.threads or os.cpu_count()
    database = settings.database("simulated") if args.simulated else settings.database("mitdb")
    folders = args.recordings or [database.records_dir() / name for name in database.test]
    result = expert_labels.run(folders, args.annotator, args.given_beats, args.device, threads,
                                   simulated=args.simulated, score_all=args.score_all)
    name = (Path(args.recordings[0]).resolve().name if args.recordings else "test") + (
        "-given" * args.given_beats + "-all" * args.score_all)
    path = database.root / "results" / f"recordings-{name}.json"
    write_json(path, result)
    print(f"{expert_labels.table(result)}\nwrote {path}")


def main(argv=None):
    args = parse_args(argv)
    if args.recordings is not None:
        return evaluate_recordings(args)
    database, device, segments = prepare(args)
    model, stored = load_detector(database, args.protocol, args.seed, segments)
    folder = database.results_dir(args.protocol, args.seed)
    result = None if args.force else up_to_date(folder, origin_of(stored))
    if result and (not args.baselines or "baselines" in result):
        print(f"{folder / 'metrics.json'}: up to date, not scored again (--force scores)")
    else:
        result, table = evaluate(segments, model.to(device), stored, args.protocol, device)
        compared = (None if args.force and args.baselines else stored_baselines(folder, segments)) or (
            fresh_baselines(segments, args.protocol) if args.baselines else None)
        if compared:
            add_baselines(result, table, *compared, segments)
        save_scores(folder / "scores.npz", table)  # first: metrics.json says that both are there
        write_json(folder / "metrics.json", result)
        print(f"wrote {folder / 'metrics.json'}, {folder / 'scores.npz'}")
    print(report.terminal_table(result, report.load_seeds(database, args.protocol)))
    if args.seed == config.SEED:
        plots = database.plots_dir(args.protocol)
        if visualize.up_to_date(folder, plots):
            return print(f"{plots}/: {len(visualize.FIGURES)} pictures up to date")
        visualize.draw_all(folder, plots)
        print(f"wrote {len(visualize.FIGURES)} pictures to {plots}/")


if __name__ == "__main__":
    errors.run(main)
