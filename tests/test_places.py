"""Recordings and results at addresses: an S3 server, a web server, memory, all of this machine."""

import re
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import config
import detect
from pipeline import simulated_ecg
from pipeline.errors import UserError
from recording import cluster, places

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Folder with two simulated records of 40 s."""
    folder = tmp_path_factory.mktemp("archive")
    simulated_ecg.write_database(folder, ("s01", "s02"), duration_s=40, seed=5)
    return folder


def upload(archive, url):
    """The file system of the address, with the files of the archive."""
    fs = fsspec.filesystem(url.partition(":")[0], use_listings_cache=False)
    fs.put(f"{archive}/", f"{url}/", recursive=True)
    return fs


@pytest.fixture
def web(archive):
    """(address, requests, troubles): a web server of the archive.

    Each of `troubles` happens to one GET: a number is a status, "cut" the half of a file, "stalled"
    silence in the middle of it.
    """
    requests, troubles = [], []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            trouble = troubles.pop(0) if troubles else None
            if trouble is None:
                return super().do_GET()
            if isinstance(trouble, int):
                return self.send_error(trouble)
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 500)
            self.wfile.flush()
            if trouble == "stalled":
                time.sleep(4)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=archive))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests, troubles
    server.shutdown()


# --- addresses ----------------------------------------------------------------------------------

def test_addresses_are_told_from_paths():
    for text in ("/a/b.hea", "C:\\x", "a:b", "x"):
        assert places.place_of(text) == places.place_of(f"file://{text}") == Path(text)
    for text in ("s3://b/x", "https://h/x", "memory://x"):
        assert places.place_of(text) == text
    assert places.beside("https://h/a/x.hea?token=a/b", "x.dat") == "https://h/a/x.dat"
    assert places.name_of("s3://b/a?b.hea") == "a?b.hea"


@pytest.mark.parametrize("text, names", [
    ("deep/s01", ["s01"]), ("deep/s01.hea", ["s01"]), ("", ["s01", "s02"]),
    ("*/*.hea", ["s01", "s02"]), ("deep/s0[2]*", ["s02"])])
def test_files_records_folders_and_patterns_are_found(archive, text, names):
    upload(archive, "memory://found/deep")
    found = places.find(f"memory://found/{text}")
    assert [places.name_of(url) for url in found] == [f"{name}.hea" for name in names]
    with pytest.raises(UserError, match="memory://nowhere/x/: no recording there"):
        places.find("memory://nowhere/x/")


def test_files_of_a_recording_are_those_its_headers_name(tmp_path):
    files = {"m.hea": "m/2 1 360 20\nm_a 10\n~ 5\n", "m.atr": "z", "m.csv": "not of it",
             "m_a.hea": "m_a 1 360 5\n# x.dat\nother.dat 16 200\n", "other.dat": "y"}
    memory = fsspec.filesystem("memory")
    for name, text in files.items():
        memory.pipe_file(f"/many/{name}", text.encode())
        (tmp_path / name).write_text(text)
    found = [tmp_path / "m.hea", "memory://many/m.hea"]
    before = [places.files_of(place, "atr") for place in found]
    assert before == [places.files_of(place, "atr") for place in found]
    memory.pipe_file("/many/other.dat", b"longer")
    (tmp_path / "other.dat").write_bytes(b"longer")
    for place, old in zip(found, before):
        assert set(old) == {*files} - {"m.csv"}
        new = places.files_of(place)
        assert set(new) == set(old) - {"m.atr"}
        assert [name for name in new if new[name] != old[name]] == ["other.dat"]


def test_hostile_names_in_a_header_are_not_fetched():
    fs = fsspec.filesystem("memory")
    for key in ("/deep/../secret", "/deep/~"):  # a store may have such keys
        fs.pipe_file(key, b"secret")
    fs.pipe_file("/deep/h.hea", b"h/2 3 360 10\n../secret 16 200\n~ 0\nh 10\n")
    assert set(places.files_of("memory://deep/h.hea")) == {"h.hea"}


def test_lists_hold_a_recording_a_line(archive, tmp_path):
    lines = ["# archive", f"{archive}/s01.hea", "", "  memory://b/x.edf  ", f"{archive}/s02"]
    (tmp_path / "list").write_text("\n".join(lines))
    found = places.find_places(["memory://b/x.edf"], [tmp_path / "list"], True)
    assert found == [archive / "s01.hea", archive / "s02.hea", "memory://b/x.edf"]
    with pytest.raises(UserError, match="--list .*gone: cannot be read"):
        places.find_places([], [tmp_path / "gone"], False)


def test_fsspec_is_loaded_for_addresses_alone(archive, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert set(places.files_of(archive / "s01.hea")) == {"s01.hea", "s01.dat"}
    with pytest.raises(UserError, match="pip install -r requirements/cluster.txt"):
        places.files_of("s3://ecg/x.hea")


# --- reading and writing --------------------------------------------------------------------------

def fetch(url):
    """{name: bytes} of a recording's files as they come to this machine."""
    with places.fetched(url, places.files_of(url)) as path:
        return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def test_a_recording_comes_from_the_web_as_it_is(archive, web):
    address, requests, _ = web
    for name, content in fetch(f"{address}/s01.hea?token=1").items():
        assert content == (archive / name).read_bytes()
    assert requests.count("/s01.dat") == 1 and set(requests) == {"/s01.hea?token=1", "/s01.dat"}


@pytest.mark.parametrize("trouble", [503, 429, "cut", "stalled"])
def test_what_may_pass_on_the_web_is_tried_again(web, monkeypatch, trouble):
    address, _, troubles = web
    if trouble == "stalled":
        monkeypatch.setattr(config, "DOWNLOAD_TIMEOUT_S", 1)
    monkeypatch.setattr(cluster, "WAITS_S", (0,))
    url = f"{address}/s01.hea"
    troubles += [trouble]
    _, files, _ = cluster.attempt(fetch, url)
    assert set(files) == {"s01.hea", "s01.dat"} and not troubles
    troubles += [trouble] * 2
    assert cluster.attempt(fetch, url)[2].startswith(f"{url}: the store does not answer")


def test_what_will_not_pass_is_said_at_once(archive, web, s3):
    address, requests, troubles = web
    with pytest.raises(UserError, match=f"{address}/gone.hea: missing"):
        fetch(f"{address}/gone.hea")
    assert len(requests) <= 2
    troubles += [403] * 2
    with pytest.raises(UserError, match=f"{address}/s01.hea: refused.*403"):
        fetch(f"{address}/s01.hea")
    for missing in (f"{s3}/gone.hea", "s3://nobucket/x.hea"):
        with pytest.raises(UserError, match=f"{missing}: missing"):
            fetch(missing)


@pytest.mark.parametrize("size, error, said", [(9, ConnectionError, "5 of 9 bytes"),
                                               (None, UserError, "^memory://cut/s.dat: bad")])
def test_a_copy_is_whole_and_its_errors_name_the_address(size, error, said):
    fsspec.filesystem("memory").pipe_file("/cut/s.dat", b"12345")
    with pytest.raises(error, match=said):
        with places.fetched("memory://cut/s.dat", {"s.dat": {"size": size}}) as path:
            raise UserError(f"{path}: bad")


def test_a_failed_block_puts_nothing_and_the_summary_comes_last(monkeypatch):
    put = []
    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file",
                        lambda self, path, url: put.append(url))
    with pytest.raises(ZeroDivisionError):
        with places.written("memory://put/n", last=".json") as stem:
            Path(f"{stem}.csv").write_text("half")
            1 / 0
    assert put == []
    with places.written("memory://put/n", last=".json") as stem:
        for end in (".json", ".csv", ".png"):
            Path(f"{stem}{end}").write_text("x")
    assert put == ["/put/n.csv", "/put/n.png", "/put/n.json"]


# --- detect.py ----------------------------------------------------------------------------------

def contents(folder):
    """{name: bytes}; of a summary all but its origin, which tells addresses apart."""
    return {path.name: re.sub(rb'"origin": "\w{64}"', b"", path.read_bytes())
            for path in folder.iterdir()}


def test_s3_and_cluster_give_the_bytes_of_one_process(archive, s3, dask_cluster, tmp_path, capsys):
    """Recordings from S3 to S3 by the workers; what is done is skipped from anywhere."""
    detect.main([str(archive), "--out", str(tmp_path / "one"), "--threads", "2"])
    fs = upload(archive, f"{s3}/in")
    command = [f"{s3}/in/*.hea", "--out", f"{s3}/out", "--threads", "2"]
    detect.main([*command, "--cluster", dask_cluster])
    fs.get(f"{s3}/out/", str(tmp_path / "got") + "/", recursive=True)
    expected = contents(tmp_path / "one")
    assert contents(tmp_path / "got") == expected and len(expected) == 10
    fs.rm_file(f"{s3}/out/s02.ecgad.csv")
    for done in (1, 2):
        capsys.readouterr()
        detect.main(command)
        assert capsys.readouterr().out.count("done before") == done
    with pytest.raises(UserError, match="1 of 1 .* failed:\n  s3://nobucket/x.hea: missing"):
        detect.main(["s3://nobucket/x.hea", "--cluster", dask_cluster])
