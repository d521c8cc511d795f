"""Every fault of a network ends in verified files or a UserError, and never in half a file.

The server runs on 127.0.0.1 only; nothing here asks the network.
"""

from contextlib import contextmanager
import errno
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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

import pytest

import config
from pipeline import errors, settings
from pipeline import download

random.seed(1)
FILES = {f"{number}.{suffix}": random.randbytes(3000)
         for number in range(100, 106) for suffix in ("atr", "dat", "hea")}
FILES["100.dat"] = random.randbytes(60_000)               # more than one chunk
DIGESTS = {name: hashlib.sha256(body).hexdigest() for name, body in FILES.items()}
CLOSED = "http://127.0.0.1:9/"                            # the discard port: refused


class Handler(BaseHTTPRequestHandler):
    """Answers as server.plan(name, n) says for the n-th request (from 0) of a file."""

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        server = self.server
        with server.lock:
            asked = sum(entry[0] == name for entry in server.log)
            server.log.append((name, time.monotonic()))
            server.active += 1
            server.most_active = max(server.most_active, server.active)
        try:
            self.answer(server.plan(name, asked), server.files.get(name))
        except OSError:
            pass                                          # the client hung up
        finally:
            with server.lock:
                server.active -= 1

    def head(self, status, length=None, **fields):
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in fields.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()

    def answer(self, plan, body):
        half = len(body or b"") // 2
        if plan == "later":
            self.head(429, 0, Retry_After="60")
        elif isinstance(plan, int) or body is None:
            self.head(plan if isinstance(plan, int) else 404, 0)
        elif plan == "good":
            self.head(200, len(body))
            self.wfile.write(body)
        elif plan == "slow":
            self.head(200, len(body))
            for start in range(0, len(body), half):
                time.sleep(0.02)
                self.wfile.write(body[start:start + half])
        elif plan in ("drop", "no length"):               # half the body, with and without a length
            self.head(200, len(body) if plan == "drop" else None)
            self.wfile.write(body[:half])
        elif plan == "altered":
            self.head(200, len(body))
            self.wfile.write(body[:half] + bytes([body[half] ^ 1]) + body[half + 1:])
        elif plan == "stall":
            self.head(200, len(body))
            self.wfile.write(body[:half])
            self.server.over.wait(30)
        elif plan == "silent":
            self.server.over.wait(30)
        elif plan == "trickle":
            self.head(200, len(body))
            while not self.server.over.wait(0.02):
                self.wfile.write(b"x")
        elif plan == "endless":
            self.head(200)
            while not self.server.over.is_set():
                self.wfile.write(bytes(100_000))

    def log_message(self, *_):
        pass


@contextmanager
def serve(plan="good", files=FILES):
    """A server; `plan` is one answer for all, or a function of name and number of the request."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.plan = plan if callable(plan) else lambda name, asked: plan
    server.files, server.log, server.lock, server.over = files, [], threading.Lock(), threading.Event()
    server.active = server.most_active = 0
    server.url = f"http://127.0.0.1:{server.server_port}/files/mitdb/1.0.0/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(folder, *addresses, connections=4, timeout_s=0.4, retries=2, base_wait_s=0.01, digests=DIGESTS):
    sources = [(f"source {i}", str(address)) for i, address in enumerate(addresses)]
    download.fetch_database(folder, digests, sources, connections, timeout_s, retries, base_wait_s)


def assert_verified(folder, names=FILES):
    """The folder lists exactly `names`, every one with the right bytes."""
    assert sorted(os.listdir(folder)) == sorted(names)
    for name in names:
        assert (folder / name).read_bytes() == FILES[name]


def write(folder, names=FILES):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(FILES[name])
    return folder


def names_asked(server):
    return [name for name, _ in server.log]


# --- Digests


def test_shipped_digests_are_the_three_files_of_every_record():
    digests = download.read_digests(settings.ROOT / "mitdb_sha256.txt")
    assert sorted(digests) == sorted(f"{record}.{suffix}" for record in settings.database("mitdb").records
                                     for suffix in ("hea", "dat", "atr"))
    assert digests["100.hea"] == "60ebc904c7bf3e04d142638d3fd5c903e8dc9f10f1ea3264e07926aa089ee75e"
    assert len(set(digests.values())) == 144


@pytest.mark.parametrize("line", ["abc 100.dat", "0" * 64, "0" * 64 + " ../100.dat", "0" * 64 + " .part-1"])
def test_malformed_digest_names_file_and_line(tmp_path, line):
    path = tmp_path / "sums.txt"
    path.write_text(f"{'1' * 64} 100.atr\n{line}\n")
    with pytest.raises(errors.UserError, match="sums.txt, line 2"):
        download.read_digests(path)


def test_missing_list_of_digests(tmp_path):
    with pytest.raises(errors.UserError, match="nowhere.txt"):
        download.read_digests(tmp_path / "nowhere.txt")


def test_sha256sum_format_is_read_too(tmp_path):
    path = tmp_path / "sums.txt"
    path.write_text("".join(f"{digest.upper()}  {name}\n" for name, digest in DIGESTS.items()))
    assert download.read_digests(path) == DIGESTS


def test_damaged_names_missing_altered_and_impossible_files(tmp_path):
    folder = write(tmp_path / "db")
    (folder / "101.hea").unlink()
    (folder / "102.hea").write_bytes(FILES["102.hea"][:-1] + b"?")
    (folder / "103.dat").unlink()
    (folder / "103.dat").mkdir()
    assert download.damaged(folder, DIGESTS) == ["101.hea", "102.hea", "103.dat"]
    assert download.damaged(tmp_path / "none", DIGESTS) == list(DIGESTS)


# --- What goes well


def test_all_files_arrive_and_the_summary_counts_them(tmp_path, capsys):
    with serve() as server:
        fetch(tmp_path / "a" / "db", server.url)
    assert_verified(tmp_path / "a" / "db")
    assert sorted(names_asked(server)) == sorted(FILES)
    shown = capsys.readouterr()
    assert "18 of 18 files verified (18 fetched from source 0, 0 already there)" in shown.out
    assert shown.err == ""                                # no bar where there is no terminal


def test_only_missing_and_damaged_files_are_asked_for(tmp_path, capsys):
    folder = write(tmp_path / "db")
    (folder / "100.atr").unlink()
    (folder / "104.dat").write_bytes(b"damaged")
    with serve() as server:
        fetch(folder, server.url.rstrip("/"))
    assert sorted(names_asked(server)) == ["100.atr", "104.dat"]
    assert_verified(folder)
    assert "(2 fetched from source 0, 16 already there)" in capsys.readouterr().out


def test_complete_database_needs_no_network(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path / "db")

    def forbidden(*_, **__):
        raise AssertionError("asked the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbidden)
    fetch(folder, *[address for _, address in download.SOURCES])
    assert "18 of 18 files verified (18 already there)" in capsys.readouterr().out


def test_connections_stay_within_the_limit(tmp_path):
    with serve("slow") as server:
        fetch(tmp_path, server.url, connections=3)
    assert_verified(tmp_path)
    assert server.most_active == 3


def test_files_keep_the_permissions_that_other_files_get(tmp_path):
    with serve() as server:
        fetch(tmp_path / "db", server.url)
    other = tmp_path / "other"
    other.write_bytes(b"")
    assert (tmp_path / "db" / "100.dat").stat().st_mode == other.stat().st_mode


def test_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with serve() as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        fetch(tmp_path, "http://mirror.invalid/mitdb/")
    assert_verified(tmp_path)


# --- What goes wrong once


@pytest.mark.parametrize("fault", ["drop", "no length", "stall", "silent", 503, 500, 429])
def test_a_passing_fault_is_retried(tmp_path, fault):
    with serve(lambda name, asked: fault if name == "100.dat" and asked < 2 else "good") as server:
        fetch(tmp_path, server.url)
    assert_verified(tmp_path)
    assert names_asked(server).count("100.dat") == 3
    assert len(server.log) == len(FILES) + 2


@pytest.mark.parametrize("fault, requests", [(404, 1), (403, 1), ("altered", 1), ("drop", 3), (503, 3)])
def test_a_lasting_fault_of_one_file_goes_to_the_next_source(tmp_path, capsys, fault, requests):
    with serve(lambda name, asked: fault if name == "100.dat" else "good") as bad, serve() as good:
        fetch(tmp_path, bad.url, good.url)
    assert_verified(tmp_path)
    assert names_asked(bad).count("100.dat") == requests
    assert names_asked(good) == ["100.dat"]
    assert "(17 fetched from source 0, 1 fetched from source 1, 0 already there)" in capsys.readouterr().out


def test_waits_double(tmp_path):
    digests = {"100.dat": DIGESTS["100.dat"]}
    with serve(503) as server, pytest.raises(errors.UserError):
        fetch(tmp_path, server.url, retries=3, base_wait_s=0.05, digests=digests)
    times = [moment for _, moment in server.log]
    pauses = [after - before for before, after in zip(times, times[1:])]
    assert len(pauses) == 3
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2)))
    assert sum(pauses) < 2


def test_server_that_names_a_pause_gets_it_up_to_the_timeout(tmp_path):
    with serve(lambda name, asked: "later" if asked == 0 else "good") as server:
        fetch(tmp_path, server.url, digests={"100.dat": DIGESTS["100.dat"]})
    assert_verified(tmp_path, ["100.dat"])
    assert 0.4 <= server.log[1][1] - server.log[0][1] < 4


# --- What stays wrong


@pytest.mark.parametrize("fault, reason", [
    (404, "HTTP 404"), (503, "HTTP 503"), (429, "HTTP 429"), ("altered", "another SHA-256"),
    ("drop", "IncompleteRead"), ("no length", "another SHA-256"), ("stall", "no answer for 0.25 s"),
    ("silent", "no answer for 0.25 s"), ("trickle", "too slow")])
def test_a_lasting_fault_is_told_and_leaves_no_half_file(tmp_path, fault, reason):
    def plan(name, asked):
        return fault if name.endswith(".dat") else "good"

    start = time.monotonic()
    with serve(plan) as server, pytest.raises(errors.UserError) as caught:
        fetch(tmp_path, server.url, connections=6, timeout_s=0.25, retries=2)
    assert time.monotonic() - start < 10
    names = [name for name in FILES if not name.endswith(".dat")]
    assert_verified(tmp_path, names)
    message = str(caught.value)
    assert "6 of 18 files are missing; 12 are verified and kept" in message
    assert reason in message and server.url in message and "e.g. 10" in message
    for way in ("python dataset.py --download --source DIR_OR_URL", download.ZIP_BY_HAND,
                "python synthetic.py", "--simulated", "make simulated"):
        assert way in message


def test_connection_of_a_trickling_server_is_closed(tmp_path):
    with serve("trickle") as server:
        with pytest.raises(errors.UserError, match="too slow"):
            fetch(tmp_path, server.url, timeout_s=0.15, digests={"100.dat": DIGESTS["100.dat"]})
        wait_for(lambda: server.active == 0, 1)
    assert len(server.log) == 1                           # a second time it would be as slow


def test_endless_body_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 1_000_000)
    with serve("endless") as server, pytest.raises(errors.UserError, match="more than 1 MB"):
        fetch(tmp_path, server.url, digests={"100.dat": DIGESTS["100.dat"]})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("plan", [503, "drop", "no length"])
def test_a_dead_source_is_left_after_a_few_files(tmp_path, plan):
    with serve(plan) as dead, serve() as good:
        fetch(tmp_path, dead.url, good.url, connections=2, retries=1)
    assert_verified(tmp_path)
    assert len(set(names_asked(dead))) <= download.DEAD_AFTER + 2
    assert sorted(names_asked(good)) == sorted(FILES)


def test_a_dead_source_ends_the_pauses_of_other_files(tmp_path):
    start = time.monotonic()
    with serve(lambda name, _: "later" if name.startswith("100") else 503) as server:
        with pytest.raises(errors.UserError, match="HTTP 503: [4-9] files.*were not asked for"):
            fetch(tmp_path, server.url, timeout_s=20)     # "later" pauses as long as the time-out
    assert time.monotonic() - start < 5


def test_absent_files_do_not_make_a_source_dead(tmp_path):
    with serve(lambda name, _: "good" if name == "105.hea" else 404) as server:
        with pytest.raises(errors.UserError, match="17 of 18"):
            fetch(tmp_path, server.url, connections=1)
    assert_verified(tmp_path, ["105.hea"])


def test_each_source_has_one_line(tmp_path):
    with serve(404) as first, serve("altered") as second, pytest.raises(errors.UserError) as caught:
        fetch(tmp_path, first.url, CLOSED, second.url)
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  source ")]
    assert len(lines) == 3
    assert "HTTP 404: 18 files, e.g. 100.atr" in lines[0]
    assert "onnection refused: 18 files" in lines[1]
    assert "another SHA-256: 18 files" in lines[2]
    assert os.listdir(tmp_path) == []


def fake_resolver(monkeypatch, delay_s, calls):
    def resolve(*_, **__):
        calls.append(time.monotonic())
        time.sleep(delay_s)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_machine_without_network_hears_it_soon(tmp_path, monkeypatch):
    calls, digests = [], download.read_digests(settings.ROOT / "mitdb_sha256.txt")
    fake_resolver(monkeypatch, 0, calls)
    start = time.monotonic()
    with pytest.raises(errors.UserError, match="name resolution.*\n.*name resolution") as caught:
        download.fetch_database(tmp_path, digests, download.SOURCES, config.DOWNLOAD_CONNECTIONS,
                                config.DOWNLOAD_TIMEOUT_S, config.DOWNLOAD_RETRIES)
    assert time.monotonic() - start < 4
    assert len(calls) == 4                                # once more for each source
    assert "144 of 144 files are missing; 0 are verified" in str(caught.value)


def test_silent_resolver_or_firewall_is_not_waited_for(tmp_path, monkeypatch):
    fake_resolver(monkeypatch, 3, [])
    assert len(download.SOURCES) * download.CONTACT_S < 18
    monkeypatch.setattr(download, "CONTACT_S", 0.3)
    start = time.monotonic()
    with pytest.raises(errors.UserError, match="no connection within 0.3 s"):
        fetch(tmp_path, *[address for _, address in download.SOURCES])
    assert time.monotonic() - start < 1.5


# --- Interruptions

SCRIPT = """
import sys, download
sums, folder, url, timeout_s = sys.argv[1:]
download.fetch_database(folder, download.read_digests(sums), [("s", url)], 2, float(timeout_s), 4)
"""


@contextmanager
def started(tmp_path, server, timeout_s):
    """The download in a process of its own, writing to tmp_path / "db"."""
    sums = tmp_path / "sums.txt"
    sums.write_text("".join(f"{digest} {name}\n" for name, digest in DIGESTS.items()))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, sums, tmp_path / "db", server.url, str(timeout_s)],
        env={**os.environ, "PYTHONPATH": str(settings.ROOT)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_killed_at_any_moment_then_completed(tmp_path):
    folder, leftovers = tmp_path / "db", 0
    with serve("slow") as server:
        for more in (1, 3, 4, 4):
            goal = len(server.log) + more
            with started(tmp_path, server, 5) as process:
                wait_for(lambda: len(server.log) >= goal)
                time.sleep(random.uniform(0, 0.04))
                process.kill()
                process.wait()
            names = [name for name in os.listdir(folder) if not name.startswith(".part-")]
            leftovers += len(os.listdir(folder)) - len(names)
            assert not set(names) & set(download.damaged(folder, DIGESTS))
        assert leftovers, "no kill fell into a transfer"
        fetch(folder, server.url)
    assert_verified(folder)


def test_ctrl_c_ends_a_stalled_download_at_once(tmp_path):
    with serve(lambda name, _: "stall" if name.endswith(".hea") else "good") as server:
        with started(tmp_path, server, 30) as process:
            wait_for(lambda: server.active == 2 and {"100.hea", "101.hea"} <= set(names_asked(server)))
            time.sleep(0.1)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(10)
            assert time.monotonic() - start < 2
            assert process.returncode in (-signal.SIGINT, 130)
            assert b"KeyboardInterrupt" in process.stderr.read()
        assert_verified(tmp_path / "db", ["100.atr", "100.dat", "101.atr", "101.dat"])
        server.plan = lambda name, asked: "good"
        fetch(tmp_path / "db", server.url)
    assert_verified(tmp_path / "db")


def test_leftovers_of_a_killed_run_are_removed_even_without_network(tmp_path):
    folder = write(tmp_path / "db")
    (folder / ".part-0123").write_bytes(b"half")
    fetch(folder, CLOSED)
    assert_verified(folder)


# --- The disk


@pytest.mark.parametrize("below", ["", "db"])
def test_folder_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_bytes(b"")
    with serve() as server, pytest.raises(errors.UserError, match="cannot write .*file"):
        fetch(tmp_path / "file" / below, server.url)
    assert server.log == []


def refuse(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def refuse_new(path, mode):
    return open(path, mode) if mode == "rb" else refuse()


def refuse_bytes(path, mode):
    """A file that can be made and not written to: larger bodies fail in write, small ones in close."""
    file = open(path, mode)
    if mode == "xb":
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, file.fileno())
        os.close(full)
    return file


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
@pytest.mark.parametrize("owner, name, fake", [
    (os, "replace", refuse), (download, "open", refuse_new), (download, "open", refuse_bytes)])
@pytest.mark.parametrize("kind", ["mirror", "folder"])
@pytest.mark.parametrize("only", ["100.dat", "100.hea"])
def test_full_disk_stops_with_the_path_and_no_half_file(tmp_path, monkeypatch, owner, name, fake, kind, only):
    source = write(tmp_path / "source")
    with serve() as server, pytest.raises(errors.UserError) as caught:
        monkeypatch.setattr(owner, name, fake, raising=False)
        fetch(tmp_path / "db", server.url if kind == "mirror" else source, timeout_s=5,
              digests={only: DIGESTS[only]})
    assert f"cannot write {tmp_path / 'db' / only}: No space left on device" in str(caught.value)
    assert os.listdir(tmp_path / "db") == []


def test_full_disk_ends_the_other_transfers_too(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse)
    start = time.monotonic()
    with serve(lambda name, _: "good" if name == "100.atr" else "stall") as server:
        with pytest.raises(errors.UserError, match="cannot write .*100.atr"):
            fetch(tmp_path, server.url, timeout_s=30)
    assert time.monotonic() - start < 2
    assert os.listdir(tmp_path) == []


# --- Folders and zips


@pytest.mark.parametrize("below", [".", "mitdb", "mit-bih-arrhythmia-database-1.0.0", "data/mitdb"])
def test_folder_source(tmp_path, below):
    write(tmp_path / "source" / below)
    fetch(tmp_path / "db", tmp_path / "source")
    assert_verified(tmp_path / "db")


def test_folder_source_takes_the_verified_one_of_two_copies(tmp_path):
    write(tmp_path / "source" / "b")
    write(tmp_path / "source" / "a")
    (tmp_path / "source" / "a" / "100.dat").write_bytes(b"damaged")
    fetch(tmp_path / "db", tmp_path / "source")
    assert_verified(tmp_path / "db")


def test_folder_source_with_damaged_and_missing_files(tmp_path):
    source = write(tmp_path / "source")
    (source / "100.dat").write_bytes(b"damaged")
    (source / "101.dat").write_bytes(b"damaged")
    (source / "102.dat").unlink()
    with pytest.raises(errors.UserError, match="another SHA-256: 2 files, e.g. 100.dat; 1 others"):
        fetch(tmp_path / "db", source)
    assert_verified(tmp_path / "db", set(FILES) - {"100.dat", "101.dat", "102.dat"})


@pytest.mark.parametrize("address", ["nowhere", "ftp://host/mitdb/", "http://", "http://127.0.0.1:99999/"])
def test_source_that_is_none(tmp_path, address):
    with pytest.raises(errors.UserError) as caught:
        fetch(tmp_path / "db", address)
    assert address in str(caught.value)
    assert os.listdir(tmp_path / "db") == []


def make_zip(top="mit-bih-arrhythmia-database-1.0.0/", files=FILES, **more):
    members = {**more, f"{top}RECORDS": b"100\n", **{top + name: body for name, body in files.items()}}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return stream.getvalue()


@pytest.mark.parametrize("top", ["mit-bih-arrhythmia-database-1.0.0/", "", "data/mitdb/"])
def test_zip_as_physionet_serves_it_or_repacked(tmp_path, top):
    path = tmp_path / "mitdb.zip"
    path.write_bytes(make_zip(top))
    fetch(tmp_path / "db", path)
    assert_verified(tmp_path / "db")


@pytest.mark.parametrize("place", ["mitdb.zip", "content/mitdb/get-zip/1.0.0/"])
@pytest.mark.parametrize("fault", ["good", "drop", "no length"])
def test_zip_from_a_url(tmp_path, place, fault):
    files = {place.rsplit("/", 1)[-1]: make_zip()}
    with serve(lambda _, asked: fault if asked == 0 else "good", files) as server:
        fetch(tmp_path, server.url + place)
    assert_verified(tmp_path)
    assert len(server.log) == (1 if fault == "good" else 2)


def test_zip_members_stay_in_the_folder(tmp_path):
    evil = {"../../100.dat": b"evil", "/tmp/101.dat": b"evil", "..\\102.dat": b"evil", "../evil.dat": b"evil"}
    path = tmp_path / "mitdb.zip"
    path.write_bytes(make_zip(**evil))
    fetch(tmp_path / "a" / "db", path)
    assert_verified(tmp_path / "a" / "db")
    assert sorted(os.listdir(tmp_path)) == ["a", "mitdb.zip"]


def test_zip_bomb_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_FILE_BYTES", 100_000)
    path = tmp_path / "bomb.zip"
    path.write_bytes(make_zip(files={**FILES, "100.dat": bytes(5_000_000)}))
    with pytest.raises(errors.UserError, match="more than 0.1 MB: 1 files, e.g. 100.dat"):
        fetch(tmp_path / "db", path)
    assert_verified(tmp_path / "db", set(FILES) - {"100.dat"})


@pytest.mark.parametrize("damage", ["no zip", "cut", "altered"])
def test_damaged_zip(tmp_path, damage):
    body = bytearray(make_zip())
    middle = body.index(FILES["102.dat"][1000:1016])      # random bytes are stored as they are
    body[middle] ^= 1
    path = tmp_path / "mitdb.zip"
    path.write_bytes({"no zip": b"<html>", "cut": body[:-2000], "altered": body}[damage])
    with pytest.raises(errors.UserError, match="cannot be read|another SHA|not a zip"):
        fetch(tmp_path / "db", path)
    assert_verified(tmp_path / "db", set(FILES) - {"102.dat"} if damage == "altered" else [])


def test_a_given_source_is_the_only_one():
    assert download.choose_sources("http://mirror/") == [("http://mirror/", "http://mirror/")]
    assert [name for name, _ in download.choose_sources(None)] == ["PhysioNet", "AWS"]
