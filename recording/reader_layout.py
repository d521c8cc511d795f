"""What the first lines of a table say: what is between cells, names, units, and the rate, if any.

A table is: lines about the recording, if any; a row of names, if any; a row of units, if any; rows.
The lines about the recording may say rate, unit, lead and start, as those of an Apple Watch do.
"""

import csv
import re
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.errors import UserError
from recording.reader_array import MAX_LEADS
from recording.reader_files import MAX_FS_HZ, MIN_FS_HZ, NUMBER, to_mv
from recording.reader_times import UNIT, clock_kind, clock_start

DELIMITERS = (";", "\t", "|", ",")
MISSING = ["", "nan", "NaN", "NAN", "NA", "-"]
NUMERIC = re.compile(rf"{NUMBER}|[-+]?(?i:inf(inity)?)|{'|'.join(MISSING)}", re.A)
COMMA = re.compile(r"[-+]?\d*,\d+(?:[eE][-+]?\d+)?", re.A)
QUOTED_COMMA = re.compile(r'"([-+]?\d*),(\d+)"', re.A)
ABOUT = re.compile(r"[#%\s\"']*([^,;:=\t]*?)[\s\"']*[,;:=\t][\s\"']*(.*?)[,;\s\"']*")  # key, value
RATE_KEY = re.compile(r"(sampl\w*[\s_-]*)?(rate|freq\w*)|abtastrate|fs([\s_-]*hz)?", re.I)
RATE = re.compile(r"(\d+(?:[.,]\d+)?)\s*(hz|hertz)?", re.I)
CLOCK_UNIT = re.compile(r"[hms:.]+", re.I)


@dataclass
class Layout:
    """first: index of the first row among the lines; width: its columns; names, units: of the
    columns or None; kinds: of their clock times, "" for numbers; cells: the first row; comma:
    whether a number may have a decimal comma; fs_hz, unit, lead, start: of the lines above."""

    delimiter: str | None   # between cells, None for any number of blanks
    comma: bool
    first: int = 0
    cells: list = field(default_factory=list)
    names: list | None = None
    units: list | None = None
    kinds: list = field(default_factory=list)
    fs_hz: float | None = None
    unit: str = ""
    lead: str = ""
    start: datetime | None = None

    @property
    def width(self):
        return len(self.cells)


def layout_of(path, lines):
    """The Layout of a table by its first lines [str], at least one; UserError if too wide."""
    # the lines further down are rows for certain
    delimiter = _delimiter(path, lines[len(lines) // 2:])
    layout = Layout(delimiter, comma=delimiter != ",")
    rows = [split(line, delimiter) for line in lines]

    # without a row of numbers, the first line is a row of names
    layout.first = next((k for k, row in enumerate(rows) if _is_data(row, layout.comma)),
                        min(1, len(rows)))
    layout.cells = rows[min(layout.first, len(rows) - 1)]
    if layout.width > MAX_LEADS:
        raise UserError(f"{path}: {layout.width:,} columns; expected one for each lead, at most "
                        f"{MAX_LEADS:,}. Transpose the table.")

    above = _find_names(layout, rows)
    _read_about(layout, lines[:above])
    layout.kinds = [clock_kind(cell) for cell in layout.cells]

    # an Apple Watch may write a decimal comma into its only column: it looks like two
    if delimiter == "," and layout.width == 2 and layout.fs_hz and not layout.names:
        layout.delimiter = ";"
        layout.comma = True
        layout.cells = [",".join(layout.cells)]
        layout.kinds = [""]
    return layout


def split(line, delimiter):
    """[str], the cells of a line; a number in quotation marks may have a decimal comma."""
    if not delimiter:
        return [cell.strip("'\"") for cell in line.split()]
    # a name may hold the delimiter between quotation marks
    line = QUOTED_COMMA.sub(r"\1.\2", line) if delimiter == "," else line
    return [cell.strip(" '\"") for cell in next(csv.reader([line], delimiter=delimiter))]


def _delimiter(path, lines):
    """The character between cells: in most of the lines; None for blanks."""
    half = len(lines) / 2
    for delimiter in DELIMITERS:
        if sum(delimiter in line for line in lines) >= half:
            return delimiter
    if sum(" " in line for line in lines) >= half:
        return None
    # one column
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _is_data(row, comma):
    """Whether cells are a row of numbers and times."""
    # "", "0", "1", ... are the names that pandas writes where there are none
    if all(cell in MISSING for cell in row) or row == ["", *map(str, range(len(row) - 1))]:
        return False
    return all(NUMERIC.fullmatch(cell) or comma and COMMA.fullmatch(cell) or clock_kind(cell)
               for cell in row)


def _find_names(layout, rows):
    """Set names and units, and `first` anew; returns how many lines are above them."""
    first = layout.first
    above = rows[max(0, first - 2):first]
    above = [row for row in above if len(row) == layout.width]

    # a line "Unit,µV" is no row of names
    if not above or layout.width == 2 and to_mv(above[-1][1]) and not clock_kind(layout.cells[0]):
        return first
    layout.names = above[-1]
    if len(above) == 1:
        return first - 1

    if all(to_mv(cell) or cell.lower() in UNIT or CLOCK_UNIT.fullmatch(cell) for cell in above[1]):
        layout.names, layout.units = above
        return first - 2

    # names, and then a spoilt row: parsing it says which cell is wrong
    numbers = [[cell.lstrip("+-")[:1].isdigit() for cell in row] for row in above]
    if any(numbers[1]) and not any(numbers[0]) and (numbers[1][0] or layout.width > 2):
        layout.names = above[0]
        layout.first = first - 1
        layout.cells = above[1]
        return first - 2
    return first - 1


def _read_about(layout, lines):
    """Rate, unit, lead and start from the lines about the recording."""
    rates = []   # (how sure, Hz)
    for line in lines:
        match = ABOUT.fullmatch(line)
        if not match:
            continue
        key, value = match.groups()

        rate = RATE.fullmatch(value)
        named = RATE_KEY.fullmatch(key)
        if rate and (named or rate[2]):
            hz = float(rate[1].replace(",", "."))
            if MIN_FS_HZ <= hz <= MAX_FS_HZ:
                rates.append((bool(named), hz))
        if to_mv(value):
            layout.unit = value
        elif key.casefold() == "lead":
            layout.lead = re.sub(r"(?i)^lead\s+", "", value)
        elif clock_kind(value) == "both" and not layout.start:
            layout.start = clock_start([value])

    # a filter may have a frequency, too
    if rates:
        layout.fs_hz = max(rates)[1]
