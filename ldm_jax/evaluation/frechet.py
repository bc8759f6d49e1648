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

CHUNK = 8192  # rows that are centred at once
LARGE = 512  # from here on singular values may come from eigenvalues


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


def moments(features: np.ndarray, least: int = 2) -> Moments:
    """The moments of features [N, D], N at least `least`: 1 for what is merged with more."""
    features = _matrix(features, least)
    mean = features.mean(0)
    scatter = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), CHUNK):  # centred without a second copy of all
        centred = features[start : start + CHUNK] - mean
        scatter += centred.T @ centred
    return Moments(len(features), mean, scatter)


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of features together (Chan et al. 1979); features [N, D] of the same D."""
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


def frechet_of_gaussians(mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray) -> float:
    """The distance from means [D] and covariances [D, D], such as files of statistics hold.

    Raises:
      ValueError: shapes that don't fit, numbers that aren't finite, or a covariance that isn't one.
    """
    return _distance(*_gaussian(mean_a, covariance_a), *_gaussian(mean_b, covariance_b))


def frechet_to(mean: np.ndarray, covariance: np.ndarray) -> Callable[[np.ndarray], float]:
    """The distance of features [N, D] to the Gaussian of `mean` [D] and `covariance` [D, D], whose root is taken once, here:
    for many sets of features and one reference. ValueError as of `frechet_of_gaussians`."""
    there = _gaussian(mean, covariance)

    def distance(features: np.ndarray) -> float:
        features = _matrix(features)
        if len(features) <= 2 * features.shape[1]:  # so few that they may be singular, or of a resample that repeats many
            return _distance(features.mean(0), _root_of_samples(features), *there)
        some = moments(features)
        return _distance(some.mean, _root_of_matrix(some.covariance), *there)

    return distance


def _gaussian(mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and a root of the covariance, float64, checked."""
    if np.ndim(mean) != 1 or np.shape(covariance) != (len(mean),) * 2:
        there = f"{np.shape(mean)} and a covariance of {np.shape(covariance)}"
        raise ValueError(f"a mean of shape {there}: expected [D] and [D, D]")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("a mean or a covariance has numbers that are not finite")
    if not np.allclose(covariance, np.transpose(covariance), rtol=1e-5, atol=1e-6 * np.abs(covariance).max(initial=0)):
        raise ValueError("a covariance is not symmetric: it is something else, or damaged")
    return np.asarray(mean, np.float64), _root_of_matrix(np.asarray(covariance, np.float64))


def _distance(mean_a: np.ndarray, root_a: np.ndarray, mean_b: np.ndarray, root_b: np.ndarray) -> float:
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"features of {len(mean_a)} and of {len(mean_b)} numbers can't be compared")
    traces = np.square(root_a).sum() + np.square(root_b).sum()
    return float(np.square(mean_a - mean_b).sum() + traces - 2 * _nuclear_norm(root_a @ root_b.T, 1e-8 * traces))


def _nuclear_norm(x: np.ndarray, tolerance: float) -> float:
    """The sum of singular values. Of large matrices through the eigenvalues of x x^T, which takes a fifth of the time, unless
    their rounding could change it by more than `tolerance`."""
    x = x if len(x) <= x.shape[1] else x.T
    if len(x) >= LARGE:
        squares = np.linalg.eigvalsh(x @ x.T)
        error = 8 * np.finfo(np.float64).eps * squares[-1]
        if squares[0] > error and error * (0.5 / np.sqrt(squares)).sum() <= tolerance:
            return float(np.sqrt(squares).sum())
    return float(np.linalg.svd(x, compute_uv=False).sum())


def _root_of_samples(x: np.ndarray) -> np.ndarray:
    """R of at most D rows with R^T R = the covariance of the rows of x."""
    root = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return root if len(x) <= x.shape[1] else np.linalg.qr(root, mode="r")


def _root_of_matrix(covariance: np.ndarray) -> np.ndarray:
    """R with R^T R = the covariance: Cholesky's, or where that is singular, by eigenvalues."""
    alive = np.flatnonzero(np.diag(covariance) > 0)  # of ReLU's features some may be 0 in every picture
    root = np.zeros((len(alive), len(covariance)))
    try:
        root[:, alive] = np.linalg.cholesky(covariance[np.ix_(alive, alive)]).T
        return root
    except np.linalg.LinAlgError:
        pass
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def _matrix(features: np.ndarray, least: int = 2) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < least:
        raise ValueError(f"features of shape {features.shape}: expected [N, D] with at least {least} rows")
    if not np.isfinite(features).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(features).all(1))} of {len(features)} feature vectors are not finite")
    return features
