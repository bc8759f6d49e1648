"""The measures against stored values of reference implementations."""

import numpy as np
import pytest

from ldm_jax import evaluation
from ldm_jax.evaluation.manifold import neighbour_distances

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def arrays(fixtures_dir):
    return dict(np.load(fixtures_dir / "H1_metrics" / "io.npz"))


@pytest.mark.parametrize("case", ["well", "nlessd", "scaled", "relu", "same"])
def test_frechet_distance(arrays, case):
    a, b = arrays[f"fid.{case}.a"], arrays[f"fid.{case}.b"]
    exact, library = (arrays[f"fid.{case}.{name}"].item() for name in ("exact", "pytorch_fid"))
    parts = (evaluation.merge(*map(evaluation.moments, np.array_split(x, 2))) for x in (a, b))
    streamed = evaluation.frechet_from_moments(*parts)
    np.testing.assert_allclose(evaluation.frechet_distance(a, b), exact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(streamed, exact, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(streamed, library, rtol=1e-6, atol=1e-9)
    whole = evaluation.moments(a)
    np.testing.assert_allclose(whole.mean, arrays[f"fid.{case}.mu_a"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(whole.covariance, arrays[f"fid.{case}.sigma_a"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score(arrays, splits):
    found = evaluation.inception_score(arrays["is.logits"], splits)
    np.testing.assert_allclose(found, arrays[f"is.splits{splits}.mean_std"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage(arrays, k):
    found = evaluation.precision_recall(arrays["pr.real"], arrays["pr.fake"], k)
    for name, value in found._asdict().items():
        np.testing.assert_allclose(value, arrays[f"pr.k{k}.{name}"].item(), rtol=1e-12)
    if k == 3:
        radii = np.sqrt(neighbour_distances(arrays["pr.real"].astype(np.float64), 3))
        np.testing.assert_allclose(radii, arrays["pr.k3.radii_real"])


def test_kernel_distance(arrays):
    a, b = arrays["kid.a"], arrays["kid.b"]
    np.testing.assert_allclose(evaluation.kernel_distance(a, b), arrays["kid.unbiased_full"].item(), rtol=1e-9)
    chosen = zip(arrays["kid.subset_idx_a"], arrays["kid.subset_idx_b"])
    found = [evaluation.kernel_distance(a[i], b[j]) for i, j in chosen]
    np.testing.assert_allclose(found, arrays["kid.subset_mmd2"], rtol=1e-9)
    np.testing.assert_allclose([np.mean(found), np.std(found)], arrays["kid.subset_mean_std"], rtol=1e-9)
