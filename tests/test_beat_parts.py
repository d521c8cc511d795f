from types import SimpleNamespace

import numpy as np
import pytest

from scoring import beat_parts

FS, WIDTH = 360, 720
FITTED = {"z_scale": 1.0, "settings": {"SELF_IRREGULARITY": 0.1}}
MIDDLE_OF = {"P": -0.175, "QRS": 0.0, "ST-T": 0.275}  # s from the R peak


@pytest.fixture
def beats():
    """(view, x) of two records of 60 equal beats with noise; each vector says only where a beat is in time."""
    rng = np.random.default_rng(0)
    n = 120
    x = np.sin(np.arange(WIDTH) / 40) + rng.normal(0, 0.1, (n, WIDTH))
    vectors, irregular = rng.normal(0, 1, (n, 6)).astype(np.float32), rng.normal(0, 0.3, n)
    record = np.repeat(["a", "b"], n // 2)
    view = SimpleNamespace(record=record, irregular=irregular, vectors=lambda z_scale: vectors / z_scale)
    return view, x.astype(np.float32)


def lead(view, x, row):
    """(name of the leading part, how many times its limit) of one beat; limits from all the others."""
    values, _ = beat_parts.deviations(view, x, FITTED, FS)
    part, strength = beat_parts.leading(values, beat_parts.limits(np.delete(values, row, axis=0), 0.95))
    return beat_parts.PARTS[part[row]], strength[row]


@pytest.mark.parametrize("part", MIDDLE_OF)
def test_a_beat_changed_in_one_window_is_led_by_it(beats, part):
    view, x = beats
    centre = WIDTH // 2 + round(MIDDLE_OF[part] * FS)
    x[33, centre - 15:centre + 15] += 3
    name, strength = lead(view, x, 33)
    assert name == part and strength > 5


def test_a_premature_beat_is_led_by_timing_and_a_late_one_is_not(beats):
    view, x = beats
    view.irregular[33] = 12
    name, strength = lead(view, x, 33)
    assert name == "timing" and strength > 5
    view.irregular[33] = -12
    assert lead(view, x, 33)[0] != "timing"


def test_change_outside_all_windows_changes_nothing(beats):
    view, x = beats
    before, _ = beat_parts.deviations(view, x, FITTED, FS)
    x[:, :WIDTH // 2 - round(0.25 * FS)] = 9
    x[:, WIDTH // 2 + round(0.45 * FS):] = -9
    np.testing.assert_array_equal(before, beat_parts.deviations(view, x, FITTED, FS)[0])


def test_values_and_usual_beat_equal_a_plain_loop(beats):
    view, x = beats
    values, usual = beat_parts.deviations(view, x, FITTED, FS)
    here, vectors = np.arange(60, 120), view.vectors(1.0)
    reference = here[view.irregular[here] <= 0.1].tolist()
    expected, root = [], []
    for row in here:
        fellows = [r for r in reference if r != row]  # a reference beat is not compared with itself
        near = sorted(fellows, key=lambda r: np.linalg.norm(vectors[r] - vectors[row]))[:beat_parts.TEMPLATE_BEATS]
        expected.append(x[near].mean(axis=0))
        root.append(np.sqrt(((x[row, 324:396] - expected[-1][324:396]) ** 2).mean()))
    np.testing.assert_allclose(usual[here], expected, atol=1e-5)
    own = np.array(root)[np.isin(here, reference)]
    spread = np.median(np.abs(own - np.median(own)))
    np.testing.assert_allclose(values[here, 1], (root - np.median(own)) / spread, rtol=1e-3, atol=1e-3)


def test_other_records_and_lone_beats_have_no_say(beats):
    view, x = beats
    before, _ = beat_parts.deviations(view, x, FITTED, FS)
    x[60:] += 50
    np.testing.assert_array_equal(beat_parts.deviations(view, x, FITTED, FS)[0][:60], before[:60])
    view.record = np.array(["a"] * 119 + ["lone"])
    values, usual = beat_parts.deviations(view, x, FITTED, FS)
    np.testing.assert_array_equal(values[119], 0)
    np.testing.assert_array_equal(usual[119], x[119])


def test_limits_leave_the_asked_share_below():
    values = np.random.default_rng(0).normal(size=(1000, 4)) * [1, 2, 3, 4]
    limit = beat_parts.limits(values, 0.955)
    np.testing.assert_allclose((values < limit).mean(axis=0), 0.955, atol=0.001)
    assert (beat_parts.limits(np.full((5, 4), -1.0), 0.9) > 0).all()


def test_the_part_that_passes_its_limit_by_most_leads():
    part, strength = beat_parts.leading(np.array([[4.0, 1, 1, 6], [0, 9, 0, 0]]), [2.0, 3, 1, 6])
    np.testing.assert_array_equal(part, [0, 1])
    np.testing.assert_array_equal(strength, [2, 3])


def test_shares_count_flagged_beats_of_each_class():
    part, aami = np.array([0, 0, 1, 3, 3, 3]), np.array(list("VVVVSN"))
    result = beat_parts.shares(part, aami, np.array([1, 1, 1, 0, 1, 0], bool))
    assert result["V"] == {"n": 3, "P": pytest.approx(2 / 3), "QRS": pytest.approx(1 / 3), "ST-T": 0, "timing": 0}
    assert result["S"]["timing"] == 1 and result["N"] == {"n": 0, **dict.fromkeys(beat_parts.PARTS)}
