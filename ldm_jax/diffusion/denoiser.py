"""A denoiser is a function (x, level) -> Prediction(x0, eps). Guidance, clipping, masks and tiling are functions from
denoiser to denoiser, so samplers know nothing of them.
"""

import contextvars
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.level import Denoiser, Level, Prediction, expand
from ldm_jax.diffusion.parameterization import PredictionType, edm_scale, predict

Network = Callable[..., jax.Array]
_unasked: contextvars.ContextVar[bool] = contextvars.ContextVar("unasked", default=False)


def make_denoiser(network: Network, prediction: PredictionType, input_scale: Callable[[Level], Any] | None = None) -> Denoiser:
    """Joins `network(x, t[B]) -> output` and what its output means into a denoiser; `network(x, t, s[B])` at levels that have
    an `s`.

    The arithmetic stays in x's dtype, whatever dtype the network answers in. `input_scale(level)` multiplies what the network
    sees (EDM: `edm_input_scale`). More output channels than input ones are a learned variance, which is dropped.
    """

    def denoise(x: jax.Array, level: Level) -> Prediction:
        times = (level.t,) if level.s is None else (level.t, level.s)
        times = [jnp.broadcast_to(jnp.asarray(t, jnp.float32), x.shape[:1]) for t in times]
        seen = x if input_scale is None else x * expand(input_scale(level), x)
        output = jnp.zeros_like(x) if _unasked.get() else network(seen, *times)
        if output.shape[:-1] != x.shape[:-1] or output.shape[-1] not in (x.shape[-1], 2 * x.shape[-1]):
            raise ValueError(
                f"The network returned shape {output.shape} for x of shape {x.shape}; it must predict something like x."
            )
        return predict(prediction, x, output[..., : x.shape[-1]].astype(x.dtype), level)

    return denoise


def check_denoiser(denoise: Denoiser, x: jax.Array, level: Level) -> None:
    """Traces the denoiser once, abstractly, at a level that is known, but not the networks of `make_denoiser`, which takes
    seconds and whose answers are looked at wherever they are asked. ValueError for a prediction that is singular there, and for
    answers of another shape than x."""
    token = _unasked.set(True)
    try:
        x0, eps = jax.eval_shape(lambda x: denoise(x, level), x)
    finally:
        _unasked.reset(token)
    if x0.shape != x.shape or eps.shape != x.shape:
        raise ValueError(
            f"The denoiser turned x of shape {x.shape} into predictions of shape {x0.shape} and {eps.shape}. "
            "Does a guidance scale or a condition have another batch size?"
        )


def edm_input_scale(sigma_data: float = 0.5) -> Callable[[Level], Any]:
    """c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2) of a level (Karras et al. 2022, table 1); `sigma_data` is the data's
    standard deviation, above 0."""
    return lambda level: 1 / edm_scale(level, sigma_data)


def from_x0(x: jax.Array, x0: jax.Array, level: Level) -> Prediction:
    """The prediction with this x0, shaped like x, whose eps still explains x = alpha x0 + sigma eps; eps is 0 at sigma 0."""
    sigma = expand(level.sigma, x)
    return Prediction(x0, (x - expand(level.alpha, x) * x0) / jnp.where(sigma == 0, jnp.inf, sigma))


def map_x0(denoise: Denoiser, change: Callable[[jax.Array], jax.Array], keep_eps: bool = False) -> Denoiser:
    """Applies `change` to every predicted x0. eps follows, so that both still explain x, unless `keep_eps`
    (what DDIM implementations do when they clip)."""

    def changed(x: jax.Array, level: Level) -> Prediction:
        predicted = denoise(x, level)
        x0 = change(predicted.x0)
        return Prediction(x0, predicted.eps) if keep_eps else from_x0(x, x0, level)

    return changed


def clip(limit: float = 1.0) -> Callable[[jax.Array], jax.Array]:
    """Static thresholding for `map_x0`: x0 within [-limit, limit]. For pixels in [-1, 1]; latents have no such bound."""
    return lambda x0: jnp.clip(x0, -limit, limit)


def dynamic_threshold(percentile: float = 0.995, limit: float | None = None) -> Callable[[jax.Array], jax.Array]:
    """Imagen (Saharia et al. 2022): s = the percentile of |x0| per sample, at least 1 (and at most `limit`);
    x0 <- clip(x0, -s, s) / s."""

    def change(x0: jax.Array) -> jax.Array:
        s = jnp.quantile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.clip(s, 1.0, limit), x0)
        return jnp.clip(x0, -s, s) / s

    return change


def consistency_boundary(denoise: Denoiser, sigma_data: float = 0.5, scaling: float = 10.0) -> Denoiser:
    """The consistency function of latent consistency models (Luo et al. 2023): x0 <- c_skip x + c_out x0 with
    c_skip = d^2 / (s^2 + d^2), c_out = s / sqrt(s^2 + d^2), s = scaling t, d = sigma_data; the identity at t = 0."""

    def bounded(x: jax.Array, level: Level) -> Prediction:
        x0, eps = denoise(x, level)
        s = scaling * level.t
        scale = s**2 + sigma_data**2
        return Prediction(expand(sigma_data**2 / scale, x) * x + expand(s / jnp.sqrt(scale), x) * x0, eps)

    return bounded
