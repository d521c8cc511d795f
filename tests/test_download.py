"""Every fault of a network ends in verified files or a UserError, and never in half a file.

The server runs on 127.0.0.1 only; nothing here asks the network. Every test works in a folder of
its own, which is the database's home.
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
from pathlib import Path
from types import SimpleNamespace

import pooch
import pytest

from pipeline import download, errors, settings

random.seed(1)
FILES = {f"{number}.{suffix}": random.randbytes(3000)
         for number in range(100, 106) for suffix in ("atr", "dat", "hea")}
FILES["100.dat"] = random.randbytes(60_000)
CLOSED = "http://127.0.0.1:9/"                            # the discard port: refused
FOLDER = Path("data/mitdb")


class Handler(BaseHTTPRequestHandler):
    """Answers as server.plan(name, n) says for the n-th request (from 0) of a file; HEAD: 501."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        server = self.server
        plan = server.plan(name, server.log.count(name))
        server.log.append(name)
        server.active.append(name)
        server.busy.append(len(server.active))
        with suppress(OSError):                           # the client hung up
            self.answer(plan, server.files[name], server.over)
        server.active.remove(name)

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
        self.over = threading.Event()
        self.active = []
        self.busy = []
        self.url = f"http://127.0.0.1:{self.server_port}/files/mitdb/1.0.0/"
        threading.Thread(target=self.serve_forever, args=[0.02]).start()

    def __exit__(self, *_):
        self.over.set()
        self.shutdown()
        self.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch, tmp_path):
    """No proxy; the waits [s] of pooch and of the downloader, which are not waited for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    waited = []
    clock = SimpleNamespace(sleep=waited.append, monotonic=time.monotonic)
    monkeypatch.setattr(pooch.core, "time", clock)
    monkeypatch.setattr(download, "time", clock)
    return waited


def fetch(*sources, source=None, timeout_s=0.4, connections=4, retries=2):
    digests = Path("sums.txt")
    digests.write_text("".join(f"{hashlib.sha256(content).hexdigest()} {name}\n"
                               for name, content in FILES.items()))
    database = dataclasses.replace(settings.database("mitdb"), home=Path(), digests=digests,
                                   sources=sources)
    download.fetch_database(database, source, connections, timeout_s, retries)


def assert_verified(names=FILES):
    """The folder lists exactly `names`, every one with the right bytes."""
    stored = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert stored == {name: FILES[name] for name in names}


def write(folder, names=FILES):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(FILES[name])


# --- Digests


@pytest.mark.parametrize("name", ["mitdb", "svdb"])
def test_shipped_digests_are_the_three_files_of_every_record(name):
    described = settings.database(name)
    digests = download.read_digests(described.digests)
    assert set(digests) == {f"{record}.{kind}" for record in described.records
                            for kind in ("hea", "dat", "atr")}


@pytest.mark.parametrize("line", ["abc 100.dat", "0" * 64, f"{'0' * 64} ../100.dat"])
def test_malformed_digest_names_file_and_line(line):
    Path("sums.txt").write_text(f"{'1' * 64} *100.atr\n{line}\n")
    with pytest.raises(errors.UserError, match="sums.txt, line 2"):
        download.read_digests("sums.txt")
    with pytest.raises(errors.UserError, match="nowhere.txt"):
        download.read_digests("nowhere.txt")


# --- What goes well


def test_only_missing_and_damaged_files_are_asked_for_a_few_at_a_time(capsys):
    write(FOLDER, list(FILES)[:9])
    (FOLDER / "100.dat").write_bytes(b"damaged")
    with Server("slow") as server:
        fetch(server.url.rstrip("/"), connections=3)
    assert sorted(server.log) == ["100.dat", *list(FILES)[9:]]
    assert max(server.busy) == 3
    assert_verified()
    # as readable to others as any new file
    assert (FOLDER / "100.dat").stat().st_mode == (FOLDER / "100.atr").stat().st_mode
    # no bar where there is no terminal
    assert capsys.readouterr() == ("18 of 18 files verified (10 of them fetched now)\n", "")


def test_complete_database_needs_no_network_and_loses_what_a_killed_run_left():
    write(FOLDER)
    write(FOLDER / ".part-download")
    fetch(CLOSED)
    assert_verified()


# --- What goes wrong


@pytest.mark.parametrize("fault", ["drop", "cut", "altered", "stall", "silent", 503, 429])
def test_a_passing_fault_is_retried_after_waits(waits, fault):
    with Server(lambda name, asked: fault if name == "100.dat" and asked < 2 else "good") as server:
        fetch(server.url)
    assert_verified()
    assert server.log.count("100.dat") == 3
    assert len(server.log) == len(FILES) + 2
    # 7 s are what the server asks for
    assert waits == ([7, 1, 7, 2] if fault == 429 else [1, 2])


@pytest.mark.parametrize("fault, times, reason", [
    (404, 1, "HTTP 404"), (503, 2, "HTTP 503"), ("altered", 2, "another SHA-256"),
    ("drop", 2, "IncompleteRead"), ("stall", 2, "timed out"), ("trickle", 2, "too slow"),
    ("endless", 1, "more than 1 MB")])
def test_a_lasting_fault_is_told_leaves_no_half_file_and_goes_to_the_next_source(
        monkeypatch, fault, times, reason):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 1_000_000)
    start = time.monotonic()
    with Server(lambda name, _: fault if name == "103.dat" else "good") as bad, Server() as good:
        with pytest.raises(errors.UserError, match=reason) as caught:
            fetch(bad.url, timeout_s=0.25, retries=1)
        assert time.monotonic() - start < 4, "a trickle of 1,000 bytes takes 20 s"
        assert_verified(FILES.keys() - {"103.dat"})
        assert bad.log.count("103.dat") == times
        fetch(bad.url, good.url, timeout_s=0.25, retries=0)
    assert_verified()
    assert good.log == ["103.dat"]

    message = str(caught.value)
    for said in ("1 of 18 files are missing", f"{bad.url}: 1 files failed (e.g. 103.dat)",
                 "dataset.py --download --source", "dataset.py --database simulated"):
        assert said in message
    assert caught.value.exit_status == 1


def test_a_dead_source_is_left_after_a_few_files():
    with Server(503) as dead, Server() as good:
        fetch(dead.url, good.url, connections=2)
    assert_verified()
    assert len(set(dead.log)) < 12
    assert len(good.log) == len(FILES)


def test_no_source_that_answers_is_unreachable_and_names_each():
    with Server(404) as absent, pytest.raises(errors.Unreachable) as caught:
        fetch(absent.url, CLOSED, "http://127.0.0.1:99999/")
    assert caught.value.exit_status == 3
    lines = str(caught.value).splitlines()
    # all were asked for: absent files do not make a source dead
    assert "18 files failed (e.g. 100.atr), 18 of them: HTTP 404" in lines[1]
    assert "Connection refused" in lines[2]
    assert_verified([])
    with pytest.raises(errors.UserError) as caught:
        fetch(source=CLOSED)
    # the user named it: no simulated data instead
    assert caught.value.exit_status == 1


def test_silent_resolver_or_firewall_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: time.sleep(3))
    monkeypatch.setattr(download, "CONTACT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(errors.Unreachable, match="no answer"):
        fetch("http://silent.invalid/")
    assert time.monotonic() - start < 2


# --- Interruptions

SCRIPT = """
import sys, test_download
from pipeline import errors
errors.run(lambda: test_download.fetch(sys.argv[1], timeout_s=30, connections=2))
"""


@contextmanager
def started(server):
    """The download in a process of its own."""
    path = {"PYTHONPATH": f"{settings.ROOT}:{settings.ROOT / 'tests'}"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, server.url], env=os.environ | path,
                               stderr=subprocess.PIPE)
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


def test_killed_at_any_moment_then_completed():
    with Server("slow") as server:
        for goal in (1, 5, 12):
            with started(server):
                wait_for(lambda: len(server.log) >= goal)
                time.sleep(random.uniform(0, 0.04))
            assert (FOLDER / ".part-download").exists(), "the kill fell into no transfer"
            for path in FOLDER.glob("1*"):
                assert path.read_bytes() == FILES[path.name]
        fetch(server.url)
    assert_verified()


@pytest.mark.alone
def test_ctrl_c_ends_a_stalled_download_at_once():
    with Server(lambda name, _: "stall" if name.endswith(".hea") else "good") as server:
        with started(server) as process:
            wait_for(lambda: len(server.active) == 2 and "101.hea" in server.log)
            time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            assert process.wait(2) == 130
            assert process.stderr.read() == b"stopped; finished files are kept\n"
    assert_verified(["100.atr", "100.dat", "101.atr", "101.dat"])


# --- Folders and zips


def test_folder_source_with_two_copies_damaged_and_missing_files():
    for folder, damaged in (("a", "100.dat"), ("deep/b", "101.dat")):
        copy = Path("source", folder)
        write(copy, FILES.keys() - {"103.dat"})
        (copy / damaged).write_bytes(b"")
        (copy / "102.dat").write_bytes(b"")
    with pytest.raises(errors.UserError, match="2 files failed .*102.dat.* 1 of them: another SHA"):
        fetch(source="source")
    assert_verified(FILES.keys() - {"102.dat", "103.dat"})


def make_zip(files=FILES):
    """Content of mitdb.zip with `files`, {name: content}, in a folder as PhysioNet has it."""
    with zipfile.ZipFile("mitdb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"mit-bih-arrhythmia-database-1.0.0/{name}", content)
    return Path("mitdb.zip").read_bytes()


@pytest.mark.parametrize("place, fault", [("mitdb.zip", "cut"), ("mitdb/get-zip/1.0.0/", "drop")])
def test_zip_from_a_url(place, fault):
    files = {place.rpartition("/")[2]: make_zip()}
    with Server(lambda _, asked: "good" if asked else fault, files) as server:
        fetch(CLOSED, server.url + place)
    assert_verified()
    assert len(server.log) == 2


def test_zip_members_stay_in_the_folder():
    evil = ("../../100.dat", "/tmp/101.dat", "..\\102.dat", "../../../evil.dat")
    make_zip(dict.fromkeys(evil, b"evil") | FILES)
    fetch(source="mitdb.zip")
    assert_verified()
    assert sorted(os.listdir()) == ["data", "mitdb.zip", "sums.txt"]


def test_zip_bomb_is_read_no_further_than_a_file_may_be_long(monkeypatch):
    # Even 100.dat as it should be, its first 50,000 bytes read and no more, has another digest.
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 50_000)
    make_zip()
    with pytest.raises(errors.UserError, match="100.dat.*another SHA-256"):
        fetch(source="mitdb.zip")
    assert_verified(FILES.keys() - {"100.dat"})


def test_damaged_zip():
    content = make_zip()
    # random bytes are stored as they are
    middle = FILES["102.dat"][1000:1016]
    for damaged, said in ((b"<html>", "no readable zip"), (content[:-2000], "no readable zip"),
                          (content.replace(middle, bytes(16)), "102.dat.*cannot be read")):
        Path("mitdb.zip").write_bytes(damaged)
        with pytest.raises(errors.UserError, match=said):
            fetch(source="mitdb.zip")
    assert_verified(FILES.keys() - {"102.dat"})


def test_source_that_is_none():
    with pytest.raises(errors.UserError, match="ftp.*: no folder"):
        fetch(source="ftp://host/mitdb/")
    with pytest.raises(errors.UserError, match="written here by: python dataset.py --database"):
        download.fetch_database(settings.database("simulated"), None, 4, 1, 0)
