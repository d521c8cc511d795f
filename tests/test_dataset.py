"""Step 1: records to segments, on the real database and on small ones of our own."""

import json

import numpy as np
import pytest
import wfdb

import config
import dataset
import preprocess
from conftest import ON_SIMULATED, Evil
from pipeline import settings
from pipeline.errors import UserError


def write_record(folder, signal=None, leads=("MLII", "V5"), fs=360, symbols="NNVN", samples=None):
    """A short WFDB record "100" as tests need it; returns its path without extension."""
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 0.3, 4000) if signal is None else signal
    n = len(leads)
    wfdb.wrsamp("100", fs, ["mV"] * n, list(leads), np.column_stack([signal, 2 * signal]),
                fmt=["16"] * n, adc_gain=[200.0] * n, baseline=[0] * n, write_dir=str(folder))
    samples = np.arange(1, len(symbols) + 1) * 700 if samples is None else np.array(samples)
    wfdb.wrann("100", "atr", samples, symbol=list(symbols), write_dir=str(folder))
    return folder / "100"


def read(path, leads=("MLII", "V5")):
    """The columns of one record and its beats."""
    return dataset.read_record(path, leads, *dataset.read_beats(path, "Fetch it."), "Fetch it.")


# --- the real database --------------------------------------------------------------------------

def test_real_validation_patients_have_every_abnormal_class(mitdb):
    symbols = [dataset.read_beats(mitdb / name, "")[1]
               for name in settings.database("mitdb").validation]
    assert {"A", "V", "F"} <= set(np.concatenate(symbols))


def test_real_lead_is_mlii_by_name_and_v5_where_there_is_none(mitdb):
    for name, lead, column in (("114", "MLII", 1), ("102", "V5", 0)):
        signal, fs_hz, got = dataset.read_lead(mitdb / name, ("MLII", "V5"), "")
        assert (got, fs_hz) == (lead, 360)
        np.testing.assert_array_equal(signal, wfdb.rdrecord(str(mitdb / name)).p_signal[:, column])


def test_real_segment_is_centred_on_the_annotated_peak(mitdb):
    """Record 100 is regular and upright: the largest value of its segments is at the R peak."""
    peak = np.abs(read(mitdb / "100")["x"][:200]).argmax(axis=1)
    assert np.abs(np.median(peak) - 360) <= 2


# --- one record ---------------------------------------------------------------------------------

def test_read_record_columns(tmp_path):
    path = write_record(tmp_path, symbols="NV+AN", samples=[100, 800, 900, 1500, 3900])
    table = read(path)
    assert table["sample"].tolist() == [800, 1500], "no whole window at the ends, `+` is no beat"
    assert table["aami"].tolist() == ["V", "S"] and table["y"].tolist() == [1, 1]
    np.testing.assert_allclose(table["rr_before_s"], [700 / 360, 700 / 360], rtol=1e-6)
    np.testing.assert_allclose(table["rr_after_s"], [700 / 360, 2400 / 360], rtol=1e-6)
    raw = wfdb.rdrecord(str(path)).p_signal[:, 0]
    filtered = preprocess.bandpass(raw, 360, config.BAND_HZ, config.FILTER_ORDER)
    mv = table["x"] * table["scale_mv"][:, None] + table["offset_mv"][:, None]
    np.testing.assert_allclose(mv[0], filtered[440:1160], atol=1e-5)


def test_a_record_at_another_rate_is_resampled_with_its_beats(tmp_path):
    """A pulse at every beat: where the annotation is, the resampled segment has its peak."""
    signal = np.random.default_rng(0).normal(0, 0.01, 4000)
    samples = np.array([500, 900, 1300, 1700])
    for k, weight in zip(range(-2, 3), (0.3, 0.8, 1, 0.8, 0.3)):
        signal[samples + k] += weight
    path = write_record(tmp_path, signal=signal, fs=128, symbols="NVNN", samples=samples)
    table = read(path)
    np.testing.assert_array_equal(table["sample"], np.rint(samples * 360 / 128))
    assert np.abs(np.abs(table["x"]).argmax(axis=1) - 360).max() <= 1
    np.testing.assert_allclose(table["rr_before_s"][1:], 400 / 128, rtol=1e-6)


def nan_signal():
    signal = np.random.default_rng(0).normal(0, 0.3, 4000)
    signal[720:730] = np.nan
    return signal


@pytest.mark.parametrize("kwargs, words", [
    ({"leads": ("II", "V1")}, ["has the leads", "II", "MLII", "config.py"]),
    ({"signal": nan_signal()}, ["NaN", "2.0 s", "10 samples"]),
    ({"signal": np.zeros(4000)}, ["flat", "disconnected"]),
    ({"symbols": "+~|"}, ["annotations is a beat"]),
    ({"symbols": "N", "samples": [20]}, ["whole segment"]),
])
def test_unusable_records_are_named_with_the_reason(tmp_path, kwargs, words):
    path = write_record(tmp_path, **kwargs)
    with pytest.raises(UserError) as caught:
        read(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("suffix, content", [
    (".dat", None), (".dat", bytes(1000)), (".atr", None), (".hea", b"\x00\xff\n"),
    (".atr", b"\x01")])
def test_missing_short_and_garbled_files_are_named(tmp_path, suffix, content):
    path = write_record(tmp_path)
    path.with_suffix(suffix).unlink()
    if content:
        path.with_suffix(suffix).write_bytes(content)
    with pytest.raises(UserError, match="100"):
        read(path)


# --- splits -------------------------------------------------------------------------------------

def test_split_beats_is_a_partition_and_seeded():
    y = (np.random.default_rng(0).random(1000) < 0.2).astype(int)
    split = dataset.split_beats(y, 1, 0.7, 0.15)
    counts = [(split == part).sum() for part in ("validation", "test")]
    assert counts == [150, 150] and np.isin(split, ("train", "unused")).sum() == 700
    assert y[split == "train"].max() == 0 and y[split == "unused"].min() == 1
    np.testing.assert_array_equal(split, dataset.split_beats(y, 1, 0.7, 0.15))
    assert (split != dataset.split_beats(y, 2, 0.7, 0.15)).any()


def test_split_of_patients_leaves_paced_records_and_the_same_man_twice_out():
    database = settings.database("mitdb")
    record = np.repeat(database.records, 2)
    y = np.tile([0, 1], len(database.records))
    split = dataset.split_patients(y, record, database)
    for part in settings.PARTS:
        own = np.isin(record, getattr(database, part))
        np.testing.assert_array_equal(split == part, own & (y == 0) if part == "train" else own)
    # 201 and 202 are the same man
    unused = split[np.isin(record, ("102", "104", "107", "217", "201"))]
    assert set(unused) == {"unused"} and "202" in database.test


# --- the stage ----------------------------------------------------------------------------------

def test_build_then_up_to_date_then_other_settings(small, capsys, monkeypatch):
    dataset.main(ON_SIMULATED)
    first = small.segments_path().read_bytes()
    out = capsys.readouterr().out
    assert "record s10" in out and "train_mitbih.py --database simulated" in out
    dataset.main(ON_SIMULATED)
    assert "up to date" in capsys.readouterr().out
    assert small.segments_path().read_bytes() == first
    monkeypatch.setattr(config, "BAND_HZ", (1.0, 30.0))
    dataset.main(ON_SIMULATED)
    assert dataset.load_segments(small).meta["settings"]["BAND_HZ"] == [1.0, 30.0]


def test_a_record_left_out_in_config_is_not_read_or_verified(small, monkeypatch):
    dataset.main(ON_SIMULATED)
    (small.records_dir() / f"{small.records[-1]}.dat").unlink()
    fewer = {part: " ".join(name for name in getattr(small, part) if name != small.records[-1])
             for part in ("records", "test")}
    monkeypatch.setitem(config.DATABASES, "simulated", config.DATABASES["simulated"] | fewer)
    with pytest.raises(UserError, match="PATIENTS"):
        dataset.load_segments(settings.database("simulated"))
    dataset.main(ON_SIMULATED)
    rows = dataset.load_segments(settings.database("simulated")).rows
    assert set(rows["record"]) == set(small.records[:-1])


def test_parallel_build_equals_single_process(small, monkeypatch):
    dataset.main(ON_SIMULATED)
    one = small.segments_path().read_bytes()
    monkeypatch.setattr(config, "THREADS", 2)
    dataset.main([*ON_SIMULATED, "--force"])
    assert small.segments_path().read_bytes() == one


@pytest.mark.parametrize("state, content", [("altered", bytes(9)), ("missing", None)])
def test_a_changed_record_stops_the_build_and_keeps_the_old_segments(
        small, segments, state, content):
    old = small.segments_path().read_bytes()
    victim = small.records_dir() / "s02.dat"
    data = victim.read_bytes()
    victim.unlink()
    if content:
        victim.write_bytes(content + data[len(content):])
    with pytest.raises(UserError, match=f"s02.dat: {state}.*--database simulated"):
        dataset.main(ON_SIMULATED)
    assert small.segments_path().read_bytes() == old


def test_a_second_database_is_fetched_and_read_like_the_first(mitdb, tmp_path, monkeypatch):
    """SVDB: 128 Hz, other leads. Its real records where they lie beside those of MIT-BIH."""
    shared = mitdb.parent / "svdb"
    if not shared.exists():
        pytest.skip("no SVDB beside MIT-BIH")
    few = {"home": str(tmp_path), "records": "800 801 802", "train": "800", "validation": "801",
           "test": "802"}
    monkeypatch.setitem(config.DATABASES, "svdb", config.DATABASES["svdb"] | few)
    database = settings.database("svdb")
    dataset.main(["--database", "svdb", "--download", "--source", str(shared)])
    dataset.main(["--database", "svdb"])
    rows = dataset.load_segments(database).rows
    notes = wfdb.rdann(str(shared / "800"), "atr")
    expected = np.rint(notes.sample[np.isin(notes.symbol, list(settings.AAMI_OF))] * 360 / 128)
    got = rows["sample"][rows["record"] == "800"]
    assert set(got) <= set(expected) and len(got) > 0.99 * len(expected)


def test_spoilt_segments_are_refused_and_not_unpickled(small, segments, capsys):
    path = small.segments_path()
    whole = path.read_bytes()
    table = dict(segments.rows, x=segments.x, meta=np.array(json.dumps(segments.meta)))
    del table["split_beat"]
    for arrays in ({"a": np.zeros(3)}, {"x": np.array([Evil()], dtype=object)}, table, None):
        path.write_bytes(whole[:100_000])
        if arrays:
            np.savez(path, **arrays)
        with pytest.raises(UserError, match="segments.npz"):
            dataset.load_segments(small)
    assert "unpickled!" not in capsys.readouterr().out


def test_a_source_without_a_download_is_refused():
    with pytest.raises(SystemExit, match="2"):
        dataset.parse_args(["--source", "x"])
