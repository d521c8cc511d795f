"""The database's files from PhysioNet, a mirror, a folder or a zip, each verified by SHA-256.

    python dataset.py --download [--source DIR_OR_URL]

A file appears under its name only after its digest was checked: it is written to `.part-*` in the
same folder and renamed. A run that is interrupted, killed or cut off leaves verified files; the
next one asks only for the others, and for nothing at all when every digest is right.

pooch's HTTPDownloader does the transfer. `pooch.retrieve` is not used: its temporary files cannot
be told from others after a kill, it knows one source and repeats what can never succeed (404).
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
import http.client
import os
from pathlib import Path
import queue
import re
import socket
import threading
import time
from urllib.parse import urlsplit
import uuid
import zipfile
import zlib

import pooch
import requests
from requests.utils import get_environ_proxies, prepend_scheme_if_needed, select_proxy
from tqdm import tqdm
import urllib3

import config
from pipeline import errors

SOURCES = [("PhysioNet", "https://physionet.org/files/mitdb/1.0.0/"),
           ("AWS", "https://physionet-open.s3.amazonaws.com/mitdb/1.0.0/")]
ZIP_BY_HAND = "https://physionet.org/content/mitdb/get-zip/1.0.0/"

CONTACT_S = 8.0               # to resolve a host and connect; two dead sources: less than 20 s
DEADLINE_TIMEOUTS = 10        # a file may take 10 x timeout_s ...
MIN_BYTES_PER_S = 1000        # ... and one second more for every 1,000 bytes that have arrived
DEAD_AFTER = 4                # files in a row lost to the network: the source is asked no more
MAX_FILE_BYTES = 50_000_000   # the largest file has 1,950,000
MAX_ZIP_BYTES = 1_000_000_000
CHUNK_BYTES = 1 << 14
NETWORK_ERRORS = (OSError, ValueError, urllib3.exceptions.HTTPError, http.client.HTTPException)
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)


class Failure(Exception):
    """A source did not deliver a file. The text is the reason, the same for all files alike.

    again: asking again may help. down: speaks against the source as a whole.
    wait_s: the least pause that the server asked for.
    """

    def __init__(self, reason, again=False, down=None, wait_s=0.0):
        super().__init__(reason)
        self.again, self.wait_s = again, wait_s
        self.down = again if down is None else down


@dataclass(frozen=True)
class Job:
    """Where files go, what they must hash to, and how patient to be."""

    folder: Path
    digests: dict             # name -> SHA-256, hexadecimal
    connections: int
    timeout_s: float
    retries: int
    base_wait_s: float


# --- Digests


def read_digests(path):
    """Read "digest name" lines as in PhysioNet's SHA256SUMS.txt -> dict of name to digest.

    Raises errors.UserError for a missing file, a malformed line or a name with a folder in it.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.UserError(f"cannot read the list of digests {path}: {error}") from None
    digests = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]?(\w[\w.-]*)", line.strip())
        if match:
            digests[match[2]] = match[1].lower()
        elif line.strip():
            raise errors.UserError(f"{path}, line {number}: expected 'SHA-256 name', got {line[:80]!r}")
    return digests


def damaged(folder, digests):
    """Names in the order of `digests` whose file is missing, unreadable or has another digest."""
    return [name for name, digest in digests.items() if not _has_digest(Path(folder) / name, digest)]


def _has_digest(path, digest):
    try:
        return path.is_file() and pooch.file_hash(str(path), alg="sha256") == digest
    except OSError:
        return False


class Part:
    """A temporary file beside its destination; gone when the `with` block ends, unless kept.

    Raises errors.UserError where the folder cannot be written to, Failure beyond `limit` bytes.
    """

    def __init__(self, path, limit):
        self.target, self.limit, self.size = Path(path), limit, 0
        self.path = self.target.with_name(f".part-{uuid.uuid4().hex}")

    def __enter__(self):
        try:
            self.file = open(self.path, "xb")
        except OSError as error:
            raise _unwritable(self.target, error) from error
        return self

    def write(self, chunk):
        if self.size + len(chunk) > self.limit:
            raise Failure(f"more than {self.limit / 1e6:g} MB")
        try:
            self.file.write(chunk)
        except OSError as error:
            raise _unwritable(self.target, error) from error
        self.size += len(chunk)

    def flush(self):
        """pooch flushes after every chunk; `close` does it once."""

    def close(self):
        try:
            self.file.close()
        except OSError as error:
            raise _unwritable(self.target, error) from error

    def keep(self, digest):
        """Give the file its name if it has the digest, else raise Failure."""
        self.close()
        if not _has_digest(self.path, digest):
            raise Failure("another SHA-256")
        try:
            os.replace(self.path, self.target)
        except OSError as error:
            raise _unwritable(self.target, error) from error

    def __exit__(self, *_):
        try:
            self.file.close()
        except OSError:           # what it could not flush is thrown away in any case
            pass
        self.path.unlink(missing_ok=True)


def _unwritable(path, error):
    return errors.UserError(
        f"cannot write {path}: {error.strerror or error}. Free space or rights there, let no second "
        "download run, then start again: verified files stay.")


# --- One transfer


def _contact(url, base_wait_s):
    """Raise Failure unless the host, or the proxy on the way to it, accepts a connection.

    Ends within CONTACT_S: neither a resolver nor a firewall that drops packets keeps to the
    time-outs of requests, which count for each of a host's addresses.
    """
    try:
        proxy = select_proxy(url, get_environ_proxies(url))
        target = urlsplit(prepend_scheme_if_needed(proxy, "http") if proxy else url)
        port = target.port or {"https": 443, "http": 80}.get(target.scheme, 1080)
    except (ValueError, urllib3.exceptions.HTTPError, requests.RequestException):
        target = None
    if target is None or not target.hostname:
        raise Failure("not an address")
    answers, end = queue.Queue(), time.monotonic() + CONTACT_S

    def knock():
        try:
            socket.create_connection((target.hostname, port), CONTACT_S).close()
            answers.put(None)
        except (OSError, UnicodeError) as error:
            answers.put(error)

    for pause_s in (base_wait_s, 0):
        threading.Thread(target=knock, daemon=True).start()
        try:
            error = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise Failure(f"no connection within {CONTACT_S:g} s", down=True) from None
        if error is None:
            return
        time.sleep(pause_s)
    raise Failure(_root_text(error), down=True)


def _download(url, part, timeout_s, stop):
    """Body of `url` into `part`; returns whether the server told its length.

    The transfer runs in a daemon thread of its own: a read time-out starts anew with every byte,
    so only a second clock ends a server that trickles, and only so can Ctrl-C end it at once.
    """
    state, done, start = {}, threading.Event(), time.monotonic()
    threading.Thread(target=_transfer, args=(url, part, timeout_s, state, done), daemon=True).start()
    while not done.wait(0.05):
        slow = time.monotonic() - start > DEADLINE_TIMEOUTS * timeout_s + part.size / MIN_BYTES_PER_S
        if slow or stop.is_set():
            _hang_up(state.get("response"))
            raise Failure("too slow" if slow else "interrupted", down=True)
    if isinstance(state.get("error"), NETWORK_ERRORS):
        raise _failure(state["error"], timeout_s) from state["error"]
    if "error" in state:
        raise state["error"]
    return "content-length" in state["response"].headers


def _transfer(url, part, timeout_s, state, done):
    """Body of a transfer's thread: leaves `response` and `error` in `state`, then sets `done`."""
    loader = pooch.HTTPDownloader(
        progressbar=False, chunk_size=CHUNK_BYTES, timeout=(min(timeout_s, CONTACT_S), timeout_s),
        headers={"Accept-Encoding": "identity"},
        hooks={"response": lambda response, **_: state.update(response=response)})
    try:
        loader(url, part, None)
    except BaseException as error:                        # raised again in the caller's thread
        state["error"] = error
    finally:
        if "response" in state:
            state["response"].close()
        done.set()


def _hang_up(response):
    """End a read that another thread waits in, so that it counts as a connection no longer."""
    shutdown = getattr(response, "raw", None) and getattr(response.raw, "shutdown", None)
    try:
        if shutdown:                                      # urllib3 2.3 and later
            shutdown()
    except (OSError, RuntimeError, ValueError):           # it ended by itself meanwhile
        pass


def _failure(error, timeout_s):
    """The Failure that an exception of requests or urllib3 stands for."""
    if isinstance(error, requests.HTTPError):
        status, asked = error.response.status_code, error.response.headers.get("Retry-After", "")
        wait_s = min(float(asked), timeout_s) if asked.isdecimal() else 0.0
        return Failure(f"HTTP {status}", again=status in (408, 429) or status >= 500, wait_s=wait_s)
    if isinstance(error, requests.exceptions.SSLError):
        return Failure("TLS error: clock, certificates or a proxy in between?", down=True)
    root = _root(error)
    if isinstance(error, requests.Timeout) or isinstance(root, TimeoutError):
        return Failure(f"no answer for {timeout_s:g} s", again=True)
    final = isinstance(error, ValueError) or isinstance(error, requests.TooManyRedirects)
    return Failure(_root_text(error), again=not final)


def _root(error):
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error


def _root_text(error):
    root = _root(error)
    return getattr(root, "strerror", None) or type(root).__name__


def _persist(url, target, limit, finish, job, stop, dead):
    """Fetch `url` to a Part and call finish(part), with back-off until it works or cannot."""
    for attempt in range(job.retries + 1):
        if dead.is_set():
            raise Failure("not asked")
        try:
            with Part(target, limit) as part:
                sized = _download(url, part, job.timeout_s, stop)
                try:
                    finish(part)
                except Failure as failure:
                    failure.again = failure.down = not sized   # without a length: perhaps cut short
                    raise
            return
        except Failure as failure:
            wait_s = max(job.base_wait_s * 2 ** attempt, failure.wait_s)
            if not failure.again or attempt == job.retries or dead.wait(wait_s):
                raise


# --- The kinds of source: each takes the names wanted, returns a dict of name to reason it failed


def _from_mirror(url, names, job, arrived):
    """From the files below `url`, `job.connections` at a time."""
    stop, dead, failed, row = threading.Event(), threading.Event(), {}, 0
    base = url.rstrip("/") + "/"

    def task(name):
        _persist(base + name, job.folder / name, MAX_FILE_BYTES,
                 lambda part: part.keep(job.digests[name]), job, stop, dead)

    pool = ThreadPoolExecutor(max(1, job.connections))
    try:
        tasks = {pool.submit(task, name): name for name in names}
        for done in as_completed(tasks):
            try:
                done.result()
                arrived()
                row = 0
            except Failure as failure:
                failed[tasks[done]] = str(failure)
                row += failure.down
                if row >= DEAD_AFTER:
                    dead.set()
    finally:                       # Ctrl-C and a full disk, too: the transfers end within 0.1 s
        stop.set()
        dead.set()
        pool.shutdown(cancel_futures=True)
    return {name: failed[name] for name in names if name in failed}


def _from_zip_url(url, names, job, arrived):
    failed, stop, dead = {}, threading.Event(), threading.Event()

    def finish(part):
        part.close()
        failed.update(_from_zip(part.path, names, job, arrived))

    try:
        _persist(url, job.folder / "zip", MAX_ZIP_BYTES, finish, job, stop, dead)
    except Failure as failure:
        return dict.fromkeys(names, str(failure))
    return failed


def _from_zip(path, names, job, arrived):
    """From members of a zip by their base name, whatever their folders are called."""
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS:
        raise Failure("not a zip, or cut short") from None
    with archive:
        members = {}
        for member in archive.infolist():
            members.setdefault(re.split(r"[/\\]", member.filename)[-1], []).append(member)
        return _store_first({name: members.get(name, []) for name in names}, archive.open, job, arrived)


def _from_folder(path, names, job, arrived):
    """From a folder or the two levels of folders below it."""
    homes = [path, *(home for pattern in ("*/", "*/*/") for home in sorted(path.glob(pattern)))]
    copies = {name: [home / name for home in homes if (home / name).is_file()] for name in names}
    return _store_first(copies, lambda copy: open(copy, "rb"), job, arrived)


def _store_first(candidates, opened, job, arrived):
    """Of each name's candidates, store the first that has the right digest."""
    failed = {}
    for name, copies in candidates.items():
        failed[name] = "not in it"
        for copy in copies:
            try:
                with opened(copy) as stream, Part(job.folder / name, MAX_FILE_BYTES) as part:
                    while chunk := stream.read(CHUNK_BYTES):
                        part.write(chunk)
                    part.keep(job.digests[name])
            except Failure as failure:
                failed[name] = str(failure)
            except errors.UserError:
                raise
            except (*ZIP_ERRORS, NotImplementedError) as error:
                failed[name] = f"cannot be read ({type(error).__name__})"
            else:
                del failed[name]
                arrived()
                break
    return failed


# --- All of it


def choose_sources(source=None):
    """Sources as (name, address): the default ones, or nothing but what --source names."""
    return [(str(source), str(source))] if source else SOURCES


def fetch_database(folder, digests, sources, connections, timeout_s, retries, base_wait_s=1.0):
    """Bring every file of `digests` into `folder`, verified; files already right are left alone.

    sources: (name, address) in the order to ask; an address is a folder, a zip, a URL with the
    files below it, or the URL of a zip (ends in .zip or holds /get-zip/).
    timeout_s [s] without a byte; `retries` a file and source; waits base_wait_s x 1, 2, 4 ... [s].
    Raises errors.UserError when files are missing in the end or the folder cannot be written;
    its subclass errors.Unreachable when not one file came, or was there, from the default sources.
    """
    job = Job(Path(folder), digests, connections, timeout_s, retries, base_wait_s)
    _prepare(job.folder)
    missing = damaged(job.folder, digests)
    kept, fetched, problems = len(digests) - len(missing), [], []
    if missing:
        print(f"fetching {len(missing)} of {len(digests)} files into {job.folder}", flush=True)
        with tqdm(total=len(missing), unit="file", disable=None) as bar:
            for name, address in sources:
                failed = _from(address, missing, job, bar.update) if missing else {}
                if len(failed) < len(missing):
                    fetched.append(f"{len(missing) - len(failed)} fetched from {name}")
                problems.append(_problem(name, address, failed))
                missing = list(failed)
    if missing:
        nothing = len(missing) == len(digests) and sources is SOURCES
        raise (errors.Unreachable if nothing else errors.UserError)(
            _advice(job.folder, len(missing), len(digests), problems))
    parts = ", ".join([*fetched, f"{kept} already there"])
    print(f"{len(digests)} of {len(digests)} files verified ({parts})", flush=True)


def _prepare(folder):
    """Make the folder; remove what a killed run left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".part-*"):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _from(address, names, job, arrived):
    """Ask one source, of whichever kind, for `names`; returns a dict of name to reason it failed."""
    try:
        if re.match(r"https?://", address, re.IGNORECASE):
            _contact(address, job.base_wait_s)
            path = urlsplit(address).path.lower()
            is_zip = path.endswith(".zip") or "/get-zip/" in path
            return (_from_zip_url if is_zip else _from_mirror)(address, names, job, arrived)
        path = Path(address).expanduser()
        if path.is_dir():
            return _from_folder(path, names, job, arrived)
        if path.is_file():
            return _from_zip(path, names, job, arrived)
    except Failure as failure:
        return dict.fromkeys(names, str(failure))
    raise errors.UserError(f"--source {address}: no such folder or zip, and no http:// or https:// address")


def _problem(name, address, failed):
    """One line on a source: the commonest reason, how many files, one of them."""
    title = name if name == address else f"{name} ({address})"
    if not failed:
        return f"{title}: delivered"
    asked = Counter(reason for reason in failed.values() if reason != "not asked")
    reason, count = asked.most_common(1)[0]
    example = next(file for file in failed if failed[file] == reason)
    others = f"; {len(failed) - count} others failed or were not asked for" if len(failed) > count else ""
    return f"{title}: {reason}: {count} files, e.g. {example}{others}"


def _advice(folder, missing, total, problems):
    return "\n  ".join([
        f"{missing} of {total} files are missing; {total - missing} are verified and kept in {folder}",
        *problems,
        "ways on:",
        "python dataset.py --download --source DIR_OR_URL   a folder with copies, a mirror, or a zip",
        f"by hand: {ZIP_BY_HAND} in a browser, then --source with the zip's name",
        "without the data: python synthetic.py, then --simulated on every script (make simulated)"])
