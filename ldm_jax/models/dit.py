"""Diffusion transformer with adaLN-Zero conditioning (Peebles & Xie 2023, "Scalable diffusion models with transformers").

Fields and parameters are named as in facebookresearch/DiT `models.py: DiT`; the positions, constants there, are
computed here.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.attention import attention
from ldm_jax.models.convolution import check_rank, per_axis
from ldm_jax.models.init import ZEROS, Rule, normal, xavier_uniform
from ldm_jax.models.layers import (
    AUGMENT_EMBEDDING,
    Conv,
    Dense,
    Embed,
    LayerNorm,
    remat,
    scan_equal,
    sinusoidal_embedding,
    step_length,
)
from ldm_jax.models.partition import constrain

DIT_SIZES = {
    "S": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "B": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "L": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "XL": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}


class DiT(nn.Module):
    """x [B, *space, in_channels], t [B], {"label": int [B], "context": [B, S, context_dim]} -> [B, *space, in_channels], twice
    the channels if learn_sigma.

    Space is `dims` axes. A context, where `context_dim` says that there is one, joins the tokens ("in-context conditioning",
    section 3.2). The null class is label `num_classes`; without `num_classes` there are no labels. Sides are multiples
    of `patch_size`; positions are stretched where they differ from `input_size`, the size of training: numbers for all axes,
    or for each. With `factorised_attention`, of three axes, blocks in turn attend within frames and over time (Ma et al. 2024,
    "Latte"), else all of them to all of space and time. With
    `shared_embedder` False every block has a time and label embedder of its own, and the last layer uses the first
    block's: so diffusers stores them, with `freq_shift` 1. cond["augment"], `second_time`, `dtype`, `remat`, `scan_blocks` and
    `attention` are as in the U-Net.
    """

    depth: int
    hidden_size: int
    num_heads: int
    patch_size: int | Sequence[int] = 2
    input_size: int | Sequence[int] = 32
    in_channels: int = 4
    mlp_ratio: float = 4.0
    num_classes: int | None = 1000
    learn_sigma: bool = True
    shared_embedder: bool = True
    freq_shift: float = 0.0
    mlp_norm_eps: float = 1e-6  # diffusers' `norm_eps`, 1e-5 by its default, reaches the norm before the MLP only
    second_time: bool = False
    dims: int = 2
    context_dim: int = 0
    factorised_attention: bool = False
    dtype: Any = jnp.float32
    remat: str | bool = "none"
    scan_blocks: bool = False
    attention: str = "auto"

    @property
    def out_channels(self) -> int:
        """What it gives, of each number of x one or two."""
        return 2 * self.in_channels if self.learn_sigma else self.in_channels

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        cond: dict[str, jax.Array] | None = None,
        *,
        s: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """There is no dropout: `train` changes nothing."""
        check_rank(x, self.dims)
        (B, *space, C), cond = x.shape, cond or {}
        patch, trained = per_axis(self.patch_size, self.dims), per_axis(self.input_size, self.dims)
        if any(side % p for side, p in zip(space, patch)) or self.in_channels != C:
            raise ValueError(
                f"x of shape {x.shape} should have {self.in_channels} channels and sizes divisible by {self.patch_size}"
            )
        if self.factorised_attention and self.dims != 3:
            raise ValueError(f"factorised_attention is of frames and of time, three axes; this DiT is of dims={self.dims}")
        takes = [name for name, on in (("context", self.context_dim), ("label", self.num_classes is not None)) if on]
        if sorted({*cond} - {"augment"}) != takes:
            raise ValueError(
                f'cond has {sorted(cond)}; a DiT takes "label" if it has num_classes, "context" if it has context_dim, perhaps '
                '"augment", and nothing else'
            )
        if "augment" in cond and not self.shared_embedder:
            raise ValueError('cond["augment"] is added to the one embedding of time and label: shared_embedder=True')
        if self.scan_blocks and self.factorised_attention:
            raise ValueError("scan_blocks is for equal blocks; with factorised_attention they take turns: scan_blocks=False")
        if self.context_dim and self.factorised_attention:
            raise ValueError("factorised_attention is within frames and over time, where a context has no place: context_dim=0")
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads} and by 4")

        grid = tuple(side // p for side, p in zip(space, patch))
        base = tuple(side // p for side, p in zip(trained, patch))
        tokens = PatchEmbed(self.hidden_size, patch, self.dtype, name="x_embedder")(x).reshape(B, math.prod(grid), -1)
        tokens = constrain(tokens + position_embedding(self.hidden_size, grid, base).astype(self.dtype))
        count = tokens.shape[1]
        if self.context_dim:
            context = Dense(self.hidden_size, dtype=self.dtype, name="context_embedder")(cond["context"])
            tokens = constrain(jnp.concatenate([tokens, context], axis=1))
        s = step_length(s, t, self.second_time)
        times = tuple(sinusoidal_embedding(each, 256, freq_shift=self.freq_shift) for each in (t, s) if each is not None)
        labels, width = cond.get("label"), self.hidden_size
        c = embed_condition(times, labels, width, self.num_classes, self.dtype) if self.shared_embedder else None
        if "augment" in cond:
            c = c + Dense(width, False, ZEROS, dtype=self.dtype, name=AUGMENT_EMBEDDING)(cond["augment"])
        last = c
        names = [f"blocks_{i}" for i in range(self.depth)]

        def block(i: int, **where: Any) -> nn.Module:
            frames = (grid[0], i % 2 == 1) if self.factorised_attention else None
            settings = (self.num_heads, self.mlp_ratio, self.num_classes, self.attention, self.mlp_norm_eps, self.dtype, frames)
            return remat(Block, self.remat)(*settings, **where)

        def step(apply: Callable, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
            tokens, own = apply(tokens, c, times, labels)
            return constrain(tokens), own

        if self.scan_blocks and not self.is_initializing():
            tokens, own = scan_equal(self, block(0, parent=None), names, step, tokens)
            last = own[0]
        else:
            for i, name in enumerate(names):
                tokens, own = step(block(i, name=name), tokens)
                last = own if last is None else last

        out_channels = self.out_channels
        out = FinalLayer(math.prod(patch) * out_channels, self.dtype, name="final_layer")(tokens[:, :count], last)
        return unpatched(out, grid, patch).astype(x.dtype)


def unpatched(tokens: jax.Array, grid: Sequence[int], patch: Sequence[int]) -> jax.Array:
    """Patches as pixels: tokens [B, prod(grid), prod(patch) C] -> [B, *space, C]."""
    axes, pixels = len(grid), tokens.reshape(len(tokens), *grid, *patch, -1)
    order = [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    space = (side * p for side, p in zip(grid, patch))
    return pixels.transpose(0, *order, 2 * axes + 1).reshape(len(tokens), *space, -1)


class Block(nn.Module):
    """Attention and MLP, each shifted and scaled before, and gated after, by the condition `c` [B, C].

    Without `c` the block embeds `times` and `labels` itself. Returns the tokens and the condition. `frames`: how many there
    are, and whether tokens attend over time instead of within their frame; None: to all tokens.
    """

    num_heads: int
    mlp_ratio: float
    num_classes: int | None
    attention: str
    mlp_norm_eps: float
    dtype: Any
    frames: tuple[int, bool] | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, c: jax.Array | None, times: tuple[jax.Array, ...], labels: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        width = x.shape[-1]
        if c is None:
            c = embed_condition(times, labels, width, self.num_classes, self.dtype)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation(c, 6, width, self.dtype)
        h = normalize(x, shift1, scale1, self.dtype)
        x = x + gate1 * self._attend(SelfAttention(self.num_heads, self.attention, self.dtype, name="attn"), h)
        h = normalize(x, shift2, scale2, self.dtype, self.mlp_norm_eps)
        return x + gate2 * Mlp(round(width * self.mlp_ratio), self.dtype, name="mlp")(h), c

    def _attend(self, attend: nn.Module, x: jax.Array) -> jax.Array:
        """[B, L, C], frame after frame."""
        if self.frames is None:
            return attend(x)
        (B, L, C), (T, over_time) = x.shape, self.frames
        h = x.reshape(B, T, L // T, C)
        if not over_time:
            return attend(h.reshape(B * T, L // T, C)).reshape(B, L, C)
        return attend(h.swapaxes(1, 2).reshape(B * (L // T), T, C)).reshape(B, L // T, T, C).swapaxes(1, 2).reshape(B, L, C)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases: [B, L, D] -> the same."""

    num_heads: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, L, C = x.shape
        qkv = linear(3 * C, self.dtype, "qkv", x).reshape(B, L, 3, self.num_heads, -1)
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        return linear(C, self.dtype, "proj", attention(q, k, v, self.attention).reshape(B, L, C))


class Mlp(nn.Module):
    """With the tanh approximation of GELU, as the reference."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = jax.nn.gelu(linear(self.width, self.dtype, "fc1", x), approximate=True)
        return linear(x.shape[-1], self.dtype, "fc2", h)


class FinalLayer(nn.Module):
    """A norm modulated by the time and class, then a linear map to patches."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> jax.Array:
        shift, scale = modulation(c, 2, x.shape[-1], self.dtype)
        h = normalize(x, shift, scale, self.dtype)
        return Dense(self.features, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype, name="linear")(h)


class PatchEmbed(nn.Module):
    """Patches as tokens: [B, *space, C] -> [B, *grid, D]."""

    features: int
    patch_size: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        p = self.patch_size
        rule = xavier_uniform(math.prod(p) * x.shape[-1], self.features)
        return Conv(self.features, p, p, "VALID", kernel_init=rule, bias_init=ZEROS, dtype=self.dtype, name="proj")(x)


class TimeEmbedder(nn.Module):
    """Sinusoids [B, 256] -> [B, D], through two linear layers, the second of which starts as `last`."""

    features: int
    dtype: Any
    last: Rule = normal(0.02)

    @nn.compact
    def __call__(self, times: jax.Array) -> jax.Array:
        def layer(name: str, h: jax.Array, rule: Rule) -> jax.Array:
            return Dense(self.features, kernel_init=rule, bias_init=ZEROS, dtype=self.dtype, name=name)(h)

        return layer("mlp_2", nn.silu(layer("mlp_0", times, normal(0.02))), self.last)


class LabelEmbedder(nn.Module):
    """A table of classes, the empty one last: int32 [B] -> [B, D]."""

    num_classes: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        rows = self.num_classes + 1
        return Embed(rows, self.features, normal(0.02), self.dtype, name="embedding_table")(labels)


def embed_condition(
    times: tuple[jax.Array, ...], labels: jax.Array | None, features: int, num_classes: int | None, dtype: Any
) -> jax.Array:
    """Sinusoidal features [B, 256] of t, and of the step's length where there is one, and labels [B] -> [B, features], by
    embedders that belong to the calling module."""
    c = TimeEmbedder(features, dtype, name="t_embedder")(times[0])
    for step in times[1:]:
        c = c + TimeEmbedder(features, dtype, ZEROS, name="s_embedder")(step)
    if num_classes is not None:
        c = c + LabelEmbedder(num_classes, features, dtype, name="y_embedder")(labels)
    return constrain(c)


def modulation(c: jax.Array, parts: int, width: int, dtype: Any) -> list[jax.Array]:
    """Shifts, scales and gates [B, 1, width] from the condition, all zero at first."""
    layer = Dense(parts * width, kernel_init=ZEROS, bias_init=ZEROS, dtype=dtype, name="adaLN_modulation_1")
    return jnp.split(constrain(layer(nn.silu(c)))[:, None], parts, axis=-1)


def normalize(x: jax.Array, shift: jax.Array, scale: jax.Array, dtype: Any, eps: float = 1e-6) -> jax.Array:
    """A layer norm without parameters, eps 1e-6."""
    return LayerNorm(eps, affine=False, dtype=dtype, parent=None).apply({}, x) * (1 + scale) + shift


def linear(features: int, dtype: Any, name: str, x: jax.Array) -> jax.Array:
    """A linear layer with the initialisation of the reference."""
    rule = xavier_uniform(x.shape[-1], features)
    return Dense(features, kernel_init=rule, bias_init=ZEROS, dtype=dtype, name=name)(x)


def position_embedding(width: int, grid: Sequence[int], base: Sequence[int]) -> jax.Array:
    """Sines and cosines [prod(grid), width] of a grid's positions: an equal part of them for each axis, the last axis first
    (of a picture: columns, then rows); zeros where the width is no multiple.

    Positions run from 0 to `base` along each axis whatever the grid's size.
    """
    axes = len(grid)
    half = width // (2 * axes)

    def encode(positions: np.ndarray) -> np.ndarray:
        frequencies = 10000.0 ** -(np.arange(half) / half)
        angles = positions.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    places = np.meshgrid(*(np.arange(size) * to / size for size, to in zip(grid, base)), indexing="ij")
    parts = np.concatenate([encode(place) for place in reversed(places)], axis=1)
    return jnp.asarray(np.pad(parts, ((0, 0), (0, width - 2 * half * axes))), jnp.float32)
