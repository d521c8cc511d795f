"""What a page of detect_page.py holds of a recording, bounded whatever its length.

reads   NAME.ecgad.json, NAME.ecgad.csv, NAME.ecgad   python detect.py RECORDING; and the signal, once, in pieces

All of a recording up to FULL_SAMPLES is kept at full rate; of a longer one STRIP_S about as many of its highest
flagged beats, and the lowest and highest sample of each of ENVELOPE stretches.
"""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import wfdb

from pipeline.errors import UserError
from recording.output import EXTENSION, NOISE_SYMBOL

FULL_SAMPLES = 2_000_000   # 92 min at 360 Hz; int16 in base64: 5.3 MB of the page
ENVELOPE = 500_000         # 2.7 MB
BEATS = 200_000            # of more, the lowest and highest of neighbours: 3.5 MB
ROWS = 2000                # of the table
STRIP_S = 10
BINS, BIN_S = 2000, 10     # of heart rate and flagged share: at most so many, about so long at least
CHUNK = 1 << 18            # samples read at a time
MISSING = -32768           # int16 of a sample that is missing; detect_page.js knows it too
OUTLIER = 100              # times the central 99.8 % of the signal: what lies farther off is drawn there, so that a
                           # spike leaves the beats their share of the 16 bits
SCORED, FLAGGED, UNSCORED = range(3)


@dataclass
class Content:
    """One recording for its page; times in samples of the recording unless they say otherwise."""

    summary: dict              # NAME.ecgad.json
    table: pd.DataFrame        # a row a beat: sample, rr_before_s, level, flag, state (SCORED, FLAGGED, UNSCORED)
    unreadable_s: np.ndarray   # (k, 2) from, to
    fs_hz: float
    n_samples: int
    rows: np.ndarray           # of the flagged beats listed, highest level first
    drawn: np.ndarray          # (n,) bool: which beats the page holds
    kept: np.ndarray           # (k, 2) from, to: at full rate
    full: np.ndarray           # int16: the samples of `kept` one after another
    low: np.ndarray            # (m,) int16: extremes of each `step` samples; empty where everything is kept
    high: np.ndarray
    step: int
    offset: float              # value = offset + scale * int16
    scale: float

    @property
    def whole(self):
        """Whether everything is kept at full rate."""
        return self.step == 1


def read_content(stem, recording, lead):
    """Content of a recording whose files are at `stem`; lead: index of the one that was scored.

    Raises UserError where those files, or the recording, are damaged.
    """
    fs, n = recording.fs_hz, recording.n_samples
    summary, table, unreadable_s = read_back(stem, fs)
    rows = listed_beats(table, n, fs)
    kept = full_rate(table["sample"].to_numpy()[rows], n, fs)
    step = 1 if n <= FULL_SAMPLES else -(-n // ENVELOPE)
    arrays, offset, scale = quantised(*read_signal(recording, lead, kept, step))
    return Content(summary, table, unreadable_s, fs, n, rows, drawn_beats(table, kept), kept, *arrays, step,
                   offset, scale)


def read_back(stem, fs_hz):
    """(summary, table, unreadable (k, 2) in s) as detect.py wrote them; UserError where they are not."""
    types = {"sample": int, "rr_before_s": float, "level": float, "flag": int, "state": str}
    try:
        with open(f"{stem}.{EXTENSION}.json", encoding="utf-8") as file:
            summary = json.load(file)
        table = pd.read_csv(f"{stem}.{EXTENSION}.csv", usecols=list(types), dtype=types)
        notes = wfdb.rdann(str(stem), EXTENSION)
        marks = np.asarray(notes.sample)[[symbol == NOISE_SYMBOL for symbol in notes.symbol]] / fs_hz
        unreadable_s = marks.reshape(-1, 2)  # from and to by turns
    except Exception as error:  # the readers of a damaged file raise anything
        raise UserError(f"{stem}.{EXTENSION}.*: not as detect.py wrote them ({error}). "
                        "Run it again with --force.") from error
    table["state"] = np.where(table["flag"] == 1, FLAGGED, np.where(table["state"] == "scored", SCORED, UNSCORED))
    return summary, table, unreadable_s


def listed_beats(table, n_samples, fs_hz):
    """Row numbers of the flagged beats in the page's table, highest level first."""
    flagged = np.flatnonzero(table["state"] == FLAGGED)
    order = flagged[np.argsort(-table["level"].to_numpy()[flagged], kind="stable")]
    return order[:ROWS if n_samples <= FULL_SAMPLES else min(ROWS, int(FULL_SAMPLES // (STRIP_S * fs_hz)))]


def full_rate(samples, n_samples, fs_hz):
    """(k, 2) from, to, ascending and apart, kept at full rate: everything, or STRIP_S about these R peaks."""
    if n_samples <= FULL_SAMPLES:
        return np.array([[0, n_samples]])
    half, at = int(STRIP_S * fs_hz / 2), np.sort(samples)
    return joined(np.clip(np.column_stack([at - half, at + half + 1]), 0, n_samples))


def joined(spans, gap=0):
    """Spans (k, 2), ascending, those at most `gap` apart made one: (m, 2)."""
    if not len(spans):
        return spans
    first = np.append(True, spans[1:, 0] - spans[:-1, 1] > gap)
    return np.column_stack([spans[first, 0], spans[np.append(first[1:], True), 1]])


def read_signal(recording, lead, kept, step):
    """(full, low, high) float32: samples of `kept` (k, 2) one after another; extremes of each `step` samples.

    One pass, CHUNK samples at a time. Missing samples are NaN; low and high are empty for a step of 1.
    """
    n, chunk = recording.n_samples, CHUNK // step * step or step
    full, low, high = [np.empty(0, np.float32)], [], []
    for first in range(0, n, chunk):
        signal = recording.read(lead, first, min(first + chunk, n)).clip(-1e35, 1e35).astype(np.float32)
        for start, stop in kept[(kept[:, 0] < first + chunk) & (kept[:, 1] > first)]:
            full.append(signal[max(start - first, 0):stop - first].copy())  # a view would keep the chunk
        if step > 1:
            begin = np.arange(0, len(signal), step)
            low.append(np.fmin.reduceat(signal, begin))
            high.append(np.fmax.reduceat(signal, begin))
    return tuple(np.concatenate(part) if part else np.empty(0, np.float32) for part in (full, low, high))


def quantised(*arrays):
    """([int16 arrays], offset, scale): value = offset + scale * int16; MISSING where it is NaN."""
    known = np.concatenate([a[np.isfinite(a)] for a in arrays])
    low, middle, high = np.percentile(known, [0.1, 50, 99.9]).astype(float) if len(known) else np.zeros(3)
    reach = np.abs(known - middle).max(initial=0)
    if high > low:
        reach = min(reach, OUTLIER * (high - low))
    scale = float(reach / 32767) or 1.0
    steps = [np.clip((a - middle) / scale, -32767, 32767).round() for a in arrays]
    return [np.where(np.isfinite(s), s, MISSING).astype(np.int16) for s in steps], float(middle), scale


def drawn_beats(table, kept):
    """(n,) bool, which beats the page holds: all, or the lowest and highest of neighbours, and those in `kept`."""
    n, level, sample = len(table), table["level"].to_numpy(), table["sample"].to_numpy()
    if n <= BEATS:
        return np.ones(n, bool)
    size, drawn = -(-2 * n // BEATS), np.zeros(n, bool)
    for sign in (1, -1):
        groups = np.pad(np.nan_to_num(sign * level, nan=-np.inf), (0, -n % size), constant_values=-np.inf)
        drawn[np.arange(0, n, size) + groups.reshape(-1, size).argmax(axis=1)] = True
    for start, stop in np.searchsorted(sample, kept):
        drawn[start:stop] = True
    return drawn


def binned(content):
    """{"left", "right", "middle" in s, "rate" in beats/min, "flagged" in %}: a row a stretch, NaN where unknown."""
    table, duration_s = content.table, content.n_samples / content.fs_hz
    edges = np.linspace(0, duration_s, int(np.clip(duration_s / BIN_S, 1, BINS)) + 1)
    time_s, rr, state = (table["sample"] / content.fs_hz).to_numpy(), table["rr_before_s"].to_numpy(), table["state"]
    usual = (rr > 0.2) & (rr < 5) & (state != UNSCORED).to_numpy()
    count = lambda rows, weights=None: np.histogram(time_s[rows], edges, weights=weights)[0]
    share = lambda part, of: np.where(of > 0, part / np.maximum(of, 1), np.nan)
    return {"left": edges[:-1], "right": edges[1:], "middle": (edges[:-1] + edges[1:]) / 2,
            "rate": share(count(usual, 60 / rr[usual]), count(usual)),
            "flagged": 100 * share(count((state == FLAGGED).to_numpy()), count((state != UNSCORED).to_numpy()))}
