"""The kernel inception distance (Binkowski et al. 2018): the squared maximum mean discrepancy under k(x, y) = (x.y/D + 1)^3.

Its estimate has no bias at any number of pictures, unlike the Frechet distance's; it may be negative.
"""

import numpy as np

from ldm_jax.evaluation.manifold import rows_of_one_length


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate from features [N, D] and [M, D]:
    mean of k(a_i, a_j) over i != j, plus the same of b, less twice the mean of k(a_i, b_j)."""
    a, b = rows_of_one_length(np.asarray(a, np.float64), np.asarray(b, np.float64))
    if min(len(a), len(b)) < 2:
        raise ValueError(f"features of shapes {a.shape} and {b.shape}: expected [N, D] and [M, D], at least 2 of each")

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def others(x: np.ndarray) -> float:
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(others(a) + others(b) - 2 * kernel(a, b).mean())


def kernel_distance_of_subsets(
    a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and deviation over random subsets of `size` features of either set, as papers report it."""
    if size > min(len(a), len(b)):
        raise ValueError(f"subsets of {size} out of {len(a)} and {len(b)} features: choose a smaller size")
    rng = np.random.default_rng(seed)

    def some(x: np.ndarray) -> np.ndarray:
        return np.asarray(x)[rng.choice(len(x), size, replace=False)]

    found = [kernel_distance(some(a), some(b)) for _ in range(subsets)]
    return float(np.mean(found)), float(np.std(found))
