"""CSV, TSV and text tables: parsed once, in blocks, into a temporary file that is mapped."""

import io
import math
import re
import tempfile
from itertools import islice

import numpy as np
import pandas as pd

from pipeline.errors import UserError, said
from recording import reader_times
from recording.reader_array import Array
from recording.reader_files import to_mv
from recording.reader_layout import COMMA, MISSING, NUMERIC, QUOTED_COMMA, layout_of

MAX_LINE = 2**17                # characters
HEAD_LINES = 200                # among which the first row of numbers must be
BLOCK_CELLS = 2**16             # that are parsed at once
INDEX_COLUMN = re.compile(r"|#|sample|sample\s*#|sample_?(number|index)|index|unnamed: 0", re.I)
LEAD_UNIT = re.compile(r"(.*?)[\s_]*[(\[]\s*(\S+?)\s*[)\]]")


def open_table(path, fs_hz):
    """A table, parsed once into a temporary file without a name."""
    stream = tempfile.TemporaryFile(prefix="ecg-")
    rows = 0

    with open(path, encoding="utf-8-sig", errors="replace") as text:
        lines = _lines(path, text)
        block = list(islice(lines, HEAD_LINES))
        if block:
            layout = layout_of(path, [line for _, line in block])
            del block[:layout.first]

        last = [None] * (layout.width if block else 0)  # the times of the row above
        while block:
            table = _parse(path, block, layout, last)
            stream.write(table.tobytes())
            rows += len(table)
            last = table[-1]
            block = list(islice(lines, BLOCK_CELLS // layout.width))

    if not rows:
        raise UserError(f"{path}: has no samples. Copy or export the recording again.")
    stream.flush()
    array = np.memmap(stream, np.float64, "r", shape=(rows, layout.width))
    return _name_columns(path, array, layout, fs_hz)


def looks_like_table(path):
    """Whether a file begins with a hundred rows of numbers: a list of names or sums has fewer."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as text:
            block = list(islice(_lines(path, text), HEAD_LINES))
        layout = layout_of(path, [line for _, line in block]) if block else None
        rows = block[layout.first:] if layout else []
        return len(rows) >= HEAD_LINES / 2 and bool(
            len(_parse(path, rows, layout, [None] * layout.width)))
    except UserError:
        return False


def _lines(path, stream):
    """(number, line) of each line that is not empty."""
    # a limit on readline, so that a file without line ends does not fill the memory
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE), ""), 1):
        if len(line) == MAX_LINE:
            raise UserError(f"{path}: a line of over {MAX_LINE:,} characters; expected one line a "
                            "sample. Transpose the table.")
        if "\0" in line:
            raise UserError(f"{path}: not text, it has NUL bytes. Export it as UTF-8 text.")

        line = line.strip(" \n")
        if line.strip():
            yield number, line


def _parse(path, block, layout, last):
    """(rows, width) float64 of lines; UserError names the row and the column that is wrong.

    Clock times become seconds; last: the row above, or Nones.
    """
    delimiter = layout.delimiter
    if delimiter == ",":
        block = [(number, QUOTED_COMMA.sub(r"\1.\2", line)) if '"' in line else (number, line)
                 for number, line in block]

    # pandas fills a short row with missing cells: a file that was cut short would be read as whole
    for number, line in block:
        columns = line.count(delimiter) + 1 if delimiter else len(line.split())
        if columns != layout.width:
            raise UserError(f"{path}: row {number} has {columns} columns, the first has "
                            f"{layout.width}. Mend that row.")

    # numbers need no quotation marks, and one without its second would join rows
    text = "\n".join(line for _, line in block).replace('"', "").replace("'", "")
    clocks = [k for k, kind in enumerate(layout.kinds) if kind]
    # a point beside a comma is one of thousands: not understood, and said
    decimal = "," if layout.comma and _has_comma(text, clocks, delimiter) else "."
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=delimiter or r"\s+", header=None, na_values=MISSING,
            keep_default_na=False, skipinitialspace=True, skip_blank_lines=False, decimal=decimal,
            dtype={k: str if k in clocks else np.float64 for k in range(layout.width)})
    except (ValueError, OverflowError) as error:
        # pandas names neither row nor column
        for (number, _), line in zip(block, text.split("\n")):
            for column, cell in enumerate(line.split(delimiter), 1):
                known = COMMA if decimal == "," and "," in cell else NUMERIC
                if column - 1 not in clocks and (not known.fullmatch(cell.strip()) or
                                                 decimal == "," and "." in cell):
                    word = "comma" if decimal == "," else "point"
                    raise UserError(f"{path}: row {number}, column {column}: {cell[:40]!r} is no "
                                    f"number; expected one with a decimal {word}, or an empty cell "
                                    "for a missing sample. Mend that cell.") from error

        raise UserError(f"{path}: not understood from row {block[0][0]} on ({said(error)}). Export "
                        "it again.") from error

    table = np.empty(frame.shape)
    for k in frame:
        if k not in clocks:
            table[:, k] = frame[k]
            continue

        seconds = reader_times.clock_seconds(frame[k], layout.kinds[k])
        bad = np.flatnonzero(np.isnan(seconds))
        if len(bad):
            cell = str(frame[k].iloc[bad[0]])
            raise UserError(f"{path}: row {block[bad[0]][0]}, column {k + 1}: {cell[:40]!r} is no "
                            "time as in the first row. Mend that cell.")
        if layout.kinds[k] == "time":
            seconds = reader_times.past_midnight(seconds, last[k])
        table[:, k] = seconds
    return table


def _has_comma(text, clocks, delimiter):
    """Whether a number of a block has a decimal comma; a clock time may have one, too."""
    if "," not in text or not clocks:
        return "," in text
    return any("," in cell for line in text.split("\n")
               for k, cell in enumerate(line.split(delimiter)) if k not in clocks)


# --- columns ------------------------------------------------------------------------------------

def _name_columns(path, array, layout, fs_hz):
    """The table with its columns' roles: times or row numbers, then leads with their units."""
    names = layout.names or [""] * layout.width
    times = _time_columns(array, layout)
    numbers = [k for k in range(min(1, layout.width - 1)) if _counts_rows(array, layout, k)]

    rate, pieces, why = _best_times(array, times, fs_hz)
    if rate is None and fs_hz is None and layout.fs_hz is None and why:
        raise UserError(f"{path}: its column of times tells no sampling rate: {why}. Mend it, or "
                        "give the rate in Hz with --fs: the column is then left out.")

    leads = []
    factors = []
    kept = [k for k in range(layout.width) if k not in times and k not in numbers]
    for k in kept:
        unit = LEAD_UNIT.fullmatch(names[k])
        factor = to_mv(unit[2]) if unit else None
        # brackets that are no unit of voltage belong to the name
        leads.append(unit[1] if factor else names[k])
        if not factor:
            factor = to_mv(layout.units[k] if layout.units else layout.unit)
        factors.append(factor)
    if len(kept) == 1 and not leads[0]:
        leads = [layout.lead]

    source = Array(path, array, rate or layout.fs_hz or fs_hz, leads, factors, kept, pieces)
    source.start = _start(array, times, layout)
    return source


def _time_columns(array, layout):
    """{index: unit or None} of the columns of times: clock times, and those named so in front."""
    found = {}
    names = layout.names or [""] * layout.width
    for k, name in enumerate(names):
        match = reader_times.COLUMN.fullmatch(name)
        front = all(before in found for before in range(k))
        if layout.kinds[k]:
            found[k] = "s"
        elif front and layout.width > k + 1:
            # without a name, numbers as large as today's date in ms, that go up
            steps = np.diff(array[:reader_times.BLOCK_ROWS, k])
            counted = reader_times.unit_of(array[0, k], None)[1] and (steps >= 0).all()
            if match or counted and not name:
                found[k] = match[1] if match else None
    return found


def _counts_rows(array, layout, k):
    """Whether a column is that of the rows' numbers, which goes before the leads."""
    named = layout.names and INDEX_COLUMN.fullmatch(layout.names[k])
    return named and (np.diff(array[:reader_times.BLOCK_ROWS, k]) == 1).all()


def _best_times(array, times, fs_hz):
    """(rate in Hz, pieces, why not) by the column of times that has the finest steps."""
    best = (None, None, "")
    finest = 0
    why = ""
    for k, unit in times.items():
        column = array[:, k]
        try:
            step, pieces = reader_times.grid(column)
        except reader_times.Uneven as error:
            why = why or str(error)
            continue

        # sensor before telephone: the one has a time a row, the other often one a packet
        fineness = len(np.unique(column[:reader_times.BLOCK_ROWS]))
        if fineness > finest:
            finest = fineness
            best = (_rate(step, column, unit, fs_hz), pieces, "")
    return best if finest else (None, None, why)


def _rate(step, column, unit, fs_hz):
    """Sampling rate in Hz by the length of a sample in units of a column of times."""
    seconds, counted = reader_times.unit_of(column[0], unit)
    rate = 1 / (step * (seconds or 1.0))
    whole = round(rate)
    if whole and abs(rate - whole) * len(column) / rate < 0.5:
        rate = float(whole)  # less than half a sample off over all rows

    if fs_hz and unit is None and not counted:
        # a column named `time` may well be in ms or µs: --fs decides
        return min((rate, 1e3 * rate, 1e6 * rate, 1e9 * rate),
                   key=lambda hz: abs(math.log(hz / fs_hz)))
    return rate


def _start(array, times, layout):
    """The datetime of the first row: by its clock, else counted from 1970, else by lines above."""
    clocks = [cell for cell, kind in zip(layout.cells, layout.kinds) if kind]
    start = reader_times.clock_start(clocks)
    if start or layout.start:
        return start or layout.start

    for k, unit in times.items():
        # a sensor has a clock of its own: a Polar H10 counts from the year 2000
        if "sensor" in (layout.names or [""] * layout.width)[k].lower():
            continue
        start = reader_times.counted_start(array[0, k], unit)
        if start:
            return start
    return None
