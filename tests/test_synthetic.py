"""The simulated database: format, timing, noise, spectrum, and what an interruption leaves."""

import hashlib

import numpy as np
import pytest
import scipy.signal
import wfdb

import config
from pipeline import errors, settings
from pipeline import simulated_ecg

ALL = range(1, 17)
DURATION_S = 120


@pytest.fixture(scope="module")
def records():
    """{index: (signal, samples, symbols)} of every patient, without noise."""
    return {i: simulated_ecg.simulate_record(0, i, DURATION_S, np.inf) for i in ALL}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "simdb"
    simulated_ecg.write_database(folder, ("s02", "s15"), 30, 0)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip_in_the_format_of_mit_bih(database):
    signal, samples, symbols = simulated_ecg.simulate_record(0, 2, 30)
    record = wfdb.rdrecord(str(database / "s02"))
    assert (record.fs, record.sig_name, record.fmt) == (360, ["MLII", "V5"], ["212", "212"])
    assert (record.adc_gain, record.baseline) == ([200, 200], [1024, 1024])
    assert (record.adc_res, record.adc_zero, record.sig_len) == ([11, 11], [1024, 1024], 10800)
    assert np.abs(record.p_signal - signal).max() <= 0.5 / 200 + 1e-9
    raw = wfdb.rdrecord(str(database / "s02"), physical=False)
    assert raw.calc_checksum() == raw.checksum and raw.d_signal[0].tolist() == raw.init_value
    annotation = wfdb.rdann(str(database / "s02"), "atr")
    assert annotation.fs == 360
    assert (annotation.symbol[0], annotation.aux_note[0].rstrip("\0")) == ("+", "(N")
    assert annotation.sample[1:].tolist() == samples.tolist()
    assert annotation.symbol[1:] == symbols.tolist()
    assert wfdb.rdann(str(database / "s15"), "atr").aux_note[0].rstrip("\0") == "(P"


def test_header_says_simulated_and_the_parameters(database):
    comments = wfdb.rdheader(str(database / "s02")).comments
    assert comments[0] == "SIMULATED by synthetic.py: no patient"
    assert comments[1].startswith("patient 2: normal conduction")
    assert "seed 0, 30 s, SNR 12 dB" in comments[2]


def test_checksums_and_records_list_every_file(database):
    lines = (database / "SHA256SUMS.txt").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split(" ") for line in lines)}
    assert (database / "RECORDS").read_text() == "s02\ns15\n"
    there = contents(database)
    assert set(listed) | {"SHA256SUMS.txt"} == set(there) and len(there) == 8
    assert all(hashlib.sha256(there[name]).hexdigest() == digest for name, digest in listed.items())


@pytest.mark.parametrize("snr_db", [np.inf, simulated_ecg.SNR_DB])
@pytest.mark.parametrize("index", ALL)
def test_annotation_is_the_peak_of_the_qrs(index, snr_db):
    signal, samples, symbols = simulated_ecg.simulate_record(0, index, DURATION_S, snr_db)
    # Peak of |MLII| in a wide window; noise alone moves the top of a 100-ms-wide beat about.
    tolerance = 2 if snr_db == np.inf else 6
    for sample, symbol in zip(samples[1:-1], symbols[1:-1]):
        level = np.median(signal[sample - 180:sample + 180, 0])
        peak = np.abs(signal[sample - 29:sample + 30, 0] - level).argmax() - 29
        assert abs(peak) <= tolerance, (symbol, sample)


def test_qrs_of_v_and_blocks_is_wide_and_of_n_and_a_narrow(records):
    def width_s(index, symbol):
        signal, samples, symbols = records[index]
        beats = np.stack([signal[s - 72:s + 72, 0] for s in samples[1:-1][symbols[1:-1] == symbol]])
        mean = np.abs(np.median(beats, axis=0))
        return (mean[20:124] > 0.15 * mean.max()).sum() / 360

    assert all(width_s(i, "N") < 0.10 and width_s(i, "A") < 0.10 for i in (1, 2, 4, 6, 7, 9))
    assert all(width_s(i, "V") > 0.12 for i in ALL)
    assert all(width_s(i, "L") > 0.12 for i in (3, 12))
    assert all(width_s(i, "R") > 0.10 for i in (5, 8, 13))
    assert all(width_s(i, "/") > 0.12 for i in (15, 16))


def test_pause_is_full_after_v_and_not_after_a(records):
    for index in ALL:
        _, samples, symbols = records[index]
        rr = np.diff(samples) / 360
        mean = np.median(rr)
        for k in np.flatnonzero(symbols[:-1] == "V"):
            assert rr[k - 1] < 0.85 * mean
            assert rr[k - 1] + rr[k] == pytest.approx(2 * mean, rel=0.15)
        for k in np.flatnonzero(symbols[:-1] == "A"):
            assert rr[k - 1] < 0.95 * mean
        for k in np.flatnonzero(symbols == "F"):
            assert rr[k - 1] == pytest.approx(mean, rel=0.2)
        around = (rr[:-1] + rr[1:]) / (2 * mean)      # of beats 1, 2, ...
        assert around[symbols[1:-1] == "V"].mean() == pytest.approx(1, abs=0.05)
        assert "A" not in symbols or 0.8 < around[symbols[1:-1] == "A"].mean() < 0.96


def test_premature_beat_has_no_p_in_v_and_another_p_in_a():
    patient, _ = simulated_ecg.draw_patient(0, 1)
    p, normal = patient.waves["A"][0], patient.waves["N"][0]
    assert p[2] * normal[2] < 0 and abs(p[0]) < abs(normal[0])
    assert np.all(patient.waves["A"][1:] == patient.waves["N"][1:])
    assert np.all(patient.waves["V"][0, 2:] == 0)
    v = patient.waves["V"]
    assert np.all(np.sign(v[5:, 2]) == -np.sign(v[2, 2])), "T against the QRS"


@pytest.mark.parametrize("index", [2, 8, 10, 12])
def test_fusion_is_a_blend_of_the_normal_beat_and_v(records, index):
    signal, samples, symbols = records[index]
    normal = simulated_ecg.draw_patient(0, index)[0].conduction

    def mean_qrs(symbol):
        return np.mean([signal[s - 25:s + 25] for s in samples[symbols == symbol]], axis=0).ravel()

    parts = np.stack([mean_qrs(normal), mean_qrs("V")], axis=1)
    (of_normal, of_v), *_ = np.linalg.lstsq(parts, mean_qrs("F"))
    assert 0.3 < of_normal < 0.7 and 0.3 < of_v < 0.7
    assert of_normal + of_v == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("snr_db", [0, 12, 30])
@pytest.mark.parametrize("index", [1, 3, 15])
def test_noise_has_the_stated_ratio(records, index, snr_db):
    clean, samples, _ = records[index]
    noisy, same, _ = simulated_ecg.simulate_record(0, index, DURATION_S, snr_db)
    assert np.array_equal(samples, same)
    ratio = clean.var(axis=0) / np.square(noisy - clean).mean(axis=0)
    assert 10 * np.log10(ratio) == pytest.approx([snr_db] * 2, abs=1)


def test_noise_is_wander_muscle_and_white(records):
    noise = simulated_ecg.simulate_record(0, 1, DURATION_S, 12)[0] - records[1][0]
    f, power = scipy.signal.welch(noise, 360, nperseg=360 * 30, axis=0)
    share = [power[(f >= lo) & (f < hi)].sum(axis=0) / power.sum(axis=0)
             for lo, hi in ((0, 1), (1, 15), (15, 110), (110, 181))]
    assert np.allclose(share, np.array([[0.70], [0.02], [0.24], [0.04]]), atol=0.05)


def test_rr_has_two_peaks_at_0_1_and_0_25_hz():
    rr = simulated_ecg.rr_process(np.random.default_rng(0), 1800, 0.8, 0.05)
    assert (rr.mean(), rr.std()) == pytest.approx((0.8, 0.05))
    _, samples, symbols = simulated_ecg.simulate_record(0, 1, 1800)
    t, sinus = samples / 360, symbols == "N"
    nn = sinus[1:] & sinus[:-1]                       # intervals next to no ectopic beat
    grid = np.arange(5, 1790, 0.25)
    even = np.interp(grid, t[1:][nn], np.diff(t)[nn])
    f, power = scipy.signal.welch(even - even.mean(), 4, nperseg=800)
    low, high, gap = (f > 0.04) & (f < 0.15), (f > 0.2) & (f < 0.3), (f > 0.15) & (f < 0.2)
    assert f[low][power[low].argmax()] == pytest.approx(0.1, abs=0.015)
    assert f[high][power[high].argmax()] == pytest.approx(0.25, abs=0.015)
    assert power[gap].max() < 0.5 * min(power[low].max(), power[high].max())


def test_every_class_is_where_the_splits_need_it(records):
    split = settings.database("simulated")
    symbols = {f"s{i:02d}": set(records[i][2]) for i in ALL}
    assert set(symbols) == set(split.records)
    for name in split.train + split.validation + split.test:
        assert {"A", "V"} < symbols[name] and symbols[name] & set("NLR")
    for part in (split.train, split.validation, split.test):
        together = set.union(*(symbols[name] for name in part))
        assert {"N", "A", "V", "F"} < together and together & set("LR")
    assert all(symbols[name] == {"/", "V"} for name in ("s15", "s16"))
    for i in range(1, 15):
        share = np.isin(records[i][2], ["A", "V", "F"]).mean()
        assert 0.08 < share < 0.16


def test_even_the_shortest_record_has_every_class():
    for index in range(1, 15):
        patient, _ = simulated_ecg.draw_patient(0, index)
        symbols = set(simulated_ecg.simulate_record(0, index, 20)[2])
        assert symbols == {patient.conduction, *patient.share}


@pytest.mark.parametrize("seed", range(3))
def test_the_default_signal_stays_within_the_adc(seed):
    for index in ALL:
        adu = simulated_ecg.simulate_record(seed, index, 60)[0] * 200 + 1024
        assert 0 < adu.min() and adu.max() < 2047
        assert adu.std(axis=0).min() > 10


def test_signal_outside_the_adc_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(errors.UserError, match="s01.*range of 11 bits.*higher SNR"):
        simulated_ecg.write_database(tmp_path / "simdb", ("s01",), 30, 0, snr_db=-30)
    assert contents(tmp_path / "simdb") == {} and len(list(tmp_path.iterdir())) == 1


def test_same_seed_same_bytes_and_other_seed_others(database, tmp_path):
    for name, records, seed in (("again", ("s02", "s15"), 0), ("more", ("s01", "s02", "s03"), 0),
                                ("other", ("s02", "s15"), 1)):
        simulated_ecg.write_database(tmp_path / name, records, 30, seed)
    first = contents(database)
    assert contents(tmp_path / "again") == first
    more, other = contents(tmp_path / "more"), contents(tmp_path / "other")
    for name in ("s02.dat", "s02.atr", "s02.hea"):
        assert more[name] == first[name] != other[name]


def test_patients_differ(records):
    def mean_beat(index):
        signal, samples, symbols = records[index]
        normal = samples[1:-1][np.isin(symbols[1:-1], ["N", "L", "R"])]
        return np.mean([signal[s - 100:s + 144] for s in normal], axis=0)

    beats = [mean_beat(i) for i in (1, 2, 4, 6, 7, 9, 10, 11, 14)]
    apart = [np.abs(a - b).max() for k, a in enumerate(beats) for b in beats[:k]]
    assert min(apart) > 0.05


@pytest.mark.parametrize("old", [False, True])
def test_interruption_leaves_what_there_was(tmp_path, monkeypatch, old):
    folder, write = tmp_path / "simdb", wfdb.wrann
    if old:
        simulated_ecg.write_database(folder, ("s01", "s02"), 20, 0)
    before = contents(folder) if old else {}

    def interrupted(name, *args, **kwargs):
        if name == "s02":
            raise KeyboardInterrupt
        write(name, *args, **kwargs)

    monkeypatch.setattr(wfdb, "wrann", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulated_ecg.write_database(folder, ("s01", "s02"), 20, 5)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["simdb"]


def test_interruption_between_two_renames_is_repaired(tmp_path, monkeypatch):
    folder, replace, done = tmp_path / "simdb", simulated_ecg.os.replace, []

    def interrupted(source, target):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(simulated_ecg.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            simulated_ecg.write_database(folder, ("s01", "s02"), 20, 0)
    assert not list(folder.glob("*.hea")), "a header only where its dat and atr are"
    assert not simulated_ecg.is_complete(folder, ("s01", "s02"), 20, 0, simulated_ecg.SNR_DB)
    simulated_ecg.write_database(folder, ("s01", "s02"), 20, 0)
    assert simulated_ecg.is_complete(folder, ("s01", "s02"), 20, 0, simulated_ecg.SNR_DB)


def test_script_writes_once_then_only_what_changed(tmp_path, capsys):
    folder = tmp_path / "simdb"
    command = ["--out", str(folder), "--records", "2", "--duration-s", "20"]
    simulated_ecg.main(command)
    output = capsys.readouterr().out
    assert "SIMULATED data: no patient" in output.splitlines()[0]
    counts = [wfdb.rdann(str(folder / name), "atr").symbol.count("N") for name in ("s01", "s02")]
    assert output.splitlines()[-2].split()[:2] == ["all", str(sum(counts))]

    def stamp():
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    first = stamp()
    simulated_ecg.main(command)
    assert stamp() == first and "nothing to do" in capsys.readouterr().out
    simulated_ecg.main(command + ["--force"])
    assert stamp() != first and "nothing to do" not in capsys.readouterr().out
    for change in (["--seed", "1"], ["--snr-db", "13"], ["--duration-s", "21"], ["--records", "3"]):
        simulated_ecg.main(command + change)
        assert "wrote" in capsys.readouterr().out
    simulated_ecg.main(command)
    assert sorted(path.stem for path in folder.glob("*.dat")) == ["s01", "s02"]
    data = folder / "s01.dat"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    simulated_ecg.main(command)
    assert "wrote" in capsys.readouterr().out, "a damaged file is noticed"


def test_real_records_are_never_touched(tmp_path):
    (tmp_path / "100.hea").write_text("100 2 360 650000\n100.dat 212 200 11 1024 995 -22131 0 MLII\n")
    before = contents(tmp_path)
    with pytest.raises(errors.UserError, match="100.hea: not written by synthetic.py"):
        simulated_ecg.main(["--out", str(tmp_path), "--records", "1", "--duration-s", "20"])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("arguments, said", [
    (["--duration-s", "5"], "20 s <= duration"), (["--duration-s", "nan"], "20 s <= duration"),
    (["--duration-s", "inf"], "20 s <= duration"), (["--seed", "-1"], "seed >= 0"),
    (["--snr-db", "nan"], "range of 11 bits")])
def test_impossible_parameters_are_user_errors(tmp_path, arguments, said):
    with pytest.raises(errors.UserError, match=said):
        simulated_ecg.main(["--out", str(tmp_path / "simdb"), "--records", "1", "--duration-s", "20", *arguments])


def test_unknown_record_names_and_counts_fail(tmp_path):
    with pytest.raises(errors.UserError, match="'100'.*as s03"):
        simulated_ecg.write_database(tmp_path / "simdb", ("100",), 20, 0)
    for count in ("0", "1000"):
        with pytest.raises(SystemExit):
            simulated_ecg.main(["--out", str(tmp_path), "--records", count])
