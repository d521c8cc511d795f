"""The simulated database: format, timing, noise, spectrum, and what an interruption leaves."""

import hashlib
import os
import re
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.signal
import wfdb

from pipeline import errors, settings, simulated_ecg

ALL = range(1, 17)


def simulate(index, duration_s=120, snr_db=np.inf):
    """Signal, beat samples and symbols of a patient; as it stands, without noise."""
    drawn = simulated_ecg.draw_patient(0, index)
    return simulated_ecg.simulate_record(*drawn, duration_s, snr_db)


@pytest.fixture(scope="module")
def records():
    return {index: simulate(index) for index in ALL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "db"
    simulated_ecg.write_database(folder, ("s02", "s15"), 30)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- files


def test_round_trip_in_the_format_of_mit_bih(folder):
    signal, samples, symbols = simulate(2, 30, simulated_ecg.SNR_DB)
    line = r"s02.dat 212 200\(1024\)/mV 11 1024 \d+ \d+ 0 "
    assert re.fullmatch(f"s02 2 360 10800\n{line}MLII\n{line}V5\n# SIMULATED.*\n"
                        "# patient 2: normal conduction.*\n.*seed 0, 30 s, SNR 12 dB\n",
                        (folder / "s02.hea").read_text())
    record = wfdb.rdrecord(folder / "s02", physical=False)
    assert np.abs(record.dac() - signal).max() <= 0.5 / 200 + 1e-9

    annotation = wfdb.rdann(str(folder / "s02"), "atr")
    assert annotation.symbol == ["+", *symbols]
    assert annotation.sample[1:].tolist() == samples.tolist()
    assert annotation.aux_note[0].startswith("(N")
    assert wfdb.rdann(str(folder / "s15"), "atr").aux_note[0].startswith("(P")


def test_checksums_and_records_list_every_file(folder):
    there = contents(folder)
    lines = there.pop("SHA256SUMS.txt").decode().splitlines()
    assert lines == [f"{hashlib.sha256(there[name]).hexdigest()} {name}" for name in sorted(there)]
    assert there["RECORDS"] == b"s02\ns15\n"
    assert len(there) == 7


def test_same_seed_same_bytes_and_other_seed_others(folder, tmp_path):
    simulated_ecg.write_database(tmp_path / "more", ("s01", "s02"), 30, jobs=2)
    simulated_ecg.write_database(tmp_path / "other", ("s02",), 30, seed=1)
    there, more, other = map(contents, (folder, tmp_path / "more", tmp_path / "other"))
    for name in ("s02.dat", "s02.atr", "s02.hea"):
        assert there[name] == more[name] != other[name]


def test_written_where_it_is_missing_only(tmp_path, monkeypatch, capsys):
    write = Mock()
    monkeypatch.setattr(simulated_ecg, "write_database", write)
    database = Mock(digests=tmp_path / "sums.txt")
    simulated_ecg.write_if_missing(database)
    assert "SIMULATED data: no patient" in capsys.readouterr().out
    database.digests.touch()
    simulated_ecg.write_if_missing(database)
    write.assert_called_once()


@pytest.mark.parametrize("call, lost", [("wfdb.wrann", set()), ("os.replace", {"SHA256SUMS.txt"})])
def test_interruption_leaves_all_or_no_list_of_digests(tmp_path, monkeypatch, call, lost):
    simulated_ecg.write_database(tmp_path / "db", ("s01",), 20)
    before = contents(tmp_path / "db")
    monkeypatch.setattr(call, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        simulated_ecg.write_database(tmp_path / "db", ("s01",), 20, seed=5)
    after = contents(tmp_path / "db")
    assert after.items() <= before.items()
    assert before.keys() - after.keys() == lost
    assert os.listdir(tmp_path) == ["db"]


def test_real_records_are_never_touched(tmp_path):
    (tmp_path / "100.hea").write_text("100 2 360 650000\n")
    with pytest.raises(errors.UserError, match="100.hea: not simulated"):
        simulated_ecg.write_database(tmp_path, ("s01",), 20)
    assert contents(tmp_path) == {"100.hea": b"100 2 360 650000\n"}


def test_a_record_that_is_called_otherwise_leaves_nothing(tmp_path):
    with pytest.raises(errors.UserError, match="'100'.*as s03"):
        simulated_ecg.write_database(tmp_path / "db", ("100",), 20)
    assert contents(tmp_path / "db") == {}


# --- beats


def test_annotation_is_the_peak_of_the_qrs(records):
    for signal, samples, _ in records.values():
        mlii = signal[samples[1:-1, None] + np.arange(-180, 180), 0]
        mlii -= np.median(mlii, axis=1, keepdims=True)
        peak = np.abs(mlii[:, 151:210]).argmax(axis=1) - 29
        assert np.abs(peak).max() <= 2


def test_pause_is_full_after_v_and_not_after_a(records):
    for _, samples, symbols in records.values():
        rr = np.diff(samples) / np.median(np.diff(samples))
        both = rr[:-1] + rr[1:]
        v, a, f = (np.flatnonzero(symbols[1:-1] == symbol) for symbol in "VAF")
        assert max(rr[v]) < 0.85
        assert rr[f] == pytest.approx(1, rel=0.2)
        assert both[v] == pytest.approx(2, rel=0.15)
        if len(a):
            assert max(rr[a]) < 0.95 and 1.6 < both[a].mean() < 1.92


def test_every_class_is_where_the_splits_need_it(records):
    split = settings.database("simulated")
    symbols = {f"s{index:02d}": set(record[2]) for index, record in records.items()}
    for part in (split.train, split.validation, split.test):
        together = set().union(*(symbols[name] for name in part))
        assert {"N", "F"} < together and together & {"L", "R"}
    assert symbols["s15"] == symbols["s16"] == {"/", "V"}
    for index in ALL[:14]:
        assert 0.08 < np.isin(records[index][2], ["A", "V", "F"]).mean() < 0.16
        assert {"A", "V"} < set(simulate(index, 20)[2]) == symbols[f"s{index:02d}"]


# --- noise and rhythm


@pytest.mark.parametrize("index, snr_db", [(1, 0), (3, 12), (15, 30)])
def test_noise_has_the_stated_ratio_and_is_wander_muscle_and_white(records, index, snr_db):
    clean = records[index][0]
    noise = simulate(index, snr_db=snr_db)[0] - clean
    ratio = clean.var(axis=0) / np.square(noise).mean(axis=0)
    assert 10 * np.log10(ratio) == pytest.approx([snr_db] * 2, abs=0.01)

    f, power = scipy.signal.welch(noise[:, 0], 360, nperseg=360 * 30)
    share = np.bincount(np.digitize(f, [1, 15, 110]), power) / power.sum()
    assert share == pytest.approx([0.70, 0.02, 0.24, 0.04], abs=0.05)


def test_rr_has_two_peaks_at_0_1_and_0_25_hz_and_half_the_power_in_the_first():
    rr = simulated_ecg.rr_process(np.random.default_rng(0), 1800, 0.8, 0.05)
    assert (rr.mean(), rr.std()) == pytest.approx((0.8, 0.05))
    f, power = scipy.signal.welch(rr - 0.8, 4, nperseg=800)
    low = f < 0.175
    peaks = [f[part][power[part].argmax()] for part in (low, ~low)]
    assert peaks == pytest.approx([0.1, 0.25], abs=0.01)
    assert power[low].sum() / power[~low].sum() == pytest.approx(0.5, rel=0.15)
