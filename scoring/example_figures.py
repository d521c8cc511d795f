"""The pictures of single beats: what scoring/examples.py chose, drawn.

`run` is a visualize.Run: the saved results of one checkpoint.
"""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm

import config
from pipeline.figures import ABNORMAL, GREY, NORMAL
from pipeline.settings import AAMI_OF
from scoring import beat_parts

# P, QRS, ST-T, timing, whole shape, none
PART_COLOURS = ("#E69F00", "#D55E00", "#56B4E9", "#B0B0B0", "#CC79A7", "#FFFFFF")
PART_SHOWN_S = 0.7    # to each side of the R peak
SHADES = LinearSegmentedColormap.from_list("score", (NORMAL, "white", ABNORMAL))
STRIP_ROW_S = 10      # in each of the three rows of the strip
DRAWN_S = 0.75        # to each side of the R peak: the taper leaves nothing beyond it


def clock(sample, run):
    """"24:20": minutes and seconds since the start of the record."""
    minutes, seconds = divmod(int(sample / run.scores["fs_hz"]), 60)
    return f"{minutes:02d}:{seconds:02d}"


def time_s(signals, run):
    """(w,) seconds from the R peak of segments (n, w)."""
    width = signals.shape[1]
    return (np.arange(width) - width // 2) / run.scores["fs_hz"]


def reconstructions(figure, run):
    """Signal under its reconstruction, what lies between them shaded; below, their difference.

    Two beats side by side; all signals on one scale, and all differences on one.
    """
    scores = run.scores
    # against the tapered signal, as training and the score `mse` take it
    signals = scores["example_signal"]
    differences = signals - scores["example_recon"]
    t = time_s(signals, run)
    pairs = (len(signals) + 1) // 2
    grid = figure.add_gridspec(2 * pairs, 2, height_ratios=(2, 1) * pairs)
    both = np.stack([signals, scores["example_recon"]])
    largest = 1.05 * np.abs(differences).max()
    handles = {}  # by label: each kind of curve is in the legend once

    for i, beat in enumerate(scores["example_row"]):
        row, column = divmod(i, 2)
        top = figure.add_subplot(grid[2 * row, column])
        bottom = figure.add_subplot(grid[2 * row + 1, column])

        kind, colour = (("normal", NORMAL), ("abnormal", ABNORMAL))[scores["label"][beat]]
        handles["signal, filtered and tapered as the network sees it"], = top.plot(
            t, signals[i], color="black", lw=1)
        handles[f"reconstruction, {kind}"], = top.plot(t, scores["example_recon"][i],
                                                       color=colour, lw=1.2)
        top.fill_between(t, signals[i], scores["example_recon"][i], color=colour, alpha=0.3,
                         linewidth=0)
        bottom.axhline(0, color=GREY, linewidth=0.5)
        handles["difference, signal less reconstruction"] = bottom.fill_between(
            t, differences[i], color=GREY, linewidth=0)

        # equal to the threshold is flagged
        sign = "≥" if run.score[beat] >= run.threshold else "<"
        top.set_title(f"{scores['symbol'][beat]}: record {scores['record'][beat]}, "
                      f"{clock(scores['sample'][beat], run)}, "
                      f"error {scores['score_mse'][beat]:.2g}\n"
                      f"score {run.score[beat]:.3g} {sign} threshold {run.threshold:.3g}")
        top.set(ylabel="signal (mV)", xlim=(-DRAWN_S, DRAWN_S), xticks=(),
                ylim=(both.min() - 0.1, both.max() + 0.1))
        bottom.set(xlim=(-DRAWN_S, DRAWN_S), ylim=(-largest, largest), ylabel="difference\n(mV)")
        # those above have the same axis
        if row == pairs - 1 or i + 2 >= len(signals):
            bottom.set_xlabel("time from the R peak (s)")
        else:
            bottom.tick_params(labelbottom=False)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2,
                  title=f"n = {len(signals)} beats, each of the median score of its symbol; "
                        "error: the score mse,\nof the beat at mean 0 and deviation 1 (no unit)")


def parts_of_the_beat(figure, run):
    """A flagged beat of each class over the record's own regular ones; below, all flagged beats."""
    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 1.15))
    for i in range(len(run.scores["part_row"])):
        one_beat(figure.add_subplot(grid[i // 2, i % 2]), run, i)
    leading_parts(figure.add_subplot(grid[2, :]), run)

    # the curves of one beat and the colours of the parts in one legend
    handles = []
    for ax in figure.axes[-2:]:
        handles += ax.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def one_beat(ax, run, i):
    """Example i over the mean of the beats it was compared with, its leading part shaded."""
    scores = run.scores
    beat = scores["part_row"][i]
    part = beat_parts.PARTS[scores["part"][beat]]
    # all windows faintly, so that the leading one is seen beside what it was chosen from
    for (name, (left, right)), shade in zip(beat_parts.WINDOWS_S.items(), PART_COLOURS):
        if part == "shape":
            shade = PART_COLOURS[beat_parts.PARTS.index(part)]
        strong = part in (name, "shape")
        ax.axvspan(left, right, color=shade, alpha=0.35 if strong else 0.1, linewidth=0)

    # what makes a beat early lies before it
    if part == "timing":
        ax.axvspan(-PART_SHOWN_S, beat_parts.WINDOWS_S["P"][0], alpha=0.35, linewidth=0,
                   color=PART_COLOURS[beat_parts.PARTS.index(part)])

    signal = scores["part_signal"][i]
    usual = scores["part_usual"][i]
    t = time_s(scores["part_signal"], run)
    ax.plot(t, usual, color=NORMAL, linewidth=1.1,
            label=f"mean of the {beat_parts.TEMPLATE_BEATS} nearest regular beats of the record;\n"
                  "where the whole shape leads: of the training beats")
    ax.plot(t, signal, color="black", linewidth=1.1, label="flagged beat")

    # the neighbouring beats, which may be larger, do not set the scale
    shown = np.stack([signal, usual])[:, np.abs(t) <= PART_SHOWN_S]
    title = (f"{scores['aami'][beat]}: record {scores['record'][beat]}, "
             f"{clock(scores['sample'][beat], run)}\nleads: {beat_parts.TITLES[part]}")
    # nothing leads where nothing is beyond its limit
    if part != "none":
        title += f", {scores['part_strength'][beat]:.1f} times its limit"
    ax.set(xlim=(-PART_SHOWN_S, PART_SHOWN_S), ylim=(shown.min() - 0.1, shown.max() + 0.1),
           ylabel="signal (mV)", xlabel="time from the R peak (s)", title=title)


def leading_parts(ax, run):
    """A bar for each class: the share of its flagged beats that each part leads in."""
    # a class of which nothing was flagged has no shares
    shares = {name: row for name, row in run.metrics["parts"].items() if row["n"]}
    left = np.zeros(len(shares))
    for part, colour in zip(beat_parts.PARTS, PART_COLOURS):
        width = np.array([100 * row[part] for row in shares.values()])
        # a bar of less than 4 % has no room for its number
        bars = ax.barh(range(len(shares)), width, left=left, color=colour,
                       label=beat_parts.TITLES[part], edgecolor=GREY, linewidth=0.5)
        ax.bar_label(bars, [f"{w:.0f}" if w >= 4 else "" for w in width], label_type="center",
                     fontsize=8)
        left += width

    ax.set_yticks(range(len(shares)),
                  [f"{name}, n = {row['n']:,}" for name, row in shares.items()])
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), ylabel="class (flagged beats)",
           xlabel="share of the flagged beats in which the part leads (%)",
           title="All flagged beats. Above, of those led by their class's most frequent part,\n"
                 "the one of median strength")


def strip(axes, run):
    """30 s of one record in three rows; beats on the signal, the expert's symbols above."""
    scores = run.scores
    fs_hz = scores["fs_hz"]
    start = scores["strip_start"] / fs_hz
    beats = scores["strip_sample"] / fs_hz
    signal = scores["strip_signal"]
    t = start + np.arange(len(signal)) / fs_hz
    # the signal is unknown where no segment reaches: beats there stand on 0
    height = np.nan_to_num(signal)
    heights = np.interp(beats, t, height)

    tested = scores["strip_in_test"]
    flagged = scores["strip_score"] >= run.threshold
    verdicts = (("not in the test split", GREY, "o", ~tested),
                ("below the threshold", NORMAL, "o", tested & ~flagged),
                ("at or above the threshold", ABNORMAL, "^", tested & flagged))

    # the threshold is white, and must lie strictly between the ends of the scale
    norm = TwoSlopeNorm(run.threshold, min(run.score.min(), run.threshold - 1e-9),
                        max(run.score.max(), run.threshold + 1e-9))
    # three rows: in one, 30 s would leave 7 mm to a beat, and no room for its symbol
    for k, ax in enumerate(axes):
        left = start + k * STRIP_ROW_S
        ax.plot(t, signal, color="black", linewidth=0.7)
        for word, colour, marker, here in verdicts:
            # nothing is said of a kind that is not there
            if not here.any():
                continue
            ax.plot(beats[here], heights[here], marker, color=colour,
                    label=f"{word} (n = {here.sum()})")
            # a beat of the training or validation part has no score to be shaded by
            if colour != GREY:
                shade = ax.scatter(beats[here], heights[here], 55, scores["strip_score"][here],
                                   marker=marker, cmap=SHADES, norm=norm, edgecolors=colour,
                                   zorder=3)
        for i in np.flatnonzero((left <= beats) & (beats < left + STRIP_ROW_S)):
            symbol = scores["strip_symbol"][i]
            # a bold letter on a circle is a beat missed, a thin one on a triangle a false alarm
            abnormal = AAMI_OF[symbol] != config.NORMAL_CLASS
            ax.text(beats[i], height.max(), f"{symbol}\n", ha="center",
                    color=ABNORMAL if abnormal else "black",
                    weight="bold" if abnormal else "normal")

        ax.set(xlim=(left, left + STRIP_ROW_S), ylabel="signal (mV)", ymargin=0.3)
    axes[-1].set_xlabel("time in the record (s)")

    figure = axes[0].figure
    figure.colorbar(shade, ax=axes, label="score (no unit; white: the threshold)", aspect=40,
                    pad=0.01)
    axes[0].set_title(f"Record {scores['strip_record']} from {clock(scores['strip_start'], run)}; "
                      f"letters: the expert's, bold where abnormal;  score: {run.entry['title']}, "
                      f"threshold {run.threshold:.4g}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
