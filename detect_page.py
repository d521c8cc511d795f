"""NAME.ecgad.html: one page that opens without network, drawn from detect.py's other files of a recording.

reads   NAME.ecgad.json, NAME.ecgad.csv, NAME.ecgad   python detect.py RECORDING; and the signal, once, in pieces
writes  NAME.ecgad.html                               a template (detect_page.html), bokeh's models with the data,
                                                      and what moves them in the browser (detect_page.js)

The page is bounded whatever the recording's length: the constants below say what is left out, the page
says it too. Names and units come from untrusted files: they appear in the template alone, which escapes
them, never in a bokeh model.
"""

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import wfdb
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.models import (BoxZoomTool, ColumnDataSource, CustomJS, CustomJSTickFormatter, DataTable, DatetimeTicker,
                          NumberFormatter, PanTool, Range1d, RangeTool, ResetTool, SaveTool, TableColumn,
                          WheelZoomTool)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from config import UserError
from detect_output import EXTENSION, NOISE_SYMBOL
from drawing import ABNORMAL, GREY, NORMAL
from files import whole_file

FULL_SAMPLES = 2_000_000   # kept at full rate, in int16: 5.3 MB of the page. All of 92 min at 360 Hz; of a longer
                           # recording STRIP_S about as many of its highest flagged beats
ENVELOPE = 500_000         # stretches of which a longer recording keeps the lowest and highest sample: 2.7 MB
BEATS = 200_000            # drawn in the timeline, of more the lowest and highest of neighbours: 3.5 MB
ROWS = 2000                # of the table
STRIP_S = 10
BINS, BIN_S = 2000, 10     # of heart rate and flagged share: at most so many, at least so long
SPANS = 5000               # unreadable stretches; nearer ones are joined
CHUNK = 1 << 18            # samples read at a time
MISSING = -32768           # int16 of a sample that is missing
OUTLIER = 100              # spans of the central 99.8 %: what lies farther off is drawn there, lest a spike take
                           # the 16 bits from the beats
STATES = {"scored": 0, "flagged": 1, "unreadable": 2, "cut": 2}
CLOCK = """
    const s = Math.abs(tick) / 1000, two = (v) => String(Math.floor(v)).padStart(2, "0")
    const ms = Math.round(s * 1000) % 1000
    return `${two(s / 3600)}:${two(s / 60 % 60)}:${two(s % 60)}` + (ms ? "." + String(ms).padStart(3, "0") : "")
"""
HERE = Path(__file__).resolve().parent


# --- what is drawn --------------------------------------------------------------------------------

def read_back(stem, fs_hz):
    """(summary, table, spans) from a recording's files: table a row a beat, spans (k, 2) in s that are unreadable.

    UserError where they are not as detect.py wrote them.
    """
    try:
        summary = json.loads(Path(f"{stem}.{EXTENSION}.json").read_text())
        table = pd.read_csv(f"{stem}.{EXTENSION}.csv", usecols=["sample", "rr_before_s", "level", "flag", "state"],
                            dtype={"sample": int, "rr_before_s": float, "level": float, "flag": bool, "state": str})
        notes = wfdb.rdann(str(stem), EXTENSION)
        marks = np.asarray(notes.sample)[[symbol == NOISE_SYMBOL for symbol in notes.symbol]] / fs_hz
        table["state"] = np.where(table["flag"], STATES["flagged"], table["state"].map(STATES)).astype(np.uint8)
        return summary, table, marks.reshape(-1, 2)   # begin and end by turns
    except Exception as error:  # the readers of a damaged file raise anything
        raise UserError(f"{stem}.{EXTENSION}.*: not as detect.py wrote them ({error}). "
                        "Run it again with --force.") from error


def joined(spans, gap):
    """Spans (k, 2), ascending, with those at most `gap` apart made one: (m, 2)."""
    if not len(spans):
        return spans
    first = np.append(True, spans[1:, 0] - spans[:-1, 1] > gap)
    return np.column_stack([spans[first, 0], spans[np.append(first[1:], True), 1]])


def listed_beats(table, n_samples, fs_hz):
    """Row numbers of the flagged beats in the page's table, highest level first."""
    flagged = np.flatnonzero(table["flag"])
    order = flagged[np.argsort(-table["level"].to_numpy()[flagged], kind="stable")]
    return order[:ROWS if n_samples <= FULL_SAMPLES else min(ROWS, int(FULL_SAMPLES // (STRIP_S * fs_hz)))]


def full_rate(samples, n_samples, fs_hz):
    """(k, 2) samples from, to that are kept at full rate: everything, or STRIP_S about these R peaks."""
    if n_samples <= FULL_SAMPLES:
        return np.array([[0, n_samples]])
    half, at = int(STRIP_S * fs_hz / 2), np.sort(samples)
    return joined(np.clip(np.column_stack([at - half, at + half + 1]), 0, n_samples), 0)


def read_signal(recording, lead, kept, step):
    """(full, low, high) float32: samples of `kept` (k, 2) one after another; extremes of each `step` samples."""
    n, chunk = recording.n_samples, max(1, CHUNK // step) * step
    full, low, high = [np.empty(0, np.float32)], np.empty(-(-n // step), np.float32), np.empty(-(-n // step), np.float32)
    largest = float(np.finfo(np.float32).max) / 1000
    for first in range(0, n, chunk):
        signal = recording.read(lead, first, min(first + chunk, n)).clip(-largest, largest).astype(np.float32)
        for start, stop in kept[(kept[:, 0] < first + chunk) & (kept[:, 1] > first)]:
            full.append(signal[max(start - first, 0):stop - first].copy())
        begin = np.arange(0, len(signal), step)
        here = slice(first // step, first // step + len(begin))
        low[here], high[here] = np.fmin.reduceat(signal, begin), np.fmax.reduceat(signal, begin)
    return np.concatenate(full), low, high


def quantised(*arrays):
    """([int16 arrays], offset, scale): value = offset + scale * int16; MISSING where it is NaN."""
    known = np.concatenate([a[np.isfinite(a)] for a in arrays]).astype(float)
    low, middle, high = np.percentile(known, [0.1, 50, 99.9]) if len(known) else (0, 0, 0)
    reach = np.abs(known - middle).max(initial=0)
    if high > low:
        reach = min(reach, OUTLIER * (high - low))
    scale = reach / 32767 or 1.0
    whole = [np.clip(np.nan_to_num((a - middle) / scale, nan=0), -32767, 32767).round().astype(np.int16)
             for a in arrays]
    return [np.where(np.isfinite(a), w, MISSING).astype(np.int16) for a, w in zip(arrays, whole)], middle, scale


def drawn_beats(table, kept):
    """(n,) bool, which beats the page holds: all, or the lowest and highest of neighbours, and those in `kept`."""
    n, level = len(table), table["level"].to_numpy()
    if n <= BEATS:
        return np.ones(n, bool)
    size, chosen = -(-2 * n // BEATS), np.zeros(n, bool)
    for sign in (1, -1):
        groups = np.pad(np.nan_to_num(sign * level, nan=-np.inf), (0, -n % size), constant_values=-np.inf)
        chosen[np.arange(0, n, size) + groups.reshape(-1, size).argmax(axis=1)] = True
    at = np.searchsorted(kept[:, 0], table["sample"], side="right") - 1
    return chosen | (at >= 0) & (table["sample"].to_numpy() < kept[np.maximum(at, 0), 1]) if len(kept) else chosen


def binned(table, duration_s, fs_hz):
    """{"left", "right", "middle" in ms, "rate" in beats/min, "flagged" in %}: a row a stretch, NaN where unknown."""
    edges = np.linspace(0, duration_s, int(np.clip(duration_s / BIN_S, 1, BINS)) + 1)
    time_s, rr = table["sample"].to_numpy() / fs_hz, table["rr_before_s"].to_numpy()
    usual = (rr > 0.2) & (rr < 5) & (table["state"] != STATES["unreadable"]).to_numpy()
    count = lambda rows, weights=None: np.histogram(time_s[rows], edges, weights=weights)[0]
    known, scored = count(usual), count(table["level"].notna().to_numpy())
    share = lambda part, of: np.where(of > 0, part / np.maximum(of, 1), np.nan)
    return {"left": 1000 * edges[:-1], "right": 1000 * edges[1:], "middle": 500 * (edges[:-1] + edges[1:]),
            "rate": share(count(usual, 60 / rr[usual]), known),
            "flagged": 100 * share(count(table["flag"].to_numpy()), scored)}


# --- bokeh models ---------------------------------------------------------------------------------

def plot(name, x_range, y_label, height, **more):
    """Empty figure as wide as the page; time in ms from the beginning, told as a clock."""
    made = figure(name=name, height=height, sizing_mode="stretch_width", x_range=x_range, y_axis_label=y_label,
                  min_border_left=75, tools="", **more)
    made.xaxis.ticker, made.xaxis.formatter = DatetimeTicker(), CustomJSTickFormatter(code=CLOCK)
    made.toolbar.logo, made.grid.grid_line_alpha = None, 0.4
    return made


def zoomable(made):
    """The same with tools: drag a stretch to zoom in, Ctrl and wheel to zoom at the pointer."""
    box, wheel = BoxZoomTool(dimensions="width"), WheelZoomTool(dimensions="width", modifiers="ctrl")
    made.add_tools(box, wheel, PanTool(dimensions="width"), ResetTool(), SaveTool())
    made.toolbar.active_drag, made.toolbar.active_scroll = box, wheel
    return made


def level_plot(sources, x_range, levels, threshold):
    """Levels of the beats, the level to flag dashed; levels (n,) NaN where not scored."""
    known = levels[np.isfinite(levels)]
    low, high = np.quantile(known, [0.001, 1]) if len(known) else (0, 1)
    to_flag = [threshold] if threshold is not None else []    # null in the summary: it is not finite
    made = zoomable(plot("level", x_range, "level of the beat", 240,
                         y_range=Range1d(min(low, 0) - 0.5, max([high, *to_flag]) * 1.15 + 0.5)))
    made.scatter("x", "y", source=sources["normal"], color=NORMAL, size=3, legend_label="not flagged")
    made.scatter("x", "y", source=sources["flagged"], color=ABNORMAL, marker="triangle", size=7, legend_label="flagged")
    for value in to_flag:
        made.line([0, x_range.end], [value, value], color="black", line_dash="dashed", legend_label="level to flag")
    made.vstrip("x0", "x1", source=sources["unreadable"], color=GREY, alpha=0.3, line_width=0, legend_label="unreadable")
    made.add_layout(made.legend[0], "above")
    made.legend.orientation, made.legend.border_line_color, made.legend.padding = "horizontal", None, 2
    return made


def timeline(sources, x_range, levels, threshold, unit):
    """Levels, heart rate and signal over one range; below, the whole recording with the stretch they show."""
    rate = zoomable(plot("rate", x_range, "beats/min", 130))
    rate.line("middle", "rate", source=sources["bins"], color="black")
    signal = zoomable(plot("signal", x_range, f"signal ({unit})", 230, x_axis_label="time into the recording (h:min:s)"))
    signal.line("x", "y", source=sources["signal"], color=NORMAL, line_width=0.8)
    for made in (rate, signal):
        made.vstrip("x0", "x1", source=sources["unreadable"], color=GREY, alpha=0.3, line_width=0)
    whole = plot("whole", Range1d(0, x_range.end), "flagged (%)", 120, y_range=Range1d(0, 100),
                 x_axis_label="whole recording (h:min:s); the shaded box is what the plots above show")
    whole.quad("left", "right", "flagged", 0, source=sources["bins"], color=ABNORMAL, line_width=0)
    whole.add_tools(RangeTool(x_range=x_range))
    whole.toolbar_location = None
    return column(level_plot(sources, x_range, levels, threshold), rate, signal, whole,
                  sizing_mode="stretch_width", name="timeline")


def strip(sources, unit):
    """The chosen beat in its STRIP_S, the beats marked with their levels."""
    made = figure(name="strip", height=300, sizing_mode="stretch_width", tools="save", min_border_left=75,
                  x_range=Range1d(-STRIP_S / 2, STRIP_S / 2), y_axis_label=f"signal ({unit})",
                  x_axis_label="time from the chosen beat (s)")
    made.toolbar.logo, made.grid.grid_line_alpha = None, 0.4
    made.line("x", "y", source=sources["strip"], color="black", line_width=1)
    for name, colour, marker, label in (("strip_normal", NORMAL, "circle", "not flagged"),
                                        ("strip_flagged", ABNORMAL, "triangle", "flagged"),
                                        ("strip_unscored", GREY, "x", "not scored")):
        made.scatter("x", "y", source=sources[name], color=colour, marker=marker, size=9, legend_label=label)
        made.text("x", "y", "text", source=sources[name], color=colour, text_font_size="11px", text_align="center",
                  y_offset=-8)
    made.add_layout(made.legend[0], "above")
    made.legend.orientation, made.legend.border_line_color, made.legend.padding = "horizontal", None, 2
    return made


def flagged_table(table, rows, fs_hz, start):
    """DataTable of these beats, sortable; its source carries their samples too."""
    chosen = table.iloc[rows]
    at = [timedelta(seconds=round(float(s) / fs_hz, 1)) for s in chosen["sample"]]
    data = {"rank": np.arange(1, len(rows) + 1), "time": [told(t) for t in at], "level": chosen["level"].to_numpy(),
            "rate": (60 / chosen["rr_before_s"]).to_numpy(), "sample": chosen["sample"].to_numpy(np.float64)}
    columns = [TableColumn(field="rank", title="#", width=40), TableColumn(field="time", title="into recording", width=95),
               TableColumn(field="level", title="level", width=60, formatter=NumberFormatter(format="0.0")),
               TableColumn(field="rate", title="60/RR before", width=90,
                           formatter=NumberFormatter(format="0", nan_format="-"))]
    if start is not None:
        data["clock"] = [(start + t).strftime("%H:%M:%S") for t in at]
        columns.insert(2, TableColumn(field="clock", title="time of day", width=85))
    return DataTable(name="beats", source=ColumnDataSource(data), columns=columns, index_position=None, height=360,
                     width=sum(c.width for c in columns) + 25, autosize_mode="none")


def told(time):
    """timedelta -> "26:03:05.4", tenths of a second."""
    tenths = round(time.total_seconds() * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


# --- page -----------------------------------------------------------------------------------------

def write_page(stem, recording, lead):
    """NAME.ecgad.html of the recording whose other files are at `stem`; lead: the index of the one that was scored.

    Whole or not at all. Raises UserError where those files, or the recording, are damaged.
    """
    summary, table, bad = read_back(stem, recording.fs_hz)
    fs, n = recording.fs_hz, recording.n_samples
    rows = listed_beats(table, n, fs)
    kept = full_rate(table["sample"].to_numpy()[rows], n, fs)
    step = 1 if n <= FULL_SAMPLES else -(-n // ENVELOPE)
    arrays, offset, scale = quantised(*read_signal(recording, lead, kept, step))
    drawn = drawn_beats(table, kept)
    document = document_of(summary, table, drawn, rows, kept, bad, arrays, recording,
                           {"fs": fs, "n": n, "step": step, "offset": offset, "scale": scale, "strip_s": STRIP_S})
    html = file_html(document, INLINE, f"{summary['recording']}: flagged beats", template=(HERE / "detect_page.html").read_text(),
                     template_variables={"summary": summary, "recording": recording, "unit": recording.units[lead],
                                         "listed": len(rows), "whole": n <= FULL_SAMPLES, "step_s": step / fs,
                                         "thinned": not drawn.all(), "strip_s": STRIP_S, "clock": told,
                                         "duration": timedelta(seconds=n / fs)})
    with whole_file(Path(f"{stem}.{EXTENSION}.html")) as part:
        part.write_text(html, encoding="utf-8", errors="replace")


def document_of(summary, table, drawn, rows, kept, bad, arrays, recording, scales):
    """Document with the roots timeline, beats and strip, and detect_page.js to move them."""
    unit = "mV" if summary["calibrated"] else "file's unit"
    fs, duration_s = scales["fs"], max(scales["n"] / scales["fs"], 1)
    bad = joined(bad, duration_s / SPANS if len(bad) > SPANS else 0)
    sources = {name: ColumnDataSource({"x": [], "y": [], "text": []}, name=name) for name in (
        "normal", "flagged", "signal", "strip", "strip_normal", "strip_flagged", "strip_unscored")}
    sources["bins"] = ColumnDataSource(binned(table, duration_s, fs))
    sources["unreadable"] = ColumnDataSource({"x0": 1000 * bad[:, 0], "x1": 1000 * bad[:, 1]})
    store = {"full": {"v": arrays[0]}, "envelope": {"low": arrays[1], "high": arrays[2]},
             "kept": {"start": kept[:, 0].astype(float), "stop": kept[:, 1].astype(float)},
             "beats": {"sample": table["sample"].to_numpy(float)[drawn], "state": table["state"].to_numpy()[drawn],
                       "level": table["level"].to_numpy(np.float32)[drawn]}}
    x_range = Range1d(0, 1000 * duration_s, bounds=(0, 1000 * duration_s), min_interval=min(200, 1000 * duration_s))
    beats, document = flagged_table(table, rows, fs, recording.start), Document()
    document.add_root(timeline(sources, x_range, table["level"].to_numpy(), summary["level"], unit))
    document.add_root(beats)
    document.add_root(strip(sources, unit))
    args = {name: ColumnDataSource(columns, name=name) for name, columns in store.items()}
    document.js_on_event(DocumentReady, CustomJS(args=sources | args | scales | {"x_range": x_range, "rows": beats.source},
                                                 code=(HERE / "detect_page.js").read_text()))
    return document
