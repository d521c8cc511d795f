"""Recordings and results at addresses: an S3 server, a web server and memory, all of this machine."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from recording import cluster
import detect
from recording import reader
from recording import places
from pipeline import simulated_ecg
from pipeline.errors import UserError

fsspec = pytest.importorskip("fsspec")
ENDS = ("", ".csv", ".json", ".png")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Folder with two simulated records of 40 s."""
    folder = tmp_path_factory.mktemp("archive")
    simulated_ecg.write_database(folder, ("s01", "s02"), duration_s=40, seed=5)
    return folder


@pytest.fixture(scope="module")
def one_process(archive, tmp_path_factory):
    """What detect.py makes of the archive on one process: {name: bytes}."""
    out = tmp_path_factory.mktemp("one")
    detect.main([str(archive), "--out", str(out), "--threads", "1"])
    return contents(out)


def contents(folder):
    """{name: bytes}; of a summary all but its origin, which tells addresses apart."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: without_origin(content) if name.endswith(".json") else content for name, content in found.items()}


def without_origin(content):
    summary = json.loads(content)
    assert len(summary.pop("origin")) == 64
    return summary


def uploaded(archive, url):
    fs = fsspec.filesystem(url.partition(":")[0], use_listings_cache=False)
    for path in archive.iterdir():
        fs.pipe_file(f"{url}/{path.name}", path.read_bytes())
    return fs


@pytest.fixture
def web(archive, tmp_path):
    """(address, requests, failures): a web server of a copy of the archive; each status in `failures` is sent once."""
    folder, requests, failures = tmp_path / "web", [], []
    shutil.copytree(archive, folder)

    class Handler(SimpleHTTPRequestHandler):
        def send_head(self):
            requests.append((self.command, self.path))
            if failures:
                return self.send_error(failures.pop(0))
            return super().send_head()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests, failures
    server.shutdown()


# --- addresses ----------------------------------------------------------------------------------

def test_addresses_are_told_from_paths():
    assert [places.is_url(t) for t in ("s3://b/x.hea", "https://h/x", "memory://x", "/a/b.hea", "C:\\x", "a:b", "x")] \
        == [True, True, True, False, False, False, False]
    assert places.place_of("file:///a/b.hea") == places.place_of("/a/b.hea") == Path("/a/b.hea")
    assert places.beside("https://h/a/x.hea?token=a/b", "x.dat") == "https://h/a/x.dat"
    assert places.beside("memory:///a/x.hea", "x.dat") == "memory:///a/x.dat"
    assert places.name_of("https://h/a/x.edf?token=a/b") == "x.edf" and places.name_of("s3://b/a?b.hea") == "a?b.hea"


def test_files_records_folders_and_patterns_are_found(archive):
    uploaded(archive, "memory://found/deep")
    find = lambda text: [url.rpartition("/")[2] for url in places.find(f"memory://found/{text}", reader.SUFFIXES)]
    assert find("deep/s01") == find("deep/s01.hea") == ["s01.hea"]
    assert find("deep/") == find("") == find("*/*.hea") == find("deep/s0*") == [f"s0{k}.hea" for k in range(1, 3)]
    assert find("deep/s0[12]*") == ["s01.hea", "s02.hea"]
    with pytest.raises(UserError, match="memory://found/x/: no recording there"):
        find("x/")


def test_files_of_a_recording_are_those_its_headers_name(tmp_path):
    files = {"m.hea": "m/2 1 360 20\nm_a 10\n~ 5\nm_b 5\n", "m_a.hea": "m_a 1 360 10\nm_a.dat 16 200 16 0 0 0 0 I\n",
             "m_b.hea": "m_b 1 360 5\nother.dat 16 200 16 0 0 0 0 I\n", "m_a.dat": "x", "other.dat": "y", "m.atr": "z",
             "m.csv": "not of it", "m_c.hea": "not of it"}
    for name, text in files.items():
        fsspec.filesystem("memory").pipe_file(f"/many/{name}", text.encode())
        (tmp_path / name).write_text(text)
    expected = {"m.hea", "m_a.hea", "m_b.hea", "m_a.dat", "other.dat"}
    for place in (tmp_path / "m.hea", "memory://many/m.hea"):
        before = places.files_of(place)
        assert set(before) == expected and set(places.files_of(place, "atr")) == expected | {"m.atr"}
    (tmp_path / "other.dat").write_text("longer")
    after = places.files_of(tmp_path / "m.hea")
    assert [name for name in expected if after[name] != places.files_of(tmp_path / "m.hea")[name]] == []
    fsspec.filesystem("memory").pipe_file("/many/other.dat", b"longer")
    assert [n for n, stamp in places.files_of("memory://many/m.hea").items() if stamp != before[n]] == ["other.dat"]


def test_hostile_names_in_a_header_are_not_fetched():
    fs = fsspec.filesystem("memory")
    for key in ("/deep/../secret", "/deep/..", "/deep/~"):  # a store may have such keys
        fs.pipe_file(key, b"secret")
    fs.pipe_file("/deep/h.hea", b"h 3 360 10\n../secret 16 200 16 0 0 0 0 I\n.. 16 200 16 0 0 0 0 II\n~ 0\n")
    assert set(places.files_of("memory://deep/h.hea")) == {"h.hea"}


def test_lists_hold_a_recording_a_line(archive, tmp_path):
    (tmp_path / "list").write_text(f"# archive\n{archive}/s01.hea\n\n  memory://b/x.edf  \n{archive}/s02\n")
    found = places.find_places([], [tmp_path / "list"], True)
    assert found == [archive / "s01.hea", archive / "s02.hea", "memory://b/x.edf"]
    with pytest.raises(UserError, match="--list .*gone: cannot be read"):
        places.find_places([], [tmp_path / "gone"], False)


def test_missing_libraries_name_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(UserError, match="pip install -r requirements-cluster.txt"):
        places.files_of("s3://ecg/x.hea")


# --- detect.py ----------------------------------------------------------------------------------

def test_web_recordings_give_the_same_bytes_and_are_fetched_once(archive, one_process, web, tmp_path, capsys):
    address, requests, _ = web
    command = [f"{address}/s01.hea", f"{address}/s02", "--out", str(tmp_path / "out"), "--threads", "1"]
    detect.main(command)
    expected = {name: content for name, content in one_process.items() if name[:3] in ("s01", "s02")}
    assert contents(tmp_path / "out") == expected and len(expected) == 8
    assert ("GET", "/s02.dat") in requests and not any(path.endswith(".atr") for _, path in requests)
    requests.clear()
    capsys.readouterr()
    detect.main(command)
    assert capsys.readouterr().out.count("done before") == 2 and ("GET", "/s02.dat") not in requests
    (tmp_path / "web" / "s02.dat").write_bytes((archive / "s01.dat").read_bytes())
    detect.main(command)
    assert capsys.readouterr().out.count("done before") == 1 and ("GET", "/s02.dat") in requests


def test_failing_web_server_is_asked_again_and_a_missing_file_is_not(web, tmp_path, monkeypatch):
    address, requests, failures = web
    monkeypatch.setattr(cluster, "WAITS_S", (0, 0))
    failures += [503, 503, 503]
    detect.main([f"{address}/s01.hea", "--beats", "atr", "--out", str(tmp_path / "out")])
    assert failures == [] and (tmp_path / "out" / "s01.ecgad.json").exists()
    requests.clear()
    with pytest.raises(UserError, match=rf"1 of 1 recordings failed:\n  {address}/gone.hea: missing"):
        detect.main([f"{address}/gone.hea", "--out", str(tmp_path / "out")])
    assert len(requests) <= 2
    failures += [403] * 4
    with pytest.raises(UserError, match="s01.hea: refused.*403"):
        detect.main([f"{address}/s01.hea", "--out", str(tmp_path / "out")])
    failures.clear()
    (tmp_path / "web" / "bad.hea").write_text("no header\n")
    with pytest.raises(UserError, match=rf"failed:\n  {address}/bad.hea: no record line"):
        detect.main([f"{address}/bad.hea", "--out", str(tmp_path / "out")])


def test_a_file_cut_short_on_its_way_is_not_taken_for_whole(tmp_path):
    fsspec.filesystem("memory").pipe_file("/cut/s.dat", b"12345")
    with pytest.raises(ConnectionError, match="5 of 9 bytes"):
        with places.fetched("memory://cut/s.dat", {"s.dat": [("size", "9")]}):
            pass


def test_nothing_can_be_written_to_the_web(web, tmp_path):
    for command in ([f"{web[0]}/s01.hea"], [str(tmp_path), "--out", web[0]]):
        shutil.copy(tmp_path / "web" / "s01.hea", tmp_path)
        with pytest.raises(UserError, match="give --out"):
            detect.main(command)


def test_s3_and_cluster_give_the_bytes_of_one_process(archive, one_process, s3, dask_cluster, tmp_path, capsys):
    """Recordings from S3 to S3 by the workers; the summary is put last; what is done is skipped from anywhere."""
    fs = uploaded(archive, f"{s3}/in")
    command = [f"{s3}/in/*.hea", "--out", f"{s3}/out", "--threads", "1"]
    detect.main([*command, "--cluster", dask_cluster])
    fs.get(f"{s3}/out/", str(tmp_path / "got") + "/", recursive=True)
    assert contents(tmp_path / "got") == one_process and len(one_process) == 8
    capsys.readouterr()
    detect.main(command)
    assert capsys.readouterr().out.count("done before") == 2
    fs.rm_file(f"{s3}/out/s02.ecgad.csv")
    detect.main(command)
    assert capsys.readouterr().out.count("done before") == 1 and fs.exists(f"{s3}/out/s02.ecgad.csv")
    with pytest.raises(UserError, match="1 of 1 recordings failed:\n  s3://nobucket/x.hea: missing"):
        detect.main(["s3://nobucket/x.hea", "--cluster", dask_cluster])


def test_a_failed_block_puts_nothing_and_the_summary_comes_last(monkeypatch):
    fs, put = fsspec.filesystem("memory"), []
    with pytest.raises(ZeroDivisionError):
        with places.written("memory://put/n", last=".json") as stem:
            Path(f"{stem}.csv").write_text("half")
            1 / 0
    assert not fs.exists("/put/n.csv")
    monkeypatch.setattr(type(fs), "put_file", lambda self, path, url, **kw: put.append(url))
    with places.written("memory://put/n", last=".json") as stem:
        for end in (".json", ".csv", ".png"):
            Path(f"{stem}{end}").write_text("x")
    assert put == ["/put/n.csv", "/put/n.png", "/put/n.json"]
