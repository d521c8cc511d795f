"""The picture that detect.py writes: the whole recording, and its most abnormal beats.

Places are in inches from the upper edge, by hand: to have them found doubles the time of drawing.
"""

import functools
import itertools

import numpy as np
from matplotlib.figure import Figure

from pipeline.figures import ABNORMAL, DPI, GREY, NORMAL
from recording.beats import APART_S
from recording.panel import RIGHT, Panel
from recording.rhythm import USUAL_RR_S

BINS = 180             # stretches of the time axis: 10 s of half an hour ...
BIN_S = 5              # ... and this at least: some beats
UNITS = (("h", 3600, 7200), ("min", 60, 120), ("s", 1, 0))   # of what is longer than the last, s
IN_A_ROW = 4           # of the beats of highest excess ...
BESIDE_S = 2.3         # ... so far from R peak to R peak: each is 2 s long
WIDTH_IN = 9
TITLE_IN = 0.5         # title and key
LONG_IN = (1.72, 0.86, 0.86)   # excess, flagged share, heart rate
SHORT_IN = (1.2, 1.2)          # excess, signal
GAP_IN = 0.15
BETWEEN_IN = 0.97      # from the time axis to the beats below
ROW_IN = (0, 1.23, 1.13)       # of so many rows of beats, with ROWS_IN between them
ROWS_IN = 0.41
BOTTOM_IN = (0.45, 0.7, 0.7)   # below the lowest axes
TICKS_S = (-0.5, 0, 0.5)
MARGIN = 0.05          # of a scale, beyond the lowest and the highest value
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
    total_in = TITLE_IN + sum(heights_in) + GAP_IN * (len(heights_in) - 1) + BOTTOM_IN[rows]
    if rows:
        beats_at_in = total_in - BOTTOM_IN[rows] + BETWEEN_IN
        total_in += BETWEEN_IN + rows * ROW_IN[rows] + (rows - 1) * ROWS_IN

    figure = Figure(figsize=(WIDTH_IN, total_in), dpi=DPI)
    draw_over_time(figure, heights_in, scored, signal)
    if rows:
        draw_examples(figure, beats_at_in, ROW_IN[rows], scored)
    return figure


def stacked(figure, top_in, heights_in, gap_in, x, ys):
    """[Panel] one under the other, from so far below the upper edge on; x and each of ys: (low,
    high).
    """
    tops_in = top_in + np.cumsum([0, *np.add(heights_in[:-1], gap_in)])
    return [Panel(figure, *place, x, y) for *place, y in zip(tops_in, heights_in, ys, strict=True)]


def scale_of(values):
    """(low, high) with room for all values; NaN are not known."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0, 1)
    margin = MARGIN * (high - low or abs(high) or 1)
    return low - margin, high + margin


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

def draw_over_time(figure, heights_in, scored, signal):
    """Excess, and what there is room for: flagged share and heart rate, or the signal (n,)."""
    beats = scored.beats
    title(figure, f"{scored.name}  ·  lead {scored.lead}  ·  "
                  f"{beats.scored.sum():,} beats scored, {scored.flagged.sum():,} flagged  ·  "
                  f"{100 * (beats.unreadable > 0).mean():.1f} % unreadable", 0.08)
    key(figure, 0.43, (("● not flagged", NORMAL), ("▲ flagged", ABNORMAL),
                       (f"- - line, at {scored.line:.2f}", "black"), ("■ unreadable", GREY)))

    # a day in hours, half an hour in minutes
    unit, unit_s = next((unit, unit_s) for unit, unit_s, longer_s in UNITS
                        if beats.duration_s > longer_s)
    over = functools.partial(stacked, figure, TITLE_IN, heights_in, GAP_IN,
                             (0, beats.duration_s / unit_s))
    if signal is None:
        bins = min(BINS, max(1, int(beats.duration_s / BIN_S)))
        edges_s = np.linspace(0, beats.duration_s, bins + 1)
        rows = rates(scored, edges_s)
        panels = over((excess_scale(scored), (0, 100), scale_of(rows["rate"])))
        draw_rates(panels[1], panels[2], rows, edges_s / unit_s)
        below = "flagged\n(% of beats)", "heart rate\n(beats/min)"
    else:
        panels = over((excess_scale(scored), scale_of(signal)))
        draw_signal(panels[1], scored, signal, unit_s)
        below = (f"signal ({scored.unit})",)
    draw_excess(panels[0], scored, unit_s)

    for panel, ylabel in zip(panels, ("excess over\nregular beats", *below)):
        for start, stop in scored.unreadable_s / unit_s:
            panel.span(start, stop, color=GREY, alpha=0.3, linewidth=0)
        panel.label(ylabel)
    panels[-1].label_x(f"time in the recording ({unit})")


def excess_scale(scored):
    """(low, high) of the excess; the lowest thousandth may lie outside: it is of no interest."""
    low, high = np.nanquantile(scored.excess, [0.001, 1]) if scored.beats.scored.any() else (0, 1)
    return min(low, 0) - 0.5, max(high, scored.line) * 1.08


def draw_excess(panel, scored, unit_s):
    """Excess of each beat over time, and the line."""
    time = scored.beats.time_s / unit_s
    flagged = scored.flagged
    usual = scored.beats.scored & ~flagged
    panel.line(time[usual], scored.excess[usual], ".", markersize=1.5, color=NORMAL)
    panel.line(time[flagged], scored.excess[flagged], "^", markersize=3, color=ABNORMAL)
    panel.across(scored.line, color="black", linestyle="--", linewidth=1)


def draw_rates(flag_panel, rate_panel, rows, edges):
    """Flagged share and heart rate of each stretch."""
    flag_panel.steps(np.nan_to_num(rows["flagged"]), edges, ABNORMAL)

    # a stretch between two without a beat has no line through it
    alone = "." if np.isnan(rows["rate"]).any() else ""
    rate_panel.line((edges[:-1] + edges[1:]) / 2, rows["rate"], alone, color="black",
                    linestyle="-", linewidth=0.8, markersize=2)


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


def draw_signal(panel, scored, signal, unit_s):
    """The lead as it is in the file, and where it is flagged."""
    panel.line(np.arange(len(signal)) / scored.fs_hz / unit_s, signal, **LINES["signal"])
    # above each beat
    panel.along_top(scored.beats.time_s[scored.flagged] / unit_s, marker="v", markersize=3,
                    color=ABNORMAL)


# --- the most abnormal beats ----------------------------------------------------------------------

def draw_examples(figure, top_in, height_in, scored):
    """The most abnormal beats, each as it is and as the network draws it, in rows on one scale."""
    title(figure, f"The beats of highest excess, at least {APART_S} s apart", top_in - 0.44)
    key(figure, figure.get_figheight() - 0.1, DRAWN)

    examples = scored.examples
    rows = [examples[first:first + IN_A_ROW] for first in range(0, len(examples), IN_A_ROW)]
    y = scale_of(np.concatenate([example[name] for example in examples for name in LINES]))
    x = -BESIDE_S / 2, BESIDE_S * (IN_A_ROW - 0.5)
    panels = stacked(figure, top_in, [height_in] * len(rows), ROWS_IN, x, [y] * len(rows))

    for panel, row in zip(panels, rows):
        for at, example in zip(itertools.count(0, BESIDE_S), row):
            for name, style in LINES.items():
                panel.line(at + example["offset_s"], example[name], **style)
            panel.text(panel.x_px(at), panel.top + 0.04 * (panel.top - panel.bottom),
                       f"{clock(example['time_s'])[:-2]}, {example['kind']}, "
                       f"excess {example['excess']:.1f}", fontsize=8.5, ha="center")
        panel.label(f"signal ({scored.unit})")
    # under one beat, for all
    panels[-1].label_x("time from the R peak (s)", TICKS_S, 0)
