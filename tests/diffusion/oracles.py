"""Data whose denoiser is known in closed form."""

import jax.numpy as jnp

from ldm_jax.diffusion import Level, Prediction
from ldm_jax.diffusion.level import expand


def gaussian(mean: float = 0.4, std: float = 0.6):
    """Posterior means under data N(mean, std^2): the exact denoiser."""

    def denoise(x, level: Level) -> Prediction:
        a, s = expand(level.alpha, x), expand(level.sigma, x)
        gain = a * std**2 / (a**2 * std**2 + s**2)
        x0 = mean + gain * (x - a * mean)
        eps = s * (x - a * mean) / (a**2 * std**2 + s**2)
        return Prediction(x0, eps)

    return denoise


def flow_map(x, level: Level, to: Level, mean: float = 0.4, std: float = 0.6):
    """Where the probability-flow ODE of the same data carries x: every quantile stays a quantile."""
    spread = lambda l: jnp.sqrt((l.alpha * std) ** 2 + l.sigma**2)  # noqa: E731
    return to.alpha * mean + spread(to) / spread(level) * (x - level.alpha * mean)


def point(x0):
    """Data that is one point: the denoiser always knows it."""

    def denoise(x, level: Level) -> Prediction:
        a, s = expand(level.alpha, x), expand(level.sigma, x)
        return Prediction(jnp.broadcast_to(x0, x.shape), (x - a * x0) / s)

    return denoise
