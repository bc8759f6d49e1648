"""Attention blocks of the U-Net: plain self-attention over pixels, and the transformer that also sees a context; and both of
films, within frames and over time.

Rombach et al. 2022, section 3.3 and appendix E.2.1; names as in CompVis/latent-diffusion `ldm/modules/attention.py`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.attention import attention
from ldm_jax.models.init import ZEROS
from ldm_jax.models.layers import Dense, GroupNorm, LayerNorm, gelu, scan_equal, sinusoidal_embedding
from ldm_jax.models.partition import constrain


class AttentionBlock(nn.Module):
    """x + proj_out(attention(qkv(norm(x)))) over the pixels of [B, *space, C].

    The 3C outputs of `qkv` are, head by head, that head's q, k and v (the reference's "legacy" order), or all q, all k,
    all v if `use_new_attention_order`. `num_groups` 0: no norm. With `places` sinusoids of a pixel's number are added to what
    is attended to.
    """

    heads: int
    use_new_attention_order: bool = False
    num_groups: int = 32
    eps: float = 1e-5
    attention: str = "auto"
    dtype: Any = jnp.float32
    places: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, *space, C = x.shape
        pixels = math.prod(space)
        h = GroupNorm(self.num_groups, self.eps, self.dtype, name="norm")(x) if self.num_groups else x
        h = h.reshape(B, pixels, C)
        if self.places:
            h = h + sinusoidal_embedding(jnp.arange(pixels), C).astype(h.dtype)
        qkv = Dense(3 * C, dtype=self.dtype, name="qkv")(h)
        if self.use_new_attention_order:
            q, k, v = jnp.moveaxis(qkv.reshape(B, pixels, 3, self.heads, -1), 2, 0)
        else:
            q, k, v = jnp.moveaxis(qkv.reshape(B, pixels, self.heads, 3, -1), 3, 0)
        h = attention(q, k, v, self.attention).reshape(x.shape)
        return x + Dense(C, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype, name="proj_out")(h)


class CrossAttention(nn.Module):
    """Attention of tokens [B, T, C] to `context` [B, S, D], or to themselves without one; no biases on q, k and v."""

    heads: int
    dim_head: int
    out_name: str = "to_out_0"
    attention: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        context = x if context is None else context

        def project(name: str, source: jax.Array) -> jax.Array:
            y = Dense(self.heads * self.dim_head, use_bias=False, dtype=self.dtype, name=name)(source)
            return y.reshape(*y.shape[:2], self.heads, self.dim_head)

        q, k, v = project("to_q", x), project("to_k", context), project("to_v", context)
        h = attention(q, k, v, self.attention).reshape(*x.shape[:2], -1)
        return Dense(x.shape[-1], dtype=self.dtype, name=self.out_name)(h)


class GEGLU(nn.Module):
    """value * gelu(gate), value and gate being the halves of one projection (Shazeer 2020)."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """A gated feed-forward network, four times as wide inside."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        return Dense(C, dtype=self.dtype, name="net_2")(GEGLU(4 * C, self.dtype, name="net_0")(x))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward, each added to its input."""

    heads: int
    dim_head: int
    disable_self_attn: bool = False
    attention: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        def attend(name: str, norm: str, x: jax.Array, context: jax.Array | None) -> jax.Array:
            h = LayerNorm(dtype=self.dtype, name=norm)(x)
            return x + CrossAttention(self.heads, self.dim_head, attention=self.attention, dtype=self.dtype, name=name)(
                h, context
            )

        x = attend("attn1", "norm1", x, context if self.disable_self_attn else None)
        x = attend("attn2", "norm2", x, context)
        return x + FeedForward(self.dtype, name="ff")(LayerNorm(dtype=self.dtype, name="norm3")(x))


class SpatialTransformer(nn.Module):
    """A transformer of `depth` blocks over the pixels of [B, *space, C], attending to `context` [B, S, D] as well.

    The reference's projections in and out are 1x1 convolutions or linear layers by configuration; the two are the same
    function and have the same parameters here.
    """

    heads: int
    dim_head: int
    depth: int = 1
    disable_self_attn: bool = False
    num_groups: int = 32
    attention: str = "auto"
    dtype: Any = jnp.float32
    scan_blocks: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        B, *space, C = x.shape
        h = GroupNorm(self.num_groups, 1e-6, self.dtype, name="norm")(x).reshape(B, math.prod(space), C)
        h = Dense(self.heads * self.dim_head, dtype=self.dtype, name="proj_in")(h)

        def block(**where: Any) -> nn.Module:
            settings = (self.heads, self.dim_head, self.disable_self_attn, self.attention, self.dtype)
            return TransformerBlock(*settings, **where)

        names = [f"transformer_blocks_{i}" for i in range(self.depth)]
        if self.scan_blocks and self.depth > 1 and not self.is_initializing():
            step = lambda apply, h: (constrain(apply(h, context)), None)  # noqa: E731
            h, _ = scan_equal(self, block(parent=None), names, step, h)
        else:
            for name in names:
                h = constrain(block(name=name)(h, context))
        h = Dense(C, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype, name="proj_out")(h)
        return x + h.reshape(x.shape)


class PlacedContext(nn.Module):
    """x [B, *space, C] plus a field over its places that is linear in the mean of `context` [B, S, D]: the sum of products of
    the `waves` lowest cosines along each axis, each times features of the mean. Zero at first.

    Cross-attention gives a word's value to all places alike, and what a word says of a place or of a time ("left", "goes up")
    shows only in products of word, frame and place; here these are there from the first step.
    """

    waves: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        *space, C = x.shape[1:]
        count = self.waves ** len(space)
        field = Dense(count * C, False, ZEROS, dtype=self.dtype, name="proj")(jnp.mean(context, axis=1))
        field = field.reshape(-1, *[self.waves] * len(space), C)
        for side in space:  # the first axis of waves becomes the last one, of places
            field = jnp.tensordot(field, cosines(side, self.waves).astype(field.dtype), ((1,), (1,)))
        return x + jnp.moveaxis(field, 1, -1)


def cosines(side: int, waves: int) -> jax.Array:
    """float32 [side, waves], the lowest functions of the discrete cosine transform (DCT-II), each of mean square 1."""
    angles = jnp.pi * (jnp.arange(side) + 0.5) / side
    return jnp.cos(angles[:, None] * jnp.arange(waves)) * jnp.where(jnp.arange(waves) > 0, math.sqrt(2), 1.0)


def within_frames(block: Callable[..., jax.Array], x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    """`block` of every frame by itself: x [B, T, H, W, C] is [B T, H, W, C] to it, and the context [B, S, D] that of all
    frames."""
    B, T = x.shape[:2]
    frames = x.reshape(B * T, *x.shape[2:])
    return (block(frames) if context is None else block(frames, jnp.repeat(context, T, axis=0))).reshape(x.shape)


def over_time(block: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`block` of every place's course: x [B, T, H, W, C] is [B H W, T, C] to it. With attention inside: the second half of
    factorised attention (Ho et al. 2022, "Video diffusion models", section 3)."""
    B, T, H, W, C = x.shape
    courses = x.transpose(0, 2, 3, 1, 4).reshape(B * H * W, T, C)
    return block(courses).reshape(B, H, W, T, C).transpose(0, 3, 1, 2, 4)
