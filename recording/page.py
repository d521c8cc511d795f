"""NAME.ecgad.html: one page that opens without network, drawn from detect.py's other files of a recording.

reads   NAME.ecgad.json, NAME.ecgad.csv, NAME.ecgad   python detect.py RECORDING; and the signal (detect_page_data.py)
writes  NAME.ecgad.html                               a template (detect_page.html), bokeh's models with the data,
                                                      and what moves them in the browser (detect_page.js)

Names and units come from untrusted files: they stand in the template alone, which escapes them, never in a bokeh
model, where `$$` would be taken for mathematics.
"""

import pkgutil
from datetime import timedelta
from pathlib import Path

import numpy as np
from bokeh.document import Document
from bokeh.embed import file_html
from bokeh.events import DocumentReady
from bokeh.layouts import column
from bokeh.models import (BoxZoomTool, ColumnDataSource, CustomJS, CustomJSTickFormatter, DataTable,
                          DatetimeTicker, NumberFormatter, PanTool, Range1d, RangeTool, ResetTool, SaveTool,
                          TableColumn, WheelZoomTool)
from bokeh.plotting import figure
from bokeh.resources import INLINE

from recording.output import EXTENSION
from recording.page_data import STRIP_S, binned, joined, read_content
from pipeline.figures import ABNORMAL, GREY, NORMAL
from pipeline.artefacts import whole_file

SPANS = 5000               # unreadable stretches drawn; of more, near ones are joined
SHORTEST_S = 0.2           # that can be zoomed to
CLOCK = """
    const tenth_ms = Math.round(tick * 10), two = (v) => String(Math.floor(v)).padStart(2, "0")
    const s = tenth_ms / 10000, rest = tenth_ms % 10000
    return `${two(s / 3600)}:${two(s / 60 % 60)}:${two(s % 60)}` +
           (rest ? "." + String(rest).padStart(4, "0").replace(/0+$/, "") : "")
"""


# --- plots ----------------------------------------------------------------------------------------

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
    made.scatter("x", "y", source=sources["normal"], color=NORMAL, size=3)
    made.scatter("x", "y", source=sources["flagged"], color=ABNORMAL, marker="triangle", size=7)
    for value in to_flag:
        made.line([0, x_range.end], [value, value], color="black", line_dash="dashed")
    return made


def timeline(sources, x_range, levels, threshold, unit):
    """Levels, heart rate and signal over one range; below, the whole recording with the stretch they show."""
    known = sources["bins"].data["rate"][np.isfinite(sources["bins"].data["rate"])]
    rate = zoomable(plot("rate", x_range, "beats/min", 130,
                         y_range=Range1d(known.min(initial=60) - 5, known.max(initial=80) + 5)))
    rate.step("middle", "rate", source=sources["bins"], color="black", mode="center")
    signal = zoomable(plot("signal", x_range, f"signal ({unit})", 230, y_range=Range1d(-1, 1),
                           x_axis_label="time into the recording (h:min:s)"))
    signal.line("x", "y", source=sources["signal"], color=NORMAL, line_width=0.8)
    level = level_plot(sources, x_range, levels, threshold)
    for made in (level, rate, signal):
        made.vstrip("x0", "x1", source=sources["unreadable"], color=GREY, alpha=0.3, line_width=0)
        made.vspan("x", source=sources["chosen"], color="black", alpha=0.5, line_dash="dotted")
    whole = plot("whole", Range1d(0, x_range.end), "flagged (%)", 120, y_range=Range1d(0, 100),
                 x_axis_label="whole recording (h:min:s); the shaded box is what the plots above show")
    whole.quad("left", "right", "flagged", 0, source=sources["bins"], color=ABNORMAL, line_width=0)
    whole.add_tools(RangeTool(x_range=x_range))
    whole.toolbar_location = None
    return column(level, rate, signal, whole, sizing_mode="stretch_width", name="timeline")


def strip(sources, unit):
    """The chosen beat in its STRIP_S, the beats marked with their levels."""
    made = figure(name="strip", height=300, sizing_mode="stretch_width", tools="save", min_border_left=75,
                  x_range=Range1d(-STRIP_S / 2, STRIP_S / 2), y_range=Range1d(-1, 1),
                  x_axis_label="time from the chosen beat (s)", y_axis_label=f"signal ({unit})")
    made.toolbar.logo, made.grid.grid_line_alpha = None, 0.4
    made.line("x", "y", source=sources["strip"], color="black", line_width=1)
    for name, colour, marker in (("strip_normal", NORMAL, "circle"), ("strip_flagged", ABNORMAL, "triangle"),
                                 ("strip_unscored", GREY, "x")):
        made.scatter("x", "y", source=sources[name], color=colour, marker=marker, size=9)
        made.text("x", "top", "text", source=sources[name], color=colour, text_font_size="11px", text_align="center",
                  y_offset=-8)
    return made


def flagged_table(content, start):
    """DataTable of the listed beats, sortable; its source carries their samples too. start: datetime or None."""
    listed = content.table.iloc[content.rows]
    at = [timedelta(seconds=float(s) / content.fs_hz) for s in listed["sample"]]
    data = {"rank": np.arange(1, len(listed) + 1), "time": [clock(t) for t in at], "level": listed["level"].to_numpy(),
            "rate": (60 / listed["rr_before_s"]).to_numpy(), "sample": listed["sample"].to_numpy(float)}
    number = lambda digits: NumberFormatter(format=digits, nan_format="-")
    columns = [TableColumn(field="rank", title="#", width=45),
               TableColumn(field="time", title="into recording", width=95),
               TableColumn(field="level", title="level", width=60, formatter=number("0.0")),
               TableColumn(field="rate", title="60/RR before", width=90, formatter=number("0"))]
    if start is not None:
        data["day"] = [(start + t).strftime("%d. %H:%M:%S") for t in at]
        columns.insert(2, TableColumn(field="day", title="day and time", width=95))
    return DataTable(name="beats", source=ColumnDataSource(data), columns=columns, index_position=None, height=360,
                     width=sum(c.width for c in columns) + 25, autosize_mode="none", reorderable=False)


def clock(time):
    """timedelta -> "26:03:05.4"."""
    tenths = round(time.total_seconds() * 10)
    return f"{tenths // 36000:02d}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


# --- page -----------------------------------------------------------------------------------------

def sources_of(content):
    """{name: ColumnDataSource} of what is drawn; most are filled by detect_page.js."""
    names = "normal", "flagged", "signal", "strip", "strip_normal", "strip_flagged", "strip_unscored"
    sources = {name: ColumnDataSource({"x": [], "y": [], "top": [], "text": []}) for name in names}
    bad = content.unreadable_s
    bad = joined(bad, content.n_samples / content.fs_hz / SPANS) if len(bad) > SPANS else bad
    bins = {name: values * (1000 if name in ("left", "right", "middle") else 1)
            for name, values in binned(content).items()}
    return sources | {"bins": ColumnDataSource(bins), "chosen": ColumnDataSource({"x": []}),
                      "unreadable": ColumnDataSource({"x0": 1000 * bad[:, 0], "x1": 1000 * bad[:, 1]})}


def store_of(content):
    """{name: ColumnDataSource} of what detect_page.js draws from: typed arrays."""
    beats = content.table[content.drawn]
    store = {"full": {"v": content.full}, "envelope": {"low": content.low, "high": content.high},
             "kept": {"start": content.kept[:, 0].astype(float), "stop": content.kept[:, 1].astype(float)},
             "beats": {"sample": beats["sample"].to_numpy(float), "level": beats["level"].to_numpy(np.float32),
                       "state": beats["state"].to_numpy(np.uint8)}}
    return {name: ColumnDataSource(columns, name=name) for name, columns in store.items()}


def document_of(content, start):
    """Document with the roots timeline, beats and strip, and detect_page.js to move them."""
    unit = "mV" if content.summary["calibrated"] else "file's unit"
    sources, end_ms = sources_of(content), 1000 * max(content.n_samples / content.fs_hz, SHORTEST_S)
    x_range = Range1d(0, end_ms, bounds=(0, end_ms), min_interval=1000 * SHORTEST_S, name="shown")
    table, document = flagged_table(content, start), Document()
    levels = content.table["level"].to_numpy()
    over_time = timeline(sources, x_range, levels, content.summary["level"], unit)
    chosen = strip(sources, unit)
    for root in over_time, table, chosen:
        document.add_root(root)
    numbers = {"fs": content.fs_hz, "n": content.n_samples, "step": content.step, "offset": content.offset,
               "scale": content.scale, "strip_s": STRIP_S}
    code = pkgutil.get_data(__name__, "detect_page.js").decode()
    ranges = {"x_range": x_range, "signal_y": over_time.select_one({"name": "signal"}).y_range,
              "strip_y": chosen.y_range}
    args = sources | store_of(content) | numbers | ranges | {"rows": table.source}
    document.js_on_event(DocumentReady, CustomJS(args=args, code=code))
    return document


def write_page(stem, recording, lead):
    """NAME.ecgad.html of the recording whose other files are at `stem`; lead: index of the one that was scored.

    Whole or not at all. Raises UserError where those files, or the recording, are damaged.
    """
    content = read_content(stem, recording, lead)
    shown = {"content": content, "summary": content.summary, "recording": recording, "unit": recording.units[lead],
             "duration": clock(timedelta(seconds=content.n_samples / content.fs_hz)), "strip_s": STRIP_S,
             "colours": {"normal": NORMAL, "abnormal": ABNORMAL, "grey": GREY}}
    html = file_html(document_of(content, recording.start), INLINE, f"{content.summary['recording']}: flagged beats",
                     template=pkgutil.get_data(__name__, "detect_page.html").decode(), template_variables=shown)
    with whole_file(Path(f"{stem}.{EXTENSION}.html")) as part:
        part.write_text(html, encoding="utf-8", errors="replace")  # a file's name may hold what is no character
