"""What all pictures share: palette, saved results as they are read, figure frames, saving with their origin."""

import hashlib
import json
import threading
import zipfile
import zlib
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import config
from pipeline import errors
from pipeline.artefacts import whole_file

NORMAL, ABNORMAL, GREY, BEST = "#0072B2", "#D55E00", "#707070", "#5D3A9B"
# Okabe and Ito 2008: told apart by colour-blind readers; a marker a class for print in grey.
CLASSES = dict(zip("NSVFQ", zip((NORMAL, "#E69F00", ABNORMAL, "#CC79A7", "#009E73"), "os^Dv")))
CLASS_OF = {symbol: name for name, symbols in config.AAMI.items() for symbol in symbols}
VERDICTS = (("not in the test split", GREY, "o"), ("below the threshold", NORMAL, "o"),
            ("at or above the threshold", ABNORMAL, "^"))
# Scores beside the default one: colours that mean neither normal nor abnormal.
PART_COLOURS = ("#E69F00", "#D55E00", "#56B4E9", "#B0B0B0")   # P, QRS, ST-T, timing
CURVES = (("#009E73", "-"), ("#E69F00", "--"), ("#CC79A7", "-."), ("#56B4E9", "-"), ("#8C6D31", "--"),
          ("#009E73", ":"), ("#E69F00", "-"), ("#CC79A7", "--"), ("#56B4E9", ":"))
GREYS = tuple((colour, dash) for dash in ("-", "--", "-.", ":") for colour in ("#505050", "#9A9A9A"))
SHADES = LinearSegmentedColormap.from_list("score", (NORMAL, "white", ABNORMAL))
DASHED = {"color": "black", "linestyle": "--", "linewidth": 1.2}
POINT = {"markersize": 8, "markeredgecolor": "white", "zorder": 5}
STYLE = {"font.size": 9, "axes.titlesize": 9.5, "legend.fontsize": 8, "legend.title_fontsize": 8,
         "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.3}
_DRAWING = threading.Lock()   # matplotlib's settings are those of the process, whose threads may draw at a time
NEEDED = {
    "metrics.json": "database simulated protocol seed default_score n published scores parts",
    "scores.npz": "record sample symbol aami label fs_hz roc_fpr pr_recall latent_2d latent_explained"
                  " example_row example_signal example_recon strip_signal strip_start strip_record"
                  " strip_sample strip_symbol strip_score strip_in_test"
                  " part part_strength part_row part_signal part_usual",
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
    """Content of `path`; errors.UserError names the file, its flaw and the command that makes it."""
    remedy = f"run `python {command}` with the same --protocol and --simulated"
    if not path.is_file():
        raise errors.UserError(f"{path} is missing: {remedy}")
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
        raise errors.UserError(f"{path} cannot be read ({error}): {remedy}") from error
    if missing := [name for name in (*NEEDED[path.name].split(), *more) if name not in content]:
        raise errors.UserError(f"{path} lacks {', '.join(missing)}: {remedy}")
    return content


def load_artefacts(results_dir):
    """Artefacts of one run; errors.UserError where one is missing, damaged or of another run."""
    metrics = read(results_dir / "metrics.json", "evaluate.py")
    scores = read(results_dir / "scores.npz", "evaluate.py", map("score_{}".format, metrics["scores"]))
    history, n = read(results_dir / "history.csv", "train_mitbih.py"), metrics["n"]
    if len(scores["label"]) != n["test"]:
        raise errors.UserError(f"{results_dir}: scores.npz and metrics.json differ: run `python evaluate.py`")
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


def digest_of(results_dir):
    """SHA-256 of the artefacts the pictures are drawn from; it is stored in each picture."""
    content = b"".join((results_dir / name).read_bytes() for name in NEEDED)
    return hashlib.sha256(content).hexdigest()


def save(path, draw, digest):
    """Draw a figure and write it, with the digest of what it was drawn from."""
    stamp = PngInfo()
    stamp.add_text("artefacts", digest)
    with _DRAWING, matplotlib.rc_context(STYLE):
        canvas = FigureCanvasAgg(draw())
        canvas.draw()
    # 256 colours: a third of the size; the median cut would turn the colour of a rare class grey
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    with whole_file(path) as part:
        image.save(part, format="PNG", dpi=(150, 150), pnginfo=stamp)
