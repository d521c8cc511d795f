"""Recordings and results at addresses: s3://bucket/name.hea, https://host/name.edf, or any store that fsspec knows.

A recording is fetched into a temporary folder and read there; results are written there and put to their address,
the summary last. Credentials and endpoints are those of the environment of the machine that does it (AWS_PROFILE,
AWS_ENDPOINT_URL; FSSPEC_S3_ANON=true for public buckets). fsspec is needed for addresses only
(requirements-cluster.txt).

Where a function takes a place, it is a Path or an address (str).
"""

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path

import config
from recording import reader
from recording.cluster import INSTALL
from pipeline.errors import UserError
from recording.reader_files import FILE_NAME, WFDB_RECORD
from recording.reader_wfdb import header_lines

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# What tells that a file has changed, as the stores call it; of these what there is
STAMPS = ("size", "mtime", "etag", "lastmodified", "last-modified", "last_modified", "updated", "md5hash",
          "content-md5", "digest", "created")
LOCAL_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}


# --- addresses ----------------------------------------------------------------------------------

def is_url(text):
    """Whether text is an address; C:\\x and a bare path are none."""
    return isinstance(text, str) and SCHEME.match(text) is not None


def place_of(text):
    """A Path, or the address: file:///data/x is a Path."""
    text = str(text)
    return text if is_url(text) and not text.startswith("file://") else Path(text.removeprefix("file://"))


def name_of(place):
    """The last part: "100.hea"."""
    return place.name if isinstance(place, Path) else _plain(place).rpartition("/")[2]


def beside(place, name):
    """The place of another file in the same folder."""
    return place.parent / name if isinstance(place, Path) else f"{_plain(place).rpartition('/')[0]}/{name}"


def _plain(url):
    """Without the query of a web address."""
    return url.partition("?")[0] if url.startswith("http") else url


def below(folder, name):
    """The place of a file in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


# --- the store ----------------------------------------------------------------------------------

@contextlib.contextmanager
def _store(url):
    """(file system, path in it); what its library raises becomes UserError, or ConnectionError where it may pass."""
    try:
        from fsspec.core import url_to_fs
        fs, path = url_to_fs(url, use_listings_cache=False, **_patience(url))
        yield fs, path
    except ImportError as error:
        raise UserError(f"{url}: needs a library that is not here ({error}). Install it with: {INSTALL}") from error
    except UserError:
        raise
    except Exception as error:  # each store has errors of its own
        if isinstance(error, OSError) and error.errno in LOCAL_TROUBLE:
            raise
        while isinstance(error, FileNotFoundError) and error.__cause__ and url.startswith("http"):
            error = error.__cause__  # fsspec says so whatever the trouble of a web server
        if isinstance(error, FileNotFoundError) or getattr(error, "status", 0) in (404, 410):
            raise UserError(f"{url}: missing. Check the address; that of a folder ends with /.") from error
        if _final(error):
            raise UserError(f"{url}: refused ({_said(error)}). Check the address, and the rights and credentials of "
                            "the machine that reads it.") from error
        raise ConnectionError(errno.EIO, f"the store does not answer ({_said(error)})", url) from error


def _patience(url):
    """A file of any size may take its time, as long as bytes come; aiohttp would allow five minutes in all."""
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp
    silence = config.DOWNLOAD_TIMEOUT_S
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence)}}


def _final(error):
    """Whether asking again is no use: denied, no credentials, an address of no known kind."""
    status = getattr(error, "status", 0)
    return (isinstance(error, (PermissionError, ValueError, NotImplementedError))
            or "Credentials" in type(error).__name__ or 400 <= status < 500 and status not in (408, 429))


def _said(error):
    return f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"


# --- finding ------------------------------------------------------------------------------------

def find(url, suffixes):
    """[address] that one argument means: a file, a record without suffix, a pattern (*, [), a folder ending in /.

    Only files that end in one of `suffixes` are found by pattern and in folders. UserError where that is none.
    """
    name = name_of(url).lower()
    many = "*" in url or "[" in url
    if not many and not url.endswith("/"):
        return [url if name.endswith(tuple(suffixes)) else beside(url, name_of(url) + suffixes[0])]
    with _store(url) as (fs, path):
        paths = fs.glob(path) if many else fs.find(path)
    found = sorted(fs.unstrip_protocol(path) for path in paths if path.lower().endswith(tuple(suffixes)))
    if not found:
        raise UserError(f"{url}: no recording there; expected files ending in {' '.join(suffixes)}. Check the address.")
    return found


def find_places(texts, lists, absolute):
    """[Path or address] of the recordings that texts and the lines of the files `lists` mean, each once.

    absolute: paths that are good wherever a process was started. UserError for a text that means none.
    """
    texts = list(texts)
    for name in lists or ():
        try:
            lines = [line.strip() for line in Path(name).read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--list {name}: cannot be read ({error}). Give a text file with a recording a "
                            "line.") from error
        texts += [line for line in lines if line and not line.startswith("#")]
    places = [place_of(text) for text in texts]
    urls = [url for place in places if is_url(place) for url in find(place, reader.SUFFIXES)]
    paths = reader.find_recordings([place for place in places if not is_url(place)])
    return [path.absolute() if absolute else path for path in paths] + list(dict.fromkeys(urls))


# --- reading ------------------------------------------------------------------------------------

def files_of(place, annotator=None):
    """{name: stamp} of the files a recording consists of: header, signals, annotations with `annotator`.

    The headers are read for that. A stamp changes when the file does. Files that are named but cannot be had are
    left out; not the recording's own: UserError.
    """
    name = name_of(place)
    stamps = {name: _stamp(place)}
    if name.endswith(".hea"):
        with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
            names = _named_by(place, Path(folder))
        if annotator:
            names.append(f"{name.removesuffix('.hea')}.{annotator}")
        for other in names:
            with contextlib.suppress(UserError):
                stamps.setdefault(other, _stamp(beside(place, other)))
    return stamps


def _stamp(place):
    if not isinstance(place, Path):
        with _store(place) as (fs, path):
            info = fs.info(path)
        return sorted((key.lower(), str(value)) for key, value in info.items() if key.lower() in STAMPS)
    try:
        found = place.stat()
    except FileNotFoundError as error:
        raise UserError(f"{place}: missing. Check the path: workers of a cluster need one that is good there, "
                        "too.") from error
    return [("mtime", str(found.st_mtime_ns)), ("size", str(found.st_size))]


def _named_by(place, folder, segments=True):
    """Names of the files that a WFDB header names; those of its segments' headers too."""
    header = place
    if not isinstance(place, Path):
        header = folder / name_of(place)
        _get(place, header)
    lines = header_lines(header)
    first = WFDB_RECORD.match(lines[0]) if lines else None
    names = dict.fromkeys(line.split()[0] for line in lines[1:])
    names = [name for name in names if re.fullmatch(FILE_NAME, name) and name not in ("~", ".", "..")]
    if first is None or first.group(2) is None:
        return names
    found = []
    for name in names if segments else ():
        found.append(f"{name}.hea")
        with contextlib.suppress(UserError, FileNotFoundError):  # it is said when the recording is opened
            found += _named_by(beside(place, f"{name}.hea"), folder, segments=False)
    return found


def _get(url, path, size=None):
    """Fetch one file whole."""
    with _store(url) as (fs, there):
        fs.get_file(there, str(path))
    if size is not None and path.stat().st_size != int(size):
        raise ConnectionError(errno.EIO, f"{path.stat().st_size:,} of {size} bytes came", url)


@contextlib.contextmanager
def fetched(place, files):
    """Path of a recording on this machine while the block runs: itself, or copies of its files (see `files_of`)."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        for name, stamp in files.items():
            _get(beside(place, name), Path(folder, name), dict(stamp).get("size"))
        try:
            yield Path(folder, name_of(place))
        except UserError as error:
            raise UserError(str(error).replace(folder + os.sep, beside(place, ""))) from error


# --- writing ------------------------------------------------------------------------------------

@contextlib.contextmanager
def written(stem, last):
    """Where to write files NAME* of a place `stem` (folder and NAME) while the block runs.

    Those for an address are put there when it ends without an error, the one that ends in `last` as the last.
    """
    if isinstance(stem, Path):
        yield stem
        return
    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        yield Path(folder, name_of(stem))
        for path in sorted(Path(folder).iterdir(), key=lambda path: (path.name.endswith(last), path.name)):
            url = beside(stem, path.name)
            with _store(url) as (fs, there):
                fs.put_file(str(path), there)


def read_text(place):
    """Text of a small file. OSError or UserError where that is not to be had."""
    if isinstance(place, Path):
        return place.read_text()
    with _store(place) as (fs, path):
        return fs.cat_file(path).decode()


def is_file(place):
    """Whether there is a file."""
    if isinstance(place, Path):
        return place.is_file()
    with _store(place) as (fs, path):
        return fs.exists(path)
