"""CSV and TSV tables, NumPy arrays: parsed once in blocks, or mapped, and read by stretches."""

import csv
import io
import math
import re
import shutil
import struct
import tempfile
import tokenize
from pipeline import errors
import zipfile
import zlib

import numpy as np
import pandas as pd

from pipeline.errors import UserError
from recording.reader_files import MIN_FS_HZ, MAX_FS_HZ, NUMBER, need_rate, to_mv, same_size

MAX_COLUMNS = 1024
BLOCK_BYTES = 2**20             # of text that are parsed at once
MAX_LINE_BYTES = 2**18
LEAD_UNIT = re.compile(r"(.*?)[\s_]*[(\[]\s*(\S+?)\s*[)\]]")
TIME_COLUMN = re.compile(r"(?:elapsed\s*)?(?:time|t|seconds|sec|s)(?:[\s_]*[(\[]?(s|sec|seconds|ms|us|µs)[)\]]?)?",
                         re.I)
INDEX_COLUMN = re.compile(r"|#|sample|sample\s*#|sample_?(?:number|index)|index|unnamed: 0", re.I)
SECONDS = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6}
MISSING = ("", "nan", "NaN", "NAN", "NA", "-")
ARRAY_NAMES = ("signal", "x", "ecg")


class _Array:
    """(n,) or (n, leads) numbers in a memory map: of the user's own file, or of a temporary one without a name."""

    start = None

    def __init__(self, path, array, fs_hz, file=None, scales=None, columns=None):
        self.path, self.file, self.fs_hz = path, file, fs_hz
        self.array = array if array.ndim == 2 else array[:, None]
        self.size = file.stat().st_size if file else 0
        self.columns = list(range(self.array.shape[1])) if columns is None else columns
        self.n_samples = len(self.array)
        self.leads = [""] * len(self.columns)
        self.scales = scales or [None] * len(self.columns)
        self.calibrated = [scale is not None for scale in self.scales]
        self.units = ["mV" if known else "" for known in self.calibrated]

    def read(self, k, start, stop):
        if self.file:
            same_size(self.path, self.file, self.size)
        with np.errstate(over="ignore"):
            result = self.array[start:stop, self.columns[k]].astype(np.float64)
        return result if self.scales[k] is None else result * self.scales[k]


def _temporary_file(path, needed):
    """A file without a name, of at least `needed` bytes if the disk has them."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{path}: needs {needed / 1e6:,.0f} MB in {folder}, which has {free / 1e6:,.0f} MB. "
                        "Free space there or set TMPDIR to another folder.")
    return tempfile.TemporaryFile(prefix="ecg-")


NOT_AN_ARRAY = (ValueError, TypeError, KeyError, SyntaxError, OverflowError, EOFError, MemoryError, RecursionError,
                tokenize.TokenError, struct.error)


def _not_an_array(path, error):
    return UserError(f"{path}: damaged or no plain array of numbers ({error}). Save it again with numpy.save, not as "
                     "a pickle.")


def _check_array(path, dtype, shape):
    if dtype.kind not in "iuf":
        raise UserError(f"{path}: an array of {dtype}; expected whole or decimal numbers. Save it as such.")
    if len(shape) not in (1, 2) or len(shape) == 2 and shape[1] > max(1, min(shape[0], MAX_COLUMNS)):
        raise UserError(f"{path}: an array of shape {tuple(shape)}; expected (samples,) or (samples, leads). "
                        "Transpose or split it.")


def open_npy(path, file, fs_hz):
    fs_hz = need_rate(path, fs_hz)
    try:
        with open(file, "rb") as stream:
            dtype, shape, _ = _npy_header(stream)
            held = file.stat().st_size - stream.tell()
        _check_array(path, dtype, shape)
        if held < dtype.itemsize * math.prod(shape):
            raise ValueError(f"{held:,} bytes for shape {shape}")
        array = np.lib.format.open_memmap(file, mode="r")
    except NOT_AN_ARRAY as error:
        raise _not_an_array(path, error) from error
    return _Array(path, array, fs_hz, file)


def open_npz(path, file, fs_hz):
    """Unpacked into a temporary file: an .npz may be compressed."""
    fs_hz = need_rate(path, fs_hz)
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
            wanted = [name for name in ARRAY_NAMES if name in names] or (names if len(names) == 1 else [])
            if not wanted:
                raise UserError(f"{path}: {len(names)} arrays ({', '.join(names[:20])}); expected a single one, or one "
                                f"named {', '.join(ARRAY_NAMES)}. Save the signal alone.")
            info = archive.getinfo(wanted[0] + ".npy")
            with archive.open(info) as member:
                dtype, shape, fortran = _npy_header(member)
                _check_array(path, dtype, shape)
                needed = dtype.itemsize * math.prod(shape)
                if needed > info.file_size:
                    raise ValueError(f"{info.file_size:,} bytes for shape {shape}")
                stream = _temporary_file(path, needed)
                left = needed
                while left:
                    block = member.read(min(left, BLOCK_BYTES))
                    if not block:
                        raise EOFError("cut short")
                    stream.write(block)
                    left -= len(block)
                if member.read(1):
                    raise ValueError("more bytes than its shape needs")
        stream.flush()
        if not needed:
            return _Array(path, np.empty(shape, dtype), fs_hz)
        array = np.memmap(stream, dtype, "r", shape=shape, order="F" if fortran else "C")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, *NOT_AN_ARRAY) as error:
        if isinstance(error, UserError):
            raise
        raise _not_an_array(path, error) from error
    return _Array(path, array, fs_hz)


def _npy_header(stream):
    """(dtype, shape, fortran order) of the .npy in a stream; ValueError for one with pickled objects."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version}")
    shape, fortran, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("pickled objects")
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return dtype, shape, fortran


def _lines(path, file):
    """Lines of a text file as bytes, one at a time in lists of about BLOCK_BYTES; UserError for endless ones."""
    with open(file, "rb") as stream:
        rest = stream.read(3)
        rest = b"" if rest == b"\xef\xbb\xbf" else rest
        while True:
            block = stream.read(BLOCK_BYTES)
            if b"\0" in block or b"\0" in rest:
                raise UserError(f"{path}: not text, it has NUL bytes. Export it as UTF-8 text.")
            lines = (rest + block).splitlines()
            rest = b""
            if block and lines and not block.endswith(b"\n"):  # \r may be half of \r\n
                rest = lines.pop() + (b"\r" if block.endswith(b"\r") else b"")
            if len(rest) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
                raise UserError(f"{path}: a line of over {MAX_LINE_BYTES:,} bytes; expected one line a sample. "
                                "Transpose the table.")
            if not block:
                yield lines
                return
            yield lines


def _delimiter(lines, tsv):
    """What separates columns: the first of tab ; | , that every line has alike, else the commonest, else blanks."""
    found = {mark: [line.count(mark) for line in lines] for mark in "\t;|,"}
    alike = [mark for mark, counts in found.items() if min(counts) == max(counts) > 0]
    if alike or tsv:
        return alike[0] if alike else "\t"
    most = max(found, key=lambda mark: found[mark][-1])
    if found[most][-1]:
        return most
    return " " if " " in lines[-1] else ","


def _cells(line, delimiter):
    """Cells of a line, stripped of blanks and quotes."""
    if delimiter == " ":
        cells = line.split()
    else:
        try:
            cells = next(csv.reader([line], delimiter=delimiter), [])
        except csv.Error:
            cells = line.split(delimiter)
    return [cell.strip().strip("'\"").strip() for cell in cells]


def _is_number(cell):
    return cell in MISSING or re.fullmatch(NUMBER + r"|[-+]?inf(?:inity)?", cell, re.I) is not None


def _parse(path, lines, numbers, delimiter, width):
    """(rows, width) float64 of lines of text, `numbers` are their rows in the file; UserError naming the bad one."""
    mark = delimiter.encode()
    if mark == b" " or all(line.count(mark) == width - 1 for line in lines):
        try:
            if mark == b" ":
                table = np.loadtxt(lines, comments=None, ndmin=2, encoding="latin-1")
                if table.shape == (len(lines), width):
                    return table
                raise ValueError
            text = io.BytesIO(b"\n".join(lines) + b"\n")
            table = pd.read_csv(text, sep=delimiter, header=None, names=range(width), index_col=False,
                                dtype=np.float64, na_values=list(MISSING), keep_default_na=False, skipinitialspace=True,
                                engine="c", encoding="latin-1", skip_blank_lines=False).to_numpy()
            if len(table) == len(lines):
                return table
        except (ValueError, OverflowError, pd.errors.ParserError):
            pass  # the slow way below finds out where
    result = np.empty((len(lines), width))
    for row, (line, number) in enumerate(zip(lines, numbers)):
        cells = _cells(line.decode("latin-1"), delimiter)
        if len(cells) != width:
            raise UserError(f"{path}: row {number} has {len(cells)} columns, the rows above {width}. Mend that row.")
        for column, cell in enumerate(cells):
            if not _is_number(cell):
                raise UserError(f"{path}: row {number}, column {column + 1}: {cell[:40]!r} is no number; expected one "
                                "with a decimal point, or an empty cell for a missing sample. Mend that cell.")
            result[row, column] = np.nan if cell in MISSING else float(cell)
    return result


class _Clock:
    """Watches the first column go by: does it step evenly?"""

    def __init__(self):
        self.n, self.last, self.shortest, self.longest, self.points = 0, None, np.inf, -np.inf, []

    def add(self, column):
        if not np.isfinite(column).all():
            self.shortest, column = -np.inf, np.zeros(len(column))
        steps = np.diff(column if self.last is None else np.append(self.last, column))
        if len(steps):
            self.shortest, self.longest = min(self.shortest, steps.min()), max(self.longest, steps.max())
        stride = -(-len(column) // 16)
        self.points += [(self.n + k, column[k]) for k in range(0, len(column), stride)]
        self.n, self.last = self.n + len(column), column[-1]

    def step(self):
        """Mean step, None where any is under half or over one and a half of it, or the column drifts from it."""
        (_, first), n = self.points[0], self.n
        if n < 3 or not 1e-9 < self.shortest <= self.longest < 1e9:
            return None
        step = float(self.last - first) / (n - 1)
        drift = max(abs(value - first - k * step) for k, value in self.points)
        even = 0.5 * step < self.shortest and self.longest < 1.5 * step and drift < 1.5 * step
        return step if even else None

    def rate(self, seconds):
        """Rate in Hz, a whole number where that is less than half a sample off over all rows; None if uneven."""
        step = self.step()
        if step is None:
            return None
        rate = 1 / (step * seconds)
        whole = round(rate)
        return float(whole) if whole and abs(rate - whole) * self.n / rate < 0.5 else rate


def open_table(path, file, fs_hz):
    """CSV or TSV, parsed once into a temporary file of float32."""
    head, delimiter, width, clock = None, None, 0, _Clock()
    stream, rows, number = _temporary_file(path, 2 * file.stat().st_size), 0, 0
    for block in _lines(path, file):
        lines, numbers = [], []
        for line in block:
            number += 1
            line = line.strip(b" \r\n")
            if line.strip() and not (line.startswith(b"#") and not rows and not lines):
                lines.append(line)
                numbers.append(number)
        if lines and delimiter is None:
            delimiter = _delimiter([line.decode("latin-1") for line in lines[:20]], path.suffix.lower() == ".tsv")
            cells = _cells(_text(lines[0]), delimiter)
            width = len(cells)
            if width > MAX_COLUMNS:
                raise UserError(f"{path}: {width:,} columns; expected one for each lead, at most {MAX_COLUMNS:,}. "
                                "Transpose the table.")
            numbered = cells == ["", *map(str, range(width - 1))]  # by a pandas frame without names
            if numbered or not all(map(_is_number, cells)):
                head, lines, numbers = cells, lines[1:], numbers[1:]
        step = max(1, BLOCK_BYTES // (64 * max(width, 1)))
        for low in range(0, len(lines), step):
            table = _parse(path, lines[low:low + step], numbers[low:low + step], delimiter, width)
            clock.add(table[:, 0])
            rows += len(table)
            with np.errstate(over="ignore"):
                stream.write(table.astype(np.float32).tobytes())
    stream.flush()
    if not rows:
        raise UserError(f"{path}: has no samples. Copy or export the recording again.")
    array = np.memmap(stream, np.float32, "r", shape=(rows, width))
    return _table(path, array, head or [""] * width, head is not None, clock, fs_hz)


def _text(line):
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")


def _table(path, array, names, named, clock, fs_hz):
    """The parsed table with its columns' roles: time, row number, leads."""
    time = TIME_COLUMN.fullmatch(names[0]) if named else None
    rate, first = None, 0
    if time:
        first, rate = 1, clock.rate(SECONDS.get((time.group(1) or "").lower(), 1.0))
        if rate is None and fs_hz is None:
            raise UserError(f"{path}: its column {names[0]!r} is not evenly spaced in seconds. Give the sampling rate "
                            "in Hz with --fs if no samples are missing.")
        if rate and fs_hz and time.group(1) is None:
            # a column named `time` may well be in ms or µs: --fs decides
            rate = min((rate, 1e3 * rate, 1e6 * rate), key=lambda r: abs(math.log(r / fs_hz)))
        if rate and not fs_hz and not MIN_FS_HZ <= rate <= MAX_FS_HZ:
            raise UserError(f"{path}: its column {names[0]!r} steps by {1 / rate:g}, which in seconds is a sampling "
                            f"rate of {rate:g} Hz; expected {MIN_FS_HZ} to {MAX_FS_HZ:,}. If it is not in seconds, "
                            "give the rate in Hz with --fs.")
    elif named and len(names) > 1 and INDEX_COLUMN.fullmatch(names[0]) and clock.step() == 1 == clock.longest:
        first = 1
    fs_hz = rate or need_rate(path, fs_hz)
    columns = list(range(first, len(names)))
    leads, scales = [], []
    for k in columns:
        unit = LEAD_UNIT.fullmatch(names[k])
        mv = to_mv(unit.group(2)) if unit else None
        leads.append(unit.group(1) if mv else names[k])
        scales.append(mv)
    source = _Array(path, array, fs_hz, scales=scales, columns=columns)
    source.leads = leads
    return source
