"""The times in a table: clock times and counted ones, the rate they tell, and where rows are lost.

Loggers write a time a row (exact, rounded, or with the jitter of a radio) or one a packet. The rate
is that of the rows between losses; a loss is an interval that is longer than its rows by more than
half a sample and by more than intervals differ in that file.
"""

import re
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

# a date, a clock time, or both; the time zone is kept out of the start: it is the wearer's clock
CLOCK = re.compile(
    r"(?P<date>\d{4}[-/]\d\d[-/]\d\d|\d\d?\.\d\d?\.\d{4})?(?:(?<=\d)[T ]+(?=\d))?"
    r"(?P<time>(?<![^T ])(?:\d\d?:)?\d\d?:\d\d(?:[.,]\d{1,9})?\s?(?:Z|UTC|[-+]\d\d:?\d\d)?)?")
UNIT = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6,
        "ns": 1e-9}
COLUMN = re.compile(
    r"(?:(?:elapsed|phone|sensor|unix|epoch|recorded|local|utc|date)[\s_]*)*"
    r"(?:time\s?stamp|time|date|epoch|clock|zeit|uhrzeit|datum|t|seconds|sec|s)"
    rf"(?:[\s_]*[(\[]?({'|'.join(UNIT)})[)\]]?)?", re.I)
EPOCH_S = (9.4e8, 4.2e9)        # the years 2000 to 2102, in seconds since 1970
EPOCH = datetime(1970, 1, 1)
DAY_S = 86400.0
BLOCK_ROWS = 2**16
HEAD_ROWS = 2**20               # enough to know how long an interval is
MAX_GAPS = 100_000
ROWS_A_GAP = 50                 # at least, on average: a packet of a chest strap has 73 rows


class Uneven(ValueError):
    """Says why a column of times tells no sampling rate."""


def clock_kind(cell):
    """"date", "time", "both" for a cell of that kind, "" for any other."""
    match = CLOCK.fullmatch(cell.strip())
    if not match or not cell.strip():
        return ""
    if match["date"] and match["time"]:
        return "both"
    return "date" if match["date"] else "time"


def clock_seconds(cells, kind):
    """(n,) float64 seconds of a Series of clock cells of one kind, NaN where a cell is none.

    Since midnight for "time", else since 1970.
    """
    text = cells.fillna("").str.strip().str.replace(",", ".")
    if kind == "time":
        # minutes and seconds alone, as rdsamp writes them
        short = text.str.count(":") == 1
        text = text.where(~short, "0:" + text).str.replace(r"\s?(Z|UTC|[-+]\d\d:?\d\d)$", "",
                                                           regex=True)
        return pd.to_timedelta(text, errors="coerce").dt.total_seconds().to_numpy(float)

    text = text.str.replace(r"^(\d\d?)\.(\d\d?)\.(\d{4})", _to_iso, regex=True)
    text = text.str.replace("/", "-").str.replace(r"\s?UTC$", "Z", regex=True)
    times = pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True)
    # in µs, which reach further than the years 1677 to 2262
    since = times.dt.as_unit("us") - pd.Timestamp(0, tz="UTC").as_unit("us")
    return since.dt.total_seconds().to_numpy(float)


def _to_iso(match):
    day, month, year = match.groups()
    return f"{year}-{month:0>2}-{day:0>2}"


def clock_start(cells):
    """The datetime that the clock cells of a row say together, None where no date is among them."""
    matches = [CLOCK.fullmatch(cell.strip()) for cell in cells]
    date = next((match["date"] for match in matches if match["date"]), None)
    time = next((match["time"] for match in matches if match["time"]), "0:00:00")
    if not date:
        return None

    date = re.sub(r"^(\d\d?)\.(\d\d?)\.(\d{4})", _to_iso, date).replace("/", "-")
    seconds = clock_seconds(pd.Series([time]), "time")[0]
    try:
        return datetime.fromisoformat(date) + timedelta(seconds=float(seconds))
    except (ValueError, OverflowError):
        return None


def past_midnight(seconds, last):
    """Clock times without a date made to go on behind midnight; last: the time above, or None."""
    before = np.append(seconds[0] if last is None else last % DAY_S, seconds[:-1])
    days = np.cumsum(seconds - before < -DAY_S / 2)
    return seconds + DAY_S * (days + (0 if last is None else last // DAY_S))


def unit_of(value, unit):
    """(seconds in a unit of a column of numbers, or None; whether they count from 1970).

    value: its first; unit: what its name says, or None.
    """
    for seconds in (UNIT[unit.lower()],) if unit else sorted(set(UNIT.values())):
        if EPOCH_S[0] < value * seconds < EPOCH_S[1]:
            return seconds, True
    return (UNIT[unit.lower()] if unit else None), False


def counted_start(value, unit):
    """The datetime (UTC) of a number that counts from 1970, None for any other number."""
    seconds, counted = unit_of(value, unit)
    return EPOCH + timedelta(seconds=value * seconds) if counted else None


# --- the grid -----------------------------------------------------------------------------------

def _runs(column):
    """(row, time), each (k,), of the rows where a new time begins: a block at a time, and each
    block begins with the last of the block before."""
    row = np.zeros(1, int)
    time = np.array(column[:1])

    for low in range(1, len(column), BLOCK_ROWS):
        block = np.array(column[low - 1:low + BLOCK_ROWS])
        new = np.flatnonzero(block[1:] != block[:-1])
        row = np.append(row[-1], low + new)
        time = np.append(time[-1], block[1:][new])
        yield row, time


def _interval(column):
    """(length of a row, tolerance of an interval, whether times are those of packets) at first."""
    head = np.array(column[:HEAD_ROWS])
    rows = np.append(0, np.flatnonzero(head[1:] != head[:-1]) + 1)
    counts = np.diff(rows)
    lengths = np.diff(head[rows])
    if len(lengths) < 2 or not np.isfinite(lengths).all():
        raise Uneven("a row without a time, or the same time in all")

    typical = np.median(lengths / counts)
    packets = np.median(counts) > 1
    good = (lengths < 1.5 * typical * counts) & (lengths > 0)
    if not typical > 0 or good.sum() < 0.5 * len(good):
        raise Uneven("times that do not go up evenly")

    step = lengths[good].sum() / counts[good].sum()
    scatter = 1.4826 * np.median(np.abs(lengths[good] - counts[good] * step))
    return step, max(0.5 * step, 5 * scatter), packets


def grid(column):
    """(length of a sample in units of the column, [(first sample, behind the last, first row)]).

    Between the pieces samples are lost. column: (rows,), mapped. Raises Uneven.
    """
    if len(column) < 3:
        raise Uneven("fewer than three rows")
    step, tolerance, packets = _interval(column)

    # the length of a row anew, from all intervals without a loss
    total = 0.0
    count = 0
    for rows, times in _runs(column):
        excess = np.diff(times) - np.diff(rows) * step
        back = np.flatnonzero(~(excess > -2 * tolerance - 2 * step * np.diff(rows)))
        if len(back):
            raise Uneven(f"the time goes back, or is missing, in row {rows[back[0] + 1] + 1:,} of "
                         "the samples")

        good = np.abs(excess) <= tolerance
        total += np.diff(times)[good].sum()
        count += np.diff(rows)[good].sum()
    if not count:
        raise Uneven("times that do not go up evenly")
    step = total / count

    pieces = []
    first = 0     # sample and row where the piece begins
    begin = 0
    carried = 0.0  # what rounding to samples has left
    for rows, times in _runs(column):
        excess = np.diff(times) - np.diff(rows) * step
        for k in np.flatnonzero(excess > tolerance):
            # the first packet may be part of one
            if packets and rows[k] == 0:
                continue
            lost = round((excess[k] + carried) / step)
            carried += excess[k] - lost * step
            if lost > 0:
                end = first + int(rows[k + 1]) - begin
                pieces.append((first, end, begin))
                first = end + lost
                begin = int(rows[k + 1])
        if len(pieces) > min(MAX_GAPS, 1 + len(column) / ROWS_A_GAP):
            raise Uneven(f"lost rows in {len(pieces):,} places")
    pieces.append((first, first + len(column) - begin, begin))
    return float(step), pieces
