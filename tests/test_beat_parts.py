from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import median_abs_deviation

from scoring import beat_parts

FS, WIDTH = 360, 720
FITTED = {"z_scale": 1.0, "settings": {"SELF_IRREGULARITY": 0.1}}
MIDDLE_S = {"P": -0.175, "QRS": 0.0, "ST-T": 0.275}  # from the R peak


@pytest.fixture
def beats():
    """(features, x) of two records of 60 equal beats with noise; the vectors are noise."""
    rng = np.random.default_rng(0)
    x = np.sin(np.arange(WIDTH) / 40) + rng.normal(0, 0.1, (120, WIDTH))
    vectors = rng.normal(0, 1, (120, 6)).astype(np.float32)
    features = SimpleNamespace(record=np.repeat(["a", "b"], 60), irregular=rng.normal(0, 0.3, 120),
                               vectors=lambda z_scale: vectors / z_scale)
    return features, x.astype(np.float32)


@pytest.mark.parametrize("part", beat_parts.MEASURED)
def test_a_beat_changed_in_one_part_is_led_by_it(beats, part):
    features, x = beats
    if part == "timing":
        features.irregular[33] = 12
    else:
        centre = WIDTH // 2 + round(MIDDLE_S[part] * FS)
        x[33, centre - 15:centre + 15] += 3
    values, _ = beat_parts.deviations(features, x, FITTED, FS)
    limits = beat_parts.limits(np.delete(values, 33, axis=0), 0.95)
    leading, strength = beat_parts.leading(values, limits, {}, {})
    assert beat_parts.PARTS[leading[33]] == part and strength[33] > 5

    features.irregular[33] = -12  # a late beat is not unusual
    values, _ = beat_parts.deviations(features, x, FITTED, FS)
    assert values[33, 3] < 0


def test_values_and_usual_beat_equal_a_plain_loop(beats):
    features, x = beats
    values, usual = beat_parts.deviations(features, x, FITTED, FS)
    here = np.arange(60, 120)
    vectors = features.vectors(1.0)
    reference = here[features.irregular[here] <= 0.1].tolist()
    expected = []
    for row in here:
        fellows = [r for r in reference if r != row]  # a reference beat is not compared with itself
        near = sorted(fellows, key=lambda r: np.linalg.norm(vectors[r] - vectors[row]))
        expected.append(x[near[:beat_parts.TEMPLATE_BEATS]].mean(axis=0))
    assert_allclose(usual[here], expected, atol=1e-5)
    root = np.std(x[here] - expected, axis=1, where=np.abs(np.arange(WIDTH) - 359.5) < 36, mean=0)
    own = root[np.isin(here, reference)]
    expected = (root - np.median(own)) / median_abs_deviation(own)
    assert_allclose(values[here, 1], expected, rtol=1e-3, atol=1e-3)


def test_other_records_lone_beats_and_what_is_outside_all_windows_have_no_say(beats):
    features, x = beats
    before, _ = beat_parts.deviations(features, x, FITTED, FS)
    x[60:] += 50
    x[:, :WIDTH // 2 - round(0.25 * FS)] = 9
    x[:, WIDTH // 2 + round(0.45 * FS):] = -9
    assert_array_equal(beat_parts.deviations(features, x, FITTED, FS)[0][:60], before[:60])
    features.record = np.array(["a"] * 119 + ["lone"])
    values, usual = beat_parts.deviations(features, x, FITTED, FS)
    assert (values[119] == 0).all() and (usual[119] == x[119]).all()


def test_limits_leave_the_asked_share_below_and_the_part_beyond_its_by_most_leads():
    values = np.random.default_rng(0).normal(size=(1000, 4)) * [1, 2, 3, 4]
    assert_allclose((values < beat_parts.limits(values, 0.955)).mean(axis=0), 0.955, atol=0.001)
    part, strength = beat_parts.leading(np.array([[4.0, 1, 1, 6], [0, 9, 0, 0]]), [2.0, 3, 1, 6],
                                        {}, {})
    assert part.tolist() == [0, 1] and strength.tolist() == [2, 3]


def test_a_beat_that_is_usual_in_its_record_is_led_by_shape_before_timing():
    """All four deviate most in timing; the first three by less than any limit."""
    values = np.tile([0.1, 0.2, 0.3, 0.9], (4, 1))
    values[3, 3] = 2
    scores = {"latent_knn": np.array([8.0, 3, 3, 8]), "rhythm": np.array([6.0, 6, 1, 6])}
    part, strength = beat_parts.leading(values, np.ones(4), scores, {"latent_knn": 4, "rhythm": 3})
    assert [beat_parts.PARTS[k] for k in part] == ["shape", "timing", "none", "timing"]
    assert strength.tolist() == [2, 2, 0.9, 2]


def test_nearest_training_beats_are_those_of_a_plain_loop(beats):
    features, x = beats
    rng = np.random.default_rng(1)
    references = rng.normal(0, 1, (50, 6))
    features.z = rng.normal(0, 2, (120, 4))
    train = np.arange(60, 110)
    fitted = {"z_scale": 2.0, "references": torch.from_numpy(references)}
    found = beat_parts.nearest_training(features, fitted, np.array([3, 77]), x, train)
    for row, mean in zip((3, 77), found):
        away = np.linalg.norm(references[:, :4] - features.z[row] / 2, axis=1)
        assert_allclose(mean, x[train[np.argsort(away)[:10]]].mean(axis=0), atol=1e-5)
