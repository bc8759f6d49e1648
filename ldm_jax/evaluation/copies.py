"""Whether samples are copies of training pictures: nearest neighbours, and how much nearer they are than real pictures'.

    closer   the probability that a sample is nearer to its nearest training picture than a held-out picture is to its own:
             1/2 where samples are as far away as unseen pictures, above where they were copied, below where they don't reach
             the data at all (the statistic of Meehan, Chaudhuri & Dasgupta 2020, "A non-parametric test to detect
             data-copying")
    copies   the share of samples nearer than all but one in a hundred held-out pictures; 0.01 where nothing was copied

Held-out pictures that are among the training pictures as well are no unseen ones, and don't count.
"""

from typing import NamedTuple

import numpy as np

from ldm_jax.evaluation.manifold import chunks, rows_of_one_length

RARE = 0.01
SAME = 1e-5  # of a row's length: the rounding of features of equal pictures


class Memorisation(NamedTuple):
    """`closer` and `copies` are shares in [0, 1]; `distances` [N, k] and `neighbours` int64 [N, k] of every sample, nearest
    first."""

    closer: float
    copies: float
    distances: np.ndarray
    neighbours: np.ndarray


def nearest(x: np.ndarray, y: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distances [N, k] of every row of x [N, D] to its k nearest rows of y [M, D], nearest first, and their numbers.

    Raises:
      ValueError: shapes that don't fit, numbers that are not finite, or k outside 1 .. M.
    """
    x, y = rows_of_one_length(np.asarray(x), np.asarray(y))
    if not 1 <= k <= len(y):
        raise ValueError(f"k={k}: from 1 to the {len(y)} there are")
    distances, numbers = [], []
    for rows, squares in chunks(x, y):
        some = np.argpartition(squares, k - 1, axis=1)[:, :k]
        exact = np.stack([np.square(np.float64(y[j]) - x[i]).sum(1) for i, j in zip(range(rows.start, rows.stop), some)])
        order = np.lexsort((some, exact))  # the sums above cancel; equal ones in the order of y
        distances.append(np.sqrt(np.take_along_axis(exact, order, 1)))
        numbers.append(np.take_along_axis(some, order, 1))
    return np.concatenate(distances), np.concatenate(numbers)


def memorisation(samples: np.ndarray, train: np.ndarray, held_out: np.ndarray, k: int = 1) -> Memorisation:
    """From features (or pixels) [N, D] of samples, training pictures [M, D] and held-out ones [H, D].

    Raises:
      ValueError: as `nearest`; no held-out picture that is none of the training pictures.
    """
    held_out = np.asarray(held_out)
    real = nearest(held_out, train)[0][:, 0]
    real = np.sort(real[real > SAME * np.linalg.norm(np.float64(held_out), axis=1)])
    if not len(real):
        raise ValueError(f"all {len(held_out)} held-out pictures are training pictures: none says how far unseen ones are away")
    distances, neighbours = nearest(samples, train, k)
    mine = distances[:, 0]
    below, upto = np.searchsorted(real, mine, "left"), np.searchsorted(real, mine, "right")
    closer = 1 - ((below + upto) / 2 / len(real)).mean()  # ties count half
    copies = (mine < np.quantile(real, RARE)).mean()
    return Memorisation(float(closer), float(copies), distances, neighbours)
