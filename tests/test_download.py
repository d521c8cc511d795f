"""Every fault of a network ends in verified files or a UserError, and never in half a file.

The server runs on 127.0.0.1 only; nothing here asks the network.
"""

import dataclasses
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import Mock

import pooch
import pytest

from pipeline import download, errors, settings

random.seed(1)
FILES = {f"{number}.{suffix}": random.randbytes(3000)
         for number in range(100, 106) for suffix in ("atr", "dat", "hea")}
FILES["100.dat"] = random.randbytes(60_000)
DIGESTS = {name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()}
CLOSED = "http://127.0.0.1:9/"                            # the discard port: refused
ONE = ["100.dat"]


class Handler(BaseHTTPRequestHandler):
    """Answers as server.plan(name, n) says for the n-th request (from 0) of a file; HEAD: 501."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        server = self.server
        with server.lock:
            plan = server.plan(name, server.log.count(name))
            server.log.append(name)
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        with suppress(OSError):                           # the client hung up
            self.answer(plan, server.files[name], server.over)
        with server.lock:
            server.active -= 1

    def answer(self, plan, body, over):
        """A status; or half the body, then what the plan says, at once or when the test is over."""
        body = {"altered": bytes(3000), "endless": bytes(2_000_000)}.get(plan, body)
        over.wait({"silent": 30, "slow": 0.05}.get(plan, 0))
        self.send_response(plan if isinstance(plan, int) else 200)
        if plan == 429:
            self.send_header("Retry-After", "7")
        if plan not in ("cut", "endless"):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()

        half = len(body) // 2
        self.wfile.write(body[:half])
        while plan == "trickle" and not over.wait(0.02):
            self.wfile.write(b"?")
        over.wait(30 * (plan == "stall"))
        if plan not in ("cut", "drop"):
            self.wfile.write(body[half:])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """`plan` is one answer for all, or a function of the name and the number of a request."""

    def __init__(self, plan="good", files=FILES):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan = plan if callable(plan) else lambda name, asked: plan
        self.files = files
        self.log = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.active = self.most_active = 0
        self.url = f"http://127.0.0.1:{self.server_port}/files/mitdb/1.0.0/"
        threading.Thread(target=self.serve_forever, args=[0.02]).start()

    def __exit__(self, *_):
        self.over.set()
        self.shutdown()
        self.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """No proxy; the waits [s] of pooch and of the downloader, which are not waited for."""
    monkeypatch.setenv("no_proxy", "*")
    waited = []
    clock = SimpleNamespace(sleep=waited.append, monotonic=time.monotonic)
    monkeypatch.setattr(pooch.core, "time", clock)
    monkeypatch.setattr(download, "time", clock)
    return waited


@pytest.fixture
def database(tmp_path):
    return describe(tmp_path)


def describe(root, sources=(), names=FILES):
    """A settings.Database of `names` below `root`."""
    digests = root / "sums.txt"
    digests.write_text("".join(f"{DIGESTS[name]} {name}\n" for name in names))
    return dataclasses.replace(settings.database("mitdb"), home=root, digests=digests,
                               sources=sources)


def fetch(database, *sources, names=FILES, source=None, timeout_s=0.4, connections=4, retries=2):
    described = describe(database.home, sources, names)
    download.fetch_database(described, source, connections, timeout_s, retries)


def assert_verified(database, names=FILES):
    """The folder lists exactly `names`, every one with the right bytes."""
    stored = {path.name: path.read_bytes() for path in database.records_dir().iterdir()}
    assert stored == {name: FILES[name] for name in names}


def write(folder, names=FILES):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


# --- Digests


@pytest.mark.parametrize("name", ["mitdb", "svdb"])
def test_shipped_digests_are_the_three_files_of_every_record(name):
    described = settings.database(name)
    names = {f"{record}.{kind}" for record in described.records for kind in ("hea", "dat", "atr")}
    digests = download.read_digests(described.digests)
    assert digests.keys() == names
    assert len(set(digests.values())) == len(names)


@pytest.mark.parametrize("line", ["abc 100.dat", "0" * 64, f"{'0' * 64} ../100.dat"])
def test_malformed_digest_names_file_and_line(tmp_path, line):
    path = tmp_path / "sums.txt"
    path.write_text(f"{'1' * 64} *100.atr\n{line}\n")
    with pytest.raises(errors.UserError, match="sums.txt, line 2"):
        download.read_digests(path)
    with pytest.raises(errors.UserError, match="nowhere.txt"):
        download.read_digests(tmp_path / "nowhere.txt")


# --- What goes well


def test_only_missing_and_damaged_files_are_asked_for_a_few_at_a_time(database, capsys):
    folder = write(database.records_dir(), list(FILES)[:9])
    (folder / "100.dat").write_bytes(b"damaged")
    with Server("slow") as server:
        fetch(database, server.url.rstrip("/"), connections=3)
    assert set(server.log) == {"100.dat", *list(FILES)[9:]} and len(server.log) == 10
    assert server.most_active == 3
    assert_verified(database)
    # as readable to others as any new file
    assert (folder / "100.dat").stat().st_mode == (folder / "100.atr").stat().st_mode
    # no bar where there is no terminal
    assert capsys.readouterr() == ("18 of 18 files verified (10 of them fetched now)\n", "")


def test_complete_database_needs_no_network_and_loses_what_a_killed_run_left(database):
    write(write(database.records_dir()) / ".part-download")
    with Server() as server:
        fetch(database, server.url)
    assert server.log == []
    assert_verified(database)


def test_proxy_of_the_environment_is_used(database, monkeypatch):
    with Server() as proxy:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        fetch(database, "http://mirror.invalid/mitdb/")
    assert_verified(database)


# --- What goes wrong once


@pytest.mark.parametrize("fault", ["drop", "cut", "altered", "stall", "silent", 503])
def test_a_passing_fault_is_retried_after_waits(database, waits, fault):
    with Server(lambda name, asked: fault if name == "100.dat" and asked < 2 else "good") as server:
        fetch(database, server.url)
    assert_verified(database)
    assert server.log.count("100.dat") == 3
    assert len(server.log) == len(FILES) + 2
    assert waits == [1, 2]


@pytest.mark.parametrize("fault, times", [(404, 1), ("altered", 3), (503, 3)])
def test_a_lasting_fault_of_one_file_goes_to_the_next_source(database, fault, times):
    with Server(lambda name, _: fault if name == "100.dat" else "good") as bad, Server() as good:
        fetch(database, bad.url, good.url)
    assert_verified(database)
    assert bad.log.count("100.dat") == times
    assert good.log == ONE


def test_server_that_names_a_pause_gets_it(database, waits):
    with Server(lambda name, asked: "good" if asked else 429) as server:
        fetch(database, server.url, names=ONE)
    assert waits == [7, 1]


# --- What stays wrong


@pytest.mark.parametrize("fault, reason", [
    (404, "HTTP 404"), (503, "HTTP 503"), ("altered", "another SHA-256"),
    ("drop", "IncompleteRead"), ("stall", "timed out"), ("silent", "timed out"),
    ("trickle", "too slow"), ("endless", "more than 1 MB")])
def test_a_lasting_fault_is_told_and_leaves_no_half_file(database, monkeypatch, fault, reason):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 1_000_000)
    with Server(lambda name, _: fault if name == "103.dat" else "good") as server:
        with pytest.raises(errors.UserError, match=reason) as caught:
            fetch(database, server.url, timeout_s=0.25, retries=1)
    assert_verified(database, [name for name in FILES if name != "103.dat"])
    message = str(caught.value)
    for said in ("1 of 18 files are missing", f"{server.url}: 1 files failed (e.g. 103.dat)",
                 "dataset.py --download --source", "dataset.py --database simulated"):
        assert said in message
    assert caught.value.exit_status == 1


def test_a_dead_source_is_left_after_a_few_files(database):
    with Server(503) as dead, Server() as good:
        fetch(database, dead.url, good.url, connections=2)
    assert_verified(database)
    assert len(set(dead.log)) < 12
    assert len(good.log) == len(FILES)


def test_absent_files_do_not_make_a_source_dead(database):
    with Server(lambda name, _: "good" if name == "105.hea" else 404) as server:
        with pytest.raises(errors.UserError, match="17 of 18"):
            fetch(database, server.url, connections=1)
    assert_verified(database, ["105.hea"])


def test_no_source_that_answers_is_unreachable_and_names_each(database):
    with Server(404) as absent, pytest.raises(errors.Unreachable) as caught:
        fetch(database, absent.url, CLOSED, "http://127.0.0.1:99999/")
    assert caught.value.exit_status == 3
    lines = str(caught.value).splitlines()
    assert "18 files failed (e.g. 100.atr), 18 of them: HTTP 404" in lines[1]
    assert "Connection refused" in lines[2]
    assert_verified(database, [])
    with pytest.raises(errors.UserError) as caught:
        fetch(database, source=CLOSED)
    assert caught.value.exit_status == 1                  # the user named it: no simulated data


def test_silent_resolver_or_firewall_is_not_waited_for(database, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(3))
    monkeypatch.setattr(download, "CONTACT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(errors.Unreachable, match="no answer"):
        fetch(database, "http://silent.invalid/")
    assert time.monotonic() - start < 2


# --- Interruptions

SCRIPT = """
import pathlib, sys
sys.path += [".", "tests"]
import test_download
from pipeline import errors
root, url, timeout_s = sys.argv[1:]
database = test_download.describe(pathlib.Path(root))
errors.run(lambda: test_download.fetch(database, url, timeout_s=float(timeout_s), connections=2))
"""


@contextmanager
def started(database, server, timeout_s):
    """The download in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, database.home, server.url, str(timeout_s)]
    process = subprocess.Popen(command, cwd=settings.ROOT, stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_killed_at_any_moment_then_completed(database):
    folder = database.records_dir()
    with Server("slow") as server:
        for goal in (1, 5, 12):
            with started(database, server, 5) as process:
                wait_for(lambda: len(server.log) >= goal)
                time.sleep(random.uniform(0, 0.04))
                process.kill()
                process.wait()
            assert (folder / ".part-download").exists(), "the kill fell into no transfer"
            for path in folder.glob("1*"):
                assert path.read_bytes() == FILES[path.name]
        fetch(database, server.url)
    assert_verified(database)


def test_ctrl_c_ends_a_stalled_download_at_once(database):
    with Server(lambda name, _: "stall" if name.endswith(".hea") else "good") as server:
        with started(database, server, 30) as process:
            wait_for(lambda: server.active == 2 and "101.hea" in server.log)
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(2) == 130
            assert process.stderr.read() == b"stopped; finished files are kept\n"
    assert_verified(database, ["100.atr", "100.dat", "101.atr", "101.dat"])


# --- The disk


def test_full_disk_stops_at_once_and_leaves_no_half_file(database, monkeypatch):
    monkeypatch.setattr("pipeline.artefacts.os.replace", Mock(side_effect=OSError("No space left")))
    start = time.monotonic()
    with Server(lambda name, _: "good" if name == "100.atr" else "stall") as server:
        with pytest.raises(OSError, match="No space left"):
            fetch(database, server.url, timeout_s=30)
    assert time.monotonic() - start < 2
    # A transfer that has just begun may make its folder again: the next run removes it.
    assert set(os.listdir(database.records_dir())) <= {".part-download"}


# --- Folders and zips


def test_folder_source_with_two_copies_damaged_and_missing_files(database):
    for folder, name in (("a", "100.dat"), ("deep/b", "101.dat")):
        copy = write(database.home / "source" / folder, FILES.keys() - {"103.dat"})
        (copy / name).write_bytes(b"damaged")
        (copy / "102.dat").write_bytes(b"damaged")
    with pytest.raises(errors.UserError, match="2 files failed .*102.dat.* 1 of them: another SHA"):
        fetch(database, source=str(database.home))
    assert_verified(database, FILES.keys() - {"102.dat", "103.dat"})


@pytest.fixture
def make_zip(tmp_path):
    def make(files=FILES):
        """Path of a zip with `files`, {name: content}, in a folder as PhysioNet has it."""
        with zipfile.ZipFile(tmp_path / "mitdb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"mit-bih-arrhythmia-database-1.0.0/{name}", content)
        return tmp_path / "mitdb.zip"

    return make


@pytest.mark.parametrize("place", ["mitdb.zip", "content/mitdb/get-zip/1.0.0/"])
@pytest.mark.parametrize("fault", ["good", "drop", "cut"])
def test_zip_from_a_url(database, make_zip, place, fault):
    files = {place.rpartition("/")[2]: make_zip().read_bytes()}
    with Server(lambda _, asked: "good" if asked else fault, files) as server:
        fetch(database, CLOSED, server.url + place)
    assert_verified(database)
    assert len(server.log) == (1 if fault == "good" else 2)


def test_zip_members_stay_in_the_folder(database, make_zip):
    evil = ("../../100.dat", "/tmp/101.dat", "..\\102.dat", "../../../evil.dat")
    fetch(database, source=str(make_zip(dict.fromkeys(evil, b"evil") | FILES)))
    assert_verified(database)
    assert sorted(os.listdir(database.home)) == ["data", "mitdb.zip", "sums.txt"]


def test_zip_bomb_is_read_no_further_than_a_file_may_be_long(database, make_zip, monkeypatch):
    # Even 100.dat as it should be, its first 50,000 bytes read and no more, has another digest.
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 50_000)
    with pytest.raises(errors.UserError, match="100.dat.*another SHA-256"):
        fetch(database, source=str(make_zip()))
    assert_verified(database, FILES.keys() - ONE)


def test_damaged_zip(database, make_zip):
    path = make_zip()
    content = path.read_bytes()
    middle = FILES["102.dat"][1000:1016]                  # random bytes are stored as they are
    for damaged, said in ((b"<html>", "no readable zip"), (content[:-2000], "no readable zip"),
                          (content.replace(middle, bytes(16)), "102.dat.*cannot be read")):
        path.write_bytes(damaged)
        with pytest.raises(errors.UserError, match=said):
            fetch(database, source=str(path))
    assert_verified(database, FILES.keys() - {"102.dat"})


def test_source_that_is_none(database):
    with pytest.raises(errors.UserError, match="ftp.*: no folder"):
        fetch(database, source="ftp://host/mitdb/")
    with pytest.raises(errors.UserError, match="written here by: python dataset.py --database"):
        download.fetch_database(settings.database("simulated"), None, 4, 1, 0)
