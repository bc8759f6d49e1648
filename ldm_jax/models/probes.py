"""Small networks that judge pictures: which class, which class a pixel, how near to another picture or to words.

They are trained in minutes on the pictures that a diffusion model learnt from, and say whether what it draws obeys its
conditions. Residual blocks as in the diffusion networks (group norm, SiLU, 3x3), halving the resolution from level to level.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.conditioners.embedders import TransformerEmbedder
from ldm_jax.models.convolution import nearest
from ldm_jax.models.init import Rule
from ldm_jax.models.layers import Conv, Dense, GroupNorm

EPS = 1e-5


class Classifier(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] -> logits [B, n_classes]."""

    n_classes: int
    widths: Sequence[int] = (24, 48, 96)
    blocks: int = 1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.trunk = Trunk(self.widths, self.blocks, self.dtype)
        self.head = Dense(self.n_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(self.features(images))

    def features(self, images: jax.Array) -> jax.Array:
        """What the logits are read from, [B, widths[-1]]."""
        return self.trunk(images)[-1].astype(jnp.float32).mean((1, 2))


class Segmenter(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] -> logits a pixel [B, H, W, n_classes], by a U-Net."""

    n_classes: int
    widths: Sequence[int] = (24, 48, 96)
    blocks: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        *skips, h = Trunk(self.widths, self.blocks, self.dtype, name="trunk")(images)
        for level, skip in reversed(list(enumerate(skips))):
            h = jnp.concatenate([nearest(h, *skip.shape[1:3]), skip], axis=-1)
            h = Block(self.widths[level], self.dtype, name=f"up_{level}")(h)
        logits = Dense(self.n_classes, name="head")(h.astype(jnp.float32))
        return jax.image.resize(logits, (*images.shape[:3], self.n_classes), "bilinear")


class DualEncoder(nn.Module):
    """Two towers into one space of unit vectors, compared by their products (Radford et al. 2021, "CLIP").

    `vocab_size` 0 leaves the text tower out: then pictures are compared with pictures. `scale` multiplies products in
    training; it is learned as its logarithm.
    """

    dim: int = 64
    widths: Sequence[int] = (24, 48, 96)
    blocks: int = 1
    vocab_size: int = 0
    max_seq_len: int = 0
    pad: int = 0
    n_embed: int = 64
    n_layer: int = 1
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.trunk = Trunk(self.widths, self.blocks, self.dtype)
        self.image_projection = Dense(self.dim, use_bias=False)
        self.log_scale = self.param("log_scale", Rule(mean=2.66), ())  # log(1 / 0.07)
        if self.vocab_size:
            self.words = TransformerEmbedder(
                self.n_embed, self.n_layer, self.vocab_size, self.max_seq_len, heads=4, dim_head=16, dtype=self.dtype
            )
            self.text_projection = Dense(self.dim, use_bias=False)

    def __call__(self, images: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Vectors of images and of what goes with them, token ids int [B, L] or other views [B, H, W, 3]; and the scale."""
        if self.vocab_size:
            a, b = self.image(images), self.text(other)
        else:
            a, b = jnp.split(self.image(jnp.concatenate([images, other])), 2)
        return a, b, jnp.exp(jnp.minimum(self.log_scale, 4.6))  # at most 100

    def image(self, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] in [-1, 1] -> unit vectors [B, dim]."""
        return unit(self.image_projection(self.trunk(images)[-1].astype(jnp.float32).mean((1, 2))))

    def text(self, tokens: jax.Array) -> jax.Array:
        """Token ids int [B, L] -> unit vectors [B, dim]: means over what is no padding."""
        h, said = self.words(tokens).astype(jnp.float32), (tokens != self.pad)[..., None]
        return unit(self.text_projection((h * said).sum(1) / said.sum(1)))


class Trunk(nn.Module):
    """[B, H, W, 3] -> features of every level, [B, H / 2^(l+1), W / 2^(l+1), widths[l]]; odd sizes are rounded up."""

    widths: Sequence[int]
    blocks: int
    dtype: Any

    @nn.compact
    def __call__(self, h: jax.Array) -> list[jax.Array]:
        levels = []
        for level, width in enumerate(self.widths):
            h = Conv(width, strides=2, dtype=self.dtype, name=f"down_{level}")(h)
            for i in range(self.blocks):
                h = Block(width, self.dtype, name=f"block_{level}_{i}")(h)
            levels.append(h)
        return levels


class Block(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a linear map of x where the width changes."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = x
        for i in (1, 2):
            h = nn.silu(GroupNorm(min(8, h.shape[-1]), EPS, self.dtype, name=f"norm{i}")(h))
            h = Conv(self.features, dtype=self.dtype, name=f"conv{i}")(h)
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="skip")(x)
        return x + h


def unit(v: jax.Array) -> jax.Array:
    """Vectors of length one, [..., D]."""
    return v / jnp.sqrt(jnp.square(v).sum(-1, keepdims=True) + 1e-12)
