"""A lead that is upside down is said, by its usual beat."""

from types import SimpleNamespace

import numpy as np
import pytest

from recording import trust

FS = 360
TIME_S = (np.arange(720) - 360) / FS


def bell(centre_s, width_s):
    return np.exp(-0.5 * ((TIME_S - centre_s) / width_s) ** 2)


def beats(p, r, s, t, n=100):
    """n beats of these heights, in noise; the last half is flagged and of another shape."""
    beat = p * bell(-0.16, 0.02) + r * bell(0, 0.012) + s * bell(0.03, 0.012) + t * bell(0.28, 0.05)
    rows = beat + np.random.default_rng(0).normal(0, 0.05, (n, 720))
    segments = np.column_stack([np.vstack([rows, -rows]), np.zeros((2 * n, 2))])
    kind = np.repeat(["N", "V"], n)
    return SimpleNamespace(segments=segments, scored=np.ones(2 * n, bool)), kind


@pytest.mark.parametrize("waves, upside_down", [
    ((0.2, 1, -0.2, 0.3), False), ((-0.2, -1, 0.2, -0.3), True),
    ((0.2, 1, -0.2, -0.3), False), ((-0.2, -1, 0.2, 0.3), True),    # strain: T against QRS
    ((0.2, -1, 0.2, 0.3), False), ((0, -1, 0.2, 0.3), False),       # a block, with and without P
    ((0, -1, 0.2, -0.3), True),                                     # fibrillation, upside down
    ((0.2, 1, -1, 0.3), False), ((-0.2, -1, 1, -0.3), False)])      # as much up as down: not known
def test_which_beats_are_upside_down(waves, upside_down):
    said = trust.inverted(*beats(*waves), "MLII", FS)
    assert bool(said) == upside_down
    assert all("may be inverted" in sentence and "MLII" in sentence for sentence in said)


@pytest.mark.parametrize("lead, points_up", [
    ("I", True), ("ECG II", True), ("Lead I", True), ("mlii", True), ("V5", True), ("ML II", True),
    ("modified lead II", True), ("aVR", False), ("V1", False), ("III", False), ("ECG1", False),
    ("1", False), ("", False)])
def test_only_leads_that_point_up_by_name(lead, points_up):
    assert bool(trust.inverted(*beats(-0.2, -1, 0.2, -0.3), lead, FS)) == points_up


def test_few_beats_say_nothing():
    assert trust.inverted(*beats(-0.2, -1, 0.2, -0.3, n=20), "II", FS) == []
