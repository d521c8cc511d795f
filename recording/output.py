"""What detect.py writes of one recording: annotations, table, picture, page; all from its ScoredBeats."""

import csv
import heapq
import itertools
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import wfdb
from matplotlib.figure import Figure

from recording import scan
import config
from recording import quality
from recording import places
from scoring import detector
from pipeline.errors import UserError
from pipeline.figures import ABNORMAL, GREY, NORMAL, save
from pipeline.artefacts import whole_file

EXTENSION = "ecgad"
FLAG_SYMBOL = "Q"      # WFDB: unclassifiable beat; N where not flagged. The detector names no arrhythmia.
NOISE_SYMBOL = "~"     # WFDB: change of signal quality; subtype -1 unreadable, 0 readable again
EXAMPLES = 8           # most abnormal beats drawn
APART_S = 10           # two of them are at least this far apart
BINS = 400             # stretches of the time axis in the picture
ROWS = 10000           # beats written at a time
COLUMNS = ("time_s", "sample", "lead", "rr_before_s", "score", "level", "flag", "state")


@dataclass
class ScoredBeats:
    """One recording's beats with scores, levels and flags (n,); NaN and False where not scored."""

    name: str
    lead: str
    fs_hz: float               # of the recording
    start: object              # datetime or None
    beats: scan.Beats
    scores: np.ndarray
    levels: np.ndarray
    flagged: np.ndarray
    threshold: float
    examples: list = field(default_factory=list)   # dicts, most abnormal first

    @property
    def samples(self):
        """(n,) R peaks in samples of the recording."""
        return np.round(self.beats.time_s * self.fs_hz).astype(np.int64)

    def clock(self, time_s):
        """"01:02:03" into the recording."""
        minutes, seconds = divmod(int(time_s), 60)
        return f"{minutes // 60:02d}:{minutes % 60:02d}:{seconds:02d}"


def most_abnormal(findings, recording, lead, model, fitted):
    """[{"time_s", "level", "signal", "recon", "unit"}] of the highest levels, well apart, read again."""
    order = np.argsort(np.nan_to_num(findings.levels, nan=-np.inf), kind="stable")[::-1]
    chosen = []
    for k in order[:5000]:
        time_s = findings.beats.time_s[k]
        if len(chosen) == EXAMPLES or not np.isfinite(findings.levels[k]):
            break
        if all(abs(time_s - findings.beats.time_s[other]) >= APART_S for other in chosen):
            chosen.append(k)
    taken = [beat_alone(recording, lead, findings.beats.time_s[k], model.model_args["window_size"]) for k in chosen]
    x = np.concatenate([t[0] for t in taken]) if taken else np.empty((0, model.model_args["window_size"]), np.float32)
    recon = detector.network_view(model, x, fitted["settings"], config.FS_HZ, "cpu")[0]
    seen = x * model.taper.cpu().numpy()
    return [{"time_s": float(findings.beats.time_s[k]), "level": float(findings.levels[k]),
             "flagged": bool(findings.flagged[k]), "signal": x[i] * scale + offset, "seen": seen[i] * scale + offset,
             "recon": recon[i] * scale + offset, "unit": "mV" if recording.calibrated[lead] else "file's unit"}
            for i, (k, (_, offset, scale)) in enumerate(zip(chosen, taken))]


def beat_alone(recording, lead, time_s, window_size):
    """(x (1, w), its offset, its scale) of the beat at time_s, read again."""
    start = time_s // scan.PIECE_S * scan.PIECE_S
    piece = scan.read_piece(recording, lead, start, config.FS_HZ, config.BAND_HZ, config.FILTER_ORDER)
    peak = np.array([round((time_s - piece.start_s) * config.FS_HZ)])
    x, offset, scale = scan.segments_of(piece, peak, config.FS_HZ, window_size)
    return x, offset[0], scale[0]


# --- table and annotations ------------------------------------------------------------------------

def states(found, rows=slice(None)):
    """(n,) of "scored", "unreadable" and "cut": at an end of the recording."""
    return np.where(~found.readable[rows], "unreadable", np.where(found.whole[rows], "scored", "cut"))


def write_csv(path, findings):
    """A row a beat, in order of time."""
    found, samples = findings.beats, findings.samples
    rr = np.append(np.nan, np.diff(found.time_s))
    number = lambda value, digits: f"{value:.{digits}f}" if np.isfinite(value) else ""
    with whole_file(path) as part, open(part, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for rows in detector.batches(len(rr), ROWS):
            columns = (found.time_s[rows], samples[rows], rr[rows], findings.scores[rows],
                       findings.levels[rows], findings.flagged[rows], states(found, rows))
            writer.writerows([f"{time_s:.4f}", sample, findings.lead, number(before, 4), number(score, 5),
                              number(level, 4), int(flag), state]
                             for time_s, sample, before, score, level, flag, state in zip(*columns))


def noise_marks(findings):
    """[(sample, subtype)] where unreadable stretches begin (-1) and end (0)."""
    bad = np.concatenate([[False], findings.beats.unreadable > 0, [False]])
    edges = np.flatnonzero(np.diff(bad.astype(int)))
    last = round(findings.beats.duration_s * findings.fs_hz) - 1
    return [(min(int(k * quality.WINDOW_S * findings.fs_hz), last), -1 if bad[k + 1] else 0) for k in edges]


def annotations_of(findings):
    """(sample, symbol, aux, subtype) of every scored beat and change of signal quality, in order of time."""
    found = findings.beats
    beats = ((int(s), FLAG_SYMBOL if f else "N", f"{level:.2f}", 0)
             for s, f, level, scored in zip(findings.samples, findings.flagged, findings.levels, found.scored) if scored)
    noise = ((sample, NOISE_SYMBOL, "", subtype) for sample, subtype in noise_marks(findings))
    return heapq.merge(beats, noise, key=lambda row: row[0])


def write_annotations(path, findings):
    """WFDB annotation file, some thousand annotations at a time, so that memory does not grow with the recording.

    Each has its distance from the one before it: a file is the pieces one after the other, of all but
    the last without the end mark, two bytes of 0.
    """
    with (whole_file(path) as part, open(part, "wb") as file,
          tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder):
        last, rows = 0, annotations_of(findings)
        while piece := list(itertools.islice(rows, ROWS)):
            sample, symbol, aux, subtype = zip(*piece)
            # wfdb takes no path and refuses many names: written as r.ecgad
            wfdb.wrann("r", EXTENSION, np.array(sample) - last, list(symbol), aux_note=list(aux),
                       subtype=np.array(subtype), fs=None if last else findings.fs_hz, write_dir=folder)
            file.write((Path(folder) / f"r.{EXTENSION}").read_bytes()[:-2])
            last = sample[-1]
        file.write(b"\0\0")


# --- picture --------------------------------------------------------------------------------------

def overview(findings):
    """Levels, flagged share, heart rate over the whole recording; the most abnormal beats below."""
    found, hours = findings.beats, findings.beats.duration_s > 7200
    figure = Figure(figsize=(11, 9), dpi=150)  # margins by hand: to find them doubles the time of drawing
    figure.suptitle(f"{findings.name}  ·  lead {findings.lead}  ·  {int(found.scored.sum()):,} beats scored, "
                    f"{int(findings.flagged.sum()):,} at or above level {findings.threshold:.2f}  ·  "
                    f"{100 * (found.unreadable > 0).mean():.1f} % unreadable", fontsize=9, y=0.99)
    top, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    scale = 3600 if hours else 60
    t = found.time_s / scale
    axes = top.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1), gridspec_kw={
        "left": 0.075, "right": 0.985, "bottom": 0.09, "top": 0.905, "hspace": 0.14})
    scored, flagged = found.scored, findings.flagged
    axes[0].plot(t[scored & ~flagged], findings.levels[scored & ~flagged], ".", markersize=1.5, color=NORMAL,
                 label="not flagged", rasterized=True)
    axes[0].plot(t[flagged], findings.levels[flagged], "^", markersize=3, color=ABNORMAL, label="flagged")
    axes[0].axhline(findings.threshold, color="black", linestyle="--", linewidth=1, label="level to flag")
    low, high = (np.nanquantile(findings.levels, [0.001, 1]) if scored.any() else (0, 1))
    axes[0].set(ylabel="level of the beat\n(spreads of regular beats)",
                ylim=(min(low, 0) - 0.5, max(high, findings.threshold) * 1.08))
    edges = np.linspace(0, found.duration_s / scale, BINS + 1) if found.duration_s else np.array([0, 1])
    n, _ = np.histogram(t[scored], edges)
    f, _ = np.histogram(t[flagged], edges)
    axes[1].fill_between(edges[:-1], 100 * f / np.maximum(n, 1), step="post", color=ABNORMAL, linewidth=0)
    axes[1].set(ylabel="flagged\n(% of beats)", ylim=(0, 100))
    gaps = np.diff(found.time_s)
    known = (gaps > 0.2) & (gaps < 5) & found.readable[1:]
    rate, _ = np.histogram(t[1:][known], edges, weights=60 / gaps[known])
    count, _ = np.histogram(t[1:][known], edges)
    axes[2].plot((edges[:-1] + edges[1:]) / 2, np.where(count, rate / np.maximum(count, 1), np.nan), color="black",
                 linewidth=0.8)
    axes[2].set(ylabel="heart rate\n(beats/min)", xlabel=f"time in the recording ({'h' if hours else 'min'})",
                xlim=(edges[0], edges[-1]))
    starts = np.flatnonzero(found.unreadable > 0) * quality.WINDOW_S / scale
    for ax in axes:
        for k, start in enumerate(starts):
            ax.axvspan(start, start + quality.WINDOW_S / scale, color=GREY, alpha=0.3, linewidth=0,
                       label="unreadable" if k == 0 and ax is axes[0] else None)
    axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, markerscale=2, frameon=False)
    if findings.examples:
        grid = below.subplots(2, 4, sharex=True, gridspec_kw={
            "left": 0.075, "right": 0.985, "bottom": 0.17, "top": 0.89, "hspace": 0.24, "wspace": 0.2})
        for ax, example in zip(grid.flat, findings.examples):
            time = (np.arange(len(example["signal"])) - len(example["signal"]) // 2) / config.FS_HZ
            ax.plot(time, example["signal"], color=GREY, linewidth=0.8, label="signal")
            ax.plot(time, example["recon"], color=ABNORMAL, linewidth=1.1,
                    label="the network's drawing of the beat, tapered as it sees it")
            ax.set_title(f"{findings.clock(example['time_s'])}, level {example['level']:.1f}", fontsize=8)
        for ax in grid.flat[len(findings.examples):]:
            ax.set_axis_off()
        for ax in grid[-1]:
            ax.set_xlabel("time from the R peak (s)")
        for ax in grid[:, 0]:
            ax.set_ylabel(f"signal ({findings.examples[0]['unit']})")
        below.legend(*grid.flat[0].get_legend_handles_labels(), loc="lower center", ncols=2)
        below.suptitle(f"The beats of highest level, at least {APART_S} s apart", fontsize=9)
    return figure


def write_all(stem, findings):
    """All files of one recording but the summary."""
    write_annotations(Path(f"{stem}.{EXTENSION}"), findings)
    write_csv(Path(f"{stem}.{EXTENSION}.csv"), findings)
    save(Path(f"{stem}.{EXTENSION}.png"), lambda: overview(findings))


def stored_summary(stem, origin):
    """The summary of an earlier run with the same origin and all its files, or None; stem: Path or address."""
    file = lambda end: places.beside(stem, f"{places.name_of(stem)}.{EXTENSION}{end}")
    try:
        summary = json.loads(places.read_bytes(file(".json")))
        same = summary["origin"] == origin and all(places.is_file(file(end)) for end in ("", ".csv", ".png"))
        return summary if same else None
    except ConnectionError:
        raise
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return None
