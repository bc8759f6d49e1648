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

from .denoiser import make_denoiser
from .level import Denoiser, Level, Prediction, expand
from .parameterization import Kind

Predictions = Callable[[jax.Array, Level], Sequence[Prediction]]
Scale = float | jax.Array | Callable[[Level], Any]


def together(
    network: Callable[..., jax.Array], kind: Kind, conds: Sequence[Any], input_scale: Callable | None = None
) -> Predictions:
    """Predictions under every one of `conds` from one call of `network(x, t, cond)` on a batch of len(conds) B.

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
        denoise = make_denoiser(lambda x, t: network(x, t, cond), kind, input_scale)
        x0, eps = denoise(jnp.concatenate([x] * count), jax.tree.map(repeat, level))
        return [Prediction(*pair) for pair in zip(jnp.split(x0, count), jnp.split(eps, count))]

    return predictions


def separately(*denoisers: Denoiser) -> Predictions:
    """Predictions of several denoisers, one call each."""
    return lambda x, level: [denoise(x, level) for denoise in denoisers]


def classifier_free(predictions: Predictions, scale: Scale) -> Denoiser:
    """Ho & Salimans 2022: u + scale (c - u), the same in every parameterization."""

    def denoise(x: jax.Array, level: Level) -> Prediction:
        follow, *_, avoid = predictions(x, level)
        s = scale_at(scale, level, x)
        return jax.tree.map(lambda c, u: u + s * (c - u), follow, avoid)

    return denoise


def scale_at(scale: Scale, level: Level, x: jax.Array) -> Any:
    """The scale at this level, shaped to multiply x."""
    s = scale(level) if callable(scale) else scale
    if jnp.ndim(s) and jnp.shape(s) != x.shape[:1]:
        raise ValueError(f"A guidance scale is a scalar or has one entry per sample, [{x.shape[0]}]; got shape {jnp.shape(s)}.")
    return expand(s, x)
