"""What detect.py writes of one recording: annotations, table, picture; all from its ScoredBeats."""

import heapq
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from matplotlib.figure import Figure

from pipeline.artefacts import whole_file
from pipeline.errors import UserError
from pipeline.figures import ABNORMAL, DPI, GREY, NORMAL, save
from recording import places
from recording.episodes import NO_QRS, RHYTHMS
from recording.rhythm import USUAL_RR_S
from recording.scored import APART_S, EXAMPLES

EXTENSION = "ecgad"
NOISE_SYMBOL = "~"     # WFDB: change of signal quality; subtype -1 unreadable, 0 readable again
RHYTHM_SYMBOL = "+"    # WFDB: change of rhythm
BINS = 180             # stretches of the time axis in the picture: 10 s of half an hour, some beats
ANNOTATIONS = 10000    # written at a time


def clock(time_s):
    """"26:03:05.4" of seconds."""
    tenths = round(time_s * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


# --- table and annotations ------------------------------------------------------------------------

def beat_table(scored):
    """DataFrame, a row a beat in order of time: of the file and of detect.score alike."""
    beats = scored.beats
    # a beat at an end of the recording has no whole segment
    state = np.where(beats.whole, "scored", "cut")
    return pd.DataFrame({
        "time_s": beats.time_s, "sample": scored.samples, "lead": scored.lead,
        "rr_before_s": scored.rr_before_s, "early": scored.found.early,
        "qrs_distance": scored.found.distance, "score": scored.found.score,
        "excess": scored.excess, "flag": scored.flagged, "kind": scored.kind,
        "group": scored.found.group, "review_group": scored.review_group,
        "state": np.where(beats.readable, state, "unreadable")})


def write_csv(path, scored):
    """The beat_table, flags as 0 and 1."""
    table = beat_table(scored).astype({"flag": int})
    with whole_file(path) as part:
        table.to_csv(part, index=False, float_format="%.5f")


def annotations_of(scored):
    """(sample, symbol, aux, subtype) of every scored beat, change of signal quality and episode
    that WFDB has a rhythm for, in order of time.
    """
    rows = np.flatnonzero(scored.beats.scored)
    beats = zip(scored.samples[rows], scored.kind[rows],
                map("{:.2f}".format, scored.excess[rows]), itertools.repeat(0))

    return heapq.merge(beats, quality_of(scored), rhythms_of(scored), key=lambda row: row[0])


def quality_of(scored):
    """[(sample, symbol, aux, subtype)] where the signal becomes unreadable, and readable again."""
    edges = (scored.unreadable_s.ravel() * scored.fs_hz).round().astype(int).tolist()
    return list(zip(edges, itertools.repeat(NOISE_SYMBOL), itertools.repeat(""),
                    itertools.cycle((-1, 0))))


def rhythms_of(scored):
    """[(sample, symbol, aux, subtype)] where a rhythm begins, and where none has a name again."""
    rows = []
    for episode in scored.episodes:
        first, last = (round(episode[end] * scored.fs_hz) for end in ("start_s", "end_s"))
        last = min(last, round(scored.beats.duration_s * scored.fs_hz) - 1)
        if episode["kind"] == NO_QRS:
            rows.append((first, "[", "", 0))
            rows.append((last, "]", "", 0))
        if episode["kind"] in RHYTHMS:
            rows.append((first, RHYTHM_SYMBOL, RHYTHMS[episode["kind"]], 0))
            rows.append((last, RHYTHM_SYMBOL, "(N", 0))
    return sorted(rows, key=lambda row: row[0])


def write_annotations(path, scored):
    """WFDB annotation file, some thousand annotations at a time, so that memory does not grow with
    the recording.

    Each has its distance from the one before it: a file is the pieces one after the other, of all
    but the last without the end mark, two bytes of 0.
    """
    rows = annotations_of(scored)
    last = 0

    with (whole_file(path) as part, open(part, "wb") as file,
          tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder):
        while piece := list(itertools.islice(rows, ANNOTATIONS)):
            sample, symbol, aux, subtype = zip(*piece)
            # wfdb takes no path and refuses many names: written as r.ecgad
            wfdb.wrann("r", EXTENSION, np.array(sample) - last, list(symbol), aux_note=list(aux),
                       subtype=np.array(subtype), fs=None if last else scored.fs_hz,
                       write_dir=folder)
            file.write((Path(folder) / f"r.{EXTENSION}").read_bytes()[:-2])
            last = sample[-1]
        file.write(b"\0\0")


# --- picture --------------------------------------------------------------------------------------

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
                     f"excess {example['excess']:.1f}", fontsize=8.5)

    for ax in grid[-1]:
        ax.set_xlabel("time from the R peak (s)")
    for ax in grid[:, 0]:
        ax.set_ylabel(f"signal ({scored.unit})")

    figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="lower center", ncols=2)
    figure.suptitle(f"The beats of highest excess, at least {APART_S} s apart", fontsize=9)


# --- all of it ------------------------------------------------------------------------------------

def write_all(stem, scored):
    """All files of one recording but the summary and the page."""
    write_annotations(Path(f"{stem}.{EXTENSION}"), scored)
    write_csv(Path(f"{stem}.{EXTENSION}.csv"), scored)
    save(Path(f"{stem}.{EXTENSION}.png"), lambda: draw_overview(scored))


def file_beside(stem, end):
    """The place of a file NAME.ecgad* of a stem, Path or address."""
    return places.beside(stem, f"{places.name_of(stem)}.{EXTENSION}{end}")


def stored_dict(place, origin):
    """The dict in a JSON file of an earlier run with the same origin, or None."""
    try:
        value = json.loads(places.read_bytes(place))
        return value if value["origin"] == origin else None
    except ConnectionError:  # it may pass: tried again by who called
        raise
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None


def stored_summary(stem, origin, html):
    """The summary of an earlier run with the same origin and all its files, or None; stem: Path or
    address.

    html: the page is one of them.
    """
    ends = ["", ".csv", ".png"]
    if html:
        ends.append(".html")

    summary = stored_dict(file_beside(stem, ".json"), origin)
    if summary and all(places.is_file(file_beside(stem, end)) for end in ends):
        return summary
    return None
