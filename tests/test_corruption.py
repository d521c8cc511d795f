"""pipeline/corruption.py: each step against its definition, and the same beats everywhere."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.signal import butter, sosfreqz

import config
from pipeline import processes
from pipeline.corruption import Corruption, Draw, gain

NOTHING = {"CORRUPTED_SHARE": 1.0, "NOISE_SHARE": 0.0, "SHIFT_S": 0.0, "BAND_SHARE": 0.0,
           "MODULATION": 0.0}
CPU = torch.device("cpu")


@pytest.fixture
def beats():
    """(BATCH_SIZE, w) at mean 0 and deviation 1: one QRS complex each, 0 at both ends."""
    time = np.arange(config.WINDOW_SIZE) - config.WINDOW_SIZE // 2
    width = np.linspace(4, 12, config.BATCH_SIZE)[:, None]
    x = np.exp(-0.5 * (time / width) ** 2)
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return torch.from_numpy(x.astype(np.float32))


def only(monkeypatch, **values):
    """A Corruption that does nothing but what these settings ask for."""
    for name, value in (NOTHING | values).items():
        monkeypatch.setattr(config, name, value)
    return Corruption(7, CPU)


def draw(step=0):
    return Draw(np.random.default_rng(step), config.BATCH_SIZE, CPU)


def test_without_corruption_the_network_sees_the_beat_itself(monkeypatch, beats):
    assert_allclose(only(monkeypatch)(beats, 3), beats, atol=2e-3)
    assert torch.equal(only(monkeypatch, CORRUPTED_SHARE=0.0, MODULATION=0.9)(beats, 3), beats)


def test_seed_and_step_decide(beats):
    one = Corruption(7, CPU)(beats, 3)
    assert torch.equal(one, Corruption(7, CPU)(beats, 3))
    assert not torch.equal(one, Corruption(7, CPU)(beats, 4))
    assert not torch.equal(one, Corruption(8, CPU)(beats, 3))
    assert_allclose(one.mean(1), 0, atol=1e-5)
    assert_allclose(one.std(1), 1, atol=1e-3)


def test_several_processes_see_the_batch_of_one(monkeypatch, beats):
    whole = Corruption(7, CPU)(beats, 3)
    monkeypatch.setattr(processes, "count", lambda: 4)
    for rank in range(4):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        mine = Corruption(7, CPU)(processes.share(beats), 3)
        assert_allclose(mine, processes.share(whole), atol=1e-5)


@pytest.mark.parametrize("snr_db", [0, 12])
def test_noise_has_the_asked_power_within_the_pass_band(monkeypatch, beats, snr_db):
    corruption = only(monkeypatch, NOISE_SHARE=1.0, NOISE_SNR_DB=(snr_db, snr_db))
    noise = corruption.add_noise(beats, draw()) - beats
    assert_allclose(noise.std(1) / beats.std(1), 10 ** (-snr_db / 20), rtol=1e-2)

    power = np.abs(np.fft.rfft(noise.numpy())) ** 2
    hz = np.fft.rfftfreq(config.WINDOW_SIZE, 1 / config.FS_HZ)
    outside = power[:, hz > 1.5 * config.BAND_HZ[1]].sum(1) / power.sum(1)
    assert outside.max() < 0.02


def test_so_many_beats_are_noisy(monkeypatch, beats):
    corruption = only(monkeypatch, NOISE_SHARE=0.3)
    noisy = [(corruption.add_noise(beats, draw(k)) != beats).any(1).float().mean()
             for k in range(20)]
    assert np.mean(noisy) == pytest.approx(0.3, abs=0.04)


def test_the_r_peak_moves_by_up_to_the_setting_and_the_beat_stays_whole(monkeypatch, beats):
    corruption = only(monkeypatch, SHIFT_S=5 / config.FS_HZ)
    moved = corruption.shift(beats, draw())
    places = moved.argmax(1) - config.WINDOW_SIZE // 2
    assert set(places.tolist()) == set(range(-5, 6))
    assert_allclose(np.sort(moved), np.sort(beats), atol=1e-6)


def test_breathing_changes_the_amplitude_by_up_to_the_setting(monkeypatch, beats):
    corruption = only(monkeypatch, MODULATION=0.3)
    factor = corruption.breathe(torch.ones_like(beats), draw())
    assert factor.min() >= 0.7 and factor.max() <= 1.3
    assert factor.min() < 0.75 and factor.max() > 1.25


def test_the_band_is_narrowed_at_either_edge(monkeypatch, beats):
    corruption = only(monkeypatch, BAND_SHARE=1.0)
    spike = torch.zeros_like(beats)
    spike[:, 360] = 1
    response = np.abs(np.fft.rfft(corruption.narrow(spike, draw()).numpy()))
    hz = np.fft.rfftfreq(config.WINDOW_SIZE, 1 / config.FS_HZ)
    edges = hz[(response > 0.5).argmax(1)], hz[::-1][(response[:, ::-1] > 0.5).argmax(1)]
    assert edges[0].min() >= 0.5 and edges[0].max() <= 1.5
    assert 17 <= edges[1].min() < 25 and 43 < edges[1].max() <= 50.5


def test_gain_is_that_of_the_filter_run_both_ways():
    hz = np.linspace(0.2, 100, 500)
    sos = butter(3, (0.5, 40), btype="bandpass", fs=10000, output="sos")
    _, h = sosfreqz(sos, hz, fs=10000)
    assert_allclose(gain(torch.from_numpy(hz), 0.5, 40, 3), np.abs(h) ** 2, atol=0.03)


def test_the_others_stay_as_they_are(monkeypatch, beats):
    corruption = only(monkeypatch, CORRUPTED_SHARE=0.25, MODULATION=0.9)
    changed = [(corruption(beats, step) != beats).any(1).float().mean() for step in range(20)]
    assert np.mean(changed) == pytest.approx(0.25, abs=0.04)
