"""A conditioner that looks at a picture."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.conditioners.embedders import Layers
from ldm_jax.models.dinov2 import Patches
from ldm_jax.models.init import normal
from ldm_jax.models.layers import LayerNorm
from ldm_jax.models.partition import constrain


class PictureEmbedder(nn.Module):
    """Pictures [B, S, S, 3] in [-1, 1] -> tokens [B, (S / patch_size)^2, n_embed], by a transformer over patches that is
    trained from scratch (Dosovitskiy et al. 2021). Where `shown` [B] is 0 a learned token stands in place of every patch."""

    n_embed: int
    n_layer: int
    patch_size: int = 4
    heads: int = 4
    dim_head: int = 32
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, pictures: jax.Array, shown: jax.Array) -> jax.Array:
        D = self.n_embed
        h = Patches(D, self.patch_size, self.dtype, name="patches")(pictures)
        nothing = self.param("nothing", normal(0.02), (1, 1, D)).astype(self.dtype)
        h = jnp.where(shown[:, None, None] > 0, h, nothing)
        h = constrain(h + self.param("positions", normal(0.02), (1, h.shape[1], D)).astype(self.dtype))
        h = Layers(self.n_layer, self.heads, self.dim_head, self.dtype, self.attention, name="layers")(h)
        return LayerNorm(dtype=self.dtype, name="norm")(h)
