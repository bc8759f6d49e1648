"""What a network is trained to say, as a pair (c, d): target = c x0 + d eps.

Together with x_t = alpha x0 + sigma eps this is a 2x2 linear system with determinant det = alpha d - sigma c:

    x0  = (d x_t - sigma target) / det        eps = (alpha target - c x_t) / det

eps (0, 1): Ho et al. 2020.  x0 (1, 0).  v (-sigma, alpha): Salimans & Ho 2022.  flow (-1, 1): Lipman et al. 2023,
Liu et al. 2023.  EDM's F: Karras et al. 2022, table 1, for data of standard deviation sigma_data.

At a fixed x_t an error of the target is -det/sigma times the error of x0, which is how loss weights change between kinds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import Level, Prediction, expand, lookup, namespace

Pair = Callable[[Level], tuple[Any, Any]]
Kind = str | Pair


def edm(sigma_data: float = 0.5) -> Pair:
    """EDM's F, with D = c_skip x + c_out F: target = (sigma/sigma_data x0 - alpha sigma_data eps) / scale."""

    def pair(level: Level) -> tuple[Any, Any]:
        scale = edm_scale(level, sigma_data)
        return level.sigma / (sigma_data * scale), -level.alpha * sigma_data / scale

    return pair


def edm_scale(level: Level, sigma_data: float = 0.5) -> Any:
    """Standard deviation of x_t; EDM divides the network's input by it (c_in)."""
    return namespace(level.alpha, level.sigma).sqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)


KINDS: dict[str, Pair] = {
    "eps": lambda level: (0.0, 1.0),
    "x0": lambda level: (1.0, 0.0),
    "v": lambda level: (-level.sigma, level.alpha),
    "flow": lambda level: (-1.0, 1.0),
    "edm": edm(),
}


def coefficients(kind: Kind, level: Level) -> tuple[Any, Any]:
    """(c, d) of `kind` at `level`; `kind` is a name in `KINDS` or a function from Level to the pair."""
    return (kind if callable(kind) else lookup(KINDS, kind, "parameterization"))(level)


def determinant(kind: Kind, level: Level) -> Any:
    """alpha d - sigma c: 1 for v (VP), alpha for eps, -sigma for x0, alpha + sigma for flow."""
    c, d = coefficients(kind, level)
    return level.alpha * d - level.sigma * c


def target(kind: Kind, prediction: Prediction, level: Level) -> jax.Array:
    """c x0 + d eps: the training target of true (x0, eps), or a prediction expressed in another kind."""
    c, d = coefficients(kind, level)
    if isinstance(c, float) and c == 0:
        return d * prediction.eps
    if isinstance(d, float) and d == 0:
        return c * prediction.x0
    x = prediction.x0
    return expand(c, x) * prediction.x0 + expand(d, x) * prediction.eps


def predict(kind: Kind, x: jax.Array, output: jax.Array, level: Level) -> Prediction:
    """Solves for (x0, eps) from x_t and the target. eps of an x0-kind at sigma = 0, which nothing determines, is 0.

    Raises ValueError if the level is known (NumPy) and a kind that predicts noise is asked about pure noise (alpha = 0).
    """
    c, d = coefficients(kind, level)
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    if isinstance(d, float) and d == 0:
        eps = (x - alpha * output / c) / jnp.where(sigma == 0, jnp.inf, sigma)
        return Prediction(output / c, eps)
    det = determinant(kind, level)
    if isinstance(det, (float, np.ndarray, np.generic)) and np.any(np.abs(det) < 1e-6):
        raise ValueError(
            f"parameterization {kind!r} is singular where alpha = {level.alpha}, sigma = {level.sigma}: pure noise "
            "says nothing about x0. Use kind 'v', 'flow' or 'x0', or a grid that starts below it."
        )
    c, d, det = expand(c, x), expand(d, x), expand(det, x)
    eps = output / d if isinstance(c, float) and c == 0 else (alpha * output - c * x) / det
    return Prediction((d * x - sigma * output) / det, eps)
