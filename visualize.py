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
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay
from tqdm import tqdm

import config
from files import whole_file

NORMAL, ABNORMAL, GREY, BEST = "#0072B2", "#D55E00", "#707070", "#5D3A9B"
# Okabe and Ito 2008: told apart by colour-blind readers; a marker a class for print in grey.
CLASSES = dict(zip("NSVFQ", zip((NORMAL, "#E69F00", ABNORMAL, "#CC79A7", "#009E73"), "os^Dv")))
CLASS_OF = {symbol: name for name, symbols in config.AAMI.items() for symbol in symbols}
VERDICTS = (("not in the test split", GREY, "o"), ("below the threshold", NORMAL, "o"),
            ("at or above the threshold", ABNORMAL, "^"))
# Scores beside the default one: colours that mean neither normal nor abnormal.
CURVES = (("#009E73", "-"), ("#E69F00", "--"), ("#CC79A7", "-."), ("#56B4E9", "-"), ("#8C6D31", "--"))
SHADES = LinearSegmentedColormap.from_list("score", (NORMAL, "white", ABNORMAL))
DASHED = {"color": "black", "linestyle": "--", "linewidth": 1.2}
POINT = {"markersize": 8, "markeredgecolor": "white", "zorder": 5}
STYLE = {"font.size": 9, "axes.titlesize": 9.5, "legend.fontsize": 8, "legend.title_fontsize": 8,
         "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.3}
NEEDED = {
    "metrics.json": "database simulated protocol seed default_score n published scores",
    "scores.npz": "record sample symbol aami label fs_hz roc_fpr pr_recall latent_2d latent_explained"
                  " example_row example_signal example_recon strip_signal strip_start strip_record"
                  " strip_sample strip_symbol strip_score strip_in_test",
    "history.csv": "epoch train_loss validation_loss learning_rate seconds segments_per_s kept"}


@dataclass(frozen=True)
class Artefacts:
    metrics: dict             # metrics.json
    scores: dict              # the arrays of scores.npz
    history: dict             # the columns of history.csv
    entry: dict               # metrics of the default score
    score: np.ndarray         # (n,) default score of each test beat
    threshold: float          # of the default score
    n: str                    # "n = ..." for the legends
    label: str                # of an axis of the score
    scale: str                # "log" only where it can be: a sum of logarithms may be negative


def read(path, command, more=()):
    """Content of `path`; config.UserError names the file, its flaw and the command that makes it."""
    remedy = f"run `python {command}` with the same --protocol and --simulated"
    if not path.is_file():
        raise config.UserError(f"{path} is missing: {remedy}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                content = dict(file)
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            header, *rows = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
            content = dict(zip(header, np.array(rows, float).T, strict=True))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile,
            zlib.error) as error:
        raise config.UserError(f"{path} cannot be read ({error}): {remedy}") from error
    if missing := [name for name in (*NEEDED[path.name].split(), *more) if name not in content]:
        raise config.UserError(f"{path} lacks {', '.join(missing)}: {remedy}")
    return content


def load_artefacts(results_dir):
    """Artefacts of one run; config.UserError where one is missing, damaged or of another run."""
    metrics = read(results_dir / "metrics.json", "evaluate.py")
    scores = read(results_dir / "scores.npz", "evaluate.py", map("score_{}".format, metrics["scores"]))
    history, n = read(results_dir / "history.csv", "train_mitbih.py"), metrics["n"]
    if len(scores["label"]) != n["test"]:
        raise config.UserError(f"{results_dir}: scores.npz and metrics.json differ: run `python evaluate.py`")
    entry, score = metrics["scores"][metrics["default_score"]], scores[f"score_{metrics['default_score']}"]
    n = f"n = {n['normal']:,} normal, {n['abnormal']:,} abnormal beats of {n['records']} records"
    label = f"score: {entry['title']} (no unit, higher = more abnormal)"
    scale = "log" if (score > 0).all() else "linear"
    return Artefacts(metrics, scores, history, entry, score, entry["threshold"], n, label, scale)


def new_figure(run, width, height):
    """Figure of width x height inches that says what it was drawn from."""
    figure, metrics = Figure(figsize=(width, height), dpi=150, layout="constrained"), run.metrics
    origin = f"{metrics['database']}  ·  {metrics['protocol']} protocol  ·  seed {metrics['seed']}"
    if metrics["simulated"]:
        origin = f"SIMULATED DATA  ·  {origin}"
        figure.text(0.5, 0.5, "SIMULATED DATA", color="red", alpha=0.2, weight="bold", rotation=30,
                    fontsize=6 * min(width, height), ha="center", va="center", zorder=10)
    figure.suptitle(origin, fontsize=8, color="red" if metrics["simulated"] else GREY)
    return figure


def on_axes(draw, width, height, run):
    """Figure with a single Axes, drawn on by `draw`."""
    figure = new_figure(run, width, height)
    draw(figure.add_subplot(), run)
    return figure


def estimate(metric):
    """'0.973 [0.961, 0.983]'; a null in metrics.json means too few beats."""
    if metric["value"] is None or metric["low"] is None:
        return "not available" if metric["value"] is None else f"{metric['value']:.3f}"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def clock(sample, run):
    return "{:02d}:{:02d}".format(*divmod(int(sample / run.scores["fs_hz"]), 60))


def training_history(run):
    figure, epoch, loss = new_figure(run, 6.4, 4.6), run.history["epoch"], run.history["validation_loss"]
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    top.plot(epoch, run.history["train_loss"], ".-", color=GREY, label="training")
    top.plot(epoch, loss, ".-", color=BEST, label="validation")
    kept = np.flatnonzero(run.history["kept"])[-1]
    top.plot(epoch[kept], loss[kept], "*", color=BEST, markersize=14,
             label=f"kept: epoch {epoch[kept]:.0f}, {loss[kept]:.4g}")
    top.set(yscale="log", ylabel="squared error of the normalised\nsignal, weighted to the beat (no unit)")
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
    """A curve a score, the default thick, with its band (grid, low, high) and operating point (x, y)."""
    title, styles = run.entry["title"], iter(CURVES * 9)
    for name, entry in run.metrics["scores"].items():
        if entry[metric]["value"] is not None:
            display.from_predictions(run.scores["label"], run.scores[f"score_{name}"], ax=ax)
            colour, dash, width = (BEST, "-", 2.2) if entry is run.entry else (*next(styles), 1.2)
            ax.lines[-1].set(color=colour, linestyle=dash, linewidth=width, zorder=2 + width / 10,
                             label=f"{entry['title']}: {estimate(entry[metric])}")
    grid, low, high = (run.scores[array.format(run.metrics["default_score"])] for array in band)
    ax.fill_between(grid, low, high, color=BEST, alpha=0.18, lw=0, label=f"{title}: 95 % band over records")
    x, y = np.float64(x), np.float64(y)   # None, of too few beats, becomes NaN: not drawn
    ax.plot(x, y, "o", color=BEST, **POINT, label=f"{title} at its threshold ({x:.3f}, {y:.3f})")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="auto")
    ax.grid()
    ax.legend().remove()
    ax.figure.legend(loc="outside lower center", title=f"{metric.upper()} [95 % interval];  {run.n}")


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
    names = dict.fromkeys((run.metrics["default_score"], "mse"))   # the published score beside the default
    for name, marker, colour in zip(names, "oD", (BEST, "#E69F00")):
        auroc = np.array([scores[name]["by_record"][r]["auroc"] for r in shown], float)
        ax.plot(auroc, range(len(shown)), marker, color=colour, markersize=4.5,
                label=f"{scores[name]['title']}, n = {len(shown)} records")
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
        handles["signal, filtered"], = top.plot(t, run.scores["example_signal"][i], color="black", lw=1)
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
    "roc.png": partial(on_axes, roc, 6.4, 7.8),
    "precision_recall.png": partial(on_axes, precision_recall, 6.4, 7.8),
    "confusion_matrix.png": partial(on_axes, confusion_matrix, 5.2, 4.8),
    "score_by_symbol.png": partial(on_axes, score_by_symbol, 9, 5.2),
    "auroc_by_record.png": partial(on_axes, auroc_by_record, 6.4, 8.2),
    "reconstructions.png": reconstructions,
    "latent_space.png": partial(on_axes, latent_space, 6.4, 5.6),
    "strip.png": strip}


def digest_of(results_dir):
    """SHA-256 of the artefacts the pictures are drawn from; it is stored in each picture."""
    content = b"".join((results_dir / name).read_bytes() for name in NEEDED)
    return hashlib.sha256(content).hexdigest()


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
    run, stamp = load_artefacts(results_dir), PngInfo()
    stamp.add_text("artefacts", digest_of(results_dir))
    for name, draw in tqdm(FIGURES.items(), desc="drawing", unit="figure", disable=None):
        with matplotlib.rc_context(STYLE):
            canvas = FigureCanvasAgg(draw(run))
            canvas.draw()
        # 256 colours: a third of the size; the median cut would turn the colour of a rare class grey
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        with whole_file(plots_dir / name) as part:
            image.save(part, format="PNG", optimize=True, dpi=(150, 150), pnginfo=stamp)
    return [plots_dir / name for name in FIGURES]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=config.PROTOCOLS, default=config.PROTOCOL)
    parser.add_argument("--simulated", action="store_true", help="results of the simulated database")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    config.check()
    database = config.SIMULATED if args.simulated else config.MITDB
    written = draw_all(config.results_dir(database, args.protocol, config.SEED),
                       config.plots_dir(database, args.protocol))
    print(f"{len(written)} pictures of {database.title} written to {written[0].parent}")


if __name__ == "__main__":
    config.run(main)
