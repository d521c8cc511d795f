"""NAME.ecgad.html: one page that opens without network, drawn from a recording's ScoredBeats and
its signal.

It is a template (page.html), bokeh's models with the data, and what moves them in the browser
(page.js). Names and units come from untrusted files: they stand in the template alone, which
escapes them, never in a bokeh model, where `$$` would be taken for mathematics.
"""

import pkgutil
from datetime import timedelta

import numpy as np
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.models import (BoxZoomTool, ColumnDataSource, CustomJS, CustomJSTickFormatter, DataTable,
                          DatetimeTicker, NumberFormatter, PanTool, Range1d, RangeTool, ResetTool,
                          SaveTool, TableColumn, WheelZoomTool)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from pipeline.artefacts import whole_file
from pipeline.figures import ABNORMAL, GREY, NORMAL
from recording.output import clock, rates
from recording.page_data import STRIP_S, content_of, join_spans, states

BINS = 2000                # of heart rate and flagged share at most, ...
BIN_S = 10                 # ... about so long at least
SPANS = 5000               # unreadable stretches drawn; of more, near ones are joined
SHORTEST_S = 0.2           # that can be zoomed to
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


def strip(sources, unit):
    """The chosen beat in its STRIP_S, the beats marked with their excess."""
    plot = new_plot("strip", Range1d(-STRIP_S / 2, STRIP_S / 2), f"signal ({unit})", 300,
                    y_range=Range1d(-1, 1), x_axis_label="time from the chosen beat (s)")
    plot.add_tools(SaveTool())
    plot.line("x", "y", source=sources["strip"], color="black", line_width=1)

    # filled by page.js
    for name, colour, marker in (("normal", NORMAL, "circle"), ("flagged", ABNORMAL, "triangle"),
                                 ("unscored", GREY, "x")):
        source = sources[f"strip_{name}"]
        plot.scatter("x", "y", source=source, color=colour, marker=marker, size=9)
        plot.text("x", "top", "text", source=source, color=colour, text_font_size="11px",
                  text_align="center", y_offset=-8)
    return plot


def flagged_table(scored, listed):
    """DataTable of the listed beats (row numbers), sortable; its source carries their samples too.
    """
    time_s = scored.samples[listed] / scored.fs_hz

    # the sample is not shown: page.js finds the signal by it
    data = {"rank": np.arange(1, len(listed) + 1), "time": [clock(t) for t in time_s],
            "kind": scored.kind[listed].tolist(), "excess": scored.excess[listed],
            "rate": 60 / scored.rr_before_s[listed],
            "sample": scored.samples[listed].astype(float)}

    columns = [TableColumn(field="rank", title="#", width=45),
               TableColumn(field="time", title="into recording", width=95),
               TableColumn(field="kind", title="kind", width=45),
               TableColumn(field="excess", title="excess", width=65,
                           formatter=NumberFormatter(format="0.0", nan_format="-")),
               TableColumn(field="rate", title="60/RR before", width=90,
                           formatter=NumberFormatter(format="0", nan_format="-"))]

    # where the file says when it began
    if scored.start is not None:
        data["day"] = [f"{scored.start + timedelta(seconds=t):%d. %H:%M:%S}" for t in time_s]
        columns.insert(2, TableColumn(field="day", title="day and time", width=95))

    return DataTable(name="beats", source=ColumnDataSource(data), columns=columns, height=360,
                     width=sum(c.width for c in columns) + 25, index_position=None,
                     autosize_mode="none", reorderable=False)


# --- page -----------------------------------------------------------------------------------------

def sources_of(scored):
    """{name: ColumnDataSource} of what is drawn; most are filled by page.js."""
    sources = {name: ColumnDataSource({"x": [], "y": [], "top": [], "text": []}) for name in (
        "normal", "flagged", "signal", "chosen", "strip", "strip_normal", "strip_flagged",
        "strip_unscored")}

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
    """{name: ColumnDataSource} of what page.js draws from: typed arrays."""
    drawn = content.drawn

    # float64 of samples, which a browser counts exactly; int16 and float32 keep the page small
    store = {"full": {"v": content.full}, "envelope": {"low": content.low, "high": content.high},
             "kept": {"start": content.kept[:, 0].astype(float),
                      "stop": content.kept[:, 1].astype(float)},
             "beats": {"sample": scored.samples[drawn].astype(float),
                       "excess": scored.excess[drawn].astype(np.float32),
                       "state": states(scored)[drawn]}}
    return {name: ColumnDataSource(columns, name=name) for name, columns in store.items()}


def document_of(scored, content, n_samples):
    """Document with the roots timeline, beats and strip, and page.js to move them."""
    sources = sources_of(scored)
    end_ms = 1000 * max(scored.beats.duration_s, SHORTEST_S)
    x_range = Range1d(0, end_ms, bounds=(0, end_ms), min_interval=1000 * SHORTEST_S, name="shown")
    over_time = timeline(sources, x_range, scored)
    table = flagged_table(scored, content.listed)
    chosen = strip(sources, scored.unit)

    document = Document()
    for root in (over_time, table, chosen):
        document.add_root(root)

    # what page.js calls by these names
    args = sources | store_of(scored, content) | {
        "fs": scored.fs_hz, "n": n_samples, "step": content.step, "offset": content.offset,
        "scale": content.scale, "strip_s": STRIP_S, "x_range": x_range, "rows": table.source,
        "signal_y": over_time.select_one({"name": "signal"}).y_range, "strip_y": chosen.y_range}

    document.js_on_event(DocumentReady, CustomJS(
        args=args, code=pkgutil.get_data(__name__, "page.js").decode()))
    return document


def write_page(path, scored, summary, recording):
    """The page of ScoredBeats, their summary and the Recording they are of.

    Whole or not at all. Raises UserError where the recording is damaged.
    """
    content = content_of(scored, recording)
    shown = {"content": content, "summary": summary, "recording": recording,
             "unit": recording.units[scored.lead_index], "strip_s": STRIP_S,
             "duration": clock(scored.beats.duration_s),
             "colours": {"normal": NORMAL, "abnormal": ABNORMAL, "grey": GREY}}

    # INLINE: bokeh's own script is part of the page, which then needs no network
    html = file_html(document_of(scored, content, recording.n_samples), INLINE,
                     f"{scored.name}: flagged beats", template_variables=shown,
                     template=pkgutil.get_data(__name__, "page.html").decode())
    with whole_file(path) as part:
        # replaced: a file's name may hold what is no character
        part.write_text(html, encoding="utf-8", errors="replace")
