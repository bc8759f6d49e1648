"""A tiny decoder for previews while sampling (the architecture of TAESD, madebyollin/taesd).

Parameters are named as in diffusers' `AutoencoderTiny`: `decoder.layers.N`, which is layer N + 1 of the original.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.layers import Conv


class TinyDecoder(nn.Module):
    """Scaled latents [B, h, w, C] -> images [B, 2^n h, 2^n w, out_channels] in [-1, 1], n upsamplings.

    `num_blocks` are the residual blocks of each resolution, from low to high, n + 1 numbers.
    """

    channels: int = 64
    num_blocks: Sequence[int] = (3, 3, 3, 1)
    out_channels: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = 3 * jnp.tanh(z / 3)
        h = nn.relu(Conv(self.channels, dtype=self.dtype, name="layers_0")(h))
        index = 2
        for level, blocks in enumerate(self.num_blocks):
            for _ in range(blocks):
                h = TinyBlock(self.channels, self.dtype, name=f"layers_{index}")(h)
                index += 1
            if level < len(self.num_blocks) - 1:
                conv = Conv(self.channels, use_bias=False, upsample=True, dtype=self.dtype, name=f"layers_{index + 1}")
                h = conv(h)
                index += 2
        return 2 * Conv(self.out_channels, dtype=self.dtype, name=f"layers_{index}")(h).astype(jnp.float32) - 1


class TinyBlock(nn.Module):
    """Three convolutions with ReLU and a residual."""

    channels: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(Conv(self.channels, dtype=self.dtype, name="conv_0")(x))
        h = nn.relu(Conv(self.channels, dtype=self.dtype, name="conv_2")(h))
        return nn.relu(x + Conv(self.channels, dtype=self.dtype, name="conv_4")(h))
