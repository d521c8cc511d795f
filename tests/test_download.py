"""Every fault of a network ends in verified files or a UserError, and never in half a file.

The server runs on 127.0.0.1 only; nothing here asks the network.
"""

import dataclasses
import errno
import hashlib
import io
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

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
        name = self.path.rsplit("/", 1)[-1]
        server = self.server
        with server.lock:
            plan = server.plan(name, server.log.count(name))
            server.log.append(name)
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            self.answer(plan, server.files[name], server.over)
        except OSError:
            pass                                          # the client hung up
        finally:
            with server.lock:
                server.active -= 1

    def answer(self, plan, body, over):
        """A status; or half the body, then what the plan says, at once or when the test is over."""
        if plan in ("altered", "endless"):
            body = bytes(len(body) if plan == "altered" else 2_000_000)
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
            self.wfile.write(bytes(8))
        over.wait(30 * (plan == "stall"))
        if plan not in ("cut", "drop"):
            self.wfile.write(body[half:])

    def log_message(self, *_):
        pass


@contextmanager
def serve(plan="good", files=FILES):
    """A server; `plan` is one answer for all, or a function of name and number of the request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.plan = plan if callable(plan) else lambda name, asked: plan
    server.files = files
    server.log = []
    server.lock = threading.Lock()
    server.over = threading.Event()
    server.active = server.most_active = 0
    server.url = f"http://127.0.0.1:{server.server_port}/files/mitdb/1.0.0/"
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


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
    folder = database.records_dir()
    assert sorted(os.listdir(folder)) == sorted(names)
    for name in names:
        assert (folder / name).read_bytes() == FILES[name]


def write(folder, names=FILES):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


# --- Digests


@pytest.mark.parametrize("name, files", [("mitdb", 144), ("svdb", 234)])
def test_shipped_digests_are_the_three_files_of_every_record(name, files):
    described = settings.database(name)
    digests = download.read_digests(described.digests)
    assert set(digests) == {f"{record}.{suffix}" for record in described.records
                            for suffix in ("hea", "dat", "atr")}
    assert len(set(digests.values())) == files


@pytest.mark.parametrize("line", ["abc 100.dat", "0" * 64, f"{'0' * 64} ../100.dat"])
def test_malformed_digest_names_file_and_line(tmp_path, line):
    path = tmp_path / "sums.txt"
    path.write_text(f"{'1' * 64} *100.atr\n{line}\n")
    with pytest.raises(errors.UserError, match="sums.txt, line 2"):
        download.read_digests(path)
    with pytest.raises(errors.UserError, match="nowhere.txt"):
        download.read_digests(tmp_path / "nowhere.txt")


def test_damaged_names_missing_and_altered_files(tmp_path):
    folder = write(tmp_path / "db")
    (folder / "101.hea").unlink()
    (folder / "102.hea").write_bytes(FILES["102.hea"][:-1] + b"?")
    assert download.damaged(folder, DIGESTS) == ["101.hea", "102.hea"]


# --- What goes well


def test_only_missing_and_damaged_files_are_asked_for_a_few_at_a_time(database, capsys):
    folder = write(database.records_dir(), list(FILES)[:9])
    (folder / "100.dat").write_bytes(b"damaged")
    with serve("slow") as server:
        fetch(database, server.url.rstrip("/"), connections=3)
    assert sorted(server.log) == ["100.dat", *sorted(list(FILES)[9:])]
    assert server.most_active == 3
    assert_verified(database)
    # as readable to others as any new file
    assert (folder / "100.dat").stat().st_mode == (folder / "100.atr").stat().st_mode
    shown = capsys.readouterr()
    assert "18 of 18 files verified (10 of them fetched now)" in shown.out
    assert shown.err == ""                                # no bar where there is no terminal


def test_complete_database_needs_no_network_and_loses_what_a_killed_run_left(database, monkeypatch):
    staging = write(database.records_dir()) / ".part-download"
    write(staging)

    def forbidden(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    fetch(database, "http://nowhere.invalid/")
    assert_verified(database)


def test_proxy_of_the_environment_is_used(database, monkeypatch):
    with serve() as proxy:
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        fetch(database, "http://mirror.invalid/mitdb/")
    assert_verified(database)


# --- What goes wrong once


@pytest.mark.parametrize("fault", ["drop", "cut", "altered", "stall", "silent", 503])
def test_a_passing_fault_is_retried_after_waits(database, waits, fault):
    with serve(lambda name, asked: fault if name == "100.dat" and asked < 2 else "good") as server:
        fetch(database, server.url)
    assert_verified(database)
    assert server.log.count("100.dat") == 3
    assert len(server.log) == len(FILES) + 2
    assert waits == [1, 2]


@pytest.mark.parametrize("fault, requests", [(404, 1), ("altered", 3), ("drop", 3), (503, 3)])
def test_a_lasting_fault_of_one_file_goes_to_the_next_source(database, fault, requests):
    with serve(lambda name, _: fault if name == "100.dat" else "good") as bad, serve() as good:
        fetch(database, bad.url, good.url)
    assert_verified(database)
    assert bad.log.count("100.dat") == requests
    assert good.log == ONE


def test_server_that_names_a_pause_gets_it(database, waits):
    with serve(lambda name, asked: "good" if asked else 429) as server:
        fetch(database, server.url, names=ONE)
    assert waits == [7, 1]


# --- What stays wrong


@pytest.mark.parametrize("fault, reason", [
    (404, "HTTP 404"), (503, "HTTP 503"), ("altered", "another SHA-256"), ("drop", "IncompleteRead"),
    ("cut", "another SHA-256"), ("stall", "timed out"), ("silent", "timed out"),
    ("trickle", "too slow"), ("endless", "more than 1 MB")])
def test_a_lasting_fault_is_told_and_leaves_no_half_file(database, monkeypatch, fault, reason):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 1_000_000)
    monkeypatch.setattr(download, "SLOW_TIMEOUTS", 1)
    with serve(lambda name, _: fault if name == "103.dat" else "good") as server:
        with pytest.raises(errors.UserError, match=reason) as caught:
            fetch(database, server.url, timeout_s=0.25, retries=1)
    assert_verified(database, [name for name in FILES if name != "103.dat"])
    message = str(caught.value)
    for said in ("1 of 18 files are missing", f"{server.url}: 1 files failed (e.g. 103.dat)",
                 "dataset.py --download --source", "dataset.py --database simulated"):
        assert said in message
    assert caught.value.exit_status == 1


@pytest.mark.parametrize("plan", [503, "drop"])
def test_a_dead_source_is_left_after_a_few_files(database, plan):
    with serve(plan) as dead, serve() as good:
        fetch(database, dead.url, good.url, connections=2, retries=1)
    assert_verified(database)
    assert len(set(dead.log)) <= 12
    assert sorted(good.log) == sorted(FILES)


def test_absent_files_do_not_make_a_source_dead(database):
    with serve(lambda name, _: "good" if name == "105.hea" else 404) as server:
        with pytest.raises(errors.UserError, match="17 of 18"):
            fetch(database, server.url, connections=1)
    assert_verified(database, ["105.hea"])


def test_no_source_that_answers_is_unreachable_and_names_each(database):
    with serve(404) as absent, pytest.raises(errors.Unreachable) as caught:
        fetch(database, absent.url, CLOSED, "http://", "http://127.0.0.1:99999/")
    assert caught.value.exit_status == 3
    lines = str(caught.value).splitlines()
    assert lines[1].endswith("18 files failed (e.g. 100.atr), 18 of them: HTTP 404")
    assert "Connection refused" in lines[2]
    assert os.listdir(database.records_dir()) == []
    with pytest.raises(errors.UserError) as caught:
        fetch(database, source=CLOSED)
    assert caught.value.exit_status == 1                  # the user named it: no simulated data


def test_silent_resolver_or_firewall_is_not_waited_for(database, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: threading.Event().wait(3))
    monkeypatch.setattr(download, "CONTACT_S", 0.2)
    start = time.monotonic()
    with pytest.raises(errors.Unreachable, match="no answer"):
        fetch(database, "http://one.invalid/", "http://two.invalid/")
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
    with serve("slow") as server:
        for more in (1, 4, 5):
            goal = len(server.log) + more
            with started(database, server, 5) as process:
                wait_for(lambda: len(server.log) >= goal)
                time.sleep(random.uniform(0, 0.05))
                process.kill()
                process.wait()
            names = [name for name in os.listdir(folder) if not name.startswith(".part-")]
            assert not set(names) & set(download.damaged(folder, DIGESTS))
        assert (folder / ".part-download").exists(), "no kill fell into a transfer"
        fetch(database, server.url)
    assert_verified(database)


def test_ctrl_c_ends_a_stalled_download_at_once(database):
    with serve(lambda name, _: "stall" if name.endswith(".hea") else "good") as server:
        with started(database, server, 30) as process:
            wait_for(lambda: server.active == 2 and {"100.hea", "101.hea"} <= set(server.log))
            time.sleep(0.1)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
            assert time.monotonic() - start < 2
            assert process.stderr.read() == b"stopped; finished files are kept\n"
        assert_verified(database, ["100.atr", "100.dat", "101.atr", "101.dat"])


# --- The disk


def test_full_disk_stops_at_once_and_leaves_no_half_file(database, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "100.atr")

    monkeypatch.setattr("pipeline.artefacts.os.replace", refuse)
    start = time.monotonic()
    with serve(lambda name, _: "good" if name == "100.atr" else "stall") as server:
        with pytest.raises(OSError, match="No space left.*100.atr"):
            fetch(database, server.url, timeout_s=30)
    assert time.monotonic() - start < 2
    # A transfer that has just begun may make its folder again: the next run removes it.
    assert set(os.listdir(database.records_dir())) <= {".part-download"}


# --- Folders and zips


def test_folder_source_with_two_copies_damaged_and_missing_files(database):
    for folder, damaged in (("a", ("100.dat", "102.dat")), ("deep/b", ("101.dat", "102.dat"))):
        copy = write(database.home / "source" / folder)
        for name in damaged:
            (copy / name).write_bytes(b"damaged")
        (copy / "103.dat").unlink()
    with pytest.raises(errors.UserError) as caught:
        fetch(database, source=str(database.home / "source"))
    assert "2 files failed (e.g. 102.dat), 1 of them: another SHA-256" in str(caught.value)
    assert_verified(database, set(FILES) - {"102.dat", "103.dat"})


def make_zip(**more):
    """A zip as PhysioNet serves it, with other members before its own: {name: content}."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in more.items():
            archive.writestr(name, content)
        for name in FILES.keys() - more.keys():
            archive.writestr(f"mit-bih-arrhythmia-database-1.0.0/{name}", FILES[name])
    return stream.getvalue()


@pytest.mark.parametrize("place", ["mitdb.zip", "content/mitdb/get-zip/1.0.0/"])
@pytest.mark.parametrize("fault", ["good", "drop", "cut"])
def test_zip_from_a_url(database, place, fault):
    files = {place.rsplit("/", 1)[-1]: make_zip()}
    with serve(lambda _, asked: fault if asked == 0 else "good", files) as server:
        fetch(database, CLOSED, server.url + place)
    assert_verified(database)
    assert len(server.log) == (1 if fault == "good" else 2)


def fetch_zip(database, content):
    path = database.home / "mitdb.zip"
    path.write_bytes(content)
    fetch(database, source=str(path))


def test_zip_members_stay_in_the_folder(database):
    evil = ("../../100.dat", "/tmp/101.dat", "..\\102.dat", "../evil.dat")
    fetch_zip(database, make_zip(**dict.fromkeys(evil, b"evil")))
    assert_verified(database)
    assert sorted(os.listdir(database.home)) == ["data", "mitdb.zip", "sums.txt"]


def test_zip_bomb_is_read_no_further_than_a_file_may_be_long(database, monkeypatch):
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 100_000)
    with pytest.raises(errors.UserError, match="e.g. 100.dat., 1 of them: another SHA-256"):
        fetch_zip(database, make_zip(**{"100.dat": FILES["100.dat"] + bytes(50_000_000)}))
    assert_verified(database, set(FILES) - {"100.dat"})


def test_damaged_zip(database):
    content = bytearray(make_zip())
    for unreadable in (b"<html>", content[:-2000]):
        with pytest.raises(errors.UserError, match="mitdb.zip: no folder, no readable zip"):
            fetch_zip(database, unreadable)
    content[content.index(FILES["102.dat"][1000:1016])] ^= 1  # random bytes are stored as they are
    with pytest.raises(errors.UserError, match="102.dat.*cannot be read"):
        fetch_zip(database, content)
    assert_verified(database, set(FILES) - {"102.dat"})


def test_source_that_is_none(database):
    for source in ("nowhere", "ftp://host/mitdb/"):
        with pytest.raises(errors.UserError, match="nowhere: no folder|ftp.*: no folder"):
            fetch(database, source=source)
    with pytest.raises(errors.UserError, match="written here by: python dataset.py --database"):
        download.fetch_database(settings.database("simulated"), None, 4, 1, 0)
