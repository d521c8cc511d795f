"""NAME.ecgad.html: one page that opens without network: verdict, rhythm at a glance, and the queue
in which a reviewer accepts, rejects or renames what is flagged.

It is a template (page.html), bokeh's models with the data, and what moves them in the browser:
page.js the plots over time, review.js the queue, wfdb.js the files it downloads. Names and units
come from untrusted files: they stand in the template, which escapes them, and in the JSON of
review.js, never in a bokeh model, where `$$` would be taken for mathematics.
"""

import hashlib
import json
import pkgutil

import numpy as np
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.models import (BoxZoomTool, ColumnDataSource, CustomJS, CustomJSTickFormatter,
                          DatetimeTicker, PanTool, Range1d, RangeTool, ResetTool, SaveTool,
                          WheelZoomTool)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from pipeline.artefacts import whole_file, without_nan
from pipeline.figures import ABNORMAL, GREY, NORMAL
from recording.episodes import NO_QRS
from recording.output import EXTENSION, quality_of, rhythms_of
from recording.page_data import STATES, STRIP_S, content_of, join_spans, states
from recording.picture import clock, rates
from recording.review import where_it_deviates
from recording.reviewed import REVIEWED
from recording.summary import first_of, urgency

BINS = 2000                # of heart rate and flagged share at most, ...
BIN_S = 10                 # ... about so long at least
URGENT = (NO_QRS, "asystole", "ventricular run", "pause")   # a strip of one is printed
GLANCE_BINS = 500          # of the rate in the picture at a glance
SPANS = 5000               # unreadable stretches drawn; of more, near ones are joined
BARS = 500                 # episodes drawn at a glance, the longest
LISTED = 100               # episodes of a kind to choose from, the longest
SHORTEST_S = 0.2           # that can be zoomed to
MV_DIGITS = 4
CLOCK = """
    const tenth_ms = Math.round(tick * 10), two = (v) => String(Math.floor(v)).padStart(2, "0")
    const s = tenth_ms / 10000, rest = tenth_ms % 10000
    return `${two(s / 3600)}:${two(s / 60 % 60)}:${two(s % 60)}` +
           (rest ? "." + String(rest).padStart(4, "0").replace(/0+$/, "") : "")
"""


# --- plots ---------------------------------------------------------------------------------------

def new_plot(name, x_range, y_label, height, **more):
    """Empty figure as wide as the page."""
    plot = figure(name=name, height=height, sizing_mode="stretch_width", x_range=x_range,
                  y_axis_label=y_label, min_border_left=75, tools="", **more)
    plot.toolbar.logo = None
    plot.grid.grid_line_alpha = 0.4
    return plot


def time_plot(name, x_range, y_label, height, **more):
    """The same; time in ms from the beginning, told as a clock."""
    plot = new_plot(name, x_range, y_label, height, **more)
    plot.xaxis.ticker = DatetimeTicker()
    plot.xaxis.formatter = CustomJSTickFormatter(code=CLOCK)
    return plot


def score_plot(sources, x_range, scored):
    """Excess of the beats, the line dashed."""
    known = scored.excess[np.isfinite(scored.excess)]
    low, high = np.quantile(known, [0.001, 1]) if len(known) else (0, 1)

    # none where it is minus infinity: everything is flagged
    line = [scored.line] if np.isfinite(scored.line) else []
    plot = time_plot("excess", x_range, "excess", 240,
                     y_range=Range1d(min(low, 0) - 0.5, max([high, *line]) * 1.15 + 0.5))

    plot.scatter("x", "y", source=sources["normal"], color=NORMAL, size=3)
    plot.scatter("x", "y", source=sources["flagged"], color=ABNORMAL, marker="triangle", size=7)
    for value in line:
        plot.line([0, x_range.end], [value, value], color="black", line_dash="dashed")
    return plot


def timeline(sources, x_range, scored):
    """Scores, heart rate and signal over one range; below, the whole recording with the stretch
    they show.
    """
    known = sources["bins"].data["rate"]

    # a usual heart's rate is in view, whatever the recording holds
    rate = time_plot("rate", x_range, "beats/min", 130,
                     y_range=Range1d(np.nanmin(known, initial=60) - 5,
                                     np.nanmax(known, initial=80) + 5))
    rate.step("middle", "rate", source=sources["bins"], color="black", mode="center")

    # y_range is set by page.js, which knows what is in view
    signal = time_plot("signal", x_range, f"signal ({scored.unit})", 230, y_range=Range1d(-1, 1),
                       x_axis_label="time into the recording (h:min:s)")
    signal.line("x", "y", source=sources["signal"], color=NORMAL, line_width=0.8)

    # these three show the same stretch: drag one to zoom in, Ctrl and wheel to zoom at the pointer
    moved = [score_plot(sources, x_range, scored), rate, signal]
    for plot in moved:
        box = BoxZoomTool(dimensions="width")
        wheel = WheelZoomTool(dimensions="width", modifiers="ctrl")
        plot.add_tools(box, wheel, PanTool(dimensions="width"), ResetTool(), SaveTool())
        plot.toolbar.active_drag = box
        plot.toolbar.active_scroll = wheel
        plot.vstrip("x0", "x1", source=sources["unreadable"], color=GREY, alpha=0.3, line_width=0)
        plot.vspan("x", source=sources["chosen"], color="black", alpha=0.5, line_dash="dotted")

    whole = time_plot("whole", Range1d(0, x_range.end), "flagged (%)", 120, y_range=Range1d(0, 100),
                      x_axis_label="whole recording (h:min:s); the shaded box is what the plots "
                                   "above show")
    whole.quad("left", "right", "flagged", 0, source=sources["bins"], color=ABNORMAL, line_width=0)
    whole.add_tools(RangeTool(x_range=x_range))
    whole.toolbar_location = None
    return column(*moved, whole, sizing_mode="stretch_width", name="timeline")


# --- the queue ------------------------------------------------------------------------------------

def review_of(scored, summary, recording, content):
    """What review.js knows, for JSON: the review groups with their mean beats, and names."""
    offset_s, usual, means = scored.mean_beats
    rows = []
    for row, mean in zip(summary["review"], means):
        parts = where_it_deviates(offset_s, usual, mean)
        rows.append(row | {"mean": np.round(mean, MV_DIGITS).tolist(), "deviates": parts})

    # a page made anew of the same flags finds the decisions taken on the one before
    flags = repr((scored.name, scored.lead, scored.samples[scored.flagged].tolist()))
    key = hashlib.sha256(flags.encode(errors="replace")).hexdigest()[:16]
    start = None
    if scored.start is not None:
        start = scored.start.strftime("%Y-%m-%dT%H:%M:%S.%f")

    notes = rhythms_of(scored) + quality_of(scored)
    return without_nan({
        "key": key, "name": scored.name, "start": start, "fs": scored.fs_hz,
        "leads": [recording.leads[k] for k in content.leads],
        "calibrated": [bool(recording.calibrated[k]) for k in content.leads],
        "groups": rows, "offset_s": np.round(offset_s, 5).tolist(),
        "usual": usual and {name: np.round(values, MV_DIGITS).tolist()
                            for name, values in usual.items()},
        "notes": sorted(notes, key=lambda note: note[0]),
        "urgent": most_urgent(scored.episodes), "extension": EXTENSION, "reviewed": REVIEWED})


def most_urgent(found):
    """The episode that most needs a look, None where none is of an URGENT kind."""
    firsts = [first_of(kind, found) for kind in URGENT]
    return next(filter(None, firsts), None)


def glance_of(scored):
    """What the template draws at a glance: the rate as points of a line (0 to 1000, 0 to 100), and
    episodes by kind, the most urgent first, each with the longest.
    """
    duration_s = max(scored.beats.duration_s, SHORTEST_S)
    edges = np.linspace(0, duration_s, GLANCE_BINS + 1)
    rate = rates(scored, edges)["rate"]
    known = np.isfinite(rate)
    high = max(np.nanmax(rate[known], initial=100) * 1.05, 100)
    x = 1000 * (edges[:-1] + edges[1:]) / 2 / duration_s
    points = " ".join(f"{a:.1f},{100 - 100 * b / high:.1f}" for a, b in zip(x[known], rate[known]))

    kinds = {}
    longest = sorted(scored.episodes, key=lambda row: row["start_s"] - row["end_s"])[:BARS]
    for row in sorted(scored.episodes, key=lambda row: urgency(row["kind"])):
        kinds.setdefault(row["kind"], {"n": 0, "seconds": 0, "bars": []})
        kinds[row["kind"]]["n"] += 1
        kinds[row["kind"]]["seconds"] += row["end_s"] - row["start_s"]
    for row in longest:
        kinds[row["kind"]]["bars"].append(row | {
            "x": 1000 * row["start_s"] / duration_s, "at": clock(row["start_s"]),
            "width": max(1000 * (row["end_s"] - row["start_s"]) / duration_s, 2)})

    # in order of time, where there are few enough to choose from
    for kind in kinds.values():
        kind["listed"] = sorted(kind["bars"][:LISTED], key=lambda row: row["start_s"])
    return {"points": points, "high": high, "kinds": kinds, "duration": clock(duration_s)}


# --- page -----------------------------------------------------------------------------------------

def sources_of(scored):
    """{name: ColumnDataSource} of what is drawn; most are filled by page.js."""
    sources = {name: ColumnDataSource({"x": [], "y": []})
               for name in ("normal", "flagged", "signal", "chosen")}

    duration_s = scored.beats.duration_s
    bad = scored.unreadable_s
    if len(bad) > SPANS:
        bad = join_spans(bad, duration_s / SPANS)
    sources["unreadable"] = ColumnDataSource({"x0": 1000 * bad[:, 0], "x1": 1000 * bad[:, 1]})

    edges = np.linspace(0, duration_s, int(np.clip(duration_s / BIN_S, 1, BINS)) + 1)
    bins = {"left": 1000 * edges[:-1], "right": 1000 * edges[1:],
            "middle": 500 * (edges[:-1] + edges[1:])}
    sources["bins"] = ColumnDataSource(bins | rates(scored, edges))
    return sources


def store_of(scored, content):
    """{name: ColumnDataSource} of what page.js and review.js draw from: typed arrays."""
    drawn = content.drawn

    # float64 of samples, which a browser counts exactly; int16 and float32 keep the page small
    store = {f"full{k}": {"v": values} for k, values in enumerate(content.full)}
    store |= {"envelope": {"low": content.low, "high": content.high},
              "kept": {"start": content.kept[:, 0].astype(float),
                       "stop": content.kept[:, 1].astype(float)},
              "beats": {"sample": scored.samples[drawn].astype(float),
                        "excess": scored.excess[drawn].astype(np.float32),
                        "state": states(scored)[drawn],
                        "review_group": scored.review_group[drawn].astype(np.uint16)}}
    return {name: ColumnDataSource(columns, name=name) for name, columns in store.items()}


def document_of(scored, content, n_samples):
    """Document with the root timeline, and what moves it and the queue."""
    sources = sources_of(scored)
    end_ms = 1000 * max(scored.beats.duration_s, SHORTEST_S)
    x_range = Range1d(0, end_ms, bounds=(0, end_ms), min_interval=1000 * SHORTEST_S, name="shown")
    over_time = timeline(sources, x_range, scored)

    document = Document()
    document.add_root(over_time)

    # what the scripts call by these names
    store = store_of(scored, content)
    store.setdefault("full1", ColumnDataSource({"v": np.empty(0, np.int16)}))
    args = sources | store | {
        "fs": scored.fs_hz, "n": n_samples, "step": content.step, "offset": content.offset,
        "scale": content.scale, "strip_s": STRIP_S, "states": STATES, "x_range": x_range,
        "signal_y": over_time.select_one({"name": "signal"}).y_range}

    code = "".join(pkgutil.get_data(__name__, name).decode()
                   for name in ("page.js", "wfdb.js", "review.js"))
    document.js_on_event(DocumentReady, CustomJS(args=args, code=code))
    return document


def write_page(path, scored, summary, recording):
    """The page of ScoredBeats, their summary and the Recording they are of.

    Whole or not at all. Raises UserError where the recording is damaged.
    """
    content = content_of(scored, recording)
    # "<" cannot begin a tag where it is written so
    review = json.dumps(review_of(scored, summary, recording, content)).replace("<", "\\u003c")
    shown = {"content": content, "summary": summary, "recording": recording,
             "unit": recording.units[scored.lead_index], "strip_s": STRIP_S,
             "duration": clock(scored.beats.duration_s), "glance": glance_of(scored),
             "review": review, "extension": EXTENSION, "reviewed": REVIEWED}

    # INLINE: bokeh's own script is part of the page, which then needs no network
    html = file_html(document_of(scored, content, recording.n_samples), INLINE,
                     f"{scored.name}: flagged beats", template_variables=shown,
                     template=pkgutil.get_data(__name__, "page.html").decode())
    with whole_file(path) as part:
        # replaced: a file's name may hold what is no character
        part.write_text(html, encoding="utf-8", errors="replace")
