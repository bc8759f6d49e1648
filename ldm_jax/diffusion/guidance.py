"""Guidance: functions from predictions to one denoiser, and from denoisers to denoisers.

Most guidance contrasts two or more predictions at the same (x, level). `together` gets them from one batched call of the
network, `separately` from one call each (several networks, or less memory); both give a function (x, level) -> [Prediction, ..]
whose first entry is the one to follow and whose last is the one to move away from: a null or negative condition, a weaker
model (autoguidance), perturbed attention. A guided denoiser is then `classifier_free(predictions, scale)`.

A scale is a number, an array [B], traced or not, or a function of the Level: scale 1 is off.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.denoiser import from_x0, make_denoiser
from ldm_jax.diffusion.level import Denoiser, Level, Prediction, expand
from ldm_jax.diffusion.parameterization import PredictionType, predict, target

Predictions = Callable[[jax.Array, Level], Sequence[Prediction]]
Scale = float | jax.Array | Callable[[Level], Any]


def together(
    network: Callable[..., jax.Array], prediction: PredictionType, conds: Sequence[Any], input_scale: Callable | None = None
) -> Predictions:
    """Predictions under every one of `conds` from one call of `network(x, t, cond)`, with s after it where a level has one, on
    a batch of len(conds) B.

    The conditions are pytrees of equal structure, arrays [B, ...]; make an explicit null rather than None.
    """
    if len({jax.tree.structure(c) for c in conds}) != 1:
        raise ValueError(
            "Conditions of one batched call need the same structure; got "
            f"{[jax.tree.structure(c) for c in conds]}. Give an explicit null condition, or use `separately`."
        )
    count = len(conds)

    def predictions(x: jax.Array, level: Level) -> list[Prediction]:
        cond = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds)
        repeat = lambda a: a if jnp.ndim(a) == 0 else jnp.concatenate([a] * count)  # noqa: E731
        denoise = make_denoiser(lambda x, t, *s: network(x, t, cond, *s), prediction, input_scale)
        x0, eps = denoise(jnp.concatenate([x] * count), jax.tree.map(repeat, level))
        return [Prediction(*pair) for pair in zip(jnp.split(x0, count), jnp.split(eps, count))]

    return predictions


def separately(*denoisers: Denoiser) -> Predictions:
    """Predictions of several denoisers, one call each."""
    return lambda x, level: [denoise(x, level) for denoise in denoisers]


def guided(predictions: Predictions, rule: Callable[..., Prediction]) -> Denoiser:
    """The denoiser `rule(x, level, *predictions)`; the rules below return one of these."""
    return lambda x, level: rule(x, level, *predictions(x, level))


def classifier_free(predictions: Predictions, scale: Scale) -> Denoiser:
    """Ho & Salimans 2022: u + scale (c - u), the same in every parameterization. With a weaker network as u:
    autoguidance (Karras et al. 2024); with perturbed attention: PAG (Ahn et al. 2024; their scale is ours - 1)."""

    def rule(x: jax.Array, level: Level, follow: Prediction, *others: Prediction) -> Prediction:
        s = scale_at(scale, level, x)
        return jax.tree.map(lambda c, u: u + s * (c - u), follow, others[-1])

    return guided(predictions, rule)


def composed(predictions: Predictions, scales: Sequence[Scale]) -> Denoiser:
    """Liu et al. 2022, composition of conditions: u + sum_i scale_i (c_i - u), u the last prediction. A negative scale moves
    away from its condition."""

    def rule(x: jax.Array, level: Level, *found: Prediction) -> Prediction:
        if len(found) != len(scales) + 1:
            raise ValueError(f"{len(scales)} scales need as many predictions and the null one; got {len(found)} predictions.")
        s = [scale_at(scale, level, x) for scale in scales]
        return jax.tree.map(lambda u, *cs: u + sum(a * (c - u) for a, c in zip(s, cs)), found[-1], *found[:-1])

    return guided(predictions, rule)


def rescaled(predictions: Predictions, scale: Scale, strength: float = 0.7, prediction: PredictionType = "eps") -> Denoiser:
    """Lin et al. 2023, section 3.4: the guided output, as a target of `prediction`, gets back the per-sample standard
    deviation of the followed one, to the degree `strength`."""

    def rule(x: jax.Array, level: Level, *found: Prediction) -> Prediction:
        plain = target(prediction, found[0], level)
        y = target(prediction, classifier_free(lambda *_: found, scale)(x, level), level)
        ratio = _norm(plain, center=True) / _norm(y, center=True)
        return predict(prediction, x, y * (strength * ratio + 1 - strength), level)

    return guided(predictions, rule)


def cfg_plus_plus(predictions: Predictions, scale: Scale) -> Denoiser:
    """Chung et al. 2024: x0 is guided (scale in [0, 1]), eps stays the unconditional one. The pair no longer
    explains x, so only samplers that use both feel it: ddim, ddpm, euler, euler_ancestral, tcd."""

    def rule(x: jax.Array, level: Level, follow: Prediction, *others: Prediction) -> Prediction:
        s = scale_at(scale, level, x)
        return Prediction(others[-1].x0 + s * (follow.x0 - others[-1].x0), others[-1].eps)

    return guided(predictions, rule)


def adaptive_projected(predictions: Predictions, scale: Scale, eta: float = 0.0, limit: float = jnp.inf) -> Denoiser:
    """APG (Sadat et al. 2024) on x0: of the difference c - u, shortened to norm `limit`, the part parallel to c, which
    oversaturates, counts `eta`. Momentum, their third ingredient, needs memory that a denoiser does not have."""

    def rule(x: jax.Array, level: Level, follow: Prediction, *others: Prediction) -> Prediction:
        c = follow.x0
        difference = c - others[-1].x0
        difference = difference * jnp.minimum(1.0, limit / _norm(difference))
        unit = c / _norm(c)
        parallel = _dot(difference, unit) * unit
        x0 = c + (scale_at(scale, level, x) - 1) * (difference - parallel + eta * parallel)
        return from_x0(x, x0, level)

    return guided(predictions, rule)


def cfg_zero_star(
    predictions: Predictions, scale: Scale, prediction: PredictionType = "flow", zero_above: float = jnp.inf
) -> Denoiser:
    """CFG-Zero* (Fan et al. 2025) on the target of `prediction`: u is first scaled by <c, u> / |u|^2, and at noise_ratio above
    `zero_above` (the first steps) the target is zero."""

    def rule(x: jax.Array, level: Level, follow: Prediction, *others: Prediction) -> Prediction:
        c, u = target(prediction, follow, level), target(prediction, others[-1], level)
        u = u * _dot(c, u) / jnp.maximum(_dot(u, u), 1e-12)
        y = u + scale_at(scale, level, x) * (c - u)
        return predict(prediction, x, jnp.where(level.sigma > zero_above * level.alpha, 0.0, y), level)

    return guided(predictions, rule)


def guidance_interval(low: float, high: float, inside: Denoiser, outside: Denoiser) -> Denoiser:
    """Kynkaanniemi et al. 2024: `inside` (guided) at noise_ratio in (low, high], `outside` elsewhere, at its cost."""

    def denoise(x: jax.Array, level: Level) -> Prediction:
        is_inside = (level.sigma > low * level.alpha) & (level.sigma <= high * level.alpha)
        return jax.lax.cond(is_inside, lambda: inside(x, level), lambda: outside(x, level))

    return denoise


def classifier(denoise: Denoiser, log_probability: Callable[[jax.Array, jax.Array], jax.Array], scale: Scale) -> Denoiser:
    """Dhariwal & Nichol 2021: eps - scale sigma grad_x log p(y | x_t), from `log_probability(x_t, t[B]) -> [B]`."""

    def guided(x: jax.Array, level: Level) -> Prediction:
        x0, eps = denoise(x, level)
        t = jnp.broadcast_to(jnp.asarray(level.t, jnp.float32), x.shape[:1])
        push = scale_at(scale, level, x) * expand(level.sigma, x) * jax.grad(lambda x: log_probability(x, t).sum())(x)
        return Prediction(x0 + push * expand(level.sigma / level.alpha, x), eps - push)

    return guided


def scale_at(scale: Scale, level: Level, x: jax.Array) -> Any:
    """The scale at this level, shaped to multiply x."""
    s = scale(level) if callable(scale) else scale
    s = jnp.asarray(s) if isinstance(s, (list, tuple)) else s
    if jnp.ndim(s) and jnp.shape(s) != x.shape[:1]:
        raise ValueError(f"A guidance scale is a scalar or has one entry per sample, [{x.shape[0]}]; got shape {jnp.shape(s)}.")
    return expand(s, x)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner product per sample, [B, 1, ...]."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _norm(a: jax.Array, center: bool = False) -> jax.Array:
    """Euclidean norm per sample; of the deviations from the sample's mean if `center`."""
    a = a - a.mean(axis=tuple(range(1, a.ndim)), keepdims=True) if center else a
    return jnp.sqrt(jnp.maximum(_dot(a, a), 1e-24))
