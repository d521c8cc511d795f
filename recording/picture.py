"""The picture that detect.py writes: the whole recording, and its most abnormal beats."""

import numpy as np
from matplotlib.figure import Figure

from pipeline.figures import ABNORMAL, DPI, GREY, NORMAL
from recording.rhythm import USUAL_RR_S
from recording.beats import APART_S

BINS = 180             # stretches of the time axis: 10 s of half an hour ...
BIN_S = 5              # ... and this at least: some beats
UNITS = (("h", 3600, 7200), ("min", 60, 120), ("s", 1, 0))   # of what is longer than the last, s
IN_A_ROW = 4           # of the beats of highest excess ...
BESIDE_S = 2.3         # ... so far from R peak to R peak: each is 2 s long
SHORT_S = 120          # a recording whose rate over time says nothing
LONG_IN = 4.5          # height of what is drawn over time ...
SHORT_IN = 2.6
EXAMPLES_IN = (0, 2.45, 3.9)   # ... and of so many rows of beats
TICKS_S = (-0.5, 0, 0.5)
KEY_LETTER_IN = 0.062  # of a text of 8 points
LINES = {"signal": {"color": GREY, "linewidth": 0.8},
         "recon": {"color": ABNORMAL, "linewidth": 1.1}}
DRAWN = (("━ signal", GREY),
         ("━ the network's drawing of the beat, tapered as it sees it", ABNORMAL))


def clock(time_s):
    """"26:03:05.4" of seconds."""
    tenths = round(time_s * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def draw_overview(scored):
    """Figure of the whole recording: excess, and of more than SHORT_S flagged share and heart rate;
    below, the most abnormal beats.
    """
    rows = -(-len(scored.examples) // IN_A_ROW)   # none where no beat could be scored
    short = scored.beats.duration_s <= SHORT_S
    heights_in = [SHORT_IN if short else LONG_IN, *[EXAMPLES_IN[rows]] * bool(rows)]

    # margins and places of labels by hand: to find them doubles the time of drawing
    figure = Figure(figsize=(9, sum(heights_in)), dpi=DPI)
    over_time, *below = figure.subfigures(len(heights_in), 1, squeeze=False,
                                          height_ratios=heights_in)[:, 0]
    draw_over_time(over_time, scored, heights_in[0])
    for part in below:
        draw_examples(part, scored, rows)

    for ax in figure.axes:
        ax.yaxis.set_label_coords(-0.055, 0.5)
        ax.set_title("", y=1)
    return figure


def draw_over_time(figure, scored, height_in):
    """Excess, and where there is room flagged share and heart rate."""
    beats = scored.beats
    figure.suptitle(f"{scored.name}  ·  lead {scored.lead}  ·  "
                    f"{beats.scored.sum():,} beats scored, {scored.flagged.sum():,} flagged  ·  "
                    f"{100 * (beats.unreadable > 0).mean():.1f} % unreadable", fontsize=9,
                    y=1 - 0.08 / height_in)
    ratios = (1,) if height_in == SHORT_IN else (2, 1, 1)
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={
        "left": 0.085, "right": 0.985, "bottom": 0.45 / height_in, "top": 1 - 0.5 / height_in,
        "hspace": 0.16, "height_ratios": ratios})[:, 0]

    # a day in hours, half an hour in minutes
    unit, unit_s = next((unit, unit_s) for unit, unit_s, longer_s in UNITS
                        if beats.duration_s > longer_s)
    draw_beats(axes[0], scored, unit_s)
    if len(axes) > 1:
        draw_rates(axes[1], axes[2], scored, unit_s)

    for ax in axes:
        for start, stop in scored.unreadable_s / unit_s:
            ax.axvspan(start, stop, color=GREY, alpha=0.3, linewidth=0)
    key(figure, 1 - 0.43 / height_in, (("● not flagged", NORMAL), ("▲ flagged", ABNORMAL),
                                       (f"- - line, at {scored.line:.2f}", "black"),
                                       ("■ unreadable", GREY)))

    axes[-1].set(xlabel=f"time in the recording ({unit})", xlim=(0, beats.duration_s / unit_s))
    axes[-1].xaxis.set_label_coords(0.5, -0.27 / axes[-1].get_position().height / height_in)


def key(figure, y, entries):
    """What the colours mean, [(text, colour)], from the right edge on: a legend takes ten times as
    long, an eighth of the time of drawing a short recording.
    """
    x = 0.985
    for text, color in reversed(entries):
        figure.text(x, y, text, color=color, fontsize=8, ha="right")
        x -= (len(text) + 3) * KEY_LETTER_IN / figure.bbox.width * DPI


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
    ax.set(ylabel="excess over\nregular beats",
           ylim=(min(low, 0) - 0.5, max(high, scored.line) * 1.08))


def draw_rates(flag_ax, rate_ax, scored, unit_s):
    """Flagged share and heart rate of each of BINS stretches, fewer in a short recording."""
    bins = min(BINS, max(1, int(scored.beats.duration_s / BIN_S)))
    edges = np.linspace(0, scored.beats.duration_s, bins + 1)
    rows = rates(scored, edges)
    flag_ax.stairs(np.nan_to_num(rows["flagged"]), edges / unit_s, fill=True, color=ABNORMAL)
    flag_ax.set(ylabel="flagged\n(% of beats)", ylim=(0, 100))

    # a stretch between two without a beat has no line through it
    alone = "." if np.isnan(rows["rate"]).any() else ""
    rate_ax.plot((edges[:-1] + edges[1:]) / 2 / unit_s, rows["rate"], color="black", linewidth=0.8,
                 marker=alone, markersize=2)
    rate_ax.set(ylabel="heart rate\n(beats/min)")


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


def draw_examples(figure, scored, n_rows):
    """The most abnormal beats, each as it is and as the network draws it, on one scale.

    Four stand side by side in the axes of a row: axes of its own for each take three times as long,
    most of the time of a short recording.
    """
    height_in = EXAMPLES_IN[n_rows]
    rows = figure.subplots(n_rows, 1, sharey=True, squeeze=False, gridspec_kw={
        "left": 0.085, "right": 0.985, "bottom": 0.7 / height_in, "top": 1 - 0.52 / height_in,
        "hspace": 0.36})[:, 0]
    for k, ax in enumerate(rows):
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
        # under one beat, for all: each label takes as long to draw as the beat
        ax.set_xticks(TICKS_S if ax is rows[-1] else ())
        ax.set(xlim=(-BESIDE_S / 2, BESIDE_S * (IN_A_ROW - 0.5)), ylabel=f"signal ({scored.unit})")

    rows[-1].set_xlabel("time from the R peak (s)")
    rows[-1].xaxis.set_label_coords(0.5 / IN_A_ROW, -0.24)
    key(figure, 0.1 / height_in, DRAWN)
    figure.suptitle(f"The beats of highest excess, at least {APART_S} s apart", fontsize=9)
