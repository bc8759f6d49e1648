"""Data whose denoiser is known in closed form."""

import jax
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


def mixture(means, std: float = 0.3):
    """Posterior means under equally likely Gaussians N(mean, std^2 I), means [K, D], for x [B, D]: the exact denoiser."""
    means = jnp.asarray(means, jnp.float32)

    def denoise(x, level: Level) -> Prediction:
        a, s = (jnp.reshape(v, (-1, 1)) if jnp.ndim(v) else v for v in (level.alpha, level.sigma))
        spread = (a * std) ** 2 + s**2
        away = x[:, None] - (a * means[None] if jnp.ndim(a) == 0 else a[..., None] * means[None])
        weights = jax.nn.softmax(-jnp.square(away).sum(-1) / (2 * spread), axis=1)
        eps = s * jnp.einsum("bk,bkd->bd", weights, away) / spread
        x0 = jnp.einsum("bk,bkd->bd", weights, means[None] + (a * std**2 / spread)[..., None] * away if jnp.ndim(a) else
                        means[None] + a * std**2 / spread * away)  # fmt: skip
        return Prediction(x0, eps)

    return denoise
