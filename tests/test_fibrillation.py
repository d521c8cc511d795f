"""Fibrillation is told from noise, from normal rhythm and from no signal."""

import numpy as np
import pandas as pd
import pytest
import scipy
import wfdb
from conftest import Leads
from numpy.testing import assert_allclose, assert_array_equal

import preprocess
from models import load_checkpoint
from pipeline import settings, simulated_ecg
from recording import fibrillation, quality, scan
from recording.episodes import NO_QRS, without_qrs
from studies import fibrillation as study

FS = 360
BAND_HZ = (0.5, 40)


def fibrillating(seconds, seed=0):
    """Ventricular fibrillation in mV, made up: a sine whose rate wanders between 3 and 6 Hz."""
    rng = np.random.default_rng(seed)
    n = seconds * FS
    wander = np.interp(np.arange(n), np.arange(0, n + FS, FS), rng.uniform(3, 6, n // FS + 1))
    size = np.interp(np.arange(n), np.arange(0, n + FS, FS), rng.uniform(0.3, 0.8, n // FS + 1))
    return size * np.sin(2 * np.pi * np.cumsum(wander) / FS) + 0.02 * rng.normal(size=n)


@pytest.fixture(scope="module")
def normal(tmp_path_factory):
    """Three simulated minutes in mV."""
    path = tmp_path_factory.mktemp("simulated") / "s01"
    simulated_ecg.write_database(path.parent, ("s01",), duration_s=180, seed=3)
    return wfdb.rdrecord(str(path)).p_signal[:, 0]


def found(signal, noisy=False):
    filtered = preprocess.bandpass(signal, FS, BAND_HZ, 3)
    return fibrillation.without_qrs(*fibrillation.oscillation(filtered, FS), noisy)


def test_fibrillation_is_found_whatever_the_gain():
    assert found(fibrillating(120)).all() and found(1000 * fibrillating(120)).all()


def test_normal_rhythm_noise_and_no_signal_are_none(normal):
    rng = np.random.default_rng(0)
    assert not found(normal).any()
    assert not found(rng.normal(size=60 * FS)).any()
    assert not found(np.cumsum(rng.normal(size=60 * FS))).any()
    for signal in (np.zeros(60 * FS), fibrillating(1)):
        assert (fibrillation.score(*fibrillation.oscillation(signal, FS)) == -np.inf).all()
        assert not fibrillation.without_qrs(*fibrillation.oscillation(signal, FS), True).any()


def test_a_slow_wide_rhythm_is_none_unless_its_complexes_differ():
    """The same wave, at rates from 90 to 300 a minute: fibrillation begins between 140 and 150."""
    t = np.arange(60 * FS) / FS
    rates_hz = np.array([90, 120, 140, 150, 180, 300]) / 60
    waves = [np.sin(2 * np.pi * hz * t) for hz in rates_hz]
    assert [found(wave).all() for wave in waves] == [False, False, False, True, True, True]
    assert all(found(wave, noisy=True).all() for wave in waves)


def test_kurtosis_is_scipys_and_three_more():
    values = np.random.default_rng(0).gamma(2, size=(5, 300))
    assert_allclose(fibrillation.kurtosis(values), scipy.stats.kurtosis(values, axis=1) + 3)


def test_the_score_is_the_least_sign():
    """Of a sine of 4 Hz: kurtosis of a sine -1.5, nothing left over, all power about 4 Hz."""
    sine = np.sin(2 * np.pi * 4 * np.arange(60 * FS) / FS)
    signs = [4.5 / (3 - 1.5), 1 / fibrillation.CONCENTRATION]
    margin, frequency_hz = fibrillation.oscillation(sine, FS)
    assert_allclose(margin, np.log(min(signs)), atol=0.02)
    assert_allclose(frequency_hz, 4)
    expected = min(*margin, 0.5 * np.log(4 / fibrillation.SLOWEST_HZ))
    assert_allclose(fibrillation.score(margin, frequency_hz), expected)


def test_of_noise_beside_it_less_is_asked():
    margin = np.array([-0.05, 0.2, -0.05, -0.05, -0.05, 0.3, -0.2])
    for noisy, expected in ((True, [1, 1, 1, 0, 1, 1, 0]), (False, [0, 1, 0, 0, 0, 1, 0])):
        noisy = np.full(7, noisy)
        assert_array_equal(fibrillation.without_qrs(margin, np.full(7, 4.0), noisy), expected)


def test_leakage_is_nothing_of_a_sine_and_all_of_pulses():
    t = np.arange(3600) / FS
    pulses = np.exp(-0.5 * (((t % 0.8) - 0.4) / 0.01) ** 2)
    sine, peaks = fibrillation.leakage(np.array([np.sin(2 * np.pi * 5 * t), pulses]))
    assert_allclose(sine, 0, atol=0.05)
    assert peaks > 0.9


def test_it_is_no_noise_and_becomes_an_episode(normal):
    """Half a minute in the middle of a normal recording."""
    signal = normal.copy()
    signal[60 * FS:90 * FS] = fibrillating(30)
    model, stored = load_checkpoint(settings.ROOT / "checkpoints" / "patient.pt", "make")
    beats = scan.scan(Leads([signal], FS), 0, model, stored["segment_settings"],
                      stored["score_settings"], "cpu")
    assert list(np.flatnonzero(beats.without_qrs)) == [6, 7, 8]
    noise = quality.REASONS.index("noise")
    assert not (beats.unreadable[6:9] == noise).any()
    row, = without_qrs(beats.without_qrs, quality.VERDICT_S, beats.duration_s)
    assert (row["kind"], row["start_s"], row["end_s"]) == (NO_QRS, 60, 90)


def test_ventricular_flutter_of_record_207(mitdb):
    """Marked [ and ] by the expert, and nowhere else in the record for long."""
    signal = wfdb.rdrecord(str(mitdb / "207"), channels=[0]).p_signal[:, 0]
    notes = wfdb.rdann(str(mitdb / "207"), "atr")
    inside = np.zeros(len(signal), bool)
    begins = notes.sample[np.array(notes.symbol) == "["]
    ends = notes.sample[np.array(notes.symbol) == "]"]
    for first, last in zip(begins, ends):
        inside[first:last] = True

    windows = found(signal)
    share = inside[:len(windows) * 3600 - 3600].reshape(-1, 3600).mean(axis=1)
    windows = windows[:len(share)]
    assert windows[share == 1].mean() > 0.8 and windows[share == 0].mean() < 0.02


def test_the_study_gives_shares_of_the_time_by_rhythm():
    a = pd.DataFrame({"rhythm": ["(N", "(N", "(VF", "(VFL"], "without_qrs": [0, 1, 1, 1],
                      "episode": [1, 1, 1, 1], "unreadable": [0, 0, 0, 0]})
    b = pd.DataFrame({"rhythm": ["(VFIB", "(PM"], "without_qrs": [0, 1], "episode": [0, 1],
                      "unreadable": [1, 0]})
    rows = study.shares("others", [a, b])
    assert [tuple(row.values())[1:] for row in rows] == [
        ("fibrillation, flutter", 3, pytest.approx(2 / 3), pytest.approx(2 / 3),
         pytest.approx(1 / 3)), ("normal", 2, 0.5, 1, 0)]


def seconds(rhythm, episode, score=0.0):
    """A row a second as the study has them, ten seconds a letter."""
    names = {"N": "(N", "F": "(VF", "T": "(VT"}
    table = pd.DataFrame({"rhythm": [names[letter] for letter in rhythm], "episode": episode,
                          "score": score})
    return table.loc[table.index.repeat(10)].reset_index(drop=True)


def test_spells_are_marked_where_an_episode_touches_them():
    table = seconds("NTNTTN", [1, 0, 0, 0, 1, 0])
    tachycardia, asystole = study.spells_marked("others", [table])
    assert (tachycardia["spells"], tachycardia["marked"]) == (2, 1)
    assert (asystole["spells"], asystole["marked"]) == (0, 0)


def test_area_of_the_score_with_and_without_tachycardia():
    row = study.areas("others", [seconds("NNFT", 0, [-np.inf, 0.1, 0.5, 0.9])])
    assert (row["windows"], row["fibrillating"]) == (4, 1)
    assert row["auroc"] == pytest.approx(2 / 3) and row["auroc_but_tachycardia"] == 1
