"""One task a record: over the cores of this machine (joblib), or the workers of a dask cluster.

    for item, result, why in cluster.each(task, items, jobs, address):
        ...                     # as they finish; why is None, or a line saying what failed

A cluster is `dask scheduler` on one machine and `dask worker ADDRESS` on any number; dask is needed
only for that (requirements/cluster.txt). Workers need the same libraries, and a path or address of
the recordings that is good there. The project's code and settings are sent to them from here, also
to those that join later. What a lost worker was at is done again by another; what it had finished
is not.
"""

import contextlib
import ctypes
import errno
import hashlib
import importlib
import importlib.metadata
import itertools
import logging
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from pipeline import settings
from pipeline.errors import UserError

AHEAD = 2             # tasks in flight a thread: the next is there when one ends, never a million
WAITS_S = (1, 4, 16)  # before a task is tried again whose connection was lost
CONNECT_S = 8         # until a scheduler that does not answer is an error, and one without workers
LOST_S = 60           # without a single worker, in the middle, before giving up
AGAIN_S = 5           # a library may swallow what ends a task: it is told again
PASSING = (errno.EIO, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)
ROOMS = ("pipeline", "scoring", "recording", "scaling")
PACKAGES = ("torch", "numpy", "scipy", "sleepecg", "wfdb", "matplotlib", "dask", "distributed")
INSTALL = "pip install -r requirements/cluster.txt"


# --- one task -----------------------------------------------------------------------------------

def attempt(task, item):
    """(item, result, None) or (item, None, why): nothing a record does stops the others.

    What may pass (a lost connection, a network disk that stumbles) is tried again, with pauses.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return item, task(item), None
        except UserError as error:
            return item, None, str(error)
        except Exception as error:
            if wait_s is None or not (isinstance(error, (ConnectionError, TimeoutError))
                                      or getattr(error, "errno", None) in PASSING):
                return item, None, describe(error, item)

        # outside of the handlers: the error, and the memory of its frames, is gone by now
        time.sleep(wait_s)


def describe(error, item):
    """One line for an error that is not the record's own: of the system, or a defect of ours."""
    if isinstance(error, OSError):
        return f"{error.filename or item}: {error.strerror or error}"

    # a defect is to be found from this line alone, on whatever machine it happened
    return f"{type(error).__name__}: {error} ({getattr(error, 'place', place_of(error))})"


def place_of(error):
    """"scan.py, line 80": where an error was raised."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}"


class _OutOfTime(BaseException):
    """Ends a task; no Exception, which readers take for a damaged file."""


@contextlib.contextmanager
def within(timeout_s, item):
    """UserError, which names the item, where the block takes more than timeout_s; None: no limit.

    A call into a library of C ends first. Elsewhere than in the main thread, as on a worker of a
    cluster, what waits (for a lock, a sleep) ends first, too.
    """
    if timeout_s is None:
        yield
        return

    try:
        main = threading.current_thread() is threading.main_thread()
        with _alarm(timeout_s) if main and hasattr(signal, "setitimer") else _told(timeout_s):
            yield
    except _OutOfTime:
        raise UserError(f"{item}: not done within {timeout_s:g} s. Give it longer with --timeout, "
                        "or leave the recording out.") from None


@contextlib.contextmanager
def _alarm(timeout_s):
    """Raise _OutOfTime in the main thread by a signal, which also ends a sleep."""
    def ring(*_):
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_s, AGAIN_S)
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # it rang on the line above
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _told(timeout_s):
    """Raise _OutOfTime in this thread, from another one."""
    thread = ctypes.c_ulong(threading.get_ident())
    tell = ctypes.pythonapi.PyThreadState_SetAsyncExc
    done = threading.Event()

    def watch():
        wait_s = timeout_s
        while not done.wait(wait_s):
            tell(thread, ctypes.py_object(_OutOfTime))
            wait_s = AGAIN_S

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        try:
            done.set()
        finally:  # told on the line above, or at the last moment: it must not reach the next task
            done.set()
            watcher.join()
            tell(thread, None)


def local(path):
    """Where a file that `each` sent lies on this machine; the path itself where it was not sent."""
    sent = sent_to(path)
    return sent if sent.exists() else Path(path)


def sent_to(path):
    """Where a worker has its copy of a file of the client's: below the project it was sent with."""
    return settings.ROOT / "sent" / hashlib.sha256(str(path).encode()).hexdigest()


# --- many ---------------------------------------------------------------------------------------

def each(task, items, jobs=1, address=None, files=()):
    """Yield (item, result, why) as they finish, in no order; why: None, or a line: what failed.

    task: a function of one item, at the top of a module (or functools.partial of one); items: paths
    or texts. jobs: processes on this machine, unless address names a dask scheduler
    ("tcp://10.0.0.1:8786"), whose workers then do it; files: paths that are sent there (see
    `local`). Nothing is left in the queue when the caller stops. Raises UserError where the cluster
    cannot be reached or used, or is lost.
    """
    if address:
        yield from each_on_cluster(task, items, address, files)
        return

    if jobs == 1:
        yield from (attempt(task, item) for item in items)
        return

    # here: it takes a fifth of a second to load, and one recording does without
    import joblib

    # as they finish: a recording of a week would hold up those of minutes behind it
    try:
        yield from joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
            joblib.delayed(attempt)(task, item) for item in items)
    except BrokenProcessPool as error:
        raise UserError(
            f"a process of --jobs {jobs} was killed, out of memory perhaps ({first_line(error)}). "
            "Take fewer --jobs and run it again: what is done is skipped.") from error


def each_on_cluster(task, items, address, files):
    """`each` on a cluster; dask gives a lost worker's task to another, until that was in vain."""
    with connect(address) as client:
        on_worker = send_project(client, task, files)

        suspects = []
        for item, result in flow(client, on_worker, items):
            if result is None:
                suspects.append(item)
            else:
                yield result

        # what ran beside the one to blame was lost with it: alone, it is seen which one it was
        for suspect in suspects:
            for _, result in flow(client, on_worker, [suspect]):
                yield result or (
                    suspect, None, f"{suspect}: every worker that took it was lost, by itself, "
                    "too: out of memory, or a crash in a library. Its log says more")


def flow(client, on_worker, items):
    """(item, what on_worker gave) as they finish, None where all workers that took it were lost.

    Raises ConnectionError where the scheduler is lost, UserError where all workers are, or one of
    them cannot run the project.
    """
    from distributed import KilledWorker, as_completed
    waiting = iter(items)
    sent = {}  # item of each future that is on its way
    done = as_completed(loop=client.loop, with_results=True, raise_errors=False)
    while True:

        # as many as the workers that are there now want; one at least, for those that will come
        room = max(1, AHEAD * sum(client.nthreads().values())) - len(sent)
        for item in itertools.islice(waiting, max(0, room)):
            future = client.submit(on_worker, item, pure=False)
            sent[future.key] = item
            done.add(future)
        if not sent:
            return

        # lost: the worker that had it, so often that dask gives it to no other
        future, result = next(done)
        item = sent.pop(future.key)
        if future.status == "finished":
            yield item, result
        elif future.status != "error":
            raise ConnectionError("cancelled")
        elif isinstance(result[1], KilledWorker):
            yield item, None
        else:
            raise UserError(
                f"--cluster: no worker can do it ({first_line(result[1])}). Every worker needs the "
                f"libraries of this machine: pip install -r requirements.txt; {INSTALL}. Then run "
                "it again: what is done is skipped.")


# --- the cluster --------------------------------------------------------------------------------

@contextlib.contextmanager
def connect(address):
    """A client of the scheduler at address, with a worker or more; UserError if there is none."""
    try:
        import distributed
        from distributed.comm import connect as knock
    except ImportError as error:
        raise UserError(f"--cluster needs dask ({error}). Install it with: {INSTALL}") from error

    # what it would log of a lost scheduler, in a hundred lines, is said here in one
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    try:
        # a client that finds nobody takes 16 s more to close: a bare connection says so at once
        import asyncio
        asyncio.run(knock(address, timeout=CONNECT_S)).abort()
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except Exception as error:  # whatever listens there may answer anything
        raise UserError(
            f"--cluster {address}: no dask scheduler answers there ({first_line(error)}). Expected "
            "an address such as tcp://10.0.0.1:8786, which `dask scheduler` prints when it starts."
        ) from error

    try:
        client.wait_for_workers(1, timeout=CONNECT_S)

        # a lambda is sent by value, as the function of `worker_function` is
        client.run_on_scheduler(lambda dask_scheduler: setattr(
            dask_scheduler, "no_workers_timeout", dask_scheduler.no_workers_timeout or LOST_S))
        yield client
    except distributed.TimeoutError as error:
        raise UserError(
            f"--cluster {address}: the scheduler has no worker. Start some with: dask worker "
            f"{address} --nworkers N --nthreads 1") from error
    except OSError as error:
        raise UserError(
            f"--cluster {address}: the connection to the scheduler was lost ({first_line(error)}). "
            "Run it again: what is done is skipped.") from error
    finally:
        client.close(timeout=CONNECT_S)


def send_project(client, task, files):
    """Send the project and `files` to all workers, those to come included.

    They go as one zip, named after its content: a worker that has it is not sent it again. Returns
    the function of an item that the workers are to run.
    """
    import cloudpickle
    from distributed.diagnostics.plugin import UploadFile

    # what each file is called there, and where it lies here
    paths = [*settings.ROOT.glob("*.py")]
    for room in ROOMS:
        paths += (settings.ROOT / room).rglob("*.*")
    copies = {path: path for path in paths if path.suffix != ".pyc"}
    copies |= {sent_to(path): Path(path) for path in files}

    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "project.zip")
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
            for there, path in sorted(copies.items()):
                # without the time of the file: the same content is the same bytes
                file.writestr(zipfile.ZipInfo(there.relative_to(settings.ROOT).as_posix()),
                              path.read_bytes())
        content = hashlib.sha256(archive.read_bytes()).hexdigest()
        archive = archive.rename(Path(folder, f"ecg-{content}.zip"))

        # idempotent: a zip that another client's tasks are reading is not written again
        upload = UploadFile(archive, load=False)
        upload.idempotent = True
        client.register_plugin(upload, name=archive.name)
    return worker_function(archive.name, cloudpickle.dumps(task), versions())


def versions():
    """{name: version} of PACKAGES here, without what names the build (2.13.0+cpu)."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in PACKAGES}


def worker_function(archive, task, expected):
    """The function of an item that a worker runs: `attempt` with the project that is in `archive`.

    A nested function is sent by value: neither the scheduler nor a new worker has this module. It
    imports the project from the zip in place of the same modules from anywhere else, since a worker
    outlives its clients and config.py may have been edited since the last one came.
    """
    def run(item):
        from distributed import get_worker
        path = Path(get_worker().local_directory, archive)
        root = str(path.with_suffix(""))

        # one lock for all threads of the worker and all its clients
        with sys.__dict__.setdefault("ecg_import_lock", threading.Lock()):
            if sys.path[0] != root:
                with zipfile.ZipFile(path) as file:
                    file.extractall(root)
                    ours = {name.partition("/")[0].removesuffix(".py") for name in file.namelist()}

                # what an earlier client sent, or what was imported from the worker's own folder
                for name in list(sys.modules):
                    if name.partition(".")[0] in ours:
                        del sys.modules[name]
                sys.path[:] = dict.fromkeys([root, *sys.path])

            # with other libraries the same record would not give the same bytes
            cluster = importlib.import_module("recording.cluster")
            found = cluster.versions()
            if found != expected:
                raise ImportError(f"a worker has {found}, expected {expected}")
            work = pickle.loads(task)
        return cluster.attempt(work, item)
    return run


def first_line(error):
    """What an error says, as one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
