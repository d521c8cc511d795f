"""The lines of a WFDB header, and the files that it names."""

import re

from pipeline.errors import UserError
from recording.reader_files import FILE_NAME, WFDB_RECORD

MAX_HEADER_BYTES = 8 * 2**20    # the longest multi-segment headers of MIMIC have 0.2 MB


def header_lines(path):
    """Lines of a WFDB header without comments and empty ones."""
    size = path.stat().st_size
    if size > MAX_HEADER_BYTES:
        raise UserError(f"{path}: {size:,} bytes are no WFDB header; expected at most "
                        f"{MAX_HEADER_BYTES:,}. Copy it again.")

    return split_header(path.read_bytes())


def split_header(raw):
    """The same of a header's content (bytes)."""
    lines = map(str.strip, re.split(r"[\r\n]+", raw.decode("utf-8", "replace")))
    return [line for line in lines if line and not line.startswith("#")]


def named_files(lines):
    """Names of the files that a header's lines name: of its signals, or its segments' headers."""
    match = WFDB_RECORD.match(lines[0]) if lines else None
    suffix = ".hea" if match and match[2] else ""
    names = dict.fromkeys(line.split()[0] for line in lines[1:])
    return [name + suffix for name in names if FILE_NAME.fullmatch(name)]
