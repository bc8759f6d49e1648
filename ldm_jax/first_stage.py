"""The autoencoder's loss, as a function of callables: the paper's equation 25, reconstruction and regularisation.

    L = sum_pixels |x - D(E(x))| + kl_weight KL(q(z|x) || N(0, I))        per image, averaged over the batch

Reductions are the reference's: both terms are sums over an image, so that `kl_weight` means what it means there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import latents

PyTree = Any


def psnr(x: jax.Array, y: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of images in [-1, 1], [B, H, W, C] -> [B]."""
    x, y = (jnp.clip(image.astype(jnp.float32), -1, 1) for image in (x, y))
    return 10 * jnp.log10(4.0 / jnp.maximum(jnp.mean((x - y) ** 2, axis=(1, 2, 3)), 1e-10))


def pixel_distance(kind: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """"l1" | "l2": the elementwise distance."""
    if kind not in ("l1", "l2"):
        raise ValueError(f"pixel={kind!r}: must be 'l1' or 'l2'")
    return (lambda x, y: jnp.abs(x - y)) if kind == "l1" else (lambda x, y: (x - y) ** 2)


def make_kl_loss(encode: Callable, decode: Callable, *, pixel: str = "l1", kl_weight: float = 1e-6):
    """`loss_fn(params, batch, key) -> (loss, metrics)` of a KL autoencoder.

    Args:
      encode: (params, x [B, H, W, 3]) -> moments [B, h, w, 2C].
      decode: (params, z [B, h, w, C]) -> x.
    `batch` holds "image" in [-1, 1].
    """
    distance = pixel_distance(pixel)

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array):
        x = batch["image"]
        moments = encode(params, x)
        z = latents.sample_posterior(moments, key)
        reconstruction = decode(params, z).astype(jnp.float32)

        nll = jnp.mean(jnp.sum(distance(x, reconstruction), axis=(1, 2, 3)))
        kl = jnp.mean(latents.kl_divergence(moments))
        metrics = {"nll": nll, "kl": kl, "psnr": jnp.mean(psnr(x, reconstruction))}
        return nll + kl_weight * kl, metrics

    return loss_fn
