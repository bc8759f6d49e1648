"""How to draw from a model: what its network was trained on, the levels to visit and the sampler that visits them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ldm_jax.diffusion.level import Denoiser, Level
from ldm_jax.diffusion.parameterization import PredictionType
from ldm_jax.diffusion.samplers import Sampler
from ldm_jax.diffusion.schedules import Schedule


def marginal_scale(level: Level) -> float:
    """sqrt(alpha^2 + sigma^2): the deviation of x_t for clean latents of unit variance. 1 for variance-preserving processes."""
    return float(np.hypot(level.alpha, level.sigma))


@dataclass(frozen=True)
class Recipe:
    """`grid` and `sampler` are functions of the number of steps: some solvers change their orders with it. `wrap` clips or
    thresholds a denoiser; `input_scale` is for `make_denoiser`; `start_scale` is the factor on unit noise that makes the first
    x, a function of the grid's first level."""

    schedule: Schedule
    prediction: PredictionType
    grid: Callable[[int], Level]
    sampler: Callable[[int], Sampler]
    wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise
    input_scale: Callable[[Level], Any] | None = None
    start_scale: Callable[[Level], float] = marginal_scale
