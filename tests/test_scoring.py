import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import models
import scoring
from preprocess import beat_weights

SETTINGS = {"SCORE_SIGMA_S": 0.1, "LATENT_REFERENCES": 40, "NEIGHBOURS": 3}


@pytest.fixture
def fitted_model():
    torch.manual_seed(0)
    model = models.ConvAutoencoder(160, 4).eval()
    x = np.random.default_rng(0).normal(size=(60, 160)).astype(np.float32)
    return model, scoring.fit(model, x[:50], x[50:], SETTINGS, 360, 0, "cpu"), x


def test_nearest_distance_equals_scikit_learn():
    rng = np.random.default_rng(0)
    z, references = (torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32)) for n in (30, 200))
    expected = NearestNeighbors(n_neighbors=3).fit(references).kneighbors(z)[0].mean(1)
    np.testing.assert_allclose(scoring.nearest_distance(z, references, 3), expected, rtol=1e-4)


def test_error_scores_equal_their_definition(fitted_model):
    model, fitted, x = fitted_model
    scores, recon, z = scoring.score(model, fitted, x, "cpu")
    error = (x.astype(float) - recon) ** 2
    np.testing.assert_allclose(scores["mse"], error.mean(1), rtol=1e-5)
    np.testing.assert_allclose(scores["beat"], np.average(error, axis=1, weights=beat_weights(160, 36, 0)), rtol=1e-4)
    assert z.shape == (60, 4) and set(scores) == {"mse", "beat", "latent", "combined"}


def test_combined_is_standard_on_validation_normals(fitted_model):
    model, fitted, x = fitted_model
    scores, _, _ = scoring.score(model, fitted, x[50:], "cpu")
    assert scores["combined"].mean() == pytest.approx(0, abs=1e-6)
    logs = {k: np.log(scores[k]) for k in ("beat", "latent")}
    expected = sum((v - v.mean()) / v.std() for v in logs.values()) / 2
    np.testing.assert_allclose(scores["combined"], expected, atol=1e-4)


def test_score_of_a_beat_does_not_depend_on_the_others(fitted_model):
    model, fitted, x = fitted_model
    all_scores, _, _ = scoring.score(model, fitted, x, "cpu")
    one, _, _ = scoring.score(model, fitted, x[7:8], "cpu")
    for name in all_scores:
        assert one[name][0] == pytest.approx(all_scores[name][7], rel=1e-3, abs=1e-4)


def test_error_far_from_the_beat_moves_mse_and_not_beat(fitted_model):
    model, fitted, x = fitted_model
    recon = torch.zeros(1, 160)
    original = scoring.reconstruct
    scoring.reconstruct = lambda *a: (recon, torch.zeros(1, 4))
    try:
        near, far = np.zeros((2, 1, 160), np.float32)
        near[0, 80], far[0, 0] = 3, 3
        at_beat, _, _ = scoring.score(model, {**fitted, "sigma_samples": 10}, near, "cpu")
        away, _, _ = scoring.score(model, {**fitted, "sigma_samples": 10}, far, "cpu")
    finally:
        scoring.reconstruct = original
    assert at_beat["mse"] == pytest.approx(away["mse"])
    assert at_beat["beat"] > 1000 * away["beat"]


@pytest.mark.parametrize("n, specificity, flagged", [(1000, 0.955, 45), (10, 0.95, 0), (10, 0.9, 1), (1, 0.5, 0)])
def test_threshold_flags_as_many_normals_as_asked(n, specificity, flagged):
    scores = np.random.default_rng(0).normal(size=n)
    t = scoring.threshold_at_specificity(scores, specificity)
    assert (scores >= t).sum() == flagged


def test_threshold_never_flags_more_where_scores_are_equal():
    scores = np.array([0.0] * 50 + [1.0] * 50)
    assert (scores >= scoring.threshold_at_specificity(scores, 0.9)).sum() == 0
    with pytest.raises(ValueError, match="normal beats"):
        scoring.threshold_at_specificity(np.array([]), 0.9)
