"""How far two sets of features cover each other, by balls around their members that reach to the k-th neighbour.

Precision and recall (Kynkaanniemi et al. 2019): the share of drawn features inside some real ball, and the reverse.
Density and coverage (Naeem et al. 2020): how many real balls hold a drawn feature, over k; and the share of real balls
that hold one.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

CHUNK = 1024  # rows of distances at once


class Overlap(NamedTuple):
    """Precision, recall and coverage are shares in [0, 1]; density is 0 or more, and 1 on average for equal distributions."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: np.ndarray, drawn: np.ndarray, k: int = 3) -> Overlap:
    """From features [N, D] and [M, D] with balls up to the k-th neighbour (3 in the first paper, 5 in the second). ValueError
    for other shapes, fewer than k + 1 of either, or features that are not finite."""
    real, drawn = rows_of_one_length(np.asarray(real, np.float64), np.asarray(drawn, np.float64))
    if not 1 <= k < min(len(real), len(drawn)):
        raise ValueError(f"k={k}: must be at least 1, and smaller than both sets ({len(real)} and {len(drawn)})")
    reach_real, reach_drawn = neighbour_distances(real, k), neighbour_distances(drawn, k)
    inside, held, recalled = [], np.zeros(len(real), bool), np.zeros(len(real), bool)
    density = 0
    for rows, squares in chunks(drawn, real):
        inside.append((squares <= reach_real).any(1))
        density += np.count_nonzero(squares < reach_real)
        held |= (squares < reach_real).any(0)
        recalled |= (squares <= reach_drawn[rows, None]).any(0)
    precision = np.concatenate(inside).mean()
    return Overlap(float(precision), float(recalled.mean()), density / (k * len(drawn)), float(held.mean()))


def rows_of_one_length(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Themselves. ValueError unless they are [N, D] and [M, D], of finite numbers: distances to others compare as false."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"rows of shapes {x.shape} and {y.shape}: expected [N, D] and [M, D]")
    for rows in (x, y):
        if count := np.count_nonzero(~np.isfinite(rows).all(1)):
            raise ValueError(f"{count} of {len(rows)} rows are not finite")
    return x, y


def neighbour_distances(x: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of every row to its k-th nearest other row, [N]."""
    found = []
    for rows, squares in chunks(x, x):
        squares[np.arange(len(squares)), np.arange(rows.start, rows.start + len(squares))] = np.inf
        found.append(np.partition(squares, k - 1, axis=1)[:, k - 1])
    return np.concatenate(found)


def chunks(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Squared distances [chunk, M] of some rows of x [N, D] at a time, float64, to all of y [M, D]; which rows, first."""
    y = np.asarray(y, np.float64)
    lengths = np.square(y).sum(1)
    for start in range(0, len(x), CHUNK):
        rows = slice(start, min(start + CHUNK, len(x)))
        part = np.asarray(x[rows], np.float64)
        yield rows, np.maximum(np.square(part).sum(1)[:, None] + lengths - 2 * part @ y.T, 0)
