"""Terms that make latents easier to diffuse.

scale equivariance   D(z shrunk by half) should be x shrunk by half (Kouzelis et al. 2025, "EQ-VAE"), which takes high
                     frequencies out of the latents that the image does not have
alignment            latents should say what a pretrained network's features say, point by point and in how points resemble
                     each other (Yao et al. 2025, "Reconstruction vs. generation", the VA-VAE)
"""

import jax
import jax.numpy as jnp

from ldm_jax.primitives.arrays import unit


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
