"""CSV and TSV tables, NumPy arrays: a table is parsed once, in blocks; then all are memory maps."""

import csv
import io
import math
import re
import tempfile
import zipfile
from itertools import islice

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from recording.reader_files import NUMBER, same_size, to_mv

MAX_COLUMNS = 1024
MAX_LINE = 2**17                # characters; what csv takes for a cell
SNIFF_LINES = 20
SNIFF_CHARACTERS = 2**12        # csv.Sniffer takes the square of that in time
BLOCK_CELLS = 2**16             # that are parsed at once
MISSING = ["", "nan", "NaN", "NAN", "NA", "-"]
NUMERIC = re.compile(rf"{NUMBER}|[-+]?(?i:inf(inity)?)|{'|'.join(MISSING)}", re.A)
ARRAY_NAMES = ("signal", "x", "ecg")
SECONDS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6}
TIME_COLUMN = re.compile(r"(?:elapsed\s*)?(?:time|t|seconds|sec|s)"
                         r"(?:[\s_]*[(\[]?(s|sec|seconds|ms|us|µs)[)\]]?)?", re.I)
INDEX_COLUMN = re.compile(r"|#|sample|sample\s*#|sample_?(number|index)|index|unnamed: 0", re.I)
LEAD_UNIT = re.compile(r"(.*?)[\s_]*[(\[]\s*(\S+?)\s*[)\]]")


class ArraySource:
    """A (samples, leads) array in a memory map; factors: of each lead to mV, None: not known.

    Raises UserError where fs_hz is None: neither the file nor the user gives it.
    """

    start = None
    size = 0  # in bytes, of a file that others may change

    def __init__(self, path, array, fs_hz, leads, factors):
        if fs_hz is None:
            raise UserError(
                f"{path}: does not say its sampling rate, nor has it a column of evenly spaced "
                "times. Give the rate in Hz with --fs, for example --fs 250.")

        self.path = path
        self.array = array
        self.fs_hz = fs_hz
        self.n_samples = len(array)
        self.leads = leads
        self.factors = factors
        self.calibrated = [factor is not None for factor in factors]
        self.units = ["mV" if known else "" for known in self.calibrated]

    def read(self, k, start, stop):
        # what is in memory, or was unpacked or parsed, has no file that others could cut
        if self.size:
            same_size(self.path, self.size)
        return self.array[start:stop, k].astype(np.float64) * (self.factors[k] or 1.0)


# --- NumPy --------------------------------------------------------------------------------------

def open_npy(path, fs_hz):
    """A plain array of numbers, (samples,) or (samples, leads): never unpickled, never copied."""
    source = _open_array(path, path, fs_hz)
    source.size = path.stat().st_size
    return source


def open_npz(path, fs_hz):
    """The array `signal`, `x` or `ecg` of an archive, or its only one, unpacked for the time."""
    # an archive may be compressed; its folder goes at once, the map of the array stays
    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                wanted = [f"{name}.npy" for name in ARRAY_NAMES if f"{name}.npy" in names]
                if not wanted and len(names) != 1:
                    raise ValueError(f"{len(names)} arrays; expected one, or one named "
                                     f"{', '.join(ARRAY_NAMES)}")

                unpacked = archive.extract((wanted or names)[0], folder)
        except OSError:
            raise  # a full disk is no fault of the archive
        except Exception as error:  # the reader of a damaged archive raises anything
            raise _not_an_array(path, error) from error
        return _open_array(path, unpacked, fs_hz)


def _open_array(path, file, fs_hz):
    try:
        array = np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # the reader of a damaged header raises anything
        raise _not_an_array(path, error) from error

    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise _not_an_array(path, f"{array.dtype} of shape {array.shape}")
    if array.ndim == 1:
        array = array[:, None]  # (samples, 1)

    # leads in rows would be read as many leads of few samples
    samples, leads = array.shape
    if leads > min(samples, MAX_COLUMNS):
        raise UserError(f"{path}: an array of shape {array.shape}; expected (samples,) or "
                        "(samples, leads). Transpose or split it.")
    return ArraySource(path, array, fs_hz, [""] * leads, [None] * leads)


def _not_an_array(path, error):
    return UserError(f"{path}: damaged or no plain array of numbers ({error}). Save the signal "
                     "again with numpy.save, not as a pickle.")


# --- CSV and TSV --------------------------------------------------------------------------------

def open_table(path, fs_hz):
    """CSV or TSV, parsed once into a temporary file without a name."""
    stream = tempfile.TemporaryFile(prefix="ecg-")
    names = None
    rows = 0

    with open(path, encoding="utf-8-sig", errors="replace") as text:
        lines = _lines(path, text)
        block = list(islice(lines, SNIFF_LINES))

        # the first row is names if one of its cells is no number
        if block:
            delimiter = _delimiter(path, block)
            line = block[0][1]
            # a name may hold the delimiter between quotation marks
            cells = next(csv.reader([line], delimiter=delimiter)) if delimiter else line.split()
            head = [cell.strip(" '\"") for cell in cells]
            width = len(head)
            if width > MAX_COLUMNS:
                raise UserError(f"{path}: {width:,} columns; expected one for each lead, at most "
                                f"{MAX_COLUMNS:,}. Transpose the table.")

            # "", "0", "1", ... are the names that pandas writes where there are none
            if head == ["", *map(str, range(width - 1))] or not all(map(NUMERIC.fullmatch, head)):
                names = head
                del block[0]

        while block:
            table = _parse(path, block, delimiter, width)
            stream.write(table.tobytes())
            rows += len(table)
            block = list(islice(lines, BLOCK_CELLS // width))

    if not rows:
        raise UserError(f"{path}: has no samples. Copy or export the recording again.")
    stream.flush()
    array = np.memmap(stream, np.float64, "r", shape=(rows, width))
    return _name_columns(path, array, names, fs_hz)


def _lines(path, stream):
    """(number, line) of each row: empty lines, and comments above all others, are left out."""
    above = True

    # a limit on readline, so that a file without line ends does not fill the memory
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE), ""), 1):
        if len(line) == MAX_LINE:
            raise UserError(f"{path}: a line of over {MAX_LINE:,} characters; expected one line a "
                            "sample. Transpose the table.")
        if "\0" in line:
            raise UserError(f"{path}: not text, it has NUL bytes. Export it as UTF-8 text.")

        line = line.strip(" \n")
        if line.strip() and not (above and line.startswith("#")):
            above = False
            yield number, line


def _delimiter(path, block):
    """The character between cells, None for any number of blanks."""
    sample = "\n".join(line for _, line in block)[:SNIFF_CHARACTERS]
    try:
        return csv.Sniffer().sniff(sample, ",;\t| ").delimiter.strip(" ") or None
    except csv.Error:
        # one column, or lines of different lengths
        return "\t" if path.suffix.lower() == ".tsv" else ","


def _parse(path, block, delimiter, width):
    """(rows, width) float64 of lines; UserError names the row and the column that is wrong."""
    # pandas fills a short row with missing cells: a file that was cut short would be read as whole
    for number, line in block:
        columns = line.count(delimiter) + 1 if delimiter else len(line.split())
        if columns != width:
            raise UserError(f"{path}: row {number} has {columns} columns, the first has {width}. "
                            "Mend that row.")

    # numbers need no quotation marks, and one without its second would join rows
    text = "\n".join(line for _, line in block).replace('"', "")
    try:
        return pd.read_csv(io.StringIO(text), sep=delimiter or r"\s+", header=None,
                           dtype=np.float64, na_values=MISSING, keep_default_na=False,
                           skipinitialspace=True, skip_blank_lines=False).to_numpy()
    except (ValueError, OverflowError) as error:
        # pandas names neither row nor column
        for (number, _), line in zip(block, text.split("\n")):
            for column, cell in enumerate(line.split(delimiter), 1):
                if not NUMERIC.fullmatch(cell.strip()):
                    raise UserError(f"{path}: row {number}, column {column}: {cell[:40]!r} is no "
                                    "number; expected one with a decimal point, or an empty cell "
                                    "for a missing sample. Mend that cell.") from error

        raise UserError(f"{path}: not understood from row {block[0][0]} on ({error}). Export it "
                        "again.") from error


def _name_columns(path, array, names, fs_hz):
    """The table with its columns' roles: time or row number, leads with their units."""
    first = 0
    rate = None
    if names:
        time = TIME_COLUMN.fullmatch(names[0])
        if time:
            first = 1
            rate = _rate(array[:, 0], time[1], fs_hz)
        elif len(names) > 1 and INDEX_COLUMN.fullmatch(names[0]) and _step(array[:, 0]) == 1:
            first = 1

    leads = []
    factors = []
    for name in (names or [""] * array.shape[1])[first:]:
        unit = LEAD_UNIT.fullmatch(name)
        factor = to_mv(unit[2]) if unit else None
        # brackets that are no unit of voltage belong to the name
        leads.append(unit[1] if factor else name)
        factors.append(factor)
    return ArraySource(path, array[:, first:], rate or fs_hz, leads, factors)


def _rate(column, unit, fs_hz):
    """Sampling rate in Hz by a column of times; None if they are not evenly spaced."""
    step = _step(column)
    if step is None:
        return None

    rate = 1 / (step * SECONDS.get((unit or "").lower(), 1.0))
    whole = round(rate)
    if whole and abs(rate - whole) * len(column) / rate < 0.5:
        rate = float(whole)  # less than half a sample off over all rows

    if fs_hz and unit is None:
        # a column named `time` may well be in ms or µs: --fs decides
        return min((rate, 1e3 * rate, 1e6 * rate), key=lambda hz: abs(math.log(hz / fs_hz)))
    return rate


def _step(column):
    """Mean step of a column, None where a step is far from it or the column drifts from it."""
    rows = len(column)
    step = (column[-1] - column[0]) / max(1, rows - 1)
    if rows < 3 or not step > 1e-9:
        return None

    for low in range(0, rows - 1, BLOCK_CELLS):
        block = (column[low:low + BLOCK_CELLS + 1] - column[0]) / step
        drift = block - np.arange(low, low + len(block))

        # false for NaN, too
        if not (np.abs(np.diff(block) - 1).max() < 0.5 and np.abs(drift).max() < 1.5):
            return None
    return float(step)
