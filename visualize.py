"""Step 4 of 4: draw every picture from saved results; no model, no segment, no metric computed.

reads   results/beat/history.csv       python train_mitbih.py
        results/beat/scores.npz        python evaluate.py
        results/beat/metrics.json      python evaluate.py
writes  evaluation_plots/beat/*.png    the rows of FIGURES, below

Numbers are those of metrics.json; curves, boxes and histograms are drawn from the scores.
A beat is flagged when its score is at or above the threshold.
"""

import argparse
import csv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import LogLocator
from tqdm import tqdm

import config
from pipeline import errors, runtime, settings
from pipeline.artefacts import load_json, load_npz
from pipeline.errors import UserError
from pipeline.figures import (ABNORMAL, BEST, CLASSES, CURVES, DASHED, GREY, NORMAL, new_figure,
                              save)
from scoring.example_figures import parts_of_the_beat, reconstructions, strip
from scoring.metrics import precision_recall_curve, roc_curve

NEEDED = {
    "metrics.json": "database simulated protocol seed default_score n published scores parts"
                    " origin",
    "scores.npz": "record sample symbol aami label weights fs_hz roc_fpr pr_recall latent_2d"
                  " latent_explained example_row example_signal example_recon strip_signal"
                  " strip_start strip_record strip_sample strip_symbol strip_score strip_in_test"
                  " part part_strength part_row part_signal part_usual",
    "history.csv": "epoch train_loss validation_loss learning_rate kept"}


# --- saved results --------------------------------------------------------------------------------

@dataclass(frozen=True)
class Run:
    """What steps 2 and 3 saved of one checkpoint."""

    metrics: dict             # metrics.json
    scores: dict              # the arrays of scores.npz
    history: dict             # the columns of history.csv
    entry: dict               # metrics of the default score
    score: np.ndarray         # (n,) default score of each test beat
    threshold: float          # of the default score
    n: str                    # "n = ..." for the legends
    label: str                # of an axis of the score
    scale: str                # of that axis


def load_run(database, protocol):
    """The Run of config.SEED; UserError where an artefact is missing, damaged or of another run."""
    folder = database.results_dir(protocol, config.SEED)
    evaluate = database.stage_command("evaluate.py", protocol, config.SEED)
    metrics = load(load_json, folder / "metrics.json", evaluate)
    scores = load(load_npz, folder / "scores.npz", evaluate)
    history = load(load_history, folder / "history.csv",
                   database.stage_command("train_mitbih.py", protocol, config.SEED))

    # a step 3 that was stopped between its two files leaves one of each run
    if str(scores["weights"]) != metrics["origin"]["weights"]:
        raise UserError(f"{folder}: scores.npz and metrics.json are of different checkpoints. "
                        f"Make them again with: {evaluate} --force")

    default = metrics["default_score"]
    entry = metrics["scores"][default]
    score = scores[f"score_{default}"]
    n = metrics["n"]
    return Run(metrics, scores, history, entry, score, entry["threshold"],
               n=f"n = {n['normal']:,} normal, {n['abnormal']:,} abnormal beats "
                 f"of {n['records']} records",
               label=f"score: {entry['title']} (no unit, higher = more abnormal)",
               # a sum of logarithms may be negative
               scale="log" if (score > 0).all() else "linear")


def load(read, path, command):
    """What `read` finds in a file, sure to hold all that the pictures need."""
    content = read(path, command)
    # an artefact of older code is refused before the first picture, not in the middle of them
    missing = [name for name in NEEDED[path.name].split() if name not in content]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}. Make it again with: {command}")
    return content


def load_history(path, command):
    """{column: (epochs,)} of history.csv; UserError naming `command` if missing or damaged."""
    try:
        header, *rows = csv.reader(path.read_text().splitlines())
        return dict(zip(header, np.array(rows, float).T, strict=True))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing. Make it with: {command}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}). Make it again with: {command}") from error


# --- words and rows that several pictures share ---------------------------------------------------

def estimate(figure):
    """"0.973 [0.961, 0.983]"; a null in metrics.json means too few beats."""
    if figure["value"] is None:
        return "not available"
    if figure["low"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def compared(run):
    """{array of scores.npz: entry of metrics.json}: default and published score, best baseline."""
    entries = {f"score_{name}": run.metrics["scores"][name]
               for name in (run.metrics["default_score"], "mse")}
    baselines = run.metrics.get("baselines", {})
    # the best on these very test beats: the hardest that the network can be held against
    best = max(baselines, key=lambda name: baselines[name]["auroc"]["value"] or 0, default=None)
    if best:
        entries[f"baseline_{best}"] = baselines[best]
    return entries


def curves(run):
    """As `compared`, with two scores more, five in all: the whole list is in metrics.json."""
    scores = run.metrics["scores"]
    default = run.metrics["default_score"]
    # what the record itself says, and the combination under other conditions
    others = ["self_reference", *(name for name in scores if name.startswith("combined"))]
    others = [name for name in others if name in scores and name != default][:2]
    return compared(run) | {f"score_{name}": scores[name] for name in others}


def plain_numbers(axis):
    """Numbers as people write them along a logarithmic axis, not as powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


# --- the pictures ---------------------------------------------------------------------------------

def training_history(axes, run):
    top, bottom = axes
    epoch = run.history["epoch"]
    loss = run.history["validation_loss"]

    top.plot(epoch, run.history["train_loss"], ".-", color=GREY, label="training")
    top.plot(epoch, loss, ".-", color=BEST, label="validation")
    # each epoch that was the best so far was kept: the last of them is the checkpoint
    kept = np.flatnonzero(run.history["kept"])[-1]
    top.plot(epoch[kept], loss[kept], "*", color=BEST, markersize=14,
             label=f"kept: epoch {epoch[kept]:.0f}, {loss[kept]:.4g}")

    top.set(yscale="log", ylabel="mean squared error of the\nnormalised, tapered beat (no unit)")
    top.grid(which="both")
    top.legend(title=f"n = {len(epoch)} epochs")

    bottom.plot(epoch, run.history["learning_rate"], ".-", color=GREY)
    bottom.set(xlabel="epoch (number)", ylabel="learning rate\n(no unit)", ylim=(0, None))
    bottom.xaxis.get_major_locator().set_params(integer=True)


def score_distributions(ax, run):
    # bins of equal width on the axis that is drawn
    space = np.geomspace if run.scale == "log" else np.linspace
    bins = space(run.score.min(), run.score.max(), 81)
    # each class sums to 100 %: abnormal beats are few, and would not be seen beside the normal ones
    for value, name, colour in ((0, "normal", NORMAL), (1, "abnormal", ABNORMAL)):
        score = run.score[run.scores["label"] == value]
        ax.hist(score, bins, weights=np.full(len(score), 100 / max(len(score), 1)), color=colour,
                alpha=0.55, label=f"{name}, n = {run.metrics['n'][name]:,}")
    ax.axvline(run.threshold, **DASHED, label=f"threshold {run.threshold:.4g}")

    ax.set(xscale=run.scale, xlabel=run.label, ylabel="beats of the class (% a bin)",
           title=f"Score of the test beats: AUROC {estimate(run.entry['auroc'])}")
    if run.scale == "log":
        plain_numbers(ax.xaxis)
    ax.legend()


def draw_curves(ax, run, metric, curve, grid, band, point):
    """Curves of what a reader compares; the default score's with its band and operating point.

    curve: (labels, scores) -> x and y of a curve; `grid` and `band` name arrays of scores.npz;
    point: the figures that are x and y at the threshold.
    """
    styles = iter(CURVES)

    for name, entry in curves(run).items():
        if entry is run.entry:
            style = {"color": BEST, "linewidth": 2.2, "zorder": 2.5}
        elif name.startswith("baseline"):
            style = {"color": GREY}
        else:
            style = dict(zip(("color", "linestyle"), next(styles)))
        if entry[metric]["value"] is not None:
            ax.plot(*curve(run.scores[name], run.scores["label"]), **style,
                    label=f"{entry['title']}: {estimate(entry[metric])}")

    default = run.metrics["default_score"]
    title = run.entry["title"]
    low, high = (run.scores[f"{band}_{end}_{default}"] for end in ("low", "high"))
    ax.fill_between(run.scores[grid], low, high, color=BEST, alpha=0.18, lw=0,
                    label=f"{title}, 95 % band over records")
    x, y = np.array(point, float)  # None, of too few beats, becomes NaN: not drawn
    ax.plot(x, y, "o", color=BEST, markersize=8, markeredgecolor="white", zorder=5,
            label=f"{title} at its threshold ({x:.3f}, {y:.3f})")

    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.grid()
    ax.figure.legend(loc="outside lower center", ncols=2,
                     title=f"{metric.upper()} [95 % interval]; grey: without a network\n{run.n}")


def roc(ax, run):
    ax.plot([0, 1], [0, 1], **DASHED)
    ax.text(0.52, 0.48, "chance: 0.500", va="top")
    # the published figures are of the beat protocol on the real data: no other compares with them
    if run.metrics["protocol"] == "beat" and not run.metrics["simulated"]:
        published = run.metrics["published"]
        x = 1 - published["specificity"]
        y = published["sensitivity"]
        # a thin cross above our own point, which it nearly meets: neither hides the other
        ax.plot(x, y, "+", color="black", markersize=16, zorder=6, linestyle="none",
                label=f"published: {published['auroc']:.4f}, at its threshold ({x:.3f}, {y:.3f})")

    draw_curves(ax, run, "auroc", roc_curve, "roc_fpr", "roc_tpr",
                (1 - np.float64(run.entry["specificity"]["value"]),
                 run.entry["sensitivity"]["value"]))
    ax.set(xlabel="1 - specificity (fraction of normal beats flagged)",
           ylabel="sensitivity (fraction of abnormal beats flagged)", title="ROC of the test beats")


def precision_recall(ax, run):
    # the precision of chance is the share of abnormal beats
    prevalence = run.metrics["n"]["abnormal"] / run.metrics["n"]["test"]
    ax.axhline(prevalence, **DASHED, label=f"prevalence: {prevalence:.3f}")

    draw_curves(ax, run, "auprc", precision_recall_curve,
                "pr_recall", "pr_precision",
                (run.entry["sensitivity"]["value"], run.entry["ppv"]["value"]))
    ax.set(xlabel="sensitivity (fraction of abnormal beats flagged)",
           ylabel="PPV (fraction of flagged beats that are abnormal)", title="Precision and recall")


def confusion_matrix(ax, run):
    counts = np.array([run.entry["confusion"][cell] for cell in ("tn", "fp", "fn", "tp")])
    counts = counts.reshape(2, 2)
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    # shaded by the share of the row: by counts, only the many normal beats would be seen
    ax.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(percent):
        ax.text(column, row, f"{counts[row, column]:,}\n{share:.1f} %", ha="center", va="center",
                fontsize=13, color="white" if share > 50 else "black")

    n = run.metrics["n"]
    ax.set_xticks((0, 1), ("below threshold", "flagged"))
    ax.set_yticks((0, 1), [f"{word}\nn = {n[word]:,}" for word in ("normal", "abnormal")])
    ax.set(xlabel=f"{run.entry['title']}:\nthreshold {run.threshold:.4g} (beats, % of the row)",
           ylabel="expert's annotation (beats)")
    ax.set_title(f"sensitivity {estimate(run.entry['sensitivity'])}\n"
                 f"specificity {estimate(run.entry['specificity'])}")


def score_by_symbol(ax, run):
    """Box: quartiles, whiskers 5 to 95 %; dots: about 120 beats a symbol, evenly taken."""
    rows = run.entry["by_symbol"]
    symbols = [symbol for symbol in settings.AAMI_OF if symbol in rows]
    places = {}  # of the symbols of each class, which stand side by side
    for x, symbol in enumerate(symbols):
        aami = settings.AAMI_OF[symbol]
        places.setdefault(aami, []).append(x)
        colour, _ = CLASSES[aami]
        score = run.score[run.scores["symbol"] == symbol]
        ax.boxplot(score, positions=[x], widths=0.62, whis=(5, 95), showfliers=False,
                   patch_artist=True, boxprops={"facecolor": colour, "alpha": 0.45},
                   medianprops={"color": "black"})
        # dots as well: a box of five beats looks as sure as one of ten thousand
        dots = score[::1 + len(score) // 120]
        ax.plot(x + np.linspace(-0.25, 0.25, len(dots)), dots, ".", markersize=2, color=colour,
                zorder=3)

    for name, across in places.items():
        ax.text(np.mean(across), 1.01, name, transform=ax.get_xaxis_transform(), ha="center",
                weight="bold")
        ax.axvline(across[-1] + 0.5, color=GREY, linewidth=0.5)

    ax.axhline(run.threshold, **DASHED, label=f"threshold {run.threshold:.4g}")
    ax.set_xticks(range(len(symbols)),
                  [f"{s}\n{rows[s]['n']:,}\n{rows[s]['flagged']:.1%}" for s in symbols])
    ax.set(yscale=run.scale, ylabel=run.label.replace(" (", "\n("),
           xlabel="annotated symbol  /  n beats  /  flagged (%)")
    if run.scale == "log":
        plain_numbers(ax.yaxis)
    ax.figure.legend(loc="outside lower center", title=f"bold letters: AAMI class;  {run.n}")


def auroc_by_record(ax, run):
    rows = run.entry["by_record"]
    shown = [name for name in rows if rows[name]["auroc"] is not None]
    shown.sort(key=lambda name: rows[name]["auroc"])

    # the order is that of the default score, so that the others show where they are worse
    styles = (("o", BEST, 4), ("D", CURVES[0][0], 3), ("s", GREY, 3))
    for entry, (marker, colour, zorder) in zip(compared(run).values(), styles):
        auroc = np.array([entry["by_record"][name]["auroc"] for name in shown], float)
        ax.plot(auroc, range(len(shown)), marker, color=colour, markersize=4.5, zorder=zorder,
                label=f"{entry['title']}, n = {len(shown)} records")

    ax.axvline(0.5, **DASHED, label="chance: 0.500")
    # n beside the name: an area of five beats says less than one of a thousand
    ax.set_yticks(range(len(shown)),
                  [f"{name}  ({rows[name]['n_abnormal']:,} / {rows[name]['n_normal']:,})"
                   for name in shown], fontsize=7)
    none = sum(row["n_abnormal"] == 0 for row in rows.values())
    ax.set(xlabel="AUROC within the record (no unit)",
           ylabel="record  (abnormal / normal test beats)",
           title=f"Records not shown: {none} without abnormal beats, "
                 f"{len(rows) - len(shown) - none} with too few")
    ax.grid()
    ax.figure.legend(loc="outside lower center")


def latent_space(ax, run):
    aami = run.scores["aami"]
    n = {name: int((aami == name).sum()) for name in CLASSES}
    # the normal class first, the rarest last and on top
    for name in sorted(CLASSES, key=lambda name: (name != config.NORMAL_CLASS, -n[name])):
        colour, marker = CLASSES[name]
        ax.scatter(*run.scores["latent_2d"][aami == name].T, s=7, alpha=0.6, linewidths=0,
                   color=colour, marker=marker, label=f"{name}, n = {n[name]:,}")

    # the plane may show little of 32 dimensions: its share is told
    first, second = 100 * run.scores["latent_explained"]
    ax.set(xlabel=f"first principal component of z ({first:.1f} % of the variance, no unit)",
           ylabel=f"second principal component of z ({second:.1f} % of the variance, no unit)")
    ax.legend(title="AAMI class of the beat", markerscale=2)


# file name: the function that draws it, inches, and the Axes that it is given;
# None: it is given the figure and lays it out by the number of examples
FIGURES = {
    "training_history.png": (training_history, (6.4, 4.6),
                             {"nrows": 2, "sharex": True, "height_ratios": (4, 1)}),
    "score_distributions.png": (score_distributions, (6.4, 4.4), {}),
    "roc.png": (roc, (8, 7.6), {}),
    "precision_recall.png": (precision_recall, (8, 7.6), {}),
    "confusion_matrix.png": (confusion_matrix, (5.2, 4.8), {}),
    "score_by_symbol.png": (score_by_symbol, (8.3, 5.2), {}),
    "auroc_by_record.png": (auroc_by_record, (6.4, 7.4), {}),
    "reconstructions.png": (reconstructions, (8.3, 10), None),
    "parts_of_the_beat.png": (parts_of_the_beat, (8.3, 7.8), None),
    "latent_space.png": (latent_space, (6.4, 5.6), {}),
    "strip.png": (strip, (8.8, 6), {"nrows": 3, "sharey": True})}


def draw(name, run):
    """The matplotlib Figure of a row of FIGURES."""
    function, size, layout = FIGURES[name]
    # on the picture itself: shown without its page, it still says what it is of
    origin = "{database}  ·  {protocol} protocol  ·  seed {seed}".format(**run.metrics)
    figure = new_figure(*size, origin, run.metrics["simulated"])
    function(figure if layout is None else figure.subplots(**layout), run)
    return figure


# --- the script -----------------------------------------------------------------------------------

def parse_args(argv=None):
    settings.check()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", choices=config.PROTOCOLS, default=config.PROTOCOL)
    runtime.add_database(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    database = settings.database(args.database, args.run)
    run = load_run(database, args.protocol)
    folder = database.plots_dir(args.protocol)

    def make(name):
        # drawn inside `save`: the style holds only there
        save(folder / name, lambda: draw(name, run))

    # one is drawn while the colours of another are counted
    with ThreadPoolExecutor(2) as pool:
        list(tqdm(pool.map(make, FIGURES), "drawing", len(FIGURES), unit="figure", disable=None))
    print(f"{len(FIGURES)} pictures of {database.title} are in {folder}")
    print(f"next: {database.command('detect.py', 'RECORDING', '--out', 'found')}")


if __name__ == "__main__":
    errors.run(main)
