"""What a page holds of a recording: bounded, its extremes kept, and the signal given back."""

import numpy as np
import pytest
from conftest import Leads, peak_bytes, scored_beats
from numpy.testing import assert_allclose

from recording import page_data
from recording.page_data import MISSING


# --- long recordings ------------------------------------------------------------------------------

def test_long_recording_keeps_strips_at_full_rate_and_extremes_of_the_rest(monkeypatch):
    for name, value in (("FULL_SAMPLES", 3000), ("ENVELOPE", 900), ("CHUNK", 700)):
        monkeypatch.setattr(page_data, name, value)
    signal = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    signal[12_000:12_500] = np.nan
    recording = Leads([signal])
    excess = np.append(np.arange(199) % 50 / 10, 9)
    scored = scored_beats(np.arange(50, 20_000, 100), excess, 20_000)
    content = page_data.content_of(scored, recording)
    assert content.step == 23
    starts, stops = zip(*recording.reads)
    assert starts == (0, *stops[:-1]) and stops[-1] == 20_000  # once, in order
    assert max(np.subtract(stops, starts)) <= 700

    wanted = np.zeros(20_000, bool)
    flagged = np.flatnonzero(scored.flagged)
    for sample in scored.samples[flagged[[0, (len(flagged) - 1) // 2, -1]]]:   # evenly in time
        wanted[max(0, sample - 500):sample + 501] = True

    def signal_of(stored):
        return np.where(stored == MISSING, np.nan, content.offset[0] + content.scale[0] * stored)

    assert_allclose(signal_of(content.full[0]), signal[wanted], atol=content.scale[0])
    pieces = np.pad(signal, (0, 10), constant_values=np.nan).reshape(870, 23)
    for stored, extreme in ((content.low, np.fmin), (content.high, np.fmax)):
        assert_allclose(signal_of(stored), extreme.reduce(pieces, axis=1), atol=content.scale[0])


def test_memory_and_content_of_a_day_are_bounded():
    """24 h at 360 Hz, 100,000 beats, every third flagged."""
    rng = np.random.default_rng(0)
    block = rng.normal(size=1 << 18)
    day = Leads([range(24 * 3600 * 360)])
    day.read = lambda lead, start, stop: np.resize(block, stop - start)
    scored = scored_beats(np.arange(100_000) * 311, rng.permutation(np.linspace(0, 4.5, 100_000)),
                          day.n_samples, 360)
    assert peak_bytes(page_data.content_of, scored, day) < 100e6
    content = page_data.content_of(scored, day)
    assert content.drawn.all() and len(content.kept) > 400
    assert content.full[0].nbytes + content.low.nbytes + content.high.nbytes < 5.3e6


def test_of_very_many_beats_the_extreme_and_those_in_strips_are_kept(monkeypatch):
    monkeypatch.setattr(page_data, "DRAWN", 20)
    excess = np.random.default_rng(0).normal(size=97)
    excess[40:60] = np.nan
    scored = scored_beats(np.arange(97) * 100, excess, 9700)
    drawn = np.flatnonzero(page_data.thin_out(scored, np.array([[1950, 2201]])))
    wanted = {20, 21, 22, *np.flatnonzero(scored.flagged)}
    for first in (*range(0, 40, 10), *range(60, 97, 10)):
        group = excess[first:first + 10]
        wanted |= {first + group.argmax(), first + group.argmin()}
    assert wanted <= set(drawn) <= wanted | set(range(40, 60))


@pytest.mark.parametrize("signal, step", [
    (np.linspace(-2, 3, 5001), 1e-4), (np.full(50, 7.5), 1e-9), (np.full(9, np.nan), 0),
    (np.empty(0), 0),
    (np.append(np.sin(np.arange(5000)), [1e30, np.nan]), 0.01)])
def test_int16_gives_the_signal_back(signal, step):
    (stored,), offset, scale = page_data.quantise(signal.astype(np.float32))
    back = np.where(stored == MISSING, np.nan, offset + scale * stored)
    usual = ~(np.abs(signal) > 1e3)
    assert_allclose(back[usual], signal[usual], atol=step)
    assert np.isfinite(back[~usual]).all() and (back[~usual] > 100).all()


def test_of_a_long_recording_the_episodes_that_most_need_a_look_are_kept():
    scored = scored_beats(np.arange(50, 90_000, 100), np.zeros(900), 90_000)
    rows = [("pause", 100, 103), ("pause", 200, 209), ("ventricular run", 400, 402)]
    scored.episodes = [{"kind": kind, "start_s": a, "end_s": b, "rate_per_min": 150.0, "beats": 5}
                       for kind, a, b in rows]
    kept = page_data.full_rate(scored, 90_000, 2 * 1001)     # one of each kind, the longest pause
    assert kept.tolist() == [[20_450 - 500, 20_450 + 501], [40_100 - 500, 40_100 + 501]]
