"""Shared fixtures: a small simulated database, a project folder of its own, the real database."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import config
import dataset
import evaluate
import train_mitbih
import visualize
from pipeline import settings, simulated_ecg
from pipeline.errors import UserError
from recording.beats import Evidence, ScoredBeats
from recording.reader import Recording, open_recording

# what a shell without a terminal starts in the background ignores Ctrl-C, and so would all that the
# tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = {"records": "s01 s02 s07 s08 s10 s11", "train": "s01 s02", "validation": "s07 s08",
         "test": "s10 s11"}
QUICK = {"MAX_EPOCHS": 3, "BATCH_SIZE": 64, "EPOCH_SEGMENTS": 1000, "SELF_CAUSAL_S": 30,
         "BOOTSTRAP_RESAMPLES": 100, "THREADS": 1}
ON_SIMULATED = ["--database", "simulated"]
ROOT = settings.ROOT
# tests that need one of these are left out by `make check`
SLOW = {"small", "evaluated", "evaluated_root", "project", "dask_cluster", "s3", "browser", "mitdb"}


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


def configure(patch, root):
    """Make config's "simulated" the small database in the folder `root`, with quick settings."""
    digests = str(root / "data" / "simulated" / "SHA256SUMS.txt")
    patch.setitem(config.DATABASES, "simulated", config.DATABASES["simulated"] | SMALL |
                  {"home": str(root), "digests": digests})
    for name, value in QUICK.items():
        patch.setattr(config, name, value)


@pytest.fixture(scope="session")
def small_database(tmp_path_factory):
    """Root of a simulated database of six records of 90 s; read-only: copy before you spoil it."""
    root = tmp_path_factory.mktemp("small")
    simulated_ecg.write_database(root / "data" / "simulated", SMALL["records"].split(),
                                 duration_s=90, seed=1)
    return root


@pytest.fixture
def small(small_database, tmp_path, monkeypatch):
    """The Database "simulated" at a private copy of the small database, with quick settings."""
    root = tmp_path / "simulated"
    shutil.copytree(small_database, root)
    configure(monkeypatch, root)
    return settings.database("simulated")


@pytest.fixture
def segments(small):
    """Segments of the small database, built and loaded."""
    dataset.main(ON_SIMULATED)
    return dataset.load_segments(small)


@pytest.fixture(scope="session")
def evaluated_root(small_database, tmp_path_factory):
    """The small database with all that the steps make of the beat protocol; read-only."""
    root = tmp_path_factory.mktemp("evaluated") / "simulated"
    shutil.copytree(small_database, root)
    with pytest.MonkeyPatch.context() as patch:
        configure(patch, root)
        for step in (dataset, train_mitbih, evaluate, visualize):
            step.main(ON_SIMULATED)
    return root


@pytest.fixture
def evaluated(small, evaluated_root):
    """The Database "simulated" at a private copy of a finished run."""
    shutil.copytree(evaluated_root, small.home, dirs_exist_ok=True)
    return small


class Project:
    """A copy of the project in a folder of its own, run as a user would: edit config.py, run."""

    def __init__(self, folder):
        self.folder = folder
        for path in ROOT.glob("*.py"):
            shutil.copy(path, folder)
        for room in ("pipeline", "scoring", "recording", "scaling", "studies"):
            shutil.copytree(ROOT / room, folder / room,
                            ignore=shutil.ignore_patterns("__pycache__"))

    def set(self, **values):
        """Edit settings in config.py."""
        path = self.folder / "config.py"
        text = path.read_text()
        for name, value in values.items():
            text, n = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", text)
            assert n == 1, name
        path.write_text(text)

    def use_small_database(self, small_database):
        """The session's small simulated database in place, and config's records those of it."""
        shutil.copytree(small_database, self.folder / "simulated")
        with open(self.folder / "config.py", "a") as file:
            file.write(f'\nDATABASES["simulated"].update({SMALL!r})\n')

    def start(self, *command):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, *command], cwd=self.folder, env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *command):
        process = self.start(*command)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err


# --- archives of shards -------------------------------------------------------------------------

ARCHIVE_PARTS = {"s01": "train", "s02": "train", "s10": "train", "s07": "validation",
                 "s08": "validation", "s11": "test"}


def write_archive(folder, tables, rows_a_shard):
    """Shards and index of {record: (columns, part)}, as scaling.build_shards writes them."""
    folder.mkdir(parents=True)
    today = settings.snapshot(settings.SEGMENT_SETTINGS)
    meta = np.array(json.dumps({"format": "ecg-shard-1", "settings": today}))
    entries = []
    for name, (columns, part) in tables.items():
        for k, first in enumerate(range(0, len(columns["y"]), rows_a_shard)):
            rows = slice(first, first + rows_a_shard)
            piece = {column: values[rows] for column, values in columns.items()}
            entries.append({"file": f"{name}-{k:03d}.npz", "record": name, "beats": len(piece["y"]),
                            "normal": int((piece["y"] == 0).sum()), "part": part})
            np.savez(folder / entries[-1]["file"], meta=meta, **piece)
    index = {"format": "ecg-shards-1", "shards": entries,
             "settings": today | {"LEADS": ["MLII"]}}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def archive_of(table, folder):
    """The small simulated database as shards in `folder`; table: its segments' columns and x."""
    tables = {}
    for name, part in ARCHIVE_PARTS.items():
        here = table["record"] == name
        columns = {column: values[here] for column, values in table.items()
                   if column != "meta" and not column.startswith("split_")}
        tables[name] = columns, part
    return write_archive(folder, tables, 50)


@pytest.fixture
def project(tmp_path):
    """Project in an empty folder with quick settings."""
    made = Project(tmp_path)
    made.set(**QUICK)
    return made


@pytest.fixture(scope="session")
def mitdb():
    """Folder of the real MIT-BIH database: $ECG_MITDB, which must then exist, or data/mitdb."""
    named = os.environ.get("ECG_MITDB")
    folder = Path(named).resolve() if named else ROOT / "data" / "mitdb"
    if named and not (folder / "100.dat").exists():
        pytest.fail(f"ECG_MITDB={named}: no MIT-BIH database there")
    if not (folder / "234.dat").exists():
        pytest.skip("no MIT-BIH database: python dataset.py --download, or set ECG_MITDB")
    return folder


# --- recordings of the user's own ---------------------------------------------------------------

def ecg_mv(samples=5003, leads=2, fs_hz=250, seed=0):
    """(samples, leads) mV: waves with noise within 2 mV; 5003 is prime to every block of bytes."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(samples)[:, None] / fs_hz
    wave = np.sin(2 * np.pi * time_s * (1 + np.arange(leads)))
    return np.clip(wave + 0.1 * rng.normal(size=(samples, leads)), -2, 2)


class Leads:
    """A Recording whose leads are arrays; `reads` are the stretches that were asked for."""

    def __init__(self, signals, fs_hz=100, names=("I",)):
        self.signals = signals
        self.fs_hz = float(fs_hz)
        self.leads = list(names)
        self.units = ["mV"]
        self.calibrated = [True]
        self.start = None
        self.n_samples = len(signals[0])
        self.reads = []

    each = Recording.each
    later = Recording.later

    def read(self, lead, start, stop):
        self.reads.append((start, stop))
        return np.array(self.signals[lead][start:stop], float)


def scored_beats(sample, excess, n_samples, fs_hz=100, line=3, name="r", lead="I", unit="mV"):
    """ScoredBeats of beats at these samples; NaN is not scored."""
    excess = np.asarray(excess, float)
    scored = np.isfinite(excess)
    beats = SimpleNamespace(time_s=np.asarray(sample) / fs_hz, scored=scored, readable=scored,
                            duration_s=n_samples / fs_hz,
                            unreadable=np.zeros(int(n_samples / fs_hz / 10) + 1, np.int8))
    # each kind a group of its own
    flagged = excess >= line
    found = Evidence(excess, excess, 0 * excess, 0 * excess, np.where(scored, "V", ""),
                     np.where(scored, 1 + flagged, 0), scored)
    return ScoredBeats(name, lead, 0, fs_hz, None, unit, beats, found, flagged, line,
                       np.where(flagged, "V", np.where(scored, "N", "")),
                       np.where(flagged, 1, 0),
                       mean_beats=([-0.01, 0, 0.01], None, [np.zeros(3)] * int(flagged.any())))


def leads_of(path, fs_hz=None, block=None):
    """(samples, leads) of a recording as it is read, `block` samples at a time."""
    with open_recording(path, fs_hz) as recording:
        block = block or recording.n_samples
        columns = []
        for k in range(len(recording.leads)):
            stretches = pairwise([*range(0, recording.n_samples, block), recording.n_samples])
            columns.append(np.concatenate([recording.read(k, *stretch) for stretch in stretches]))
    return np.column_stack(columns)


def refused(path, *words, fs_hz=None):
    """A file that cannot be opened or read: the UserError names the file and says the words."""
    with pytest.raises(UserError) as caught:
        leads_of(path, fs_hz)
    message = str(caught.value)
    assert len(message) < 2000
    for word in (Path(path).stem, *words):
        assert word in message, message


class Evil:
    """Prints when it is unpickled, which no file from a stranger may be."""

    def __reduce__(self):
        return (print, ("unpickled!",))


def peak_bytes(action, *arguments, **more):
    """Most bytes of memory that a call held at a time."""
    tracemalloc.start()
    try:
        action(*arguments, **more)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def fuzz(path, rounds, header, opened=None, fs_hz=None):
    """Spoil the first `header` bytes of a file: it is read, or there is a UserError; both occur.

    opened: the recording that needs the file, if it is not the file itself.
    """
    raw = path.read_bytes()
    rng = np.random.default_rng(0)
    tokens = "-1 nan 1e999 99999999999 0 .. / ~ \0 \xff \n ( x3 :9 +7 8 212 /2 ٣ #"
    tokens = tokens.encode().split(b" ")
    read = 0
    for _ in range(rounds):
        data = bytearray(raw)
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(max(1, min(header, len(data)))))
            new = [tokens[rng.integers(len(tokens))], data[at:at + 40], rng.bytes(1)]
            new = new[rng.integers(3)]
            data[at:at + [0, len(new), 40][rng.integers(3)]] = new
        path.write_bytes(data)
        try:
            with open_recording(opened or path, fs_hz) as recording:
                n = recording.n_samples
                for k in range(min(len(recording.leads), 4)):
                    for start, stop in ((0, min(n, 500)), (max(0, n - 500), n)):
                        assert recording.read(k, start, stop).shape == (stop - start,)
            read += 1
        except UserError as error:
            assert len(str(error)) < 5000
    path.write_bytes(raw)
    leads_of(opened or path, fs_hz)
    assert read < rounds and (read or path.suffix == ".npz")  # a zip knows by its checksum


# --- a cluster and a store, as separate processes and servers of this machine ------------------

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def s3():
    """Address of an empty bucket on a local S3 server, which the environment names."""
    port = free_port()
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        pytest.importorskip("s3fs").S3FileSystem().mkdir("ecg")
        yield "s3://ecg"
    server.stop()


@contextlib.contextmanager
def start_dask(tmp_path_factory, *workers):
    """(address, [process]) of a scheduler and workers (flags of each), in empty folders."""
    distributed = pytest.importorskip("distributed")
    port = str(free_port())
    address = f"tcp://127.0.0.1:{port}"
    commands = [("scheduler", "--host", "127.0.0.1", "--port", port)]
    commands += [("worker", address, "--nthreads", "1", *flags) for flags in workers]
    processes = []
    for command in commands:
        folder = tmp_path_factory.mktemp("dask")
        env = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
               "TMPDIR": str(folder)}
        processes.append(subprocess.Popen(
            [sys.executable, "-m", "dask", *command, "--no-dashboard"], cwd=folder,
            env=os.environ | env, stderr=subprocess.DEVNULL))
    with distributed.Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(len(workers), 60)
    yield address, processes
    for process in reversed(processes):
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory, s3):
    """Address of a cluster of two workers, which nannies start again."""
    with start_dask(tmp_path_factory, (), ()) as (address, _):
        yield address
