"""Shards of any records: against dataset.read_record, at other rates, resumed, grown, elsewhere."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import wfdb

import config
import dataset
from pipeline import simulated_ecg
from pipeline.errors import UserError
from scaling import build_shards

DURATION_S = 100


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archive")
    simulated_ecg.write_database(folder, ("s01", "s02", "s03"), duration_s=DURATION_S, seed=5)
    return folder


@pytest.fixture
def records(archive, tmp_path, monkeypatch):
    """A private copy of the archive; one process."""
    monkeypatch.setattr(config, "THREADS", 1)
    shutil.copytree(archive, tmp_path / "in")
    return tmp_path / "in"


def build(folder, *arguments):
    build_shards.main(["--out", str(folder), *map(str, arguments)])
    return json.loads((folder / "index.json").read_text())


def load(folder, record):
    """(columns of all shards of a record, their metas)"""
    stored = [dict(np.load(path)) for path in sorted(folder.glob(f"{record}-*.npz"))]
    metas = [json.loads(str(one.pop("meta"))) for one in stored]
    return build_shards.join(stored), metas


def whole(records, name):
    """The same columns from the reader of MIT-BIH, which takes a record as a whole."""
    path = records / name
    return dataset.read_record(path, ("MLII",), *dataset.read_beats(path, ""), "")


def contents(folder):
    """{name: time} of the shards."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


def changed(old, new):
    return {name[:3] for name in new if new[name] != old[name]}


def names(index):
    return {entry["record"] for entry in index["shards"]}


def rewrite(folder, name, fs_hz, change):
    """Write change(signal (n, 2)) in place of a record's signal, at a rate, annotations with it."""
    record, notes = wfdb.rdrecord(str(folder / name)), wfdb.rdann(str(folder / name), "atr")
    wfdb.wrsamp(name, fs_hz, ["mV", "mV"], record.sig_name, change(record.p_signal),
                fmt=["16", "16"], write_dir=str(folder))
    wfdb.wrann(name, "atr", np.rint(notes.sample * fs_hz / 360).astype(int), notes.symbol,
               write_dir=str(folder))


# --- what is in them ------------------------------------------------------------------------------

def test_columns_are_those_of_the_segments(records, tmp_path, monkeypatch):
    """Whatever the size of pieces and shards: pieces of 20 s are cut at four seams a record."""
    monkeypatch.setattr(config, "SHARD_BEATS", 16)
    monkeypatch.setattr(build_shards, "PIECE_S", 20)
    index = build(tmp_path, records)
    assert index["format"] == "ecg-shards-1" and index["failed"] == []
    for record in ("s01", "s02", "s03"):
        found, metas = load(tmp_path, record)
        expected = whole(records, record)
        assert list(found) == list(expected) and len(found["x"]) > 90
        for name, column in found.items():
            assert column.dtype == expected[name].dtype or column.dtype.kind == "U"
            if name in ("x", "offset_mv", "scale_mv"):
                np.testing.assert_allclose(column, expected[name], atol=2e-4)
            else:
                np.testing.assert_array_equal(column, expected[name])
        entries = [entry for entry in index["shards"] if entry["record"] == record]
        assert [meta["entry"] for meta in metas] == entries
        assert {entry["beats"] for entry in entries[:-1]} == {16}
        assert sum(entry["normal"] for entry in entries) == (found["y"] == 0).sum()


def test_another_rate_is_resampled(records, tmp_path):
    """A copy at 250 Hz, resampled by Fourier transform, gives nearly the same segments."""
    original = whole(records, "s02")
    rewrite(records, "s02", 250, lambda signal: scipy.signal.resample(signal, DURATION_S * 250))
    build(tmp_path, records / "s02.hea")
    found, (meta,) = load(tmp_path, "s02")
    assert meta["fs_hz"] == 250 and len(found["x"]) > 90
    row = np.abs(found["sample"][:, None] - original["sample"]).argmin(axis=1)
    assert np.abs(found["sample"] - original["sample"][row]).max() <= 1
    assert np.median((found["x"] * original["x"][row]).mean(axis=1)) > 0.99
    np.testing.assert_array_equal(found["symbol"], original["symbol"][row])


def test_unreadable_stretches_cost_their_beats_and_no_more(records, tmp_path):
    def spoil(signal):
        signal[30 * 360:40 * 360] = np.nan
        signal[60 * 360:80 * 360] = 0.25
        return signal

    before = whole(records, "s01")
    rewrite(records, "s01", 360, spoil)
    rewrite(records, "s03", 360, np.zeros_like)
    with pytest.raises(UserError, match=r"1 of 3 records failed.*\n  s03: .*s03.hea: none of \d+ "):
        build(tmp_path, records)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["failed"][0]["record"] == "s03" and names(index) == {"s01", "s02"}
    found, _ = load(tmp_path, "s01")
    kept = ~np.isin(before["sample"] // 3600, (3, 6, 7))
    for name in ("sample", "rr_before_s"):
        np.testing.assert_array_equal(found[name], before[name][kept])


@pytest.mark.parametrize("sizes", [[], [0, 0], [3], [5, 0, 5], [1] * 9, [25], [10, 10, 0]])
def test_rows_keep_their_order_and_it_is_known_which_are_last(sizes):
    tables = [{"x": rows} for rows in np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])]
    found = list(build_shards.regroup(tables, 5))
    rows = [list(table["x"]) for table, _ in found]
    assert rows == [list(range(sum(sizes)))[at:at + 5] for at in range(0, sum(sizes), 5)]
    assert [last for _, last in found] == [False] * (len(rows) - 1) + [True] * bool(rows)


# --- what is there already ------------------------------------------------------------------------

@pytest.fixture
def built(records, tmp_path, monkeypatch):
    """(folder, index, shards) of the records, two shards each."""
    monkeypatch.setattr(config, "SHARD_BEATS", 70)
    folder = tmp_path / "out"
    return folder, build(folder, records), contents(folder)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_a_record_stopped_in_the_middle_is_made_again(records, built, spoil):
    folder, index, before = built
    spoil(folder / "s02-001.npz")
    assert build(folder, records) == index and changed(before, contents(folder)) == {"s02"}


def test_changed_file_lead_or_setting_is_built_again(records, built, monkeypatch):
    folder, index, before = built
    assert index["settings"]["LEADS"] == ["MLII", "V5"]
    rewrite(records, "s01", 360, lambda signal: signal[::-1])
    build(folder, records)
    assert changed(before, contents(folder)) == {"s01"}
    monkeypatch.setattr(config, "BAND_HZ", (0.5, 30.0))
    index = build(folder, records, "--lead", "V5")
    meta = load(folder, "s02")[1][0]
    assert index["settings"]["LEADS"] == ["V5"] and meta["lead"] == "V5"
    assert index["settings"]["BAND_HZ"] == meta["settings"]["BAND_HZ"] == [0.5, 30.0]


def test_an_archive_grows_without_a_record_changing_part(records, tmp_path, monkeypatch, capsys):
    first = build(tmp_path, records / "s02.hea")
    both = build(tmp_path, records / "s0[13].hea")
    assert names(both) == {"s01", "s02", "s03"}
    assert [entry for entry in both["shards"] if entry["record"] == "s02"] == first["shards"]
    monkeypatch.setattr(config, "SPLIT_SEED", 7)
    assert names(build(tmp_path, records / "s01.hea")) == {"s01"}
    assert "not in the index: 2 records of earlier runs" in capsys.readouterr().out


def test_parts_are_drawn_by_name_in_the_fractions_asked_for():
    draw = lambda *how: np.array([build_shards.part_of(f"p{k}", *how) for k in range(5000)])
    parts = draw(42, 0.7, 0.15)
    _, counts = np.unique(parts, return_counts=True)  # test, train, validation
    np.testing.assert_allclose(counts / 5000, (0.15, 0.7, 0.15), atol=0.02)
    assert (parts != draw(43, 0.7, 0.15)).any()
    assert (draw(42, 0.75, 0.15)[parts == "train"] == "train").all()


# --- what makes no sense --------------------------------------------------------------------------

def test_what_makes_no_sense_is_refused(records, tmp_path):
    (tmp_path / "s01.hea").touch()
    np.save(tmp_path / "n.npy", np.zeros(1000))
    (records / "s02.atr").unlink()
    for words, *arguments in (("s3://bucket/x: an address", records, "--out", "s3://bucket/x"),
                              ("two records of one name", records, tmp_path / "s01.hea"),
                              ("no WFDB record among them", tmp_path / "n.npy"),
                              (r"1 of 1 records.*\n  s02: .*missing", records / "s02.hea"),
                              ("no lead 'aVR'", records / "s03.hea", "--lead", "aVR")):
        with pytest.raises(UserError, match=words):
            build(tmp_path / "out", *arguments)


# --- elsewhere ------------------------------------------------------------------------------------

def test_workers_make_the_same_of_local_records_and_of_those_on_s3(records, s3, dask_cluster,
                                                                   tmp_path):
    fs = pytest.importorskip("fsspec").filesystem("s3", use_listings_cache=False)
    fs.put(f"{records}/s0[12].*", f"{s3}/records/")
    index = build(tmp_path / "one", records)
    assert build(tmp_path / "two", f"{s3}/records/*.hea", records / "s03.hea", "--cluster",
                 dask_cluster) == index
    for record in ("s01", "s02", "s03"):  # the origin in meta tells addresses apart
        columns, there = (load(tmp_path / name, record)[0] for name in ("one", "two"))
        for name in columns:
            np.testing.assert_array_equal(columns[name], there[name])
