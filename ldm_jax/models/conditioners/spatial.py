"""Spatial conditioning: maps brought to the latent's size, for concatenation (semantic synthesis).

As CompVis/latent-diffusion `ldm/modules/encoders/modules.py: SpatialRescaler`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.convolution import bilinear, nearest
from ldm_jax.models.layers import Dense

METHODS = ("nearest", "bilinear")


class SpatialRescaler(nn.Module):
    """Maps [B, H, W, C] resized `n_stages` times by `multiplier`, then mapped to `out_channels` linearly if given."""

    n_stages: int = 1
    method: str = "bilinear"
    multiplier: float = 0.5
    in_channels: int = 3
    out_channels: int | None = None
    bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r} is unknown: use one of {', '.join(METHODS)}")
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"maps of shape {x.shape} do not have {self.in_channels} channels last")
        for _ in range(self.n_stages):
            height, width = (int(size * self.multiplier) for size in x.shape[1:3])
            if self.method == "nearest":
                x = nearest(x, height, width)
            else:
                x = bilinear(x, height, width, self.multiplier)
        if self.out_channels is not None:
            x = Dense(self.out_channels, use_bias=self.bias, dtype=self.dtype, name="channel_mapper")(x)
        return x
