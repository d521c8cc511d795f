"""What detect.py draws of made-up recordings, one of half an hour and one of half a minute."""

from types import SimpleNamespace

import numpy as np

from recording import picture


def overview(duration_s, examples, signal=None):
    """What detect.py draws of a recording with a stretch that cannot be read."""
    rng = np.random.default_rng(0)
    time_s = np.arange(0.5, duration_s, 0.8)
    known = np.ones(len(time_s), bool)
    beats = SimpleNamespace(time_s=time_s, duration_s=duration_s, readable=known, scored=known,
                            unreadable=np.zeros(9))
    example = {"offset_s": np.linspace(-1, 1, 720), "signal": rng.normal(size=720),
               "recon": np.zeros(720), "time_s": 1799.0, "kind": "V", "excess": 12.3}
    excess = rng.normal(0, 1, len(time_s))
    return picture.draw_overview(SimpleNamespace(
        name="119", lead="MLII", unit="mV", beats=beats, excess=excess, flagged=excess > 1.65,
        line=1.65, fs_hz=100, rr_before_s=np.full(len(time_s), 0.8),
        unreadable_s=np.array([[10, 20.0]]), examples=[example] * examples), signal)


def strip():
    return overview(30, 3, np.random.default_rng(1).normal(size=3000).cumsum() / 20)
