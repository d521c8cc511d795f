"""What all pictures share: the palette, the frame of a figure, and how a picture is saved."""

import threading

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline.artefacts import whole_file

# Okabe and Ito 2008: told apart by colour-blind readers. BEST is the default score.
NORMAL = "#0072B2"
ABNORMAL = "#D55E00"
BEST = "#5D3A9B"
GREY = "#707070"
# curves beside the default score, in colours that mean neither normal nor abnormal
CURVES = (("#009E73", "-"), ("#E69F00", "--"), ("#CC79A7", "-."), ("#56B4E9", "-"),
          ("#8C6D31", "--"))
CLASSES = {  # a marker a class too, for print in grey
    "N": (NORMAL, "o"), "S": ("#E69F00", "s"), "V": (ABNORMAL, "^"), "F": ("#CC79A7", "D"),
    "Q": ("#009E73", "v")}
DASHED = {"color": "black", "linestyle": "--", "linewidth": 1.2}

STYLE = {"font.size": 9, "axes.titlesize": 9.5, "legend.fontsize": 8, "legend.title_fontsize": 8,
         "axes.spines.top": False, "axes.spines.right": False, "grid.alpha": 0.3}
# a fifth of the time of drawing; a recording's name with two dollar signs is no formula
QUICK = {"text.hinting": "none", "text.parse_math": False}
DPI = 150
# matplotlib's settings are those of the whole process, and two threads may draw at the same time
_DRAWING = threading.Lock()


def new_figure(width, height, origin, simulated):
    """Figure of width x height inches that says what it was drawn from; in red if simulated."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    if simulated:
        origin = f"SIMULATED DATA  ·  {origin}"
        # over everything, so that no detail cut out of the picture is taken for a result
        figure.text(0.5, 0.5, "SIMULATED DATA", color="red", alpha=0.2, weight="bold",
                    rotation=30, fontsize=6 * min(width, height), ha="center", va="center",
                    zorder=10)
    figure.suptitle(origin, fontsize=8, color="red" if simulated else GREY)
    return figure


def save(path, draw, quickly=False):
    """Write the Figure that `draw()` returns as a PNG; a file of the same pixels is left as it is.

    A picture is under version control: drawing it again changes no byte where no pixel changes.
    quickly: in half the time and to the nearest of fewer shades, for pictures by the thousand.
    """
    with _DRAWING, matplotlib.rc_context(STYLE | (QUICK if quickly else {})):
        canvas = FigureCanvasAgg(draw())
        canvas.draw()

    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    # the median cut would turn the colour of a rare class grey
    method, kmeans = (Image.Quantize.FASTOCTREE, 0) if quickly else (Image.Quantize.MAXCOVERAGE, 1)
    image = image.quantize(256, method, kmeans, dither=Image.Dither.NONE)
    before = pixels(path)
    if before is not None and np.array_equal(before, np.asarray(image.convert("RGB"))):
        return

    with whole_file(path) as part:
        image.save(part, format="PNG", dpi=(DPI, DPI), compress_level=3 if quickly else 6)


def pixels(path):
    """(height, width, 3) of a picture, or None where there is none that can be read."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError):  # SyntaxError: what Pillow raises for a broken PNG
        return None
