"""Points on the noise axis, and what a denoiser predicts at one of them.

    x_t = alpha x0 + sigma eps

A schedule maps its own time to a `Level`; a sampling grid is a `Level` of arrays, from noisy to clean. All of
`ldm_jax.diffusion` is written in these two coefficients, so variance-preserving processes (alpha^2 + sigma^2 = 1),
variance-exploding ones (alpha = 1) and rectified flow (alpha + sigma = 1) run through the same code.

Schedules and grids compute in float64 with NumPy when given NumPy numbers, and in the trace when given JAX arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def namespace(*arrays: Any) -> Any:
    """`jax.numpy` if any argument is a JAX array (traced or not), else `numpy`."""
    return jnp if any(isinstance(a, jax.Array) for a in arrays) else np


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Level:
    """`t` is the network's time input; `alpha`, `sigma` are the coefficients of `x_t`. Scalars, [B], or a grid [N].

    `s`: for networks that are told how far they are to step (average velocities, shortcuts), that length in units of `t`; None
    tells them nothing.
    """

    t: Any
    alpha: Any
    sigma: Any
    s: Any = None

    @property
    def log_snr(self) -> Any:
        """log(alpha^2 / sigma^2), the full one; DPM-Solver's lambda is half of it."""
        xp = namespace(self.alpha, self.sigma)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha) - xp.log(self.sigma))

    @property
    def noise_ratio(self) -> Any:
        """sigma / alpha, which EDM and k-diffusion call sigma."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    def __getitem__(self, index: Any) -> "Level":
        """The level, or the part of the grid, at this index."""
        return jax.tree.map(lambda a: a[index], self)

    def __len__(self) -> int:
        """The number of levels of a grid, one more than its steps."""
        return len(self.alpha)


class Prediction(NamedTuple):
    """What a denoiser believes at (x, level): the clean latent and the unit noise, both shaped like x."""

    x0: jax.Array
    eps: jax.Array


Denoiser = Callable[[jax.Array, Level], Prediction]

CLEAN = Level(0.0, 1.0, 0.0)
# Numbers below it that are to be divided by count as 0: an alpha so small leaves nothing of x0 in float32.
PURE_NOISE = 1e-6


def expand(a: Any, x: jax.Array) -> Any:
    """A scalar stays one; [B] becomes [B, 1, ...], to multiply x [B, ...]."""
    return a if np.ndim(a) == 0 else jnp.reshape(a, np.shape(a) + (1,) * (x.ndim - np.ndim(a)))


def diffuse(x0: jax.Array, eps: jax.Array, level: Level) -> jax.Array:
    """The forward process, x_t = alpha x0 + sigma eps; level scalar or [B]."""
    return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * eps


def from_log_snr(log_snr: Any) -> tuple[Any, Any]:
    """(alpha, sigma) of the variance-preserving process at this log-SNR: alpha^2 = sigmoid(log_snr)."""
    xp = namespace(log_snr)
    return xp.exp(-0.5 * xp.logaddexp(0.0, -log_snr)), xp.exp(-0.5 * xp.logaddexp(0.0, log_snr))
