"""The training objective: E_{t, eps} w(t) |target - network(x_t, t)|^p, in every parameterization.

`diffusion_loss` is what a training step calls; `errors`, its inner half, returns the error of every sample before weights, for
objectives that combine several weightings (the reference's l_simple + elbo) or learn them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.denoiser import Network
from ldm_jax.diffusion.level import Level, Prediction, diffuse, expand
from ldm_jax.diffusion.parameterization import PredictionType, target
from ldm_jax.diffusion.schedules import Schedule
from ldm_jax.diffusion.times import Times, uniform
from ldm_jax.diffusion.weightings import Weighting, simple
from ldm_jax.primitives.choices import choose

Error = Callable[[jax.Array, jax.Array], jax.Array]
UNIFORM, SIMPLE = uniform(), simple()


def huber(c: float) -> Error:
    """Pseudo-Huber (Song & Dhariwal 2023): sqrt(|d|^2 + c^2) - c per sample, over its root mean square d."""

    def error(output: jax.Array, wanted: jax.Array) -> jax.Array:
        return jnp.sqrt(_mean(jnp.square(output - wanted)) + c**2) - c

    return error


def smooth_l1(c: float) -> Error:
    """Pseudo-Huber element by element: 2 c (sqrt(d^2 + c^2) - c), which is d^2 for small d."""
    return lambda output, wanted: _mean(2 * c * (jnp.sqrt(jnp.square(output - wanted) + c**2) - c))


ERRORS: dict[str, Error] = {
    "l1": lambda output, wanted: _mean(jnp.abs(output - wanted)),
    "l2": lambda output, wanted: _mean(jnp.square(output - wanted)),
    "huber": huber(1e-3),
}


class Errors(NamedTuple):
    """Per sample [B]: the `error` of the network's target, at `level`, and the `weight` of the time sampler."""

    error: jax.Array
    level: Level
    weight: jax.Array


def errors(
    network: Network,
    schedule: Schedule,
    prediction: PredictionType,
    x0: jax.Array,
    key: jax.Array,
    *,
    times: Times = UNIFORM,
    error: str | Error = "l2",
    offset_noise: float = 0.0,
    input_perturbation: float = 0.0,
    input_scale: Callable[[Level], Any] | None = None,
    noise: jax.Array | None = None,
) -> Errors:
    """Noises x0 [B, ...] at random levels and compares the network's answers with their targets.

    `offset_noise`: noise gets strength * N(0, 1) per sample and channel on top (Guttenberg 2023). `input_perturbation`: x_t is
    made with eps + strength * N(0, 1) while the target keeps eps (Ning et al. 2023; 0.1). `noise`: eps itself, given.
    """
    of_time, of_noise, of_offset, of_input = jax.random.split(key, 4)
    level, weight = times(of_time, x0.shape[0], schedule)
    x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
    eps = jax.random.normal(of_noise, x0.shape, x0.dtype) if noise is None else noise
    if offset_noise:
        shape = (x0.shape[0], *(1,) * (x0.ndim - 2), x0.shape[-1])
        eps = eps + offset_noise * jax.random.normal(of_offset, shape, x0.dtype)
    seen = eps + input_perturbation * jax.random.normal(of_input, x0.shape, x0.dtype) if input_perturbation else eps
    x = diffuse(x0, seen, level)
    if input_scale is not None:
        x = x * expand(input_scale(level), x)
    output = network(x, level.t).astype(x0.dtype)
    if output.shape != x0.shape:
        raise ValueError(f"The network returned shape {output.shape} for x of shape {x0.shape}.")
    compare = error if callable(error) else choose(ERRORS, error, "error")
    return Errors(compare(output, target(prediction, Prediction(x0, eps), level)), level, weight)


def diffusion_loss(
    network: Network,
    schedule: Schedule,
    prediction: PredictionType,
    x0: jax.Array,
    key: jax.Array,
    *,
    weighting: Weighting = SIMPLE,
    log_variance: Callable[[Level], jax.Array] | None = None,
    **options: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss and what to log of it: mean over the batch of weight * error, `options` as for `errors`.

    `network(x_t, t[B]) -> output`. `log_variance(level) -> [B]`, learned uncertainty u: error e becomes e / exp(u) + u
    (the reference's learn_logvar; EDM2 has the same head). Metrics: loss, loss_simple (unweighted), and per sample [B]
    loss_per_sample, t, log_snr.
    """
    error, level, weight = errors(network, schedule, prediction, x0, key, **options)
    each = weighting(level, prediction) * error
    if log_variance is not None:
        u = log_variance(level)
        each = each / jnp.exp(u) + u
    loss = jnp.mean(weight * each)
    return loss, {
        "loss": loss,
        "loss_simple": jnp.mean(error),
        "loss_per_sample": error,
        "t": level.t,
        "log_snr": level.log_snr,
    }


def _mean(a: jax.Array) -> jax.Array:
    return a.reshape(a.shape[0], -1).mean(1)
