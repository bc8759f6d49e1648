"""Terms that make latents easier to diffuse.

scale equivariance   D(z shrunk by half) should be x shrunk by half (Kouzelis et al. 2025, "EQ-VAE"), which takes high
                     frequencies out of the latents that the image does not have
alignment            latents should say what a pretrained network's features say, point by point and in how points resemble
                     each other (Yao et al. 2025, "Reconstruction vs. generation", the VA-VAE)
noise                the decoder should give the image back from latents with noise, as the diffusion model sees them (after
                     Yang et al. 2025, "Latent denoising makes good visual tokenizers", who mask latents besides)
"""

import jax
import jax.numpy as jnp

from ldm_jax.primitives.arrays import row_keys, row_normal, unit


def alignment(
    z: jax.Array, features: jax.Array, projection: jax.Array, margin: float = 0.5, relation_margin: float = 0.25
) -> jax.Array:
    """How far latents z [B, h, w, C] are from features [B, h', w', D] (resized to h x w): 1 - cosine of z @ projection [C, D],
    plus the difference of all pairwise cosines within an image, each beyond its margin. A scalar."""
    B, *space, C = z.shape
    features = jax.image.resize(features, (B, *space, features.shape[-1]), "linear")
    f = unit(features.reshape(B, -1, features.shape[-1]))
    points = jnp.einsum("bnd,bnd->bn", unit(z.reshape(B, -1, C) @ projection), f)
    own = unit(z.reshape(B, -1, C))
    relations = jnp.einsum("bnc,bmc->bnm", own, own) - jnp.einsum("bnd,bmd->bnm", f, f)
    return jax.nn.relu(1 - margin - points).mean() + jax.nn.relu(jnp.abs(relations) - relation_margin).mean()


def noised(z: jax.Array, key: jax.Array, rows: jax.Array, most: float) -> jax.Array:
    """Latents z [B, ..., C] with normal noise in about half of the rows, the others as they are.

    How much differs by row, evenly from 0 to `most` times the deviation of the noised channel over the batch: a scale of z
    is nothing to gain by. What a row draws depends on (key, its number in rows int32 [B]) alone.
    """
    of_level, of_noise = jax.random.split(key)
    drawn = jax.vmap(jax.random.uniform)(row_keys(of_level, rows))
    level = most * jax.nn.relu(2 * drawn - 1).reshape(-1, *[1] * (z.ndim - 1))
    deviation = jnp.sqrt(z.var(tuple(range(z.ndim - 1))) + 1e-12)  # whose gradient is finite where all latents are the same
    return z + level * deviation * row_normal(of_noise, rows, z.shape[1:])
