"""The Frechet distance of two sets of features, taken as Gaussians (Heusel et al. 2017, equation 6).

    d = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

With any roots S = R^T R the last trace is the nuclear norm of R_a R_b^T, its sum of singular values. So no square root of
an unsymmetric matrix is taken, and the result is real and exact to rounding even for fewer samples than features, where
the covariances are singular and `scipy.linalg.sqrtm` gives noise.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Of `count` feature vectors: their mean [D], and the sum of squares about it, `scatter` [D, D]; float64."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance [D, D] of the features."""
        return self.scatter / (self.count - 1)


def moments(features: np.ndarray) -> Moments:
    """The moments of features [N, D]."""
    features = _matrix(features)
    mean = features.mean(0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets together (Chan et al. 1979)."""
    count, step = a.count + b.count, b.mean - a.mean
    scatter = a.scatter + b.scatter + np.outer(step, step) * (a.count * b.count / count)
    return Moments(count, a.mean + step * (b.count / count), scatter)


def moments_of(extract: Callable[[np.ndarray], np.ndarray], batches: Iterable[np.ndarray]) -> Moments:
    """The moments of `extract(batch)`, [N, D], over all batches; holds one batch of features at a time."""
    return reduce(merge, (moments(extract(batch)) for batch in batches))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The distance between two sets of features, [N, D] and [M, D]."""
    a, b = _matrix(a), _matrix(b)
    return _distance(a.mean(0), _root_of_samples(a), b.mean(0), _root_of_samples(b))


def frechet_from_moments(a: Moments, b: Moments) -> float:
    """The distance from moments that were accumulated over batches, or read from a file of statistics."""
    if min(a.count, b.count) < 2:
        raise ValueError(f"{min(a.count, b.count)} samples have no covariance: take at least 2")
    return _distance(a.mean, _root_of_matrix(a.covariance), b.mean, _root_of_matrix(b.covariance))


def _distance(mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray) -> float:
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features of {len(mean_a)} and of {len(mean_b)} numbers can't be compared")
    nuclear_norm = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    return float(np.square(mean_a - mean_b).sum() + np.square(root_a).sum() + np.square(root_b).sum() - 2 * nuclear_norm)


def _root_of_samples(x: np.ndarray) -> np.ndarray:
    """R of at most D rows with R^T R = the covariance of the rows of x."""
    root = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return root if len(x) <= x.shape[1] else np.linalg.qr(root, mode="r")


def _root_of_matrix(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def _matrix(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {features.shape}: expected [N, D] with at least 2 rows")
    if not np.isfinite(features).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(features).all(1))} of {len(features)} feature vectors are not finite")
    return features
