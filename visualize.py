"""Step 4 of 4: draw every picture from saved results; no model, no segment, no metric computed.

reads   results/beat/history.csv       python train_mitbih.py
        results/beat/scores.npz        python evaluate.py
        results/beat/metrics.json      python evaluate.py
writes  evaluation_plots/beat/*.png    the rows of FIGURES, below

Numbers are those of metrics.json; curves, boxes and histograms are drawn from the scores.
A beat is flagged when its score is at or above the threshold.
"""

import argparse
import hashlib
import json
import textwrap
from functools import partial

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay
from tqdm import tqdm

from scoring import beat_parts
import config
from pipeline import errors, settings
from pipeline.figures import (ABNORMAL, BEST, CLASS_OF, CLASSES, CURVES, DASHED, GREY, GREYS, NORMAL, PART_COLOURS, POINT,
                     SHADES, VERDICTS, clock, digest_of, estimate, load_artefacts, new_figure, on_axes, save)


def training_history(run):
    figure, epoch, loss = new_figure(run, 6.4, 4.6), run.history["epoch"], run.history["validation_loss"]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot(epoch, run.history["train_loss"], ".-", color=GREY, label="training")
    top.plot(epoch, loss, ".-", color=BEST, label="validation")
    kept = np.flatnonzero(run.history["kept"])[-1]
    top.plot(epoch[kept], loss[kept], "*", color=BEST, markersize=14,
             label=f"kept: epoch {epoch[kept]:.0f}, {loss[kept]:.4g}")
    top.set(yscale="log", ylabel="mean squared error of the\nnormalised, tapered beat (no unit)")
    top.grid(which="both")
    top.legend(title=f"n = {len(epoch)} epochs")
    bottom.plot(epoch, run.history["learning_rate"], ".-", color=GREY)
    bottom.set(xlabel="epoch (number)", ylabel="learning rate\n(no unit)", ylim=(0, None))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    return figure


def score_distributions(ax, run):
    bins = (np.geomspace if run.scale == "log" else np.linspace)(run.score.min(), run.score.max(), 81)
    for value, name, colour in ((0, "normal", NORMAL), (1, "abnormal", ABNORMAL)):
        score = run.score[run.scores["label"] == value]
        ax.hist(score, bins, weights=np.full(len(score), 100 / max(len(score), 1)), color=colour,
                alpha=0.55, label=f"{name}, n = {run.metrics['n'][name]:,}")
    ax.axvline(run.threshold, **DASHED, label=f"threshold {run.threshold:.4g}")
    ax.set(xscale=run.scale, xlabel=run.label, ylabel="beats of the class (% a bin)",
           title=f"Score of the test beats: AUROC {estimate(run.entry['auroc'])}")
    ax.legend()


def draw_curves(ax, run, display, metric, band, x, y):
    """A curve a score (coloured) and a baseline (grey), best first in the legend, the default thick,
    with its band (grid, low, high) and operating point (x, y)."""
    title, styles, greys = run.entry["title"], iter(CURVES * 9), iter(GREYS * 9)
    curves = [("score", name, entry, next(styles)) for name, entry in run.metrics["scores"].items()]
    curves += [("baseline", name, entry, next(greys)) for name, entry in run.metrics.get("baselines", {}).items()
               if f"baseline_{name}" in run.scores]
    curves = [curve for curve in curves if curve[2][metric]["value"] is not None]
    for kind, name, entry, (colour, dash) in sorted(curves, key=lambda c: -c[2][metric]["value"]):
        display.from_predictions(run.scores["label"], run.scores[f"{kind}_{name}"], ax=ax)
        colour, dash, width = (BEST, "-", 2.2) if entry is run.entry else (colour, dash, 1.2)
        ax.lines[-1].set(color=colour, linestyle=dash, linewidth=width, zorder=2 + width / 10,
                         label=f"{entry['title']}: {estimate(entry[metric])}")
    grid, low, high = (run.scores[array.format(run.metrics["default_score"])] for array in band)
    ax.fill_between(grid, low, high, color=BEST, alpha=0.18, lw=0, label=f"{title}: 95 % band over records")
    x, y = np.float64(x), np.float64(y)   # None, of too few beats, becomes NaN: not drawn
    ax.plot(x, y, "o", color=BEST, **POINT, label=f"{title} at its threshold ({x:.3f}, {y:.3f})")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="auto")
    ax.grid()
    ax.legend().remove()
    ax.figure.legend(loc="outside lower center", ncols=2, fontsize=6.5,
                     title=f"{metric.upper()} [95 % interval]; grey: without a network;  {run.n}")


def roc(ax, run):
    ax.plot([0, 1], [0, 1], **DASHED, label="chance: 0.500")
    # the published figures are of the beat protocol on the real data: no other compares with them
    if run.metrics["protocol"] == "beat" and not run.metrics["simulated"]:
        auroc, x, y = (run.metrics["published"][name] for name in ("auroc", "specificity", "sensitivity"))
        # a thin cross above our own point, which it nearly meets: neither hides the other
        ax.plot(1 - x, y, "+", color="black", markersize=16, zorder=6, linestyle="none",
                label=f"published: {auroc:.4f}, operating point ({1 - x:.3f}, {y:.3f})")
    draw_curves(ax, run, RocCurveDisplay, "auroc", ("roc_fpr", "roc_tpr_low_{}", "roc_tpr_high_{}"),
                1 - np.float64(run.entry["specificity"]["value"]), run.entry["sensitivity"]["value"])
    ax.set(xlabel="1 - specificity (fraction of normal beats flagged)",
           ylabel="sensitivity (fraction of abnormal beats flagged)", title="ROC of the test beats")


def precision_recall(ax, run):
    prevalence = run.metrics["n"]["abnormal"] / run.metrics["n"]["test"]
    ax.axhline(prevalence, **DASHED, label=f"prevalence: {prevalence:.3f}")
    draw_curves(ax, run, PrecisionRecallDisplay, "auprc",
                ("pr_recall", "pr_precision_low_{}", "pr_precision_high_{}"),
                run.entry["sensitivity"]["value"], run.entry["ppv"]["value"])
    ax.set(xlabel="sensitivity (fraction of abnormal beats flagged)",
           ylabel="PPV (fraction of flagged beats that are abnormal)", title="Precision and recall")


def confusion_matrix(ax, run):
    counts = np.array([run.entry["confusion"][cell] for cell in ("tn", "fp", "fn", "tp")]).reshape(2, 2)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(percent):
        ax.text(column, row, f"{counts[row, column]:,}\n{share:.1f} %", ha="center", va="center",
                fontsize=13, color="white" if share > 50 else "black")
    ax.set_xticks((0, 1), ("below threshold", "flagged"))
    ax.set_yticks((0, 1), [f"{word}\nn = {run.metrics['n'][word]:,}" for word in ("normal", "abnormal")])
    ax.set(xlabel=f"{run.entry['title']}:\nthreshold {run.threshold:.4g} (beats, % of the row)",
           ylabel="expert's annotation (beats)")
    ax.set_title("\n".join(f"{name} {estimate(run.entry[name])}" for name in ("sensitivity", "specificity")))


def score_by_symbol(ax, run):
    """Box: quartiles, whiskers 5 to 95 %; dots: about 120 beats a symbol, evenly taken."""
    rows = run.entry["by_symbol"]
    symbols = [symbol for symbol in CLASS_OF if symbol in rows]   # in the order of the classes
    for x, symbol in enumerate(symbols):
        score, (colour, _) = run.score[run.scores["symbol"] == symbol], CLASSES[CLASS_OF[symbol]]
        ax.boxplot(score, positions=[x], widths=0.62, whis=(5, 95), showfliers=False, patch_artist=True,
                   boxprops={"facecolor": colour, "alpha": 0.45}, medianprops={"color": "black"})
        dots = score[::1 + len(score) // 120]
        ax.plot(x + np.linspace(-0.25, 0.25, len(dots)), dots, ".", markersize=2, color=colour, zorder=3)
    for name in dict.fromkeys(CLASS_OF[symbol] for symbol in symbols):
        across = [x for x, symbol in enumerate(symbols) if CLASS_OF[symbol] == name]
        ax.text(np.mean(across), 1.01, name, transform=ax.get_xaxis_transform(), ha="center", weight="bold")
        ax.axvline(across[-1] + 0.5, color=GREY, linewidth=0.5)
    ax.axhline(run.threshold, **DASHED, label=f"threshold {run.threshold:.4g}")
    ax.set_xticks(range(len(symbols)), [f"{s}\n{rows[s]['n']:,}\n{rows[s]['flagged']:.1%}" for s in symbols])
    ax.set(yscale=run.scale, ylabel=run.label.replace(" (", "\n("),
           xlabel="annotated symbol  /  n beats  /  flagged (%)")
    ax.figure.legend(loc="outside lower center", title=f"bold letters: AAMI class;  {run.n}")


def auroc_by_record(ax, run):
    rows, scores = run.entry["by_record"], run.metrics["scores"]
    shown = sorted((r for r in rows if rows[r]["auroc"] is not None), key=lambda r: rows[r]["auroc"])
    beside = [scores[name] for name in dict.fromkeys((run.metrics["default_score"], "mse"))]
    beside += sorted(run.metrics.get("baselines", {}).values(), key=lambda b: -b["auroc"]["value"])[:1]
    for entry, marker, colour in zip(beside, "oDs", (BEST, "#E69F00", GREY)):
        auroc = np.array([entry["by_record"][r]["auroc"] for r in shown], float)
        ax.plot(auroc, range(len(shown)), marker, color=colour, markersize=4.5, zorder=4 if marker == "o" else 3,
                label=f"{entry['title']}, n = {len(shown)} records")
    ax.axvline(0.5, **DASHED, label="chance: 0.500")
    ax.set_yticks(range(len(shown)), [f"{r}  ({rows[r]['n_abnormal']:,} / {rows[r]['n_normal']:,})"
                                      for r in shown], fontsize=7)
    none = sum(row["n_abnormal"] == 0 for row in rows.values())
    ax.set(xlabel="AUROC within the record (no unit)", ylabel="record  (abnormal / normal test beats)")
    ax.set_title(f"Records not shown: {none} without abnormal beats, {len(rows) - len(shown) - none} with too few")
    ax.grid()
    ax.figure.legend(loc="outside lower center")


def reconstructions(run):
    """Signal under its reconstruction, absolute error below at 6:1, all errors on one scale."""
    figure, k, handles = new_figure(run, 9, 9.6), len(run.scores["example_row"]), {}
    grid = figure.add_gridspec(k + k % 2, 2, height_ratios=(6, 1) * ((k + 1) // 2))
    errors = np.abs(run.scores["example_signal"] - run.scores["example_recon"])
    t = (np.arange(errors.shape[1]) - errors.shape[1] // 2) / float(run.scores["fs_hz"])
    for i, beat in enumerate(run.scores["example_row"]):
        top, bottom = (figure.add_subplot(grid[i // 2 * 2 + part, i % 2]) for part in (0, 1))
        kind, colour = (("normal", NORMAL), ("abnormal", ABNORMAL))[run.scores["label"][beat]]
        seen, = top.plot(t, run.scores["example_signal"][i], color="black", lw=1)
        handles["signal, filtered and tapered as the network sees it"] = seen
        handles[f"reconstruction, {kind}"], = top.plot(t, run.scores["example_recon"][i], color=colour)
        handles["absolute error"] = bottom.fill_between(t, errors[i], color=GREY, linewidth=0)
        record, sample, symbol = (run.scores[name][beat] for name in ("record", "sample", "symbol"))
        sign = "≥" if run.score[beat] >= run.threshold else "<"
        top.set_title(f"record {record}, {clock(sample, run)}, {symbol}:  "
                      f"score {run.score[beat]:.3g} {sign} threshold {run.threshold:.3g}")
        top.set(ylabel="signal (mV)", xlim=(t[0], t[-1]), xticks=())
        bottom.set(xlim=(t[0], t[-1]), ylim=(0, 1.05 * errors.max()), xlabel="time from the R peak (s)")
        bottom.set_ylabel("error\n(mV)", rotation=0, ha="right", va="center")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, title=f"n = {k} beats")
    return figure


def parts_of_the_beat(run):
    """A flagged beat of each class over the record's own regular ones; below, the part that leads in all of them."""
    figure, rows = new_figure(run, 9, 7.4), run.scores["part_row"]
    grid = figure.add_gridspec(3, 2, height_ratios=(3, 3, 3))
    t = (np.arange(run.scores["part_signal"].shape[1]) - run.scores["part_signal"].shape[1] // 2) / run.scores["fs_hz"]
    for i, beat in enumerate(rows[:4]):
        ax, part = figure.add_subplot(grid[i // 2, i % 2]), beat_parts.PARTS[run.scores["part"][beat]]
        for (name, (left, right)), shade in zip(beat_parts.WINDOWS_S.items(), PART_COLOURS):
            ax.axvspan(left, right, color=shade, alpha=0.35 if name == part else 0.1, linewidth=0)
        ax.plot(t, run.scores["part_usual"][i], color=NORMAL, linewidth=1.1,
                label="the record's own regular beats, mean of 10")
        ax.plot(t, run.scores["part_signal"][i], color="black", linewidth=1.1, label="flagged beat")
        shown = run.scores["part_signal"][i][np.abs(t) <= 0.7]
        both = np.concatenate([shown, run.scores["part_usual"][i][np.abs(t) <= 0.7]])
        ax.set(xlim=(-0.7, 0.7), ylim=(both.min() - 0.1, both.max() + 0.1), ylabel="signal (mV)",
               xlabel="time from the R peak (s)",
               title=f"{run.scores['aami'][beat]}: record {run.scores['record'][beat]}, "
                     f"{clock(run.scores['sample'][beat], run)}, leads: {beat_parts.TITLES[part]}, "
                     f"{run.scores['part_strength'][beat]:.1f} times its limit")
    handles, labels = ax.get_legend_handles_labels()
    bottom = figure.add_subplot(grid[2, :])
    shares = {name: row for name, row in run.metrics["parts"].items() if row["n"]}
    left = np.zeros(len(shares))
    for part, colour in zip(beat_parts.PARTS, PART_COLOURS):
        width = np.array([100 * row[part] for row in shares.values()])
        bars = bottom.barh(range(len(shares)), width, left=left, color=colour, label=beat_parts.TITLES[part])
        bottom.bar_label(bars, [f"{w:.0f}" if w >= 4 else "" for w in width], label_type="center", fontsize=8)
        left += width
    bottom.set_yticks(range(len(shares)), [f"{name}, n = {row['n']:,}" for name, row in shares.items()])
    bottom.invert_yaxis()
    bottom.set(xlim=(0, 100), ylabel="class (flagged beats)",
               xlabel="share of the flagged beats in which the part leads (%)",
               title="All flagged beats. Above: of those led by their class's most frequent part, "
                     "the one of median strength")
    bars, names = bottom.get_legend_handles_labels()
    figure.legend(handles + bars, labels + names, loc="outside lower center", ncols=3)
    return figure


def latent_space(ax, run):
    first, second = 100 * run.scores["latent_explained"]
    n = {name: int((run.scores["aami"] == name).sum()) for name in CLASSES}
    for name in sorted(CLASSES, key=lambda name: (name != config.NORMAL_CLASS, -n[name])):   # rarest on top
        ax.scatter(*run.scores["latent_2d"][run.scores["aami"] == name].T, s=7, alpha=0.6, linewidths=0,
                   color=CLASSES[name][0], marker=CLASSES[name][1], label=f"{name}, n = {n[name]:,}")
    ax.set(xlabel=f"first principal component of z ({first:.1f} % of the variance, no unit)",
           ylabel=f"second principal component of z ({second:.1f} % of the variance, no unit)")
    ax.legend(title="AAMI class of the beat", markerscale=2)


def strip(run):
    """30 s of one record in three rows; beats as dots on the signal, the expert's symbols above."""
    figure, signal = new_figure(run, 11, 6.2), run.scores["strip_signal"]
    start, beats = (run.scores[f"strip_{name}"] / run.scores["fs_hz"] for name in ("start", "sample"))
    t, filled = start + np.arange(len(signal)) / run.scores["fs_hz"], np.nan_to_num(signal)
    verdict = np.where(run.scores["strip_in_test"], 1 + (run.scores["strip_score"] >= run.threshold), 0)
    norm = TwoSlopeNorm(run.threshold, min(run.score.min(), run.threshold - 1e-9),
                        max(run.score.max(), run.threshold + 1e-9))
    for ax, left in zip(axes := figure.subplots(3, 1, sharey=True), (start, start + 10, start + 20)):
        ax.plot(t, signal, color="black", linewidth=0.7)
        for kind, (word, colour, marker) in enumerate(VERDICTS):
            at = beats[verdict == kind]
            ax.plot(at, np.interp(at, t, filled), marker, color=colour, label=f"{word} (n = {len(at)})")
            shade = ax.scatter(at, np.interp(at, t, filled), 55, run.scores["strip_score"][verdict == kind],
                               marker=marker, cmap=SHADES, norm=norm, edgecolors=colour, zorder=3) if kind else None
        for i in np.flatnonzero((left <= beats) & (beats < left + 10)):
            ax.text(beats[i], filled.max(), f"{run.scores['strip_symbol'][i]}\n", ha="center")
        ax.set(xlim=(left, left + 10), ylabel="signal (mV)", xlabel="time in the record (s)", ymargin=0.3)
    figure.colorbar(shade, ax=axes, label="score (no unit; white: the threshold)", aspect=40, pad=0.01)
    axes[0].set_title(f"Record {run.scores['strip_record']} from {clock(run.scores['strip_start'], run)}, "
                      f"expert's symbols above;  score: {run.entry['title']}, threshold {run.threshold:.4g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


FIGURES = {
    "training_history.png": training_history,
    "score_distributions.png": partial(on_axes, score_distributions, 6.4, 4.4),
    "roc.png": partial(on_axes, roc, 7.6, 8.2),
    "precision_recall.png": partial(on_axes, precision_recall, 7.6, 8.2),
    "confusion_matrix.png": partial(on_axes, confusion_matrix, 5.2, 4.8),
    "score_by_symbol.png": partial(on_axes, score_by_symbol, 9, 5.2),
    "auroc_by_record.png": partial(on_axes, auroc_by_record, 6.4, 8.2),
    "reconstructions.png": reconstructions,
    "parts_of_the_beat.png": parts_of_the_beat,
    "latent_space.png": partial(on_axes, latent_space, 6.4, 5.6),
    "strip.png": strip}


def up_to_date(results_dir, plots_dir):
    """Whether every picture is there and was drawn from these very artefacts."""
    def origin(path):
        with Image.open(path) as image:
            return image.text.get("artefacts")
    try:
        return all(origin(plots_dir / name) == digest_of(results_dir) for name in FIGURES)
    except (OSError, AttributeError):
        return False


def draw_all(results_dir, plots_dir):
    """Draw FIGURES of `results_dir` into `plots_dir`; their paths. Nothing, if an artefact is missing."""
    run, digest = load_artefacts(results_dir), digest_of(results_dir)
    for name, draw in tqdm(FIGURES.items(), desc="drawing", unit="figure", disable=None):
        save(plots_dir / name, lambda: draw(run), digest)
    return [plots_dir / name for name in FIGURES]


def ablation_figure(result):
    """Every variant of ablation.json with its 95 % interval over records: the ladder above, the checks below."""
    figure = Figure(figsize=(11, 6.6), dpi=150, layout="constrained")
    simulated = "SIMULATED DATA  ·  " * result["simulated"]
    figure.suptitle(f"{simulated}test split, seed {result['seed']}; each row keeps what the rows above added; "
                    "below the line: the default score with something broken or replaced", fontsize=8,
                    color="red" if simulated else GREY)
    for ax, (protocol, table) in zip(figure.subplots(1, 2), result["protocols"].items()):
        rows = table["ladder"] + table["checks"]
        for key, name, marker, colour, shift in (("auroc", "ROC-AUC", "o", BEST, -0.14),
                                                 ("auprc", "PR-AUC", "s", "#E69F00", 0.14)):
            value, low, high = (np.array([100 * row[key][part] for row in rows]) for part in ("value", "low", "high"))
            # an interval of resampled records need not hold the value itself
            ax.errorbar(value, np.arange(len(rows)) + shift, fmt=marker, color=colour, markersize=4.5, capsize=2,
                        xerr=(np.maximum(value - low, 0), np.maximum(high - value, 0)), label=name, linewidth=1)
        ax.axhline(len(table["ladder"]) - 0.5, color="black", linewidth=0.8)
        ax.set_yticks(range(len(rows)), ["\n".join(textwrap.wrap(row["title"], 34)) for row in rows], fontsize=7)
        ax.invert_yaxis()
        ax.set(xlim=(0, 101), xlabel="% [95 % interval over records]", title=f"{protocol} protocol")
        ax.grid(axis="x")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_ablation(path, plots_dir):
    """Picture of results/ablation.json; its path. UserError where the file is missing or damaged."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result["protocols"], result["seed"]
    except FileNotFoundError as error:
        raise errors.UserError(f"{path} is missing: run `python ablation.py`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise errors.UserError(f"{path} cannot be read ({error}): run `python ablation.py`") from error
    save(plots_dir / "ablation.png", lambda: ablation_figure(result), hashlib.sha256(path.read_bytes()).hexdigest())
    return plots_dir / "ablation.png"


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=config.PROTOCOLS, default=config.PROTOCOL)
    parser.add_argument("--database", default=config.DATABASE, choices=list(config.DATABASES))
    parser.add_argument("--run", metavar="NAME", help="results of runs/NAME")
    parser.add_argument("--ablation", action="store_true", help="the picture of ablation.py's results instead")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    settings.check()
    database = settings.database(args.database, args.run)
    if args.ablation:
        path = draw_ablation(database.out / "results" / "ablation.json", database.out / "evaluation_plots")
        return print(f"wrote {path}")
    written = draw_all(database.results_dir(args.protocol, config.SEED),
                       database.plots_dir(args.protocol))
    print(f"{len(written)} pictures of {database.title} written to {written[0].parent}")


if __name__ == "__main__":
    errors.run(main)
