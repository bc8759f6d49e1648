"""Codebooks: from continuous latents to a finite number of them.

    project(z)     what is compared with codes: z itself; of length one; or bounded, for FSQ
    __call__(z)    the nearest codes, and their numbers
    lookup(i)      codes by number

`Codebook` is the paper's (van den Oord et al. 2017), with codes of unit length as an option (ViT-VQGAN, Yu et al. 2022);
`FSQ` has no parameters: it rounds every channel to a few levels (Mentzer et al. 2024, "Finite scalar quantization").
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.init import uniform
from ldm_jax.models.layers import Embed


def nearest_code(z: jax.Array, codebook: jax.Array) -> jax.Array:
    """For latents [..., C] the index of the nearest row of `codebook` [n, C], int32 [...]."""
    z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.matmul(z, codebook.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.square(z).sum(-1, keepdims=True) + jnp.square(codebook).sum(-1) - 2 * products
    return distances.argmin(-1).astype(jnp.int32)


def unit_length(x: jax.Array) -> jax.Array:
    """Vectors on the last axis, scaled to length one; the gradient at zero is finite."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


class Codebook(nn.Module):
    """`n_embed` vectors of width `embed_dim`, initially uniform within 1 / n_embed; `unit` compares directions only, and gives
    codes of length one."""

    n_embed: int
    embed_dim: int
    unit: bool = False

    def setup(self) -> None:
        self.embedding = Embed(self.n_embed, self.embed_dim, uniform(1 / self.n_embed))

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = self.embedding.embedding
        indices = nearest_code(self.project(z), unit_length(codes) if self.unit else codes)
        return self.lookup(indices), indices

    def project(self, z: jax.Array) -> jax.Array:
        return unit_length(z) if self.unit else z

    def lookup(self, indices: jax.Array) -> jax.Array:
        return self.project(self.embedding(indices))


class FSQ(nn.Module):
    """Channel i takes one of levels[i] values between -1 and 1: prod(levels) codes."""

    levels: Sequence[int]

    def project(self, z: jax.Array) -> jax.Array:
        """Bounded so that rounding to multiples of 1 / (levels // 2) gives exactly `levels` values."""
        levels = np.asarray(self.levels, np.float32)
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0).astype(np.float32)
        shift = np.arctanh(offset / half).astype(np.float32)
        return (jnp.tanh(z.astype(jnp.float32) + shift) * half - offset) / (levels // 2)

    def __call__(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = np.asarray(self.levels) // 2
        steps = jnp.round(self.project(z) * half)
        indices = ((steps + half).astype(jnp.int32) * self._places()).sum(-1)
        return steps / half, indices

    def lookup(self, indices: jax.Array) -> jax.Array:
        levels = np.asarray(self.levels)
        steps = indices[..., None] // self._places() % levels - levels // 2
        return (steps / (levels // 2)).astype(jnp.float32)

    def _places(self) -> np.ndarray:
        return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)
