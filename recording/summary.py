"""summary.csv and summary.html: a row a recording, those that need a look first at the top.

The order, the first that holds:

1 to 3   an episode that may threaten life: fibrillation or a wide fast rhythm, asystole, the
         longest first; a ventricular run, the fastest first (AHA/ACC/HRS 2017: ventricular
         arrhythmias)
4        the recording failed: nothing is known of it
5        no beat could be read, or a warning stands beside the flags: what is known may be wrong
6 to 9   a pause, a supraventricular run, suspected atrial fibrillation, a slow ventricular run; the
         longest first, the supraventricular run of most beats
10       all others

Among equals the higher V burden comes first, then the higher S burden, then the more flags an hour.
Names come from untrusted files: the template escapes them, and no cell of the table of values
begins like a formula of a spreadsheet.
"""

import contextlib
import os
import pkgutil
import textwrap
from collections import Counter
from pathlib import Path
from urllib.parse import quote

from pipeline.artefacts import whole_file
from pipeline.errors import UserError
from recording import places
from recording.episodes import NO_QRS

NAME = "summary"
TERMINAL = 120       # columns of the list there
FAILED = "failed"
DOUBTFUL = "warning"
ORDER = (NO_QRS, "asystole", "ventricular run", FAILED, DOUBTFUL, "pause", "supraventricular run",
         "atrial fibrillation, suspected", "slow ventricular run", "")
RUNS = ("ventricular run", "slow ventricular run", "supraventricular run")
AT_FIRST = 500         # rows shown before they are asked for
# episodes of a kind have a column for their number and one for their seconds, called so
COLUMNS = {NO_QRS: "fibrillation", "asystole": "asystole", "ventricular run": "ventricular_run",
           "slow ventricular run": "slow_ventricular_run",
           "supraventricular run": "supraventricular_run", "pause": "pause",
           "atrial fibrillation, suspected": "atrial_fibrillation", "bradycardia": "bradycardia",
           "tachycardia": "tachycardia", "bigeminy": "bigeminy", "trigeminy": "trigeminy"}
# by these it is told from a file of the user's own, which is never overwritten
CSV_BEGINS = "look_first,because,"
HTML_BEGINS = "<!DOCTYPE html>\n<!-- ecgad summary -->"
FORMULA = ("=", "+", "-", "@", "\t", "\r")


# --- rows -----------------------------------------------------------------------------------------

def row_of(label, summary, file):
    """The row of a recording or lead, as a dict.

    label: its name in the list; summary: of its .ecgad.json; file: its page or picture, as seen
    from the list.
    """
    doubts = list(summary["warnings"])
    length_s = {}
    for episode in summary["episodes"]:
        length_s.setdefault(episode["kind"], []).append(episode["end_s"] - episode["start_s"])

    because = next((kind for kind in ORDER if kind in length_s), "")
    if ORDER.index(because) > ORDER.index(DOUBTFUL) and (doubts or not summary["scored"]):
        because = DOUBTFUL
    if not summary["scored"]:
        doubts.insert(0, "no readable beat")
    if summary["simulated_training"]:
        doubts.append("the detector was trained on simulated data")

    detail, weight = most_urgent(because, summary["episodes"])
    row = {"because": because, "detail": detail, "weight": weight, "recording": label,
           "lead": summary["lead"], "hours": summary["duration_s"] / 3600,
           "beats_scored": summary["scored"], "flagged": summary["flagged"],
           "flagged_per_hour": summary["flagged_per_hour"],
           "unreadable_percent": 100 * summary["unreadable_share"], "warnings": "; ".join(doubts),
           "error": "", "file": file,
           "episodes": {kind: (len(length_s[kind]), sum(length_s[kind]))
                        for kind in sorted(length_s, key=urgency)}}
    rhythm = dict(summary["rhythm"])
    for letter in "vs":
        share = rhythm.pop(f"{letter}_burden")
        row[f"{letter}_burden_percent"] = None if share is None else 100 * share
    return row | rhythm


def most_urgent(kind, episodes):
    """(what is said of the episode of a kind that comes first, by what it is compared with others):
    the longest, of ventricular runs the fastest.
    """
    first = first_of(kind, episodes)
    if first is None:
        return "", 0

    weight = weight_of(first)
    if kind in RUNS:
        return f"{first['beats']} beats at {first['rate_per_min']:.0f}/min", weight
    return f"{weight:.1f} s" if weight < 10 else f"{weight:.0f} s", weight


def first_of(kind, episodes):
    """The episode of a kind that most needs a look, None where there is none."""
    own = [episode for episode in episodes if episode["kind"] == kind]
    return max(own, key=weight_of, default=None)


def weight_of(episode):
    """What episodes of its kind are compared by: rate, beats or seconds."""
    if episode["kind"] == "ventricular run":
        return episode["rate_per_min"]
    if episode["kind"] in RUNS:
        return episode["beats"]
    return episode["end_s"] - episode["start_s"]


def urgency(kind):
    """What kinds of episodes are sorted by."""
    return ORDER.index(kind) if kind in ORDER else len(ORDER), kind


def failed_row(label, error):
    """The row of a recording of which there is an error only."""
    return {"because": FAILED, "detail": "", "weight": 0, "recording": label, "error": error,
            "episodes": {}}


def place_in_order(row):
    """What rows are sorted by."""
    highest = [-(row.get(name) or 0) for name in ("v_burden_percent", "s_burden_percent",
                                                  "flagged_per_hour")]
    return (ORDER.index(row["because"]), -row["weight"], *highest, row["recording"],
            row.get("lead", ""))


# --- files ----------------------------------------------------------------------------------------

def write(folder, rows):
    """Write both files of the rows into a folder (Path or address), each whole or not at all.

    Returns the place of the page. Raises OSError or UserError where nothing can be written.
    """
    rows = sorted(rows, key=place_in_order)
    with places.written(places.below(folder, NAME), last=".html") as here:
        with whole_file(Path(f"{here}.csv")) as part:
            # replaced: a file's name may hold what is no character
            table_of(rows).to_csv(part, index=False, float_format="%.3f", errors="replace")
        with whole_file(Path(f"{here}.html")) as part:
            part.write_text(page_of(rows), encoding="utf-8", errors="replace")
    return places.below(folder, f"{NAME}.html")


def table_of(rows):
    """DataFrame of rows in order: the columns of summary.csv."""
    import pandas as pd  # here: it takes half a second to load, and one recording has no summary

    # a kind of episode that has no name here has its own
    kinds = dict(COLUMNS)
    for row in rows:
        kinds |= {kind: kind for kind in row["episodes"] if kind not in kinds}

    columns = ["because", "detail", "recording", "lead", "hours", "rate_lowest_per_min",
               "rate_mean_per_min", "rate_highest_per_min", "longest_pause_s",
               "longest_pause_at_s", "v_burden_percent", "s_burden_percent", "runs",
               "longest_run_beats", "couplets", "beats_scored",
               "flagged", "flagged_per_hour", "unreadable_percent", "warnings", "error", "file"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    for kind, name in kinds.items():
        found = [row["episodes"].get(kind, (0, 0.0)) for row in rows]
        known = table["because"] != FAILED
        table[f"{name}_episodes"] = pd.Series([n for n, _ in found], dtype="Int64").where(known)
        table[f"{name}_s"] = pd.Series([total_s for _, total_s in found], dtype=float).where(known)

    # whole numbers, though they lack where a recording failed
    for name in ("runs", "longest_run_beats", "couplets", "beats_scored", "flagged"):
        table[name] = table[name].astype("Int64")
    for name in ("because", "detail", "recording", "lead", "warnings", "error", "file"):
        table[name] = table[name].astype(object).fillna("").map(no_formula)
    table.insert(0, "look_first", range(1, len(rows) + 1))
    return table


def no_formula(text):
    """The text, after an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def page_of(rows):
    """summary.html of rows in order."""
    # here: they take half a second to load, and one recording has no summary
    import jinja2
    from pipeline.figures import ABNORMAL

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["link"] = link_to
    template = environment.from_string(pkgutil.get_data(__name__, "summary.html").decode())
    return template.render(rows=rows, counts=Counter(row["because"] for row in rows), order=ORDER,
                           failed=FAILED, doubtful=DOUBTFUL, colour=ABNORMAL, most=AT_FIRST)


# --- places ---------------------------------------------------------------------------------------

def folder_of(found, out):
    """Where the summary goes: out, else the folder that all places have in common, else None."""
    if out:
        return places.place_of(out)

    folders = [places.split(place)[0] for place in found]
    if all(isinstance(folder, Path) for folder in folders):
        common = None
        with contextlib.suppress(ValueError):  # two drives
            common = Path(os.path.commonpath([folder.absolute() for folder in folders]))
        # the root of the disk is nobody's folder
        return common if common != Path(common.anchor) else None
    if any(isinstance(folder, Path) for folder in folders):
        return None

    common = os.path.commonprefix([folder.split("/") for folder in folders])
    return "/".join(common) if len(common) > 2 else None   # scheme, nothing, bucket


def label_of(stem, folder):
    """What a recording is called in the summary of a folder: its files' stem as seen from there."""
    if folder is None:
        return str(stem)
    if isinstance(stem, Path):
        return Path(os.path.relpath(stem, folder)).as_posix()
    return stem.removeprefix(f"{str(folder).rstrip('/')}/")


def link_to(file):
    """A file's name as a relative address: neither a scheme nor a query is read in it."""
    return quote(os.fsencode(file))


def is_own(place):
    """Whether a file was written as a summary by an earlier run."""
    begins = {f"{NAME}.csv": CSV_BEGINS, f"{NAME}.html": HTML_BEGINS}.get(places.name_of(place))
    return begins is not None and places.read_bytes(place, len(begins)) == begins.encode()


def check(folder):
    """UserError where a file of the user's own would be overwritten."""
    for name in (f"{NAME}.csv", f"{NAME}.html"):
        place = places.below(folder, name)
        if places.is_file(place) and not is_own(place):
            raise UserError(f"{place}: was not written by detect.py, and its summary of the "
                            "recordings would overwrite it. Rename the file, or give --out "
                            "another folder.")


# --- the terminal ---------------------------------------------------------------------------------

def lines_of(place, found):
    """What the terminal's list says of a recording's lead, found: its summary."""
    where = f"{place}: {found['lead']}"
    if found["scored"] == 0:
        return narrow(f"{where}, no readable beat in {found['duration_s'] / 60:.1f} min")

    done = " (done before)" if "earlier" in found else ""
    lines = [f"{where}, {found['duration_s'] / 3600:.2f} h, {found['scored']:,d} beats, "
             f"{found['flagged']:,d} flagged ({100 * found['flagged_share']:.1f} %, "
             f"{found['flagged_per_hour']:.0f} an hour), "
             f"{100 * found['unreadable_share']:.1f} % unreadable{done}"]
    counts = Counter(episode["kind"] for episode in found["episodes"])
    lines += [f"  {count} x {kind}" for kind, count in sorted(counts.items())]
    lines += [f"  warning: {warning}" for warning in found["warnings"]]
    return "\n".join(map(narrow, lines))


def narrow(line):
    """A line as lines of TERMINAL; a path is not broken, and shows no character that would move the
    cursor.
    """
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in line)
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return "\n".join(textwrap.wrap(plain, TERMINAL, subsequent_indent=indent,
                                   break_long_words=False, break_on_hyphens=False))
