"""What a network is trained to say, as a pair (c, d): target = c x0 + d eps.

Together with x_t = alpha x0 + sigma eps this is a 2x2 linear system with determinant det = alpha d - sigma c:

    x0  = (d x_t - sigma target) / det        eps = (alpha target - c x_t) / det

eps (0, 1): Ho et al. 2020.  x0 (1, 0).  v (-sigma, alpha): Salimans & Ho 2022.  flow (-1, 1): Lipman et al. 2023,
Liu et al. 2023.  EDM's F: Karras et al. 2022, table 1, for data of standard deviation sigma_data.

At a fixed x_t an error of the target is -det/sigma times the error of x0, which is how loss weights change between predictions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.diffusion.level import PURE_NOISE, Level, Prediction, expand, namespace
from ldm_jax.primitives.choices import choose

Pair = Callable[[Level], tuple[Any, Any]]
PredictionType = str | Pair


def edm(sigma_data: float = 0.5) -> Pair:
    """EDM's F, with D = c_skip x + c_out F: target = (sigma/sigma_data x0 - alpha sigma_data eps) / scale."""

    def pair(level: Level) -> tuple[Any, Any]:
        scale = edm_scale(level, sigma_data)
        return level.sigma / (sigma_data * scale), -level.alpha * sigma_data / scale

    return pair


def edm_scale(level: Level, sigma_data: float = 0.5) -> Any:
    """Standard deviation of x_t; EDM divides the network's input by it (c_in)."""
    return namespace(level.alpha, level.sigma).sqrt((level.alpha * sigma_data) ** 2 + level.sigma**2)


PREDICTIONS: dict[str, Pair] = {
    "eps": lambda level: (0.0, 1.0),
    "x0": lambda level: (1.0, 0.0),
    "v": lambda level: (-level.sigma, level.alpha),
    "flow": lambda level: (-1.0, 1.0),
    "edm": edm(),
}


def coefficients(prediction: PredictionType, level: Level) -> tuple[Any, Any]:
    """(c, d) of `prediction` at `level`; `prediction` is a name in `PREDICTIONS` or a function from Level to the pair."""
    return (prediction if callable(prediction) else choose(PREDICTIONS, prediction, "parameterization"))(level)


def of_schedule(prediction: PredictionType, schedule: Any) -> PredictionType:
    """`prediction`, where "edm" takes the schedule's sigma_data if it has one."""
    return edm(schedule.sigma_data) if prediction == "edm" and hasattr(schedule, "sigma_data") else prediction


def determinant(prediction: PredictionType, level: Level) -> Any:
    """alpha d - sigma c: 1 for v (VP), alpha for eps, -sigma for x0, alpha + sigma for flow."""
    c, d = coefficients(prediction, level)
    return level.alpha * d - level.sigma * c


def target(prediction: PredictionType, predicted: Prediction, level: Level) -> jax.Array:
    """c x0 + d eps: the training target of true (x0, eps), or a prediction expressed as another target."""
    c, d = coefficients(prediction, level)
    if isinstance(c, float) and c == 0:
        return d * predicted.eps
    if isinstance(d, float) and d == 0:
        return c * predicted.x0
    x = predicted.x0
    return expand(c, x) * predicted.x0 + expand(d, x) * predicted.eps


def predict(prediction: PredictionType, x: jax.Array, output: jax.Array, level: Level) -> Prediction:
    """Solves for (x0, eps) from x_t and the target. eps of an x0 network at sigma = 0, which nothing determines, is 0.

    Raises ValueError if the level is known (NumPy) and a network that predicts noise is given pure noise (alpha = 0).
    """
    c, d = coefficients(prediction, level)
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    if isinstance(d, float) and d == 0:
        eps = (x - alpha * output / c) / jnp.where(sigma == 0, jnp.inf, sigma)
        return Prediction(output / c, eps)
    det = determinant(prediction, level)
    if isinstance(det, (float, np.ndarray, np.generic)) and np.any(np.abs(det) < PURE_NOISE):
        raise ValueError(
            f"parameterization {prediction!r} is singular where alpha = {level.alpha}, sigma = {level.sigma}: pure noise "
            "says nothing about x0. Use prediction 'v', 'flow' or 'x0', or a grid that starts below it."
        )
    c, d, det = expand(c, x), expand(d, x), expand(det, x)
    eps = output / d if isinstance(c, float) and c == 0 else (alpha * output - c * x) / det
    return Prediction((d * x - sigma * output) / det, eps)
