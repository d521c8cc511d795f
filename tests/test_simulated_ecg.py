"""The simulated database: format, timing, noise, spectrum, and what an interruption leaves."""

import hashlib
import os

import numpy as np
import pytest
import scipy.signal
import wfdb

from pipeline import errors, settings, simulated_ecg

ALL = range(1, 17)


@pytest.fixture(scope="module")
def records():
    """{index: (signal, samples, symbols)} of every patient, without noise."""
    return {i: simulated_ecg.simulate_record(0, i, 120, np.inf) for i in ALL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "db"
    simulated_ecg.write_database(folder, ("s02", "s15"), 30)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rr_around(records, index, symbol):
    """Intervals before and after each inner beat of a symbol, as multiples of the median interval."""
    _, samples, symbols = records[index]
    rr = np.diff(samples) / np.median(np.diff(samples))
    of_symbol = symbols[1:-1] == symbol
    return rr[:-1][of_symbol], rr[1:][of_symbol]


# --- files


def test_round_trip_in_the_format_of_mit_bih(folder):
    signal, samples, symbols = simulated_ecg.simulate_record(0, 2, 30)
    record = wfdb.rdrecord(str(folder / "s02"))
    assert (record.fs, record.sig_name, record.fmt) == (360, ["MLII", "V5"], ["212", "212"])
    assert (record.adc_gain, record.baseline, record.units) == ([200] * 2, [1024] * 2, ["mV"] * 2)
    assert (record.adc_res, record.adc_zero, record.sig_len) == ([11] * 2, [1024] * 2, 10800)
    assert np.abs(record.p_signal - signal).max() <= 0.5 / 200 + 1e-9
    assert record.comments[0].startswith("SIMULATED")
    assert record.comments[1].startswith("patient 2: normal conduction")
    assert "seed 0, 30 s, SNR 12 dB" in record.comments[2]
    raw = wfdb.rdrecord(str(folder / "s02"), physical=False)
    assert raw.calc_checksum() == raw.checksum
    assert raw.d_signal[0].tolist() == raw.init_value

    annotation = wfdb.rdann(str(folder / "s02"), "atr")
    assert (annotation.symbol[0], annotation.aux_note[0].rstrip("\0")) == ("+", "(N")
    assert annotation.sample[1:].tolist() == samples.tolist()
    assert annotation.symbol[1:] == symbols.tolist()
    assert wfdb.rdann(str(folder / "s15"), "atr").aux_note[0].rstrip("\0") == "(P"


def test_checksums_and_records_list_every_file(folder):
    there = contents(folder)
    lines = there.pop("SHA256SUMS.txt").decode().splitlines()
    assert sorted(lines) == sorted(f"{hashlib.sha256(content).hexdigest()} {name}"
                                   for name, content in there.items())
    assert there["RECORDS"] == b"s02\ns15\n"
    assert len(there) == 7


def test_same_seed_same_bytes_and_other_seed_others(folder, tmp_path):
    simulated_ecg.write_database(tmp_path / "more", ("s01", "s02"), 30, jobs=2)
    simulated_ecg.write_database(tmp_path / "other", ("s02",), 30, seed=1)
    first = contents(folder)
    more = contents(tmp_path / "more")
    other = contents(tmp_path / "other")
    for name in ("s02.dat", "s02.atr", "s02.hea"):
        assert more[name] == first[name] != other[name]


def test_written_where_it_is_missing_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    monkeypatch.setattr(simulated_ecg, "write_record",
                        lambda made, name, *_: (made / f"{name}.hea").write_text("# SIMULATED\n"))
    database = settings.database("simulated")
    simulated_ecg.write_if_missing(database)
    assert "SIMULATED data: no patient" in capsys.readouterr().out
    assert database.digests == database.records_dir() / "SHA256SUMS.txt"
    assert len(contents(database.records_dir())) == 18
    database.digests.write_text("as it was")
    simulated_ecg.write_if_missing(database)
    assert database.digests.read_text() == "as it was"


@pytest.mark.parametrize("old", [False, True])
def test_interruption_leaves_what_there_was(tmp_path, monkeypatch, old):
    folder = tmp_path / "db"
    write = wfdb.wrann
    if old:
        simulated_ecg.write_database(folder, ("s01", "s02"), 20)
    before = contents(folder) if old else {}

    def interrupt(name, *args, **kwargs):
        if name == "s02":
            raise KeyboardInterrupt
        write(name, *args, **kwargs)

    monkeypatch.setattr(wfdb, "wrann", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulated_ecg.write_database(folder, ("s01", "s02"), 20, seed=5)
    assert contents(folder) == before
    assert os.listdir(tmp_path) == ["db"]


def test_interruption_between_two_renames_leaves_no_list_of_digests(tmp_path, monkeypatch):
    simulated_ecg.write_database(tmp_path / "db", ("s01",), 20)
    replace = os.replace

    def interrupt(source, target):
        if target.name == "s01.hea":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulated_ecg.write_database(tmp_path / "db", ("s01",), 20, seed=5)
    assert not (tmp_path / "db" / "SHA256SUMS.txt").exists()


def test_real_records_are_never_touched(tmp_path):
    (tmp_path / "100.hea").write_text("100 2 360 650000\n100.dat 212 200 11 1024 995 -22131 0 MLII\n")
    before = contents(tmp_path)
    with pytest.raises(errors.UserError, match="100.hea: not simulated"):
        simulated_ecg.write_database(tmp_path, ("s01",), 20)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name, duration_s, seed, snr_db, said", [
    ("s01", 5, 0, 12, "20 s <= duration"), ("s01", np.nan, 0, 12, "20 s <= duration"),
    ("s01", 20, -1, 12, "seed >= 0"), ("s01", 20, 0, np.nan, "s01.*range of 11 bits"),
    ("s01", 20, 0, -30, "s01.*range of 11 bits.*higher SNR"), ("100", 20, 0, 12, "'100'.*as s03")])
def test_impossible_parameters_are_user_errors_and_leave_nothing(
        tmp_path, name, duration_s, seed, snr_db, said):
    with pytest.raises(errors.UserError, match=said):
        simulated_ecg.write_database(tmp_path / "db", (name,), duration_s, seed, snr_db)
    assert contents(tmp_path / "db") == {}


# --- beats


@pytest.mark.parametrize("index", ALL)
def test_annotation_is_the_peak_of_the_qrs(records, index):
    noisy = simulated_ecg.simulate_record(0, index, 120)
    # Noise alone moves the top of a 100-ms-wide beat about.
    for (signal, samples, symbols), tolerance in ((records[index], 2), (noisy, 6)):
        for sample, symbol in zip(samples[1:-1], symbols[1:-1]):
            median = np.median(signal[sample - 180:sample + 180, 0])
            peak = np.abs(signal[sample - 29:sample + 30, 0] - median).argmax() - 29
            assert abs(peak) <= tolerance, (symbol, sample)


@pytest.mark.parametrize("symbol, indices, low_s, high_s", [
    ("N", (1, 2, 4, 6, 7, 9), 0, 0.10), ("A", (1, 2, 4, 6, 7, 9), 0, 0.10), ("V", ALL, 0.12, 1),
    ("L", (3, 12), 0.12, 1), ("R", (5, 8, 13), 0.10, 1), ("/", (15, 16), 0.12, 1)])
def test_qrs_of_v_and_blocks_is_wide_and_of_n_and_a_narrow(records, symbol, indices, low_s, high_s):
    for index in indices:
        signal, samples, symbols = records[index]
        beats = [signal[s - 52:s + 52, 0] for s in samples[1:-1][symbols[1:-1] == symbol]]
        mean = np.abs(np.median(beats, axis=0))
        assert low_s < (mean > 0.15 * mean.max()).sum() / 360 < high_s


@pytest.mark.parametrize("index", ALL)
def test_pause_is_full_after_v_and_not_after_a(records, index):
    before, after = rr_around(records, index, "V")
    assert (before < 0.85).all()
    assert before + after == pytest.approx(2, rel=0.15)
    assert (before + after).mean() == pytest.approx(2, abs=0.1)
    assert rr_around(records, index, "F")[0] == pytest.approx(1, rel=0.2)
    before, after = rr_around(records, index, "A")
    assert (before < 0.95).all()
    assert len(before) == 0 or 1.6 < (before + after).mean() < 1.92


def test_premature_beat_has_no_p_in_v_and_another_p_in_a():
    waves = simulated_ecg.draw_patient(0, 1)[0].waves
    p = waves["A"][0]
    normal = waves["N"][0]
    v = waves["V"]
    assert p[2] * normal[2] < 0 and abs(p[0]) < abs(normal[0])
    assert np.all(waves["A"][1:] == waves["N"][1:])
    assert np.all(v[0, 2:] == 0)
    assert np.all(np.sign(v[5:, 2]) == -np.sign(v[2, 2])), "T against the QRS"


@pytest.mark.parametrize("index", [2, 8, 10, 12])
def test_fusion_is_a_blend_of_the_normal_beat_and_v(records, index):
    signal, samples, symbols = records[index]

    def mean_qrs(symbol):
        return np.mean([signal[s - 25:s + 25] for s in samples[symbols == symbol]], axis=0).ravel()

    normal = simulated_ecg.draw_patient(0, index)[0].conduction
    parts = np.stack([mean_qrs(normal), mean_qrs("V")], axis=1)
    shares = np.linalg.lstsq(parts, mean_qrs("F"))[0]
    assert shares.min() > 0.3
    assert shares.sum() == pytest.approx(1, abs=0.1)


def test_patients_differ(records):
    beats = []
    for index in (1, 2, 4, 6, 7, 9, 10, 11, 14):
        signal, samples, symbols = records[index]
        normal = samples[1:-1][symbols[1:-1] == "N"]
        beats.append(np.mean([signal[s - 100:s + 144] for s in normal], axis=0))
    for k, beat in enumerate(beats):
        assert all(np.abs(beat - other).max() > 0.05 for other in beats[:k])


def test_every_class_is_where_the_splits_need_it(records):
    split = settings.database("simulated")
    symbols = {f"s{i:02d}": set(records[i][2]) for i in ALL}
    assert set(symbols) == set(split.records)
    for part in (split.train, split.validation, split.test):
        assert all({"A", "V"} < symbols[name] for name in part)
        together = set.union(*(symbols[name] for name in part))
        assert {"N", "A", "V", "F"} < together and together & set("LR")
    assert symbols["s15"] == symbols["s16"] == {"/", "V"}
    for index in range(1, 15):
        assert 0.08 < np.isin(records[index][2], ["A", "V", "F"]).mean() < 0.16
        patient = simulated_ecg.draw_patient(0, index)[0]      # even the shortest has every class
        shortest = simulated_ecg.simulate_record(0, index, 20)[2]
        assert set(shortest) == {patient.conduction, *patient.share}


# --- noise and rhythm


@pytest.mark.parametrize("snr_db", [0, 12, 30])
@pytest.mark.parametrize("index", [1, 3, 15])
def test_noise_has_the_stated_ratio(records, index, snr_db):
    clean = records[index][0]
    noise = simulated_ecg.simulate_record(0, index, 120, snr_db)[0] - clean
    ratio = clean.var(axis=0) / np.square(noise).mean(axis=0)
    assert 10 * np.log10(ratio) == pytest.approx([snr_db] * 2, abs=0.01)


def test_noise_is_wander_muscle_and_white(records):
    noise = simulated_ecg.simulate_record(0, 1, 120, 12)[0] - records[1][0]
    f, power = scipy.signal.welch(noise, 360, nperseg=360 * 30, axis=0)
    bands = np.digitize(f, [1, 15, 110])
    share = [power[bands == band].sum(axis=0) / power.sum(axis=0) for band in range(4)]
    assert np.allclose(share, np.array([[0.70], [0.02], [0.24], [0.04]]), atol=0.05)


def test_rr_has_two_peaks_at_0_1_and_0_25_hz():
    rr = simulated_ecg.rr_process(np.random.default_rng(0), 1800, 0.8, 0.05)
    assert (rr.mean(), rr.std()) == pytest.approx((0.8, 0.05))
    _, samples, symbols = simulated_ecg.simulate_record(0, 1, 1800)
    t = samples / 360
    sinus = symbols == "N"
    nn = sinus[1:] & sinus[:-1]                       # intervals next to no ectopic beat
    even = np.interp(np.arange(5, 1790, 0.25), t[1:][nn], np.diff(t)[nn])
    f, power = scipy.signal.welch(even - even.mean(), 4, nperseg=800)
    peaks = f[scipy.signal.find_peaks(power, height=0.2 * power.max(), distance=10)[0]]
    assert peaks == pytest.approx([0.1, 0.25], abs=0.015)


@pytest.mark.parametrize("seed", range(3))
def test_the_default_signal_stays_within_the_adc(seed):
    for index in ALL:
        adu = simulated_ecg.simulate_record(seed, index, 60)[0] * 200 + 1024
        assert 0 < adu.min() and adu.max() < 2047
        assert adu.std(axis=0).min() > 10
