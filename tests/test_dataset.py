"""Step 1: records to segments, on the real database and on small ones of our own."""

import json
import shutil

import numpy as np
import pytest
import wfdb

import config
import dataset
import preprocess
from conftest import ON_SIMULATED
from pipeline import settings
from pipeline.errors import UserError


def write_record(folder, name="100", signal=None, leads=("MLII", "V5"), fs=360, symbols="NNVN", samples=None):
    """A short WFDB record as tests need it; returns its path without extension."""
    rng = np.random.default_rng(0)
    signal = rng.normal(0, 0.3, 4000) if signal is None else signal
    wfdb.wrsamp(name, fs=fs, units=["mV"] * len(leads), sig_name=list(leads), fmt=["16"] * len(leads),
                adc_gain=[200.0] * len(leads), baseline=[0] * len(leads), write_dir=str(folder),
                p_signal=np.column_stack([signal * (k + 1) for k in range(len(leads))]))
    samples = np.arange(1, len(symbols) + 1) * 700 if samples is None else np.asarray(samples)
    wfdb.wrann(name, "atr", samples, symbol=list(symbols), write_dir=str(folder))
    return folder / name


def read(path, leads=("MLII", "V5")):
    """The columns of one record and its beats."""
    return dataset.read_record(path, leads, *dataset.read_beats(path, "Fetch it."), "Fetch it.")


# --- the real database --------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real(mitdb):
    """Columns of all 48 real records without the signals' copies being kept twice."""
    paths = [mitdb / name for name in settings.database("mitdb").records]
    tables = [read(path) for path in paths]
    return {k: np.concatenate([t[k] for t in tables]) for k in tables[0] if k != "x"} | {
        "x_100": tables[0]["x"], "x_114": tables[settings.database("mitdb").records.index("114")]["x"]}


def test_real_counts_are_the_published_ones(real):
    counts = {c: int((real["aami"] == c).sum()) for c in config.AAMI}
    assert counts == {"N": 90527, "S": 2780, "V": 7232, "F": 802, "Q": 8033}
    assert len(real["y"]) == 109_374 and real["y"].sum() == 109_374 - 90_527


def test_real_splits(real):
    beat = dataset.split_beats(real["y"], config.SPLIT_SEED, 0.70, 0.15)
    assert (beat == "test").sum() == 16_407
    assert real["y"][beat == "train"].max() == 0
    patient = dataset.split_patients(real["y"], real["record"], settings.database("mitdb"))
    parts = {p: set(real["record"][patient == p]) for p in ("train", "validation", "test")}
    assert not (parts["train"] & parts["validation"] or parts["train"] & parts["test"]
                or parts["validation"] & parts["test"])
    used = set().union(*parts.values())
    assert not used & {"102", "104", "107", "217"}, "paced records are left out"
    assert "202" in parts["test"] and "201" not in used, "201 and 202 are the same man"
    assert (patient == "test").sum() == 49_659 and real["y"][patient == "train"].max() == 0
    classes = set(real["aami"][(patient == "validation")])
    assert {"S", "V", "F"} <= classes


def test_real_lead_is_mlii_by_name_and_v5_where_there_is_none(mitdb):
    for name, lead, column in (("100", "MLII", 0), ("114", "MLII", 1), ("102", "V5", 0), ("104", "V5", 0)):
        signal, fs_hz, got = dataset.read_lead(mitdb / name, ("MLII", "V5"), "")
        assert got == lead and fs_hz == 360 and len(signal) == 650_000
        np.testing.assert_array_equal(signal, wfdb.rdrecord(str(mitdb / name)).p_signal[:, column])


def test_real_segment_is_centred_on_the_annotated_peak(real):
    """Record 100 is regular and upright: the largest value of its segments is at the R peak."""
    peak = np.abs(real["x_100"][:200]).argmax(axis=1)
    assert np.abs(np.median(peak) - 360) <= 2


def test_real_files_match_the_shipped_digests(mitdb, monkeypatch):
    monkeypatch.setattr(settings.Database, "records_dir", lambda database: mitdb)
    assert len(dataset.verify(settings.database("mitdb"))) == 144


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


@pytest.mark.parametrize("spoil", ["no dat", "short dat", "no atr", "garbled hea", "garbled atr"])
def test_damaged_files_are_named(tmp_path, spoil):
    path = write_record(tmp_path)
    if spoil == "no dat":
        path.with_suffix(".dat").unlink()
    elif spoil == "short dat":
        data = path.with_suffix(".dat").read_bytes()
        path.with_suffix(".dat").write_bytes(data[:1000])
    elif spoil == "no atr":
        path.with_suffix(".atr").unlink()
    elif spoil == "garbled hea":
        path.with_suffix(".hea").write_bytes(b"\x00\xff\n")
    else:
        path.with_suffix(".atr").write_bytes(b"\x01")
    with pytest.raises(UserError, match="100"):
        read(path)


# --- splits -------------------------------------------------------------------------------------

def test_split_beats_is_a_partition_and_seeded():
    y = (np.random.default_rng(0).random(1000) < 0.2).astype(int)
    split = dataset.split_beats(y, 1, 0.7, 0.15)
    assert ((split == "train") | (split == "unused")).sum() == 700
    assert (split == "validation").sum() == 150 and (split == "test").sum() == 150
    assert y[split == "train"].max() == 0 and y[split == "unused"].min() == 1
    np.testing.assert_array_equal(split, dataset.split_beats(y, 1, 0.7, 0.15))
    assert (split != dataset.split_beats(y, 2, 0.7, 0.15)).any()


# --- the stage ----------------------------------------------------------------------------------

def test_build_then_up_to_date_then_other_settings(small, capsys, monkeypatch):
    dataset.main(ON_SIMULATED)
    first = small.segments_path().read_bytes()
    out = capsys.readouterr().out
    assert "wrote" in out and "record s10" in out and "train_mitbih.py --database simulated" in out
    dataset.main(ON_SIMULATED)
    assert "up to date" in capsys.readouterr().out
    assert small.segments_path().read_bytes() == first
    monkeypatch.setattr(config, "BAND_HZ", (1.0, 30.0))
    with pytest.raises(UserError, match=r"BAND_HZ: \[0.5, 40.0\] then, \[1.0, 30.0\] now.*dataset.py"):
        dataset.load_segments(small)
    dataset.main(ON_SIMULATED)
    assert "wrote" in capsys.readouterr().out
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
    assert set(dataset.load_segments(settings.database("simulated")).rows["record"]) == set(small.records[:-1])


def test_parallel_build_equals_single_process(small, monkeypatch):
    dataset.main(ON_SIMULATED)
    one = small.segments_path().read_bytes()
    monkeypatch.setattr(config, "THREADS", 2)
    dataset.main([*ON_SIMULATED, "--force"])
    assert small.segments_path().read_bytes() == one


@pytest.mark.parametrize("spoil, state", [("altered", "altered"), ("truncated", "truncated"), ("gone", "missing")])
def test_a_changed_record_stops_the_build_and_keeps_the_old_segments(small, spoil, state):
    dataset.main(ON_SIMULATED)
    old = small.segments_path().read_bytes()
    victim = small.records_dir() / "s02.dat"
    data = victim.read_bytes()
    if spoil == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data[:-7] if spoil == "truncated" else b"\x00" * 9 + data[9:])
    with pytest.raises(UserError) as caught:
        dataset.main(ON_SIMULATED)
    assert "s02.dat" in str(caught.value) and state in str(caught.value) and "--database simulated" in str(caught.value)
    assert small.segments_path().read_bytes() == old


def test_a_second_database_is_described_and_read_like_the_first(tmp_path, monkeypatch):
    """SVDB: 128 Hz, other leads. Its real records where they are beside the checkout."""
    shared = settings.ROOT.parent / "shared" / "svdb"
    if not shared.exists():
        pytest.skip("no SVDB beside the checkout")
    records = ("800", "801", "802")
    fewer = {"home": str(tmp_path), "records": " ".join(records), "train": "800", "validation": "801", "test": "802"}
    monkeypatch.setitem(config.DATABASES, "svdb", config.DATABASES["svdb"] | fewer)
    database = settings.database("svdb")
    database.records_dir().mkdir(parents=True)
    for name in records:
        for kind in ("hea", "dat", "atr"):
            shutil.copy(shared / f"{name}.{kind}", database.records_dir())
    dataset.main(["--database", "svdb"])
    segments = dataset.load_segments(database)
    assert list(dict.fromkeys(segments.rows["record"])) == list(records)
    notes = wfdb.rdann(str(database.records_dir() / "800"), "atr")
    own = segments.rows["record"] == "800"
    expected = np.rint(notes.sample[np.isin(notes.symbol, list(settings.AAMI_OF))] * 360 / 128)
    assert set(segments.rows["sample"][own]) <= set(expected) and own.sum() > 0.99 * len(expected)


def test_missing_segments_name_the_command(small):
    with pytest.raises(UserError, match="python dataset.py --database simulated"):
        dataset.load_segments(small)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled!",))


@pytest.mark.parametrize("spoil", ["truncate", "foreign", "pickle", "column gone"])
def test_spoilt_segments_are_refused_and_not_unpickled(small, segments, spoil, capsys):
    path = small.segments_path()
    if spoil == "truncate":
        path.write_bytes(path.read_bytes()[:100_000])
    elif spoil == "foreign":
        np.savez(path, a=np.zeros(3))
    elif spoil == "pickle":
        np.savez(path, x=np.array([Evil()], dtype=object))
    else:
        table = dict(segments.rows, x=segments.x, meta=np.array(json.dumps(segments.meta)))
        del table["split_beat"]
        np.savez(path, **table)
    with pytest.raises(UserError, match="segments.npz"):
        dataset.load_segments(small)
    assert "unpickled!" not in capsys.readouterr().out


def test_flags_that_make_no_sense_fail(capsys):
    for argv in (["--source", "x"], ["--database", "other"], ["--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            dataset.parse_args(argv)
        assert caught.value.code == 2
