"""Any bytes and any array end in a result or in one clear line: no traceback, no file elsewhere.

HYPOTHESIS_PROFILE=long tries a hundred times as many as CI does; `make fuzz` looks with coverage
for what is new. What either found is in tests/fuzz/corpus, or an @example here.
"""

import io
import json
import os
import re
import resource
import time
import zipfile
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import wfdb
from hypothesis import HealthCheck, Phase, example, given, settings

import detect
from fuzz import targets
from pipeline.errors import UserError
from recording import reader_array

CORPUS = sorted(path for path in (Path(__file__).parent / "fuzz" / "corpus").iterdir())
DEFECT = re.compile(r"\.py, line \d+\)")        # cluster.describe: not the recording's own fault
MAX_S = 20
MAX_BYTES = 10**9

common = {"deadline": None, "suppress_health_check": list(HealthCheck)}
# without shrinking: a failing signal is one of few words already, and each run takes a second
settings.register_profile("ci", max_examples=9, derandomize=True, database=None,
                          phases=[Phase.explicit, Phase.generate], **common)
settings.register_profile("long", max_examples=1200, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# --- files ----------------------------------------------------------------------------------------

TOKENS = [token.encode("latin-1") for token in (
    "", "-1", "0", "nan", "1e999", "99999999999", "-", "/", "..", "~", "\0", "\n", ";", ",", '"',
    "\xff\xff\xff\x7f", "\xff" * 8, "\x80", ":", "+9", "x3", "(", "e", "\x1b[2J")]


@st.composite
def spoilt(draw, seeds):
    """A valid file with a few changes: bytes overwritten, put in, left out, moved."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 5))):
        most = draw(st.sampled_from([64, 600, 10**6]))
        at = draw(st.integers(0, max(0, min(len(data) - 1, most))))
        new = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8)))
        size = draw(st.sampled_from([0, len(new), 40, 10**6]))
        data[at:at + size] = new
    return bytes(data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_any_bytes_in_a_file(tmp_path, name):
    path, seeds = targets.TARGETS[name][0](tmp_path)
    assert any([targets.feed(name, path, seed) for seed in seeds])

    @settings(max_examples=4 * settings().max_examples)
    @given(st.one_of(spoilt(seeds), spoilt(seeds), st.binary(max_size=300)))
    def any_bytes(data):
        targets.feed(name, path, data)

    any_bytes()


@pytest.mark.parametrize("kept", CORPUS, ids=lambda path: path.name)
def test_what_was_found_before(tmp_path, kept):
    """tests/fuzz/corpus/TARGET.WHAT: files that once ended otherwise."""
    name = kept.name.partition(".")[0]
    path, _ = targets.TARGETS[name][0](tmp_path)
    targets.feed(name, path, kept.read_bytes())


def test_an_archive_that_unpacks_to_much_more_than_it_is(tmp_path, monkeypatch):
    """Zeros are packed a thousand times, and would fill the disk; small ones are read."""
    path = tmp_path / "r.npz"
    np.savez_compressed(path, signal=np.zeros(2**20))
    targets.read(path)
    monkeypatch.setattr(reader_array, "FREE_BYTES", 2**20)
    with pytest.raises(UserError, match="r.npz: .* would unpack to 8,388,736; no signal"):
        targets.read(path)


def test_names_in_an_archive_lead_nowhere_else(tmp_path):
    """zip knows no folders above."""
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "r.npz", "w") as archive:
        archive.writestr("../../evil.npy", targets.npy_bytes(targets.wave()))
    targets.read(tmp_path / "in" / "r.npz")
    assert not list(tmp_path.rglob("evil*"))


# --- detect.py ------------------------------------------------------------------------------------

def run(folder, *flags):
    """What detect.py says of a folder's recordings; out of it: nothing but what it wrote."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = folder.parent / "out"
    around = sorted(path for path in folder.parent.iterdir() if path != out)
    began = time.process_time()
    said = ""
    try:
        detect.main([str(folder), "--out", str(out), "--threads", "1", "--force", *flags])
    except UserError as error:
        said = str(error)

    assert time.process_time() - began < MAX_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < BASE_BYTES + MAX_BYTES
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert around == sorted(path for path in folder.parent.iterdir() if path != out)
    assert not DEFECT.search(said), said
    return said, out


def check_output(out):
    """The files of r agree, and hold numbers that other programs read."""
    summary = json.loads((out / "r.ecgad.json").read_text())
    table = pd.read_csv(out / "r.ecgad.csv")
    scored = table[table["state"] == "scored"]
    assert summary["beats"] == len(table) and summary["scored"] == len(scored)
    assert np.isfinite(scored[["excess", "score"]].to_numpy(float)).all()
    assert table["time_s"].is_monotonic_increasing
    assert 0 <= summary["unreadable_share"] <= 1 and summary["flagged"] == table["flag"].sum()
    notes = wfdb.rdann(str(out / "r"), "ecgad")
    assert set(notes.symbol) <= set("NSVFQ~+[]") and (np.diff(notes.sample) >= 0).all()
    assert (out / "r.ecgad.png").stat().st_size > 5000


BASE_BYTES = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
KINDS = ("beats", "constant", "noise", "spikes", "ramp", "square", "missing", "infinite", "random")
SIZES = (0.0, 1.0, -1.0, 1e-3, 1e3, 5e-324, 1e-300, 1e30, 1e154, 1e300, 1.7e308)
PIECES = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([1, 2, 30, 700, 5000, 9000]),
                            st.sampled_from(SIZES)), min_size=1, max_size=4)
DTYPES = ("f8", "f4", "f2", ">f8", "g", "i2", "i8", "u1")


def piece_of(kind, n, size, fs_hz, rng):
    """(n,) of one kind."""
    at = np.arange(n)
    with np.errstate(all="ignore"):
        return {
            "beats": lambda: size * np.exp(-np.square(at % int(0.8 * fs_hz) - 40) / 18),
            "constant": lambda: np.full(n, size), "noise": lambda: size * rng.normal(size=n),
            "spikes": lambda: np.where(rng.random(n) < 0.01, size, 0.0),
            "ramp": lambda: size * at, "square": lambda: size * np.sign(at % 200 - 100),
            "missing": lambda: np.full(n, np.nan), "infinite": lambda: np.full(n, size * np.inf),
            "random": lambda: rng.integers(0, 2**63, n).view(float)}[kind]()


def signal_of(pieces, leads, dtype, fs_hz):
    """(n, leads) of pieces one after the other; each lead another noise."""
    rng = np.random.default_rng(0)
    columns = [np.concatenate([piece_of(*piece, fs_hz, rng) for piece in pieces])
               for _ in range(leads)]
    with np.errstate(all="ignore"):
        return np.stack(columns, axis=1).astype(dtype)


@given(pieces=PIECES, leads=st.integers(1, 3), dtype=st.sampled_from(DTYPES),
       fs_hz=st.sampled_from([100, 128, 333.3, 360, 2000]),
       flags=st.sampled_from([[], ["--causal"], ["--score-all"], ["--lead", "all"], ["--html"],
                              ["--alarms-per-hour", "1e9"], ["--excess=-1e300"]]))
def test_any_array(tmp_path_factory, pieces, leads, dtype, fs_hz, flags):
    folder = tmp_path_factory.mktemp("any") / "in"
    folder.mkdir()
    np.save(folder / "r.npy", signal_of(pieces, leads, dtype, fs_hz))
    said, out = run(folder, "--fs", str(fs_hz), *flags)
    if "--lead" not in flags:
        assert not said or "r.npy: " in said, said
    if not said and "--lead" not in flags:
        check_output(out)


ANY_ARRAYS = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.lists(st.integers(0, 40), max_size=4),
              st.sampled_from(["f8", "i4", "c16", "?", "S3", "U2", "M8[s]", "O", "f8,i2"])))


@given(ANY_ARRAYS)
def test_any_shape_and_type(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("shape") / "in"
    folder.mkdir()
    if isinstance(made, tuple):
        file = io.BytesIO()
        np.save(file, np.zeros(*made))
        made = file.getvalue()
    (folder / "r.npy").write_bytes(made)
    said, out = run(folder, "--fs", "250")
    assert said.startswith("1 of 1 recordings failed:\n  ") or check_output(out) is None


@given(spoilt([b"r 2 360 2000\ns.dat 16 200/mV 12 0 0 0 0 II\ns.dat 16 200/mV 12 0 0 0 0 V1\n",
               b"r/2 2 360 5000\ns 2000\n~ 3000\n", b"r 1 360 1000000000\n~ 0 200\n"]))
@example(b"r 1 360 1000000000\n~ 16 200\n")
def test_any_header(tmp_path_factory, header):
    folder = tmp_path_factory.mktemp("header") / "in"
    folder.mkdir()
    wave = signal_of([("beats", 2000, 400.0)], 2, "i2", 360)
    (folder / "s.dat").write_bytes(wave.tobytes())
    (folder / "r.hea").write_bytes(header)
    run(folder)


@pytest.mark.parametrize("name", ["dicom", "xml", "scp", "mfer", "kardia"])
def test_a_device_in_its_own_process(tmp_path, name):
    """As it is run: the library in a process of its own. Few, since each takes a second."""
    make, _ = targets.TARGETS[name]
    path, seeds = make(tmp_path)
    data = bytearray(seeds[0])
    data[len(data) // 3:len(data) // 3 + 9] = b"\xff" * 9
    path.write_bytes(data)
    try:
        targets.read(path)
    except UserError as error:
        assert str(path) in str(error)


# --- names ----------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40)


@settings(max_examples=settings().max_examples // 3)
@given(NAMES)
@example("\x1b[2J")
@example("a\nb")
@example("-x")
@example("~")
def test_any_name_of_a_recording(tmp_path_factory, name):
    """Names of files come from strangers, too."""
    folder = tmp_path_factory.mktemp("name") / "in"
    folder.mkdir()
    try:
        np.save(folder / f"{name}.npy", signal_of([("beats", 1000, 1.0)], 1, "f4", 250))
    except OSError:
        return  # too long
    said, out = run(folder, "--fs", "250")
    assert "\x1b" not in said
    assert not said or "nothing there" in said or "no recording" in said, said
