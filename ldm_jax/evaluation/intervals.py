"""How sure a measure of some pictures is: intervals by the bootstrap, and the Frechet distance of infinitely many.

The Frechet distance of N pictures is too large by about a constant over N (Chong & Forsyth 2020, "Effectively unbiased FID and
Inception score"): a line through its values at several N, over 1/N, meets 1/N = 0 at the distance of infinitely many.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

NORMAL_95 = 1.959964


class Interval(NamedTuple):
    """An estimate with its standard error and the 95 % interval about it, low to high."""

    value: float
    error: float
    low: float
    high: float


def bootstrap(measure: Callable[[np.ndarray], float], count: int, resamples: int = 20, seed: int = 0) -> Interval:
    """The interval of `measure(rows)`, which takes the numbers of the pictures to use, int64 [count]: their values over
    resamples with replacement give the standard error (Efron 1979). The interval lies about the value of all pictures, not at
    the resamples' percentiles: a distance is biased, and more so with fewer different pictures.

    Raises:
      ValueError: fewer than 2 pictures or resamples.
    """
    if count < 2 or resamples < 2:
        raise ValueError(f"a bootstrap of {count} pictures in {resamples} resamples: at least 2 of either")
    rng = np.random.default_rng(seed)
    value = float(measure(np.arange(count)))
    error = float(np.std([measure(rng.integers(count, size=count)) for _ in range(resamples)], ddof=1))
    return Interval(value, error, value - NORMAL_95 * error, value + NORMAL_95 * error)


def frechet_at_infinity(
    features: np.ndarray, distance: Callable[[np.ndarray], float], points: int = 8, least: int = 0, seed: int = 0
) -> float:
    """The Frechet distance of infinitely many pictures to a Gaussian, from features [N, D] of some and `distance` of
    `frechet_to`: at `points` numbers between `least` (default N / 4) and N, as far apart in 1/N as each other.

    Raises:
      ValueError: so few pictures that there are not two numbers between.
    """
    count = len(features)
    least = least or max(count // 4, 2)
    if not 2 <= least < count or points < 2:
        raise ValueError(f"{count} pictures, from {least} on, at {points} points: the distance at infinity needs more pictures")
    sizes = np.unique(np.rint(1 / np.linspace(1 / count, 1 / least, points)).astype(int))
    rng = np.random.default_rng(seed)

    def at(size: int) -> float:
        return distance(features[rng.permutation(count)[:size]])

    slope_and_end = np.polynomial.polynomial.polyfit(1 / sizes, [at(size) for size in sizes], 1)
    return float(slope_and_end[0])
