"""One task a record: over the cores of this machine (joblib), or over the workers of a dask cluster.

    for item, result, why in cluster.each(task, items, jobs, address):
        ...                                   # as they finish; why is None, or a line saying what failed

A cluster is made of `dask scheduler` on one machine and `dask worker ADDRESS` on any number; dask is needed
only for that (requirements-cluster.txt). Workers need the same libraries and a path or address of the
recordings that is good there; the project's modules and settings are sent from here, also to those that join
later. What a lost worker was at is done again by another; what it had finished is not.
"""

import asyncio
import concurrent.futures.process
import contextlib
import errno
import hashlib
import itertools
import queue
import tempfile
import time
import traceback
import uuid
import zipfile
from pathlib import Path

import joblib
import numpy as np

from recording import cluster_worker
import config
from pipeline import settings
from pipeline.errors import UserError

AHEAD = 2                      # tasks in flight a thread: the next is there when one ends, and a million never are
WAITS_S = (1, 4, 16)           # before a task is tried again whose connection was lost
CONNECT_S = 8                  # until a scheduler that does not answer is an error, and one without workers
LOST_S = 60                    # without a single worker, in the middle, before giving up
LOOK_S = 2                     # between looks at who is there
PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH}
PACKAGES = ("torch", "numpy", "scipy", "sleepecg", "wfdb", "matplotlib", "dask", "distributed")
INSTALL = "pip install -r requirements-cluster.txt"
SENT = {}                      # on a worker: {path on the client: where the file lies here}


# --- one task -----------------------------------------------------------------------------------

def attempt(task, item):
    """(item, result, None) or (item, None, why): nothing a record does stops the others.

    What may pass (a lost connection, a network file system that stumbles) is tried again, with pauses.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return item, task(item), None
        except UserError as error:
            return item, None, str(error)
        except Exception as error:
            if wait_s is None or not passes(error):
                return item, None, described(error, item)
        time.sleep(wait_s)


def passes(error):
    """Whether the same again may succeed."""
    return isinstance(error, (ConnectionError, TimeoutError)) or isinstance(error, OSError) and error.errno in PASSING


def described(error, item):
    """One line for an error that is not the record's own: of the system, or a defect of ours with its place."""
    if isinstance(error, OSError):
        return f"{error.filename or item}: {error.strerror or error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"


def local(path):
    """Where a file that `each` was to send lies on this machine; the path itself where nothing was sent."""
    return Path(SENT.get(str(path), path))


# --- many ---------------------------------------------------------------------------------------

def each(task, items, jobs=1, address=None, files=()):
    """Yield (item, result, why) as they finish, in no order; why is None or says in one line what failed.

    task: a function of one item, at the top of a module (or functools.partial of one); items: paths or texts.
    jobs: processes on this machine, unless address names a dask scheduler ("tcp://10.0.0.1:8786"), whose workers
    then do it; files: paths that are sent there (see `local`). Nothing is left in the queue when the caller stops.
    Raises UserError where the cluster cannot be reached or used, or is lost.
    """
    if address:
        yield from _on_cluster(task, items, address, files)
        return
    work = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    try:
        yield from work(joblib.delayed(attempt)(task, item) for item in items)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(f"a process of --jobs {jobs} was killed, out of memory perhaps ({str(error).splitlines()[0]}). "
                        "Take fewer --jobs and run it again: what is done is skipped.") from error


def _on_cluster(task, items, address, files):
    """`each` on a cluster. A task whose worker is lost goes to another one, until the scheduler has seen it lose
    more than its `allowed-failures`; others that ran beside it were lost with it, so such tasks are then tried
    alone, one after the other: who loses a worker again is to blame."""
    with _connected(address) as client:
        send = _sent(client, task, files)
        suspects = []
        for item, future in _flow(client, send, items, AHEAD):
            if _killed(future):
                suspects.append(item)
            else:
                yield _outcome(item, future)
        for item, future in _flow(client, send, suspects, 0):
            yield _outcome(item, future)


def _killed(future):
    from distributed import KilledWorker
    return future.status == "error" and isinstance(future.exception(), KilledWorker)


def _outcome(item, future):
    """(item, result, why) of a finished future."""
    if _killed(future):
        return item, None, (f"{item}: every worker that took it was lost ({future.exception().allowed_failures + 1} "
                            "times, by itself): out of memory, or a crash in a library. Its log says more")
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else "cancelled on the cluster"
    return item, None, f"{item}: {error}"


def _flow(client, send, items, ahead):
    """(item, future) as they finish, `ahead` times the workers' threads of them in flight, one where that is 0.

    Where the caller stops, by Ctrl-C for example, closing the client takes back what is queued.
    """
    waiting, flying, done = iter(items), {}, queue.SimpleQueue()
    crew = _Crew(client)
    while True:
        room = max(1, ahead * crew.threads()) - len(flying)
        for item in itertools.islice(waiting, max(0, room)):
            future = send(item)
            flying[future.key] = item, future
            future.add_done_callback(done.put)
        if not flying:
            return
        with contextlib.suppress(queue.Empty):
            yield flying.pop(done.get(timeout=LOOK_S).key)


# --- the cluster --------------------------------------------------------------------------------

class _Crew:
    """Who works on a cluster, asked now and then: workers come and go."""

    def __init__(self, client):
        self.client, self.workers, self.asked_s, self.seen_s = client, {}, -np.inf, time.monotonic()

    def threads(self):
        """Of all workers. UserError where the scheduler is lost, or all workers for LOST_S, or a new one is unfit."""
        now_s = time.monotonic()
        if self.client.status in ("closing", "closed"):
            raise UserError("the connection to the scheduler was lost. Run it again: what is done is skipped.")
        if self.client.status == "running" and now_s - self.asked_s > LOOK_S:
            workers, self.asked_s = self.client.nthreads(), now_s
            _check_versions(self.client, sorted(set(workers) - set(self.workers)))
            self.workers = workers
        if self.workers:
            self.seen_s = now_s
        if now_s - self.seen_s > LOST_S:
            raise UserError(f"the cluster has been without a worker for {LOST_S:g} s. Start some (dask worker ADDRESS) "
                            "and run it again: what is done is skipped. If they die of one recording, leave it out.")
        return sum(self.workers.values())


def _check_versions(client, workers):
    """UserError naming the workers whose libraries are not those here: files must come out the same everywhere."""
    here = cluster_worker.versions(PACKAGES)
    there = client.run(cluster_worker.versions, PACKAGES, workers=workers, on_error="ignore") if workers else {}
    wrong = [f"{address} has {name} {found}, expected {here[name]}" for address, versions in there.items()
             for name, found in versions.items() if found != here[name]]
    if wrong:
        raise UserError(f"workers of the cluster differ from this machine: {'; '.join(wrong[:6])}. Install the same "
                        f"versions there: pip install -r requirements.txt, {INSTALL}")


@contextlib.contextmanager
def _connected(address):
    """A client of the scheduler at address, with a worker or more; UserError if that is not to be had."""
    try:
        import distributed
    except ImportError as error:
        raise UserError(f"--cluster needs dask ({error}). Install it with: {INSTALL}") from error
    try:
        asyncio.run(_knock(address))
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:  # whatever listens there may answer anything
        raise UserError(f"--cluster {address}: no dask scheduler answers there ({_first_line(error)}). Expected an "
                        "address such as tcp://10.0.0.1:8786, which `dask scheduler` prints when it starts.") from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
        yield client
    except distributed.TimeoutError as error:
        raise UserError(f"--cluster {address}: the scheduler has no worker. Start some with: dask worker {address} "
                        "--nworkers N --nthreads 1") from error
    finally:
        client.close(timeout=CONNECT_S)


async def _knock(address):
    """A client that finds nobody takes another 16 s to give up on closing: a bare connection says so at once."""
    from distributed.comm import connect
    comm = await connect(address, timeout=CONNECT_S)
    comm.abort()


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]


def _sent(client, task, files):
    """Send the project's modules and `files` to all workers, those to come included; a function item -> future."""
    import cloudpickle
    modules = {path.name: path.read_bytes() for kind in ("py", "html", "js")
               for path in sorted(settings.ROOT.glob(f"*.{kind}"))}
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "modules.zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in modules.items():
                file.writestr(zipfile.ZipInfo(name), content)  # ZipInfo: without the time, the same bytes each time
        archive = _upload(client, archive)
    _upload(client, Path(cluster_worker.__file__), load=True)
    sent = {str(path): _upload(client, Path(path)) for path in files}
    task, name = cloudpickle.dumps(task), getattr(task, "func", task).__name__
    return lambda item: client.submit(cluster_worker.run, archive, sent, task, item, pure=False,
                                      key=f"{name}-{uuid.uuid4().hex}")


def _digest(contents):
    """Of {name: bytes}."""
    total = hashlib.sha256()
    for name, content in contents.items():
        total.update(f"{name} {len(content)} ".encode() + content)
    return total.hexdigest()[:16]


def _upload(client, path, load=False):
    """Send a file to every worker, now or when it joins, once a content; returns its name there.

    With `load` it is a module under its own name, for the scheduler too, which must know what it hands on.
    """
    from distributed.diagnostics import plugin
    digest = _digest({path.name: path.read_bytes()})
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder, path.name if load else f"{cluster_worker.ARCHIVE}{digest}-{path.name}")
        named.write_bytes(path.read_bytes())
        kinds = (plugin.SchedulerUploadFile, plugin.UploadFile) if load else (plugin.UploadFile,)
        for kind in kinds:
            upload = kind(str(named), load=load)
            upload.idempotent = True  # a file that is in use is not written again
            client.register_plugin(upload, name=f"{kind.__name__}-{digest}-{named.name}")
    return named.name
