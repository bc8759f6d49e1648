"""A conditioner that looks at a picture."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.conditioners.embedders import Layers
from ldm_jax.models.dinov2 import Patches
from ldm_jax.models.init import normal
from ldm_jax.models.layers import Conv, Dense, LayerNorm
from ldm_jax.models.partition import constrain


class PictureEmbedder(nn.Module):
    """Pictures [B, S, S, 3] in [-1, 1] -> tokens [B, (S / patch_size)^2, n_embed], by a transformer over patches that is
    trained from scratch (Dosovitskiy et al. 2021). Where `shown` [B] is 0 a learned token stands in place of every patch.

    `stem` "patches": a patch becomes a token by one linear map; "convolutions": by a stack of them that halve the picture (Xiao
    et al. 2021, "Early convolutions help transformers see better"); patch_size is then a power of two.
    """

    n_embed: int
    n_layer: int
    patch_size: int = 4
    heads: int = 4
    dim_head: int = 32
    dtype: Any = jnp.float32
    attention: str = "auto"
    stem: str = "patches"

    @nn.compact
    def __call__(self, pictures: jax.Array, shown: jax.Array) -> jax.Array:
        D = self.n_embed
        stem = {"patches": Patches, "convolutions": ConvolutionalStem}[self.stem]
        h = stem(D, self.patch_size, self.dtype, name=self.stem)(pictures)
        nothing = self.param("nothing", normal(0.02), (1, 1, D)).astype(self.dtype)
        h = jnp.where(shown[:, None, None] > 0, h, nothing)
        h = constrain(h + self.param("positions", normal(0.02), (1, h.shape[1], D)).astype(self.dtype))
        h = Layers(self.n_layer, self.heads, self.dim_head, self.dtype, self.attention, name="layers")(h)
        return LayerNorm(dtype=self.dtype, name="norm")(h)


class ConvolutionalStem(nn.Module):
    """[B, H, W, 3] -> [B, N, D], row by row: convolutions of window 3 and stride 2, the last with D channels and each before it
    with half as many, at least 8, then a linear map."""

    features: int
    size: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        h, count = images, self.size.bit_length() - 1
        for i in range(count):
            h = Conv(max(self.features >> (count - 1 - i), 8), 3, 2, dtype=self.dtype, name=f"conv_{i}")(h)
            h = nn.gelu(LayerNorm(dtype=self.dtype, name=f"norm_{i}")(h))
        return Dense(self.features, dtype=self.dtype, name="proj")(h).reshape(len(images), -1, self.features)
