"""Recordings and results at addresses: s3://bucket/name.hea, https://host/name.edf, memory://x.

Any store will do that fsspec knows (requirements/cluster.txt); it is loaded for addresses only. A
recording is fetched into a temporary folder and read there; results are written there and put to
their address, the summary last. Credentials and endpoints are those of the environment of the
machine that does it (AWS_PROFILE, AWS_ENDPOINT_URL; FSSPEC_S3_ANON=true for public buckets).

Where a function takes a place, it is a Path or an address (str).
"""

import contextlib
import errno
import os
import re
import tempfile
from pathlib import Path

import config
from pipeline.errors import UserError
from recording import reader
from recording.cluster import INSTALL, first_line
from recording.reader_header import MAX_HEADER_BYTES, named_files, split_header


# --- addresses ----------------------------------------------------------------------------------

def is_url(text):
    """Whether text is an address; C:\\x and a bare path are none."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text)


def place_of(text):
    """A Path, or the address: file:///data/x is a Path."""
    path = str(text).removeprefix("file://")
    return path if is_url(path) else Path(path)


def split(place):
    """(folder, name), without the query of a web address."""
    if isinstance(place, Path):
        return place.parent, place.name

    # a query is the web's alone: s3 keys may hold a question mark
    plain = place.partition("?")[0] if place.startswith("http") else place
    folder, _, name = plain.rpartition("/")
    return folder, name


def name_of(place):
    """The last part: "100.hea"."""
    return split(place)[1]


def beside(place, name):
    """The place of a file in the same folder; itself, with its query, by its own name."""
    folder, own = split(place)
    return place if name == own else below(folder, name)


def below(folder, name):
    """The place of a file in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


# --- the store ----------------------------------------------------------------------------------

@contextlib.contextmanager
def store(url):
    """(file system, path in it); what its library raises becomes the error of `explain`."""
    try:
        from fsspec.core import url_to_fs
        options = {}

        # a file may take its time, as long as bytes come; aiohttp would allow five minutes in all
        if url.startswith("http"):
            import aiohttp
            silence_s = config.DOWNLOAD_TIMEOUT_S
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=silence_s, sock_read=silence_s)
            options = {"client_kwargs": {"timeout": timeout}}

        fs, path = url_to_fs(url, use_listings_cache=False, **options)
        yield fs, path
    except ImportError as error:
        raise UserError(
            f"{url}: needs a library that is not here ({error}). Install it with: {INSTALL}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # each store has errors of its own
        # a full disk is this machine's: the store is not to be asked again
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        raise error if full else explain(url, error) from error


def explain(url, error):
    """The error to raise: UserError where asking again is no use, else ConnectionError.

    `cluster.attempt` waits after a ConnectionError and tries again.
    """
    # fsspec says "not found" whatever the trouble of a web server was
    while isinstance(error, FileNotFoundError) and error.__cause__ and url.startswith("http"):
        error = error.__cause__

    said = f"{type(error).__name__}: {first_line(error)}"
    status = getattr(error, "status", 0)

    # aiohttp has a status where other libraries have a class of error
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return UserError(f"{url}: missing. Check the address; that of a folder ends with /.")

    # a web server says 4xx of what it will not give, but for "too late" and "too many"
    if (isinstance(error, (PermissionError, ValueError, NotImplementedError))
            or "Credentials" in said or status in range(400, 500) and status not in (408, 429)):
        return UserError(f"{url}: refused ({said}). Check the address, and the rights and "
                         "credentials of the machine that reads it.")
    return ConnectionError(errno.EIO, f"the store does not answer ({said})", url)


# --- finding ------------------------------------------------------------------------------------

def find(url, skipped=None):
    """[address] that one argument means: a file, a record without suffix, a pattern, a folder.

    A pattern has * or [, a folder ends in /; files with a suffix of recordings are found so, but
    for those whose content would have to be looked at: they are put into `skipped`, {address:
    reason}. Raises UserError where there is none.
    """
    suffixes = reader.SUFFIXES
    many = "*" in url or "[" in url
    if not many and not url.endswith("/"):
        name = name_of(url)
        return [url if name.lower().endswith(suffixes) else beside(url, name + suffixes[0])]

    # names as they are kept may lack the scheme: unstrip_protocol
    with store(url) as (fs, path):
        paths = fs.glob(path) if many else fs.find(path)
    found = sorted(fs.unstrip_protocol(path) for path in paths if path.lower().endswith(suffixes))

    # those may be anything, unless the pattern asks for them
    if not url.lower().endswith(reader.DOUBTFUL):
        skipped = {} if skipped is None else skipped
        doubtful = [place for place in found if place.lower().endswith(reader.DOUBTFUL)]
        skipped |= dict.fromkeys(doubtful, "may be a recording: name its address")
        found = [place for place in found if place not in skipped]
    if not found:
        raise UserError(f"{url}: no recording there; expected files ending in "
                        f"{' '.join(suffixes)}. Check the address.")
    return found


def find_places(texts, lists, absolute, skipped=None):
    """[Path or address] of the recordings that texts and the lines of the files `lists` mean.

    Each comes once. absolute: paths that are good wherever a process was started; skipped: filled
    with {place: reason} of files in folders that may be recordings but are not read. Raises
    UserError for a text that means none.
    """
    skipped = {} if skipped is None else skipped
    texts = list(texts)
    for name in lists or ():
        try:
            lines = Path(name).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--list {name}: cannot be read ({error}). Give a text file with a "
                            "recording a line.") from error
        texts += [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    # local ones are found with all that a path may mean; an address named twice is one
    urls = {}
    paths = []
    for place in map(place_of, texts):
        if isinstance(place, Path):
            paths.append(place)
        else:
            urls |= dict.fromkeys(find(place, skipped))

    paths = reader.find_recordings(paths, skipped)
    return [path.absolute() if absolute else path for path in paths] + list(urls)


# --- reading ------------------------------------------------------------------------------------

def files_of(place, annotator=None):
    """{name: stamp} of the files of a recording: header, signals, annotations with `annotator`.

    The headers are read for that. A stamp changes when the file does. Files that are named but
    cannot be had are left out; where it is the recording's own, that is a UserError.
    """
    own = name_of(place)
    names = [own]
    if annotator and own.endswith(".hea"):
        names.append(own.removesuffix("hea") + annotator)

    stamps = {}
    for name in names:
        file = beside(place, name)
        try:
            stamps[name] = stamp(file)

            # the list grows while it is gone over: a header names signals or other headers
            if name.endswith(".hea"):
                if (stamps[name]["size"] or 0) <= MAX_HEADER_BYTES:
                    more = named_files(split_header(read_bytes(file)))
                    names += [new for new in more if new not in names]
        except UserError:
            if name == own:
                raise
    return stamps


def stamp(place):
    """What tells that a file has changed, its size among it; a store says what it has."""
    if isinstance(place, Path):
        try:
            return {"size": place.stat().st_size, "mtime": place.stat().st_mtime_ns}
        except OSError as error:
            # a header may name a file that no disk can hold
            if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
                raise
            raise UserError(f"{place}: missing. Check the path: workers of a cluster need one that "
                            "is good there, too.") from error

    # size, time, entity tag: each store calls them otherwise, so all is taken
    with store(place) as (fs, path):
        info = fs.info(path)
    return {key: str(value) for key, value in info.items() if key not in ("name", "url")} | {
        "size": info["size"]}


@contextlib.contextmanager
def fetched(place, files):
    """Path of a recording on this machine while the block runs: itself, or copies of its `files`.

    files: see `files_of`. Errors in the block name the address, not the copy.
    """
    if isinstance(place, Path):
        yield place
        return

    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        for name, expected in files.items():
            url = beside(place, name)
            path = Path(folder, name)
            with store(url) as (fs, there):
                fs.get_file(there, str(path))

            # None: a server that does not say
            came = path.stat().st_size
            if expected["size"] not in (came, None):
                raise ConnectionError(errno.EIO, f"{came} of {expected['size']} bytes came", url)

        try:
            yield Path(folder, name_of(place))
        except UserError as error:
            raise UserError(str(error).replace(folder + os.sep, beside(place, ""))) from error


def read_bytes(place, most=None):
    """Content of a small file, or its first bytes. OSError or UserError where that is not to be
    had.
    """
    if isinstance(place, Path):
        with open(place, "rb") as file:
            return file.read(most)
    with store(place) as (fs, path):
        return fs.cat_file(path, end=most)


def is_file(place):
    """Whether there is a file."""
    if isinstance(place, Path):
        return place.is_file()
    with store(place) as (fs, path):
        return fs.exists(path)


# --- writing ------------------------------------------------------------------------------------

@contextlib.contextmanager
def written(stem, last):
    """Where to write files NAME* of a place `stem` (folder and NAME) while the block runs.

    Those for an address are put there when it ends without an error, the one that ends in `last`
    as the last: where it is, the others are.
    """
    if isinstance(stem, Path):
        yield stem
        return

    with tempfile.TemporaryDirectory(prefix="ecg-") as folder:
        # first all, then away: what failed half-way leaves nothing at the address
        yield Path(folder, name_of(stem))

        # a later run takes a recording for done where its summary is
        for path in sorted(Path(folder).iterdir(),
                           key=lambda path: (path.name.endswith(last), path.name)):
            url = beside(stem, path.name)
            with store(url) as (fs, there):
                fs.put_file(str(path), there)
