"""Shards of any records: against dataset.read_record, at other rates, resumed, grown, elsewhere."""

import json
import shutil

import numpy as np
import pytest
import scipy.signal
import wfdb

import config
import dataset
from pipeline import settings, simulated_ecg
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


def build(records, folder, *flags):
    build_shards.main([str(records), "--out", str(folder), *flags])
    return json.loads((folder / "index.json").read_text())


def load(folder, record):
    """(columns of all shards of a record, their metas)"""
    paths = sorted(folder.glob(f"{record}-*.npz"))
    stored = [dict(np.load(path, allow_pickle=False)) for path in paths]
    metas = [json.loads(str(one.pop("meta"))) for one in stored]
    return {name: np.concatenate([one[name] for one in stored]) for name in stored[0]}, metas


def whole(records, name):
    """The same columns from the reader of MIT-BIH, which takes a record as a whole."""
    path = records / name
    return dataset.read_record(path, ("MLII",), *dataset.read_beats(path, ""), "")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(index, key="record"):
    return {entry[key] for entry in index["shards"]}


def rewrite(folder, name, fs_hz, change):
    """Write change(signal (n, 2)) in place of a record's signal, at a rate, annotations with it."""
    record, notes = wfdb.rdrecord(str(folder / name)), wfdb.rdann(str(folder / name), "atr")
    wfdb.wrsamp(name, fs_hz, ["mV", "mV"], record.sig_name, change(record.p_signal),
                fmt=["16", "16"], adc_gain=[1000, 1000], baseline=[0, 0], write_dir=str(folder))
    wfdb.wrann(name, "atr", np.rint(notes.sample * fs_hz / 360).astype(int), notes.symbol,
               fs=fs_hz, write_dir=str(folder))


# --- what is in them ------------------------------------------------------------------------------

def test_columns_are_those_of_the_segments(records, tmp_path, monkeypatch):
    """Whatever the size of pieces and shards: pieces of 20 s are cut at four seams a record."""
    monkeypatch.setattr(config, "SHARD_BEATS", 16)
    monkeypatch.setattr(build_shards, "PIECE_S", 20)
    index = build(records, tmp_path / "out")
    assert index["format"] == "ecg-shards-1" and index["failed"] == []
    today = settings.snapshot(settings.SEGMENT_SETTINGS)
    assert index["settings"] == today | {"LEADS": ["MLII", "V5"]}
    for record in ("s01", "s02", "s03"):
        found, metas = load(tmp_path / "out", record)
        expected = whole(records, record)
        assert list(found) == list(expected) and len(found["x"]) > 90
        for name, column in found.items():
            assert column.dtype == expected[name].dtype or column.dtype.kind == "U"
            if name in ("x", "offset_mv", "scale_mv"):
                np.testing.assert_allclose(column, expected[name], atol=2e-4)
            else:
                np.testing.assert_array_equal(column, expected[name])
        entries = [entry for entry in index["shards"] if entry["record"] == record]
        sizes = [entry["beats"] for entry in entries]
        assert set(sizes[:-1]) == {16} and 0 < sizes[-1] <= 16 and sum(sizes) == len(found["y"])
        assert sum(entry["normal"] for entry in entries) == (found["y"] == 0).sum()
        assert {meta["format"] for meta in metas} == {"ecg-shard-1"}
        assert [meta["entry"] for meta in metas] == entries
        assert entries[1]["file"] == f"{record}-001.npz"


def test_another_rate_is_resampled(records, tmp_path):
    """A copy at 250 Hz, resampled by Fourier transform, gives nearly the same segments."""
    original = whole(records, "s02")
    rewrite(records, "s02", 250, lambda signal: scipy.signal.resample(signal, DURATION_S * 250))
    build(records / "s02.hea", tmp_path / "out")
    found, (meta,) = load(tmp_path / "out", "s02")
    assert meta["fs_hz"] == 250 and found["x"].shape[1] == config.WINDOW_SIZE
    row = np.abs(found["sample"][:, None] - original["sample"]).argmin(axis=1)
    original = {name: column[row] for name, column in original.items()}
    assert np.abs(found["sample"] - original["sample"]).max() <= 1
    assert len(set(row)) == len(row) > 90
    assert np.median((found["x"] * original["x"]).mean(axis=1)) > 0.99
    np.testing.assert_array_equal(found["symbol"], original["symbol"])
    np.testing.assert_allclose(found["rr_after_s"][:-1], original["rr_after_s"][:-1], atol=0.005)


def test_unreadable_stretches_cost_their_beats_and_no_more(records, tmp_path):
    def spoil(signal):
        signal[30 * 360:40 * 360] = np.nan
        signal[60 * 360:80 * 360] = 0.25
        return signal

    before = whole(records, "s01")
    rewrite(records, "s01", 360, spoil)
    rewrite(records, "s03", 360, np.zeros_like)
    with pytest.raises(UserError, match=r"1 of 3 records failed.*\n  s03: .*s03.hea: none of \d+ "):
        build(records, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [fail["record"] for fail in index["failed"]] == ["s03"]
    assert names(index) == {"s01", "s02"}
    found, _ = load(tmp_path / "out", "s01")
    time_s = before["sample"] / 360
    kept = ~((time_s >= 30) & (time_s < 40) | (time_s >= 60) & (time_s < 80))
    np.testing.assert_array_equal(found["sample"], before["sample"][kept])
    np.testing.assert_array_equal(found["rr_before_s"], before["rr_before_s"][kept])
    assert np.isfinite(found["x"]).all()


@pytest.mark.parametrize("sizes", [[], [0, 0], [3], [5, 0, 5], [1] * 9, [25], [10, 10, 0]])
def test_batches_keep_order_and_say_which_is_last(sizes):
    rows = iter(range(sum(sizes)))
    tables = ({"x": np.array([next(rows) for _ in range(size)], int)} for size in sizes)
    found = list(build_shards.batches(tables, 5))
    assert [row for columns, _ in found for row in columns["x"]] == list(range(sum(sizes)))
    for columns, last in found[:-1]:
        assert len(columns["x"]) == 5 and not last
    assert all(last and len(columns["x"]) <= 5 for columns, last in found[-1:])


# --- what is there already ------------------------------------------------------------------------

def test_what_is_there_is_kept_and_a_stopped_run_goes_on(records, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "SHARD_BEATS", 50)
    out = tmp_path / "out"
    first = build(records, out)
    before = contents(out)
    stamps = lambda: {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    old = stamps()
    assert build(records, out) == first and stamps() == old
    last = max(name for name in old if name.startswith("s02"))
    (out / last).unlink()          # as a run leaves it that is killed in the middle of a record
    (out / "index.json").unlink()
    assert build(records, out) == first and contents(out) == before
    new = stamps()
    assert all((new[name] != old[name]) == name.startswith("s02") for name in old)
    (out / last).write_bytes(before[last][:5000])
    assert build(records, out) == first and contents(out) == before


def test_changed_file_lead_or_setting_is_built_again(records, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert build(records, out)["settings"]["LEADS"] == ["MLII", "V5"]
    before = contents(out)
    rewrite(records, "s01", 360, lambda signal: signal[::-1])
    build(records, out)
    changed = contents(out)
    assert before["s01-000.npz"] != changed["s01-000.npz"]
    assert before["s02-000.npz"] == changed["s02-000.npz"]
    assert build(records, out, "--lead", "V5")["settings"]["LEADS"] == ["V5"]
    assert load(out, "s02")[1][0]["lead"] == "V5"
    monkeypatch.setattr(config, "BAND_HZ", (0.5, 30.0))
    index = build(records, out, "--lead", "V5")
    for made in (index, load(out, "s03")[1][0]):
        assert made["settings"]["BAND_HZ"] == [0.5, 30.0]


def test_an_archive_grows_without_a_record_changing_part(records, tmp_path, monkeypatch, capsys):
    first = build(records / "s02.hea", tmp_path / "out")
    both = build(records / "s0[13].hea", tmp_path / "out")
    assert names(both) == {"s01", "s02", "s03"}
    assert [entry for entry in both["shards"] if entry["record"] == "s02"] == first["shards"]
    capsys.readouterr()
    monkeypatch.setattr(config, "SPLIT_SEED", 7)
    assert names(build(records / "s01.hea", tmp_path / "out")) == {"s01"}
    assert "not in the index: 2 records of earlier runs" in capsys.readouterr().out


def test_parts_are_drawn_by_name_in_the_fractions_asked_for():
    records = [f"p{k:06d}" for k in range(5000)]
    draw = lambda *how: [build_shards.part_of(name, *how) for name in records]
    parts = draw(42, 0.7, 0.15)
    share = [parts.count(part) / len(parts) for part in ("train", "validation", "test")]
    np.testing.assert_allclose(share, (0.7, 0.15, 0.15), atol=0.02)
    assert parts != draw(43, 0.7, 0.15)
    assert all(new == "train" for old, new in zip(parts, draw(42, 0.75, 0.15)) if old == "train")


def test_names_that_would_mix_are_kept_apart(tmp_path):
    shards = {"a": ["a-000.npz", "a-0000.npz", "a-001.npz"], "a-000": ["a-000-000.npz"],
              "a[b]": ["a[b]-000.npz"], "ab": ["ab-000.npz"]}
    for name in sum(shards.values(), []):
        (tmp_path / name).touch()
    for record, expected in shards.items():
        assert [path.name for path in build_shards.shards_of(tmp_path, record)] == expected


# --- what makes no sense --------------------------------------------------------------------------

def test_what_makes_no_sense_is_refused(records, tmp_path):
    out = ["--out", tmp_path / "out"]
    other = tmp_path / "other"
    other.mkdir()
    for path in records.glob("s01.*"):
        shutil.copy(path, other)
    np.save(other / "n.npy", np.zeros(1000))
    (records / "s02.atr").unlink()
    for words, *arguments in (("s3://bucket/x: an address", records, "--out", "s3://bucket/x"),
                              ("two records of one name", records, other, *out),
                              ("no WFDB record among them", other / "n.npy", *out),
                              (r"1 of 1 records.*\n  s02: .*missing", records / "s02.hea", *out),
                              ("no lead 'aVR'", records / "s03.hea", *out, "--lead", "aVR")):
        with pytest.raises(UserError, match=words):
            build_shards.main([str(argument) for argument in arguments])


# --- elsewhere ------------------------------------------------------------------------------------

def test_cluster_and_s3_give_the_bytes_of_one_process(records, s3, dask_cluster, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    index = build(records, tmp_path / "one")
    assert build(records, tmp_path / "cluster", "--cluster", dask_cluster) == index
    assert contents(tmp_path / "one") == contents(tmp_path / "cluster")
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    fs.put(str(records) + "/", f"{s3}/records/", recursive=True)
    assert build(f"{s3}/records/*.hea", tmp_path / "s3", "--cluster", dask_cluster) == index
    for record in ("s01", "s02", "s03"):  # the origin in meta tells addresses apart
        columns, there = (load(tmp_path / name, record)[0] for name in ("one", "s3"))
        for name in columns:
            np.testing.assert_array_equal(columns[name], there[name])
