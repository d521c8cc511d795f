"""Distances and scores against brute force on random beats; no network."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.distance import cdist

import config
from pipeline.errors import UserError
from scoring import detector, distances, fit, scores
from scoring.features import BeatFeatures

SETTINGS = {"KNN_NEIGHBOURS": 3, "DENSITY_POWER": 0.5, "SELF_IRREGULARITY": 0.1,
            "SELF_NEIGHBOURS": 0.2}
RECORD = np.repeat(list("abc"), 60)


# --- distances ------------------------------------------------------------------------------------

def test_density_is_the_mean_distance_to_fellows_and_copies_stay_finite():
    known = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    expected = np.log(np.sort(cdist(known, known))[:, 1:6].mean(axis=1))
    assert_allclose(scores.density_scale(known, 5), expected, rtol=1e-4, atol=1e-5)
    assert -30 < scores.relative_distance(np.zeros((1, 1)), [[0]], expected, 0)[0] < -10


def test_a_rare_shape_among_the_reference_stays_far():
    vectors = np.random.default_rng(5).normal(0, 0.1, (100, 3)).astype(np.float32)
    vectors[:5] += 10
    distance = scores.distance_to_share(vectors, vectors, 0.1)
    assert distance[:5].min() > distance[5:].max() + 3


def test_regular_beats_are_spread_in_time_and_have_their_limit():
    irregular = np.random.default_rng(7).normal(size=30000)
    found = scores.regular_beats(irregular, np.arange(30000), 0.0)
    assert scores.SELF_LIMIT / 2 < len(found) <= scores.SELF_LIMIT and irregular[found].max() <= 0
    assert 0 < np.diff([0, *found, 30000]).min() and np.diff([0, *found, 30000]).max() < 150


# --- scores ---------------------------------------------------------------------------------------

@pytest.fixture(params=[False, True])
def beats(request, monkeypatch):
    """(BeatFeatures of 60 beats of each of three records, fitted, causal).

    References of a and b only; c has no beat in the first minutes.
    """
    monkeypatch.setattr(scores, "SEARCH", 50)  # several parts of the search
    monkeypatch.setattr(distances, "BLOCK", 16)
    rng = np.random.default_rng(8)
    found = BeatFeatures(rng.normal(size=(180, 4)).astype(np.float32), None, None, RECORD)
    for prefix in ("", "past_"):
        setattr(found, prefix + "times", rng.normal(size=(180, 2)).astype(np.float32))
        setattr(found, prefix + "irregular", rng.normal(size=180).astype(np.float32))
    found.learning = (np.arange(180) % 60 < 20) & (RECORD != "c")
    fitted = {"settings": SETTINGS, "z_scale": 2.0, "reference_records": ["a", "b"],
              "references": torch.from_numpy(rng.normal(size=(100, 6))).half(),
              "density": torch.from_numpy(rng.normal(size=100).astype(np.float32)),
              "reference_record": torch.arange(100, dtype=torch.int16) % 2}
    return found, fitted, request.param


def vectors_of(found, causal):
    """(n, 6) latents in units of their spread and timing."""
    return np.hstack([found.z / 2, found.past_times if causal else found.times])


def relative(found, fitted, causal, k, columns):
    """`nearest` of beat k among some of the references."""
    references = fitted["references"].float().numpy()
    every = cdist(vectors_of(found, causal)[k:k + 1], references[columns])[0]
    near = np.argsort(every)[:3]
    return np.mean(np.log(every[near]) - 0.5 * fitted["density"].numpy()[columns[near]])


def own_reference(found, causal, name):
    """Rows of a record's most regular beats, of the first minutes alone if causal."""
    irregular = found.past_irregular if causal else found.irregular
    known = np.flatnonzero((RECORD == name) & (found.learning | (not causal)))
    if name == "c" and causal:
        known = np.arange(120, 125)
    return known[np.argsort(irregular[known])][:max(5, (irregular[known] <= 0.1).sum())]


def test_distances_to_training_beats_equal_brute_force(beats):
    found, fitted, causal = beats
    nearest = [relative(found, fitted, causal, k, np.arange(100)) for k in range(180)]
    assert_allclose(scores.nearest(found, fitted, causal), nearest, rtol=1e-4, atol=1e-4)
    # c has no references of its own: all of them
    columns = {"a": np.arange(0, 100, 2), "b": np.arange(1, 100, 2), "c": np.arange(100)}
    own = [relative(found, fitted, causal, k, columns[name]) for k, name in enumerate(RECORD)]
    assert_allclose(scores.same_patient(found, fitted, causal), own, rtol=1e-4, atol=1e-4)
    shape = np.sort(cdist(found.z / 2, fitted["references"].float().numpy()[:, :4]))
    assert_allclose(scores.latent_knn(found, fitted, causal), shape[:, :3].mean(axis=1), rtol=1e-4)


@pytest.mark.parametrize("function, columns", [(scores.self_reference, 6), (scores.self_shape, 4)])
def test_distance_to_own_regular_beats_equals_brute_force(beats, function, columns):
    found, fitted, causal = beats
    got = function(found, fitted, causal)
    vectors = vectors_of(found, causal)[:, :columns]
    for name in "abc":
        reference = own_reference(found, causal, name)
        every = np.sort(cdist(vectors[RECORD == name], vectors[reference]))
        expected = np.log(every[:, min(max(3, int(0.2 * len(reference))), len(reference) - 1)])
        regular = np.isin(np.flatnonzero(RECORD == name), own_reference(found, causal, name))
        expected -= np.median(expected[regular])
        assert_allclose(got[RECORD == name], expected, rtol=1e-4, atol=1e-4)


def test_excess_is_over_the_median_of_the_records_own_regular_beats(beats):
    found, fitted, causal = beats
    values = np.random.default_rng(9).normal(size=180) + 100 * (RECORD == "c")
    got = detector.excess(values, found, fitted, causal)
    for name in "abc":
        known = values[own_reference(found, causal, name)]
        expected = values - np.median(known)
        assert_allclose(got[RECORD == name], expected[RECORD == name], rtol=1e-6)


def test_every_score_of_the_settings_is_in_the_table():
    for protocol in config.PROTOCOLS:
        fit.check_names(protocol)
    with pytest.raises(UserError, match="config.py: WEIGHTS names nerest; expected some of mse"):
        scores.check_names(("nerest", "rhythm"), "WEIGHTS")
