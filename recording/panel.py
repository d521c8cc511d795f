"""A box of a figure with scales, ticks and labels: what detect.py's pictures are made of.

Matplotlib's Axes make some hundreds of objects each before anything is drawn in them, a third of
the time of a picture; and these pictures are drawn by the thousand. Here all places are pixels,
found once: they need no transforms either.
"""

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.markers import TICKDOWN, TICKLEFT
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox, IdentityTransform

PIXELS = IdentityTransform()
LEFT, RIGHT = 0.085, 0.985   # of the figure's width
Y_TICKS = 5                  # at most ...
X_TICKS = 7
TICK = {"linestyle": "none", "markersize": 3.5, "markeredgewidth": 0.8, "color": "black"}


class Panel:
    """A box over the width of a figure, so far below its upper edge and so high, in inches; x and
    y: (low, high) of its scales.
    """

    def __init__(self, figure, top_in, height_in, x, y):
        width_in, whole_in = figure.get_size_inches()
        self.figure = figure
        self.point = figure.dpi / 72
        self.x = x
        self.y = y
        self.left, self.right = np.multiply((LEFT, RIGHT), width_in * figure.dpi)
        self.top = (whole_in - top_in) * figure.dpi
        self.bottom = self.top - height_in * figure.dpi
        self.box = Bbox.from_extents(self.left, self.bottom, self.right, self.top)

    def x_px(self, x):
        """Pixels from the left edge of the figure."""
        low, high = self.x
        return self.left + (np.asarray(x) - low) * ((self.right - self.left) / (high - low))

    def y_px(self, y):
        """Pixels from the lower edge of the figure."""
        low, high = self.y
        return self.bottom + (np.asarray(y) - low) * ((self.top - self.bottom) / (high - low))

    def add(self, artist, inside=True):
        """Draw an artist whose places are pixels; inside: what lies outside the box is cut off."""
        artist.set_transform(PIXELS)
        self.figure.add_artist(artist)
        artist.set_clip_path(None)
        artist.set_clip_box(self.box if inside else None)

    def line(self, x, y, marker="", **style):
        """Points (n,), joined by a line, or with a marker each."""
        style = style if "linestyle" in style else {"linestyle": "none" if marker else "-"} | style
        self.add(Line2D(self.x_px(x), self.y_px(y), marker=marker, **style))

    def across(self, y, **style):
        """A line from the left to the right edge."""
        self.line(self.x, (y, y), **style)

    def along_top(self, x, **style):
        """Markers (n,) on the upper edge."""
        places = self.x_px(x), np.full(len(x), self.top)
        self.add(Line2D(*places, linestyle="none", **style), inside=False)

    def steps(self, values, edges, color):
        """An area below values (n,) between edges (n + 1,)."""
        self.add(StepPatch(self.y_px(values), self.x_px(edges), baseline=self.y_px(0), fill=True,
                           color=color, linewidth=0))

    def span(self, start, stop, **style):
        """A stretch of x, from the lower to the upper edge."""
        left, right = self.x_px((start, stop))
        self.add(Rectangle((left, self.bottom), right - left, self.top - self.bottom, **style))

    def text(self, x_px, y_px, text, **style):
        """Text at a place in pixels."""
        return self.figure.text(x_px, y_px, text, transform=PIXELS, **style)

    def label(self, ylabel):
        """Left and lower edge, ticks, numbers and label of y."""
        width = self.right - self.left
        ticks = ticks_between(*self.y, Y_TICKS)
        places = np.full(len(ticks), self.left), self.y_px(ticks)
        self.add(Line2D(*places, marker=TICKLEFT, **TICK), inside=False)
        for tick, y_px in zip(ticks, self.y_px(ticks)):
            self.text(self.left - 0.01 * width, y_px, number(tick), ha="right", va="center")
        self.text(self.left - 0.055 * width, (self.bottom + self.top) / 2, ylabel, rotation=90,
                  ha="right", va="center", multialignment="center")

        self.add(Line2D((self.left, self.left, self.right), (self.top, self.bottom, self.bottom),
                        color="black", linewidth=0.8), inside=False)

    def label_x(self, xlabel, ticks=None, x=None):
        """Ticks, numbers and label of x; x: where the label is, the middle for None."""
        if ticks is None:
            ticks = ticks_between(*self.x, X_TICKS)
        places = self.x_px(ticks), np.full(len(ticks), self.bottom)
        self.add(Line2D(*places, marker=TICKDOWN, **TICK), inside=False)
        for tick, x_px in zip(ticks, self.x_px(ticks)):
            self.text(x_px, self.bottom - 7 * self.point, number(tick), ha="center", va="top")

        x_px = (self.left + self.right) / 2 if x is None else self.x_px(x)
        self.text(x_px, self.bottom - 20 * self.point, xlabel, ha="center", va="top")


def ticks_between(low, high, most):
    """Round numbers from low to high."""
    ticks = MaxNLocator(most, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)
    return ticks[(ticks >= low) & (ticks <= high)]


def number(value):
    """A tick's text; of 0 none is negative."""
    return f"{value + 0.0:g}".replace("-", "\N{MINUS SIGN}")
