"""The measures against stored values of reference implementations."""

import re

import numpy as np
import pytest

from ldm_jax import evaluation
from ldm_jax.evaluation.manifold import neighbour_distances

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def arrays(fixtures_dir):
    path = fixtures_dir / "H1_metrics" / "io.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return dict(np.load(path))


def second(arrays, prefix):
    """The cases of a measure: what stands after `prefix` in the arrays' names."""
    found = sorted({name.split(".")[1] for name in arrays if re.match(prefix, name)})
    assert found
    return found


def test_frechet_distance(arrays):
    for case in second(arrays, r"fid\."):
        check_frechet_distance(arrays, case)


def check_frechet_distance(arrays, case):
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


def test_inception_score(arrays):
    for splits in second(arrays, r"is\.splits"):
        found = evaluation.inception_score(arrays["is.logits"], int(splits.removeprefix("splits")))
        np.testing.assert_allclose(found, arrays[f"is.{splits}.mean_std"], rtol=1e-10, atol=1e-12)


def test_precision_recall_density_coverage(arrays):
    for nearest in second(arrays, r"pr\.k"):
        k = int(nearest.removeprefix("k"))
        found = evaluation.precision_recall(arrays["pr.real"], arrays["pr.fake"], k)
        for name, value in found._asdict().items():
            np.testing.assert_allclose(value, arrays[f"pr.{nearest}.{name}"].item(), rtol=1e-12)
        if f"pr.{nearest}.radii_real" in arrays:
            radii = np.sqrt(neighbour_distances(arrays["pr.real"].astype(np.float64), k))
            np.testing.assert_allclose(radii, arrays[f"pr.{nearest}.radii_real"])


def test_kernel_distance(arrays):
    a, b = arrays["kid.a"], arrays["kid.b"]
    np.testing.assert_allclose(evaluation.kernel_distance(a, b), arrays["kid.unbiased_full"].item(), rtol=1e-9)
    chosen = zip(arrays["kid.subset_idx_a"], arrays["kid.subset_idx_b"])
    found = [evaluation.kernel_distance(a[i], b[j]) for i, j in chosen]
    np.testing.assert_allclose(found, arrays["kid.subset_mmd2"], rtol=1e-9)
    np.testing.assert_allclose([np.mean(found), np.std(found)], arrays["kid.subset_mean_std"], rtol=1e-9)
