"""The picture that detect.py writes: the whole recording, and its most abnormal beats."""

import itertools

import numpy as np
from matplotlib.figure import Figure

from pipeline.figures import ABNORMAL, DPI, GREY, NORMAL
from recording.rhythm import USUAL_RR_S
from recording.beats import APART_S, EXAMPLES

BINS = 180             # stretches of the time axis: 10 s of half an hour, some beats


def clock(time_s):
    """"26:03:05.4" of seconds."""
    tenths = round(time_s * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def draw_overview(scored):
    """Figure of the whole recording: excess, flagged share, heart rate; below, the most
    abnormal beats.
    """
    beats = scored.beats
    # margins by hand: to find them doubles the time of drawing
    figure = Figure(figsize=(9, 8.4), dpi=DPI)
    figure.suptitle(f"{scored.name}  ·  lead {scored.lead}  ·  "
                    f"{beats.scored.sum():,} beats scored, {scored.flagged.sum():,} flagged  ·  "
                    f"{100 * (beats.unreadable > 0).mean():.1f} % unreadable", fontsize=9, y=0.99)

    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    axes = above.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1), gridspec_kw={
        "left": 0.085, "right": 0.985, "bottom": 0.1, "top": 0.89, "hspace": 0.16})

    # a day in hours, half an hour in minutes
    unit, unit_s = ("h", 3600) if beats.duration_s > 7200 else ("min", 60)
    draw_beats(axes[0], scored, unit_s)
    draw_rates(axes[1], axes[2], scored, unit_s)

    # one entry in the legend for all stretches
    for ax in axes:
        label = "unreadable"
        for start, stop in scored.unreadable_s / unit_s:
            ax.axvspan(start, stop, color=GREY, alpha=0.3, linewidth=0, label=label)
            label = None

    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, markerscale=2, frameon=False)
    axes[2].set(xlabel=f"time in the recording ({unit})", xlim=(0, beats.duration_s / unit_s))

    # none where no beat could be scored
    if scored.examples:
        draw_examples(below, scored)
    return figure


def draw_beats(ax, scored, unit_s):
    """Excess of each beat over time, and the line."""
    time = scored.beats.time_s / unit_s
    flagged = scored.flagged
    usual = scored.beats.scored & ~flagged
    ax.plot(time[usual], scored.excess[usual], ".", markersize=1.5, color=NORMAL,
            label="not flagged", rasterized=True)
    ax.plot(time[flagged], scored.excess[flagged], "^", markersize=3, color=ABNORMAL,
            label="flagged")
    ax.axhline(scored.line, color="black", linestyle="--", linewidth=1,
               label=f"line, at {scored.line:.2f}")

    # the lowest thousandth may lie outside: it is of no interest
    low, high = np.nanquantile(scored.excess, [0.001, 1]) if scored.beats.scored.any() else (0, 1)
    ax.set(ylabel="excess over\nregular beats",
           ylim=(min(low, 0) - 0.5, max(high, scored.line) * 1.08))


def draw_rates(flag_ax, rate_ax, scored, unit_s):
    """Flagged share and heart rate of each of BINS stretches."""
    edges = np.linspace(0, scored.beats.duration_s, BINS + 1)
    rows = rates(scored, edges)
    flag_ax.fill_between(edges[:-1] / unit_s, np.nan_to_num(rows["flagged"]), step="post",
                         color=ABNORMAL, linewidth=0)
    flag_ax.set(ylabel="flagged\n(% of beats)", ylim=(0, 100))

    rate_ax.plot((edges[:-1] + edges[1:]) / 2 / unit_s, rows["rate"], color="black", linewidth=0.8)
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


def draw_examples(figure, scored):
    """The most abnormal beats, each as it is and as the network draws it."""
    grid = figure.subplots(2, EXAMPLES // 2, sharex=True, gridspec_kw={
        "left": 0.085, "right": 0.985, "bottom": 0.18, "top": 0.87, "hspace": 0.26, "wspace": 0.22})
    for ax, example in itertools.zip_longest(grid.flat, scored.examples):
        if example is None:
            ax.set_axis_off()
            continue
        ax.plot(example["offset_s"], example["signal"], color=GREY, linewidth=0.8, label="signal")
        ax.plot(example["offset_s"], example["recon"], color=ABNORMAL, linewidth=1.1,
                label="the network's drawing of the beat, tapered as it sees it")
        ax.set_title(f"{clock(example['time_s'])[:-2]}, {example['kind']}, "
                     f"excess {example['excess']:.1f}", fontsize=8.5, y=1)

    for ax in grid[-1]:
        ax.set_xlabel("time from the R peak (s)")
    for ax in grid[:, 0]:
        ax.set_ylabel(f"signal ({scored.unit})")

    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="lower center", ncols=2)
    figure.suptitle(f"The beats of highest excess, at least {APART_S} s apart", fontsize=9)
