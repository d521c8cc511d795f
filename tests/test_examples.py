"""What the pictures show of the latents."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.decomposition import PCA

from scoring import examples


@pytest.mark.parametrize("seed", range(6))
def test_the_plane_of_latents_is_that_of_scikit_learn(seed):
    """Its directions, too."""
    rng = np.random.default_rng(seed)
    z = (rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)
    reference = PCA(2, svd_solver="full").fit(z)
    found = examples.latent_plane(z)
    assert_allclose(found["latent_2d"], reference.transform(z), atol=1e-4)
    assert_allclose(found["latent_explained"], reference.explained_variance_ratio_, rtol=1e-5)
