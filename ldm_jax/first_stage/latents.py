"""Pixels <-> raw latents <-> scaled latents.

    moments = encode(x)                       mean and log-variance of q(z|x), side by side on the last axis   (KL)
    z       = mean + exp(logvar / 2) noise                                                     (paper, appendix G)
    scaled  = (z - shift) scale,  scale = 1 / std(z) over the data                             (paper, section 4.3.2)

The reference takes the scale from the first batch that the first process sees; here it is estimated over many. Scale and shift
may be vectors, one number a channel ("standardised" latents).
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.primitives.arrays import row_normal

PyTree = Any
LOGVAR_RANGE = (-30.0, 20.0)  # the reference's clamp


def split_moments(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[..., 2C] -> mean [..., C] and log-variance [..., C], clamped as in the reference; float32."""
    mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(logvar, *LOGVAR_RANGE)


def mode(moments: jax.Array) -> jax.Array:
    """The posterior's mean, [..., C]."""
    return split_moments(moments)[0]


def sample_posterior(moments: jax.Array, key: jax.Array, rows: jax.Array | None = None) -> jax.Array:
    """A draw from q(z|x) for moments [B, ..., 2C]: [B, ..., C]. Row i's noise is that of row number rows[i] (default i), int32
    [B], whichever rows are drawn beside it."""
    mean, logvar = split_moments(moments)
    rows = jnp.arange(len(mean)) if rows is None else rows
    return mean + jnp.exp(0.5 * logvar) * row_normal(key, rows, mean.shape[1:])


def kl_divergence(moments: jax.Array) -> jax.Array:
    """KL(q(z|x) || N(0, I)) in nats, summed over everything but the batch: [B]."""
    return jnp.sum(kl_per_channel(moments), axis=-1)


def kl_per_channel(moments: jax.Array) -> jax.Array:
    """The same summed over space only: [B, C]. A channel near 0 carries nothing."""
    mean, logvar = split_moments(moments)
    return 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=tuple(range(1, mean.ndim - 1)))


def scale_latents(z: jax.Array, scale: float | jax.Array, shift: float | jax.Array = 0.0) -> jax.Array:
    """(z - shift) scale: raw latents [..., C] -> what the diffusion model sees. Numbers, or one a channel [C]."""
    return (z - shift) * scale


def unscale_latents(z: jax.Array, scale: float | jax.Array, shift: float | jax.Array = 0.0) -> jax.Array:
    """The inverse of `scale_latents`."""
    return z / scale + shift


def fold_scale(params: PyTree, scale: jax.Array, shift: jax.Array) -> PyTree:
    """A first stage whose raw latents are the scaled ones of `params`, for formats that have one scale: [C] scale and shift go
    into the linear layers around the latents, and into the codebook of a VQ model. The same function, but where the
    log-variance is clamped.

    ValueError without such layers, and for a VQ model where the channels have different scales: another code would be nearest.
    """
    try:
        into, out = params["quant_conv"], params["post_quant_conv"]
    except KeyError:
        raise ValueError("this first stage has no linear layers around its latents that could take the scale") from None
    channels = out["kernel"].shape[0]
    scale, shift = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), (channels,)) for x in (scale, shift))
    factor, bias = scale, (into["bias"][:channels] - shift) * scale
    folded = dict(params)
    if "quantize" in params:
        if not (scale == scale[0]).all():
            raise ValueError(
                "the latents of this VQ model are scaled by channel, which its codebook can't follow: train with "
                "config.latents.standardise=False"
            )
        codes = params["quantize"]["embedding"]["embedding"]
        folded["quantize"] = {"embedding": {"embedding": (codes - shift) * scale}}
    elif into["kernel"].shape[-1] == 2 * channels:
        factor = jnp.concatenate([scale, jnp.ones_like(scale)])
        bias = jnp.concatenate([bias, into["bias"][channels:] + 2 * jnp.log(scale)])
    folded["quant_conv"] = {"kernel": into["kernel"] * factor, "bias": bias}
    folded["post_quant_conv"] = {"kernel": out["kernel"] / scale[:, None], "bias": out["bias"] + shift @ out["kernel"]}
    return folded


@dataclasses.dataclass(frozen=True)
class LatentStatistics:
    """Of raw latents over `count` images: mean and deviation per channel, and one over the deviation of all entries."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float


def measure(batches: Iterable[np.ndarray]) -> LatentStatistics:
    """Streams over raw latents [B, ..., C] in float64. `scale` is one over the deviation of all entries together, as in the
    reference (torch's `z.flatten().std()`), which includes what differs between channel means."""
    count, entries, total, squares = 0, 0, 0.0, 0.0
    for z in batches:
        z = np.asarray(z, np.float64)
        count += len(z)
        entries += z[..., 0].size
        total = total + z.sum(tuple(range(z.ndim - 1)))
        squares = squares + np.square(z).sum(tuple(range(z.ndim - 1)))
    if not count:
        raise ValueError("no latents to measure: the data set is empty")
    mean = total / entries
    variance = squares / entries - mean**2
    overall = squares.mean() / entries - mean.mean() ** 2
    if not np.isfinite(overall) or overall <= 0:
        raise ValueError(f"latents have variance {overall}: the first stage encodes everything alike, or has diverged")
    return LatentStatistics(count, tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()), float(1 / np.sqrt(overall)))
