"""The picture that detect.py writes: the whole recording, and its most abnormal beats.

Places are in inches from the upper edge, by hand: to have them found doubles the time of drawing.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.markers import TICKDOWN, TICKLEFT
from matplotlib.ticker import MaxNLocator

from pipeline.figures import ABNORMAL, DPI, GREY, NORMAL
from recording.beats import APART_S
from recording.rhythm import USUAL_RR_S

BINS = 180             # stretches of the time axis: 10 s of half an hour ...
BIN_S = 5              # ... and this at least: some beats
UNITS = (("h", 3600, 7200), ("min", 60, 120), ("s", 1, 0))   # of what is longer than the last, s
IN_A_ROW = 4           # of the beats of highest excess ...
BESIDE_S = 2.3         # ... so far from R peak to R peak: each is 2 s long
WIDTH_IN = 9
LEFT, RIGHT = 0.085, 0.985
TITLE_IN = 0.5         # title and key
LONG_IN = (1.72, 0.86, 0.86)   # excess, flagged share, heart rate
SHORT_IN = (1.2, 1.2)          # excess, signal
GAP_IN = 0.15
BETWEEN_IN = 0.97      # from the time axis to the beats below
ROW_IN = (0, 1.23, 1.13)       # of so many rows of beats, with ROWS_IN between them
ROWS_IN = 0.41
BOTTOM_IN = (0.45, 0.7, 0.7)   # below the lowest axes
TICKS_S = (-0.5, 0, 0.5)
Y_TICKS = 5            # at most ...
X_TICKS = 7
TICK = {"linestyle": "none", "markersize": 3.5, "markeredgewidth": 0.8, "color": "black",
        "clip_on": False}
KEY_LETTER_IN = 0.062  # of a text of 8 points
LINES = {"signal": {"color": GREY, "linewidth": 0.8},
         "recon": {"color": ABNORMAL, "linewidth": 1.1}}
DRAWN = (("━ signal", GREY),
         ("━ the network's drawing of the beat, tapered as it sees it", ABNORMAL))


def clock(time_s):
    """"26:03:05.4" of seconds."""
    tenths = round(time_s * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def draw_overview(scored, signal=None):
    """Figure of the whole recording: excess over time, and flagged share and heart rate, or of a
    short recording its signal (n,); below, the most abnormal beats.
    """
    rows = -(-len(scored.examples) // IN_A_ROW)   # none where no beat could be scored
    heights_in = LONG_IN if signal is None else SHORT_IN
    beats_at_in = TITLE_IN + sum(heights_in) + GAP_IN * (len(heights_in) - 1)
    total_in = beats_at_in + BOTTOM_IN[rows]
    if rows:
        beats_at_in += BETWEEN_IN
        total_in = beats_at_in + rows * ROW_IN[rows] + (rows - 1) * ROWS_IN + BOTTOM_IN[rows]

    figure = Figure(figsize=(WIDTH_IN, total_in), dpi=DPI)
    draw_over_time(stacked(figure, TITLE_IN, heights_in, GAP_IN, "sharex"), scored, signal)
    if rows:
        draw_examples(stacked(figure, beats_at_in, [ROW_IN[rows]] * rows, ROWS_IN, "sharey"),
                      scored, beats_at_in)
    return figure


def stacked(figure, top_in, heights_in, gap_in, shared):
    """[Axes] one under the other, from so far below the upper edge on; shared: "sharex", "sharey".
    """
    whole_in = figure.get_figheight()
    axes = []
    for height_in in heights_in:
        box = (LEFT, 1 - (top_in + height_in) / whole_in, RIGHT - LEFT, height_in / whole_in)
        axes.append(figure.add_axes(box, **{shared: axes[0]} if axes else {}))
        top_in += height_in + gap_in
    return axes


def label(ax, ylabel, xlabel=None, x_ticks=None, x=0.5):
    """Edges, ticks, numbers and labels of axes that have their limits, below only with an xlabel,
    which is put at x. Matplotlib's own ticks, of five objects each, take a seventh of the time of a
    picture.
    """
    ax.set_axis_off()
    low, high = ax.get_ylim()
    ticks = ticks_between(low, high, Y_TICKS)
    place = ax.get_yaxis_transform()
    ax.plot(np.zeros(len(ticks)), ticks, marker=TICKLEFT, transform=place, **TICK)
    for tick in ticks:
        ax.text(-0.01, tick, number(tick), ha="right", va="center", transform=place)
    ax.text(-0.055, 0.5, ylabel, rotation=90, ha="right", va="center", multialignment="center",
            transform=ax.transAxes)

    # the left and the lower edge
    ax.plot([0, 0, 1], [1, 0, 0], color="black", linewidth=0.8, clip_on=False,
            transform=ax.transAxes)
    if xlabel is None:
        return

    if x_ticks is None:
        x_ticks = ticks_between(*ax.get_xlim(), X_TICKS)
    point = 1 / 72 / height_in(ax)
    place = ax.get_xaxis_transform()
    ax.plot(x_ticks, np.zeros(len(x_ticks)), marker=TICKDOWN, transform=place, **TICK)
    for tick in x_ticks:
        ax.text(tick, -7 * point, number(tick), ha="center", va="top", transform=place)
    ax.text(x, -20 * point, xlabel, ha="center", va="top", transform=ax.transAxes)


def ticks_between(low, high, most):
    """Round numbers from low to high."""
    ticks = MaxNLocator(most, steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)
    return ticks[(ticks >= low) & (ticks <= high)]


def number(value):
    """A tick's text; of 0 none is negative."""
    return f"{value + 0.0:g}".replace("-", "\N{MINUS SIGN}")


def title(figure, text, top_in):
    """Text in the middle, its upper edge so far below that of the figure."""
    figure.text(0.5, 1 - top_in / figure.get_figheight(), text, fontsize=9, ha="center", va="top")


def key(figure, top_in, entries):
    """What the colours mean, [(text, colour)], from the right edge on: a legend takes ten times as
    long, an eighth of the time of drawing a short recording.
    """
    x = RIGHT
    y = 1 - top_in / figure.get_figheight()
    for text, color in reversed(entries):
        figure.text(x, y, text, color=color, fontsize=8, ha="right")
        x -= (len(text) + 3) * KEY_LETTER_IN / WIDTH_IN


# --- over time ------------------------------------------------------------------------------------

def draw_over_time(axes, scored, signal):
    """Excess, and what there is room for: flagged share and heart rate, or the signal (n,)."""
    figure = axes[0].figure
    beats = scored.beats
    title(figure, f"{scored.name}  ·  lead {scored.lead}  ·  "
                  f"{beats.scored.sum():,} beats scored, {scored.flagged.sum():,} flagged  ·  "
                  f"{100 * (beats.unreadable > 0).mean():.1f} % unreadable", 0.08)
    key(figure, 0.43, (("● not flagged", NORMAL), ("▲ flagged", ABNORMAL),
                       (f"- - line, at {scored.line:.2f}", "black"), ("■ unreadable", GREY)))

    # a day in hours, half an hour in minutes
    unit, unit_s = next((unit, unit_s) for unit, unit_s, longer_s in UNITS
                        if beats.duration_s > longer_s)
    draw_beats(axes[0], scored, unit_s)
    if signal is None:
        draw_rates(axes[1], axes[2], scored, unit_s)
        below = "flagged\n(% of beats)", "heart rate\n(beats/min)"
    else:
        draw_signal(axes[1], scored, signal, unit_s)
        below = (f"signal ({scored.unit})",)
    ylabels = "excess over\nregular beats", *below

    for ax in axes:
        for start, stop in scored.unreadable_s / unit_s:
            ax.axvspan(start, stop, color=GREY, alpha=0.3, linewidth=0)
    axes[-1].set_xlim(0, beats.duration_s / unit_s)
    for ax, ylabel in zip(axes, ylabels):
        label(ax, ylabel, f"time in the recording ({unit})" if ax is axes[-1] else None)


def height_in(ax):
    """Height of axes in inches."""
    return ax.get_position().height * ax.figure.get_figheight()


def draw_beats(ax, scored, unit_s):
    """Excess of each beat over time, and the line."""
    time = scored.beats.time_s / unit_s
    flagged = scored.flagged
    usual = scored.beats.scored & ~flagged
    ax.plot(time[usual], scored.excess[usual], ".", markersize=1.5, color=NORMAL, rasterized=True)
    ax.plot(time[flagged], scored.excess[flagged], "^", markersize=3, color=ABNORMAL)
    ax.axhline(scored.line, color="black", linestyle="--", linewidth=1)

    # the lowest thousandth may lie outside: it is of no interest
    low, high = np.nanquantile(scored.excess, [0.001, 1]) if scored.beats.scored.any() else (0, 1)
    ax.set_ylim(min(low, 0) - 0.5, max(high, scored.line) * 1.08)


def draw_rates(flag_ax, rate_ax, scored, unit_s):
    """Flagged share and heart rate of each of BINS stretches, fewer in a short recording."""
    bins = min(BINS, max(1, int(scored.beats.duration_s / BIN_S)))
    edges = np.linspace(0, scored.beats.duration_s, bins + 1)
    rows = rates(scored, edges)
    flag_ax.stairs(np.nan_to_num(rows["flagged"]), edges / unit_s, fill=True, color=ABNORMAL)
    flag_ax.set_ylim(0, 100)

    # a stretch between two without a beat has no line through it
    alone = "." if np.isnan(rows["rate"]).any() else ""
    rate_ax.plot((edges[:-1] + edges[1:]) / 2 / unit_s, rows["rate"], color="black", linewidth=0.8,
                 marker=alone, markersize=2)


def rates(scored, edges):
    """{"rate" in beats/min, "flagged" in % of the scored beats}: (m,) of the stretches between
    edges (m + 1,) in s.

    NaN where there is no beat to know it from.
    """
    time_s = scored.beats.time_s
    rr_s = scored.rr_before_s

    # outside of these it is a missed beat or one too many, no heart rate
    usual = (rr_s > USUAL_RR_S[0]) & (rr_s < USUAL_RR_S[1]) & scored.beats.readable

    def mean(rows, values):
        total, _ = np.histogram(time_s[rows], edges, weights=values[rows])
        count, _ = np.histogram(time_s[rows], edges)
        return np.where(count, total / np.maximum(count, 1), np.nan)

    return {"rate": mean(usual, 60 / rr_s),
            "flagged": mean(scored.beats.scored, 100 * scored.flagged)}


def draw_signal(ax, scored, signal, unit_s):
    """The lead as it is in the file, and where it is flagged."""
    time_s = np.arange(len(signal)) / scored.fs_hz
    ax.plot(time_s / unit_s, signal, **LINES["signal"])

    # at the upper edge, above each beat
    flagged_s = scored.beats.time_s[scored.flagged]
    ax.plot(flagged_s / unit_s, np.ones(len(flagged_s)), "v", markersize=3, color=ABNORMAL,
            clip_on=False, transform=ax.get_xaxis_transform())


# --- the most abnormal beats ----------------------------------------------------------------------

def draw_examples(axes, scored, top_in):
    """The most abnormal beats, each as it is and as the network draws it, on one scale.

    Four stand side by side in the axes of a row: axes of its own for each take three times as long,
    most of the time of a short recording.
    """
    figure = axes[0].figure
    for k, ax in enumerate(axes):
        examples = scored.examples[k * IN_A_ROW:][:IN_A_ROW]
        centre_s = BESIDE_S * np.arange(len(examples))
        for name, style in LINES.items():
            time_s = [[*at + example["offset_s"], np.nan]
                      for at, example in zip(centre_s, examples)]
            values = [[*example[name], np.nan] for example in examples]
            ax.plot(np.ravel(time_s), np.ravel(values), **style)

        for example, at in zip(examples, centre_s):
            ax.text(at, 1.04, f"{clock(example['time_s'])[:-2]}, {example['kind']}, "
                    f"excess {example['excess']:.1f}", fontsize=8.5, ha="center",
                    transform=ax.get_xaxis_transform())
        ax.set_xlim(-BESIDE_S / 2, BESIDE_S * (IN_A_ROW - 0.5))

    for ax in axes:
        # under one beat, for all
        label(ax, f"signal ({scored.unit})", "time from the R peak (s)" if ax is axes[-1] else None,
              TICKS_S, 0.5 / IN_A_ROW)
    key(figure, figure.get_figheight() - 0.1, DRAWN)
    title(figure, f"The beats of highest excess, at least {APART_S} s apart", top_in - 0.44)
