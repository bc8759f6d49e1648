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


def kernel_distance_error(a: np.ndarray, b: np.ndarray, blocks: int = 10, most: int = 1000, seed: int = 0) -> float:
    """The standard error of `kernel_distance(a, b)`, of features [N, D] and [M, D]: from the deviation of its estimates by
    `blocks` disjoint parts of either set, of at most `most` features each, which goes down with the root of their number. Where
    both sets are of one distribution it is too large.

    The deviation over random subsets, as papers report it, is another thing: subsets share features, and of all features it is
    nothing.

    Raises:
      ValueError: shapes that don't fit, or fewer than 2 features for each of 2 blocks or more.
    """
    a, b = np.asarray(a), np.asarray(b)
    if blocks < 2 or min(len(a), len(b)) < 2 * blocks:
        raise ValueError(f"{blocks} blocks out of {len(a)} and {len(b)} features: at least 2 blocks of 2 features each")
    rng = np.random.default_rng(seed)
    parts = [[part[:most] for part in np.array_split(x[rng.permutation(len(x))], blocks)] for x in (a, b)]
    found = [kernel_distance(x, y) for x, y in zip(*parts)]
    share = max(len(part[-1]) / len(x) for part, x in zip(parts, (a, b)))
    return float(np.std(found, ddof=1) * np.sqrt(share))
