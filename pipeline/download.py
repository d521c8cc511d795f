"""A database's files from PhysioNet, a mirror, a folder or a zip, each verified by its SHA-256.

    python dataset.py --download [--source FOLDER_OR_ZIP_OR_URL]

A file gets its name in the database's folder only after its digest was checked. A run that is
stopped, killed or cut off leaves whole files; the next one asks only for the others.

pooch transfers into a folder of its own, checks and tries again. What it has no setting for is
here: several files at a time, the next source after a dead one, and an end to a transfer that
trickles, is endless or refused.
"""

import hashlib
import multiprocessing.pool
import re
import shutil
import time
import zipfile
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import pooch
import requests
import urllib3
from tqdm import tqdm

from pipeline.artefacts import whole_file
from pipeline.errors import Unreachable, UserError

CONTACT_S = 8                  # a source that has not answered by then is left for the next one
DEAD_AFTER = 4                 # so is one that fails so many files in a row
MIN_BYTES_PER_S = 500          # of a file, over one time-out: less is a trickle and given up
LONGEST_PAUSE_S = 60           # that a server may ask for
MAX_FILE_BYTES = 100_000_000   # MIT-BIH's largest has 1,950,000
MAX_DOWNLOAD_BYTES = 1_000_000_000
ZIP = "database.zip"
UNREADABLE = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)

pooch.get_logger().setLevel("WARNING")     # not a line for every file


def read_digests(path):
    """Read "SHA-256 name" lines, as in PhysioNet's SHA256SUMS.txt: {name: digest}.

    Raises UserError for an unreadable list, a malformed line or a name with a folder in it.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of digests ({error}). "
                        "Take it from where the database comes from.") from None

    digests = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *]?(\w[\w.-]*)", line.strip())
        if not match:
            raise UserError(f"{path}, line {number}: expected 'SHA-256 name', got {line[:80]!r}. "
                            "Take the list from where the database comes from.")
        digests[match[2]] = match[1].lower()
    return digests


def digests_of(database):
    """{name: digest} of the files of the records that config.py has of a settings.Database.

    A database may be described in part: files of other records are neither fetched nor missed.
    """
    digests = read_digests(database.digests)
    return {name: digest for name, digest in digests.items()
            if name.split(".")[0] in database.records}


def damaged(folder, digests):
    """Names, in the order of `digests`, whose file is missing or has another digest."""
    return [name for name, digest in digests.items()
            if not (folder / name).is_file() or pooch.file_hash(folder / name) != digest]


def fetch_database(database, source, connections, timeout_s, retries):
    """Bring every file of a settings.Database into its folder; verified files are left alone.

    source: folder, zip or address to take all from; None: the database's own sources in turn.
    connections: transfers at a time. timeout_s: seconds without a byte. retries: of a file and
    source. Raises UserError where files are missing in the end, its subclass Unreachable where
    none of the database's sources gave any, OSError where the folder cannot be written.
    """
    if database.simulated:
        raise UserError(f"{database.title}: is not downloaded but written here by: "
                        f"{database.command('dataset.py')}")

    folder = database.records_dir()
    digests = digests_of(database)
    missing = damaged(folder, digests)
    staging = folder / ".part-download"
    problems = []

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tqdm(total=len(missing), unit="file", disable=None) as bar:
            store = partial(_store, digests=digests, folder=folder, bar=bar)
            for address in [source] if source else database.sources:
                if not missing:
                    break
                if address.lower().startswith(("http://", "https://")):
                    reasons = _download(address, missing, digests, staging, store, connections,
                                        timeout_s, retries)
                else:
                    reasons = store(Path(address).expanduser(), missing)

                for reason, count in Counter(reasons.values()).most_common(1):
                    problems.append(f"{address}: {len(reasons)} files failed "
                                    f"(e.g. {min(reasons)}), {count} of them: {reason}")
                # What lies in the folder counts, not what a source claims to have delivered.
                missing = damaged(folder, digests)
    finally:
        # A killed run could not: the next one does.
        shutil.rmtree(staging, ignore_errors=True)

    if missing:
        # `make` goes on with simulated data only where nothing is there and nobody named a source.
        kind = UserError if source or len(missing) < len(digests) else Unreachable
        raise kind("\n  ".join([
            f"{database.title}: {len(missing)} of {len(digests)} files are missing; the others are "
            f"verified and kept in {folder}", *problems, "ways on:",
            f"{database.command('dataset.py', '--download')} --source FOLDER_OR_ZIP_OR_URL",
            *(f"by hand: {address} in a browser, then --source" for address in database.sources),
            "without the data: python dataset.py --database simulated (make simulated)"]))

    print(f"{len(digests)} of {len(digests)} files verified ({bar.total} of them fetched now)")


def _store(source, names, digests, folder, bar):
    """Store the verified copies of `names` from a folder or zip; {name: reason} of the others.

    A copy counts by its base name, wherever in the source it lies: no path in a zip is used.
    """
    reasons = dict.fromkeys(names, "not in it")
    if source.is_dir():
        copies = source.rglob("*")
    else:
        try:
            archive = zipfile.ZipFile(source)
        except UNREADABLE as error:
            raise UserError(f"{source}: no folder, no readable zip ({error}) and no http:// or "
                            "https:// address. Name another --source.") from error
        copies = [zipfile.Path(archive, name) for name in archive.namelist()]

    for copy in copies:
        name = copy.name
        if name not in reasons or not copy.is_file():
            continue

        try:
            with copy.open("rb") as stream:
                # A zip bomb is unpacked no further; what was cut off has another digest.
                content = stream.read(MAX_FILE_BYTES)
        except UNREADABLE as error:
            reasons[name] = f"cannot be read: {error}"
            continue

        if hashlib.sha256(content).hexdigest() != digests[name]:
            reasons[name] = "another SHA-256"
            continue

        with whole_file(folder / name) as part:
            part.write_bytes(content)
        del reasons[name]
        bar.update()

    return reasons


# --- from a server ------------------------------------------------------------------------------

class Refused(Exception):
    """A transfer failed in a way that trying again does not mend."""


def _transfer(url, path, pup, timeout_s):
    """Write one file to `path`, as a downloader of pooch.

    Raises RequestException for what pooch is to try again, Refused for what it is not.
    """
    # Else a server may compress, and its length says nothing of the file.
    headers = {"Accept-Encoding": "identity"}
    timeouts = CONTACT_S, timeout_s
    try:
        with (requests.get(url, headers=headers, timeout=timeouts, stream=True) as response,
              open(path, "wb") as file):
            _check_status(response)
            size = goal = deadline = 0

            # read1 returns what has come. requests' own iter_content waits for a full block, and a
            # read time-out starts anew with every byte: neither ends a server that trickles.
            while block := response.raw.read1(65536):
                size += file.write(block)
                if size > MAX_DOWNLOAD_BYTES:
                    raise Refused(f"more than {MAX_DOWNLOAD_BYTES / 1e6:g} MB")

                now = time.monotonic()
                if size >= goal:
                    goal = size + MIN_BYTES_PER_S * timeout_s
                    deadline = now + timeout_s
                elif now > deadline:
                    raise requests.Timeout("too slow")
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError from error

    # Without a length from the server a body that was cut short looks whole.
    if url == pup.urls[ZIP] and not zipfile.is_zipfile(path):
        raise requests.RequestException("not a zip, or cut short")


def _check_status(response):
    """Raise for an error status, after the pause that the server asks for."""
    status = response.status_code
    # Busy servers answer 429 or 503 and mean it for a while; a file that is absent stays so.
    if status in (408, 429) or status >= 500:
        pause_s = response.headers.get("Retry-After", "")
        if pause_s.isdecimal():
            time.sleep(min(int(pause_s), LONGEST_PAUSE_S))
        raise requests.RequestException(f"HTTP {status}")

    if status >= 400:
        raise Refused(f"HTTP {status}")


def _download(url, names, digests, staging, store, connections, timeout_s, retries):
    """Store `names` from below `url`, or from the zip that it is; {name: reason} of failures.

    After a row of failures the source is given up and the other files are not asked for.
    """
    shutil.rmtree(staging, ignore_errors=True)    # what another source or a killed run left

    # PhysioNet serves the whole database as one zip, too, at an address that does not say so.
    zipped = url.lower().endswith(".zip") or "/get-zip/" in url
    pup = pooch.create(staging, url, registry=digests | {ZIP: None}, urls={ZIP: url},
                       retry_if_failed=retries)
    asked = [ZIP] if zipped else names
    reasons = {}

    # In a thread: pooch keeps to `retries` and to the digest, and leaves the file in `staging`.
    def fetch(name):
        try:
            pup.fetch(name, downloader=partial(_transfer, timeout_s=timeout_s))
        except (requests.RequestException, Refused) as error:
            return name, _reason(error)
        except ValueError:
            return name, "another SHA-256"
        return name, None

    # Threads that nobody waits for: Ctrl-C, a full disk and a dead source end all at once.
    with multiprocessing.pool.ThreadPool(connections) as pool:
        try:
            # Resolvers, and firewalls that drop packets, keep to no time-out of requests.
            pool.apply_async(requests.head, [url], {"timeout": CONTACT_S}).get(CONTACT_S)
        except (requests.RequestException, multiprocessing.TimeoutError) as error:
            return dict.fromkeys(names, _reason(error))

        failed_in_a_row = 0
        for name, reason in pool.imap_unordered(fetch, asked):
            if zipped:
                return dict.fromkeys(names, reason) if reason else store(staging / ZIP, names)
            if reason:
                reasons[name] = reason
            else:
                store(staging, [name])

            # An absent file speaks against a mirror's completeness, not against its being alive.
            alive = reason in (None, "HTTP 403", "HTTP 404")
            failed_in_a_row = 0 if alive else failed_in_a_row + 1
            if failed_in_a_row == DEAD_AFTER:
                break
    return reasons


def _reason(error):
    """The root of a failure in a few words, the same for all files that fail alike."""
    while error.__context__:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error) or "no answer"
