"""Multimodal diffusion transformer (Esser et al. 2024, "Scaling rectified flow transformers", section 4): Stable Diffusion 3.

Text and picture have weights of their own and attend to one another. Fields are named as those of `DiT`, parameters as in
Stability-AI/sd3.5 `mmditx.py: MMDiTX`, which released weights come in.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.attention import attention
from ldm_jax.models.convolution import check_rank, per_axis
from ldm_jax.models.dit import (
    FinalLayer,
    Mlp,
    PatchEmbed,
    TimeEmbedder,
    embed_condition,
    linear,
    normalize,
    position_embedding,
    unpatched,
)
from ldm_jax.models.init import ZEROS, normal, parameter, xavier_uniform
from ldm_jax.models.layers import (
    AUGMENT_EMBEDDING,
    Dense,
    RMSNorm,
    remat,
    scan_equal,
    sinusoidal_embedding,
    step_length,
)
from ldm_jax.models.partition import constrain


class MMDiT(nn.Module):
    """x [B, *space, in_channels], t [B], {"context": [B, S, context_dim], "vector": [B, pooled_dim]} -> x's shape.

    The vector, where `pooled_dim` says that there is one, is added to the embedding of t. Sides are multiples of `patch_size`.
    Positions are sines, stretched where sides differ from `input_size`, the size of training; with `position_table` they are a
    table of so many rows and columns, as published models have it, of which the middle is taken, and which training leaves as
    it is. `qk_norm` divides queries and keys by their root mean square. In the blocks of `dual_attention_layers` pictures
    attend to themselves besides (Stable Diffusion 3.5). The last block has no text after its attention. cond["augment"],
    `second_time`, `dims`, `dtype`, `remat`, `scan_blocks` and `attention` are as in `DiT`.
    """

    depth: int
    hidden_size: int
    num_heads: int
    context_dim: int
    patch_size: int | Sequence[int] = 2
    input_size: int | Sequence[int] = 128
    in_channels: int = 16
    pooled_dim: int = 0
    position_table: int = 0
    qk_norm: bool = False
    dual_attention_layers: Sequence[int] = ()
    second_time: bool = False
    dims: int = 2
    dtype: Any = jnp.float32
    remat: str | bool = "none"
    scan_blocks: bool = False
    attention: str = "auto"

    @property
    def out_channels(self) -> int:
        """What it gives: as many numbers as x has."""
        return self.in_channels

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
        self._check(x, cond := cond or {})
        B, *space, C = x.shape
        patch, trained, width = per_axis(self.patch_size, self.dims), per_axis(self.input_size, self.dims), self.hidden_size
        grid, base = (tuple(side // p for side, p in zip(sides, patch)) for sides in (space, trained))
        tokens = PatchEmbed(width, patch, self.dtype, name="x_embedder")(x).reshape(B, math.prod(grid), -1)
        tokens = constrain(tokens + self._positions(grid, base).astype(self.dtype))
        context = constrain(linear(width, self.dtype, "context_embedder", cond["context"]))
        s = step_length(s, t, self.second_time)
        c = embed_condition(
            tuple(sinusoidal_embedding(each, 256) for each in (t, s) if each is not None), None, width, None, self.dtype
        )
        if self.pooled_dim:
            c = constrain(c + TimeEmbedder(width, self.dtype, name="y_embedder")(cond["vector"]))
        if "augment" in cond:
            c = c + Dense(width, False, ZEROS, dtype=self.dtype, name=AUGMENT_EMBEDDING)(cond["augment"])

        def block(kind: tuple[bool, bool], **where: Any) -> nn.Module:
            settings = (width, self.num_heads, *kind, self.qk_norm, self.attention, self.dtype)
            return remat(JointBlock, self.remat)(*settings, **where)

        def step(apply: Any, pair: tuple[jax.Array, jax.Array]) -> tuple[tuple[jax.Array, jax.Array], None]:
            tokens, context = apply(*pair, c)
            return (constrain(tokens), constrain(context)), None

        pair = tokens, context
        for kind, numbers in itertools.groupby(range(self.depth), self._kind):
            names = [f"joint_blocks_{i}" for i in numbers]
            if self.scan_blocks and len(names) > 1 and not self.is_initializing():
                pair, _ = scan_equal(self, block(kind, parent=None), names, step, pair)
            else:
                for name in names:
                    pair, _ = step(block(kind, name=name), pair)

        out = FinalLayer(math.prod(patch) * C, self.dtype, name="final_layer")(pair[0], c)
        return unpatched(out, grid, patch).astype(x.dtype)

    def _kind(self, i: int) -> tuple[bool, bool]:
        """Of a block: whether it is the last, and whether pictures attend to themselves besides."""
        return i == self.depth - 1, i in tuple(self.dual_attention_layers)

    def _positions(self, grid: tuple[int, ...], base: tuple[int, ...]) -> jax.Array:
        side = self.position_table
        if not side:
            return position_embedding(self.hidden_size, grid, base)
        if max(grid) > side:
            most = [side * p for p in per_axis(self.patch_size, self.dims)]
            raise ValueError(f"latents of {grid} patches: the table of positions has {side} a side, enough for {most} latents")
        table = jax.lax.stop_gradient(parameter(self, "pos_embed", normal(0.02), (1, side**self.dims, self.hidden_size)))
        table = table.reshape(*(side,) * self.dims, self.hidden_size)
        return table[tuple(slice(low := (side - n) // 2, low + n) for n in grid)].reshape(-1, self.hidden_size)

    def _check(self, x: jax.Array, cond: dict[str, jax.Array]) -> None:
        check_rank(x, self.dims)
        patch = per_axis(self.patch_size, self.dims)
        if any(side % p for side, p in zip(x.shape[1:-1], patch)) or x.shape[-1] != self.in_channels:
            raise ValueError(
                f"x of shape {x.shape} should have {self.in_channels} channels and sizes divisible by {self.patch_size}"
            )
        takes = ["context", *(["vector"] if self.pooled_dim else [])]
        if sorted({*cond} - {"augment"}) != takes:
            raise ValueError(
                f'cond has {sorted(cond)}; an MMDiT takes "context", "vector" if it has pooled_dim, perhaps "augment", and '
                "nothing else"
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} must be divisible by num_heads {self.num_heads} and by 4")
        if wrong := [i for i in self.dual_attention_layers if not 0 <= i < self.depth]:
            raise ValueError(f"dual_attention_layers has {wrong[0]}, and there are {self.depth} blocks, from 0")


class JointBlock(nn.Module):
    """Picture and text [B, ., width], and the condition c [B, width] -> picture and text. `last`: the text serves the attention
    alone, and is given back as it was; `dual`: a second attention, of the picture to itself."""

    width: int
    num_heads: int
    last: bool
    dual: bool
    qk_norm: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = (self.width, self.num_heads, self.qk_norm, self.dtype)
        pictures = Stream(*options, dual=self.dual, name="x_block")
        texts = Stream(*options, last=self.last, name="context_block")
        of_picture, of_text = pictures.before(x, c), texts.before(context, c)
        heads = zip(pictures.attn.split(of_picture[0]), texts.attn.split(of_text[0]))
        seen = attention(*(jnp.concatenate(both, axis=1) for both in heads), self.attention)
        seen = seen.reshape(*seen.shape[:2], -1)
        own = None
        if self.dual:
            own = attention(*pictures.attn2.split(of_picture[1]), self.attention)
            own = pictures.attn2.proj(own.reshape(*own.shape[:2], -1))
        count = x.shape[1]
        x = pictures.after(x, seen[:, :count], of_picture, own)
        return x, context if self.last else texts.after(context, seen[:, count:], of_text)


class Stream(nn.Module):
    """What picture, or text, has of its own in a block.

    `before`: tokens [B, L, width], c -> what attends, what attends to the picture alone (or None), and the gates, shifts and
    scales of the rest. `after`: tokens, what attention gave, what `before` gave -> tokens."""

    width: int
    num_heads: int
    qk_norm: bool
    dtype: Any
    last: bool = False
    dual: bool = False

    def setup(self) -> None:
        heads = (self.width, self.num_heads, self.qk_norm, self.dtype)
        self.parts = 2 if self.last else 9 if self.dual else 6
        self.adaLN_modulation_1 = Dense(self.parts * self.width, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype)
        self.attn = Heads(*heads, projects=not self.last)
        if self.dual:
            self.attn2 = Heads(*heads)
        if not self.last:
            self.mlp = Mlp(4 * self.width, self.dtype)

    def before(self, x: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array | None, tuple[jax.Array, ...]]:
        told = jnp.split(constrain(self.adaLN_modulation_1(nn.silu(c)))[:, None], self.parts, axis=-1)
        shift, scale, *rest = told
        beside = normalize(x, rest[4], rest[5], self.dtype) if self.dual else None
        return normalize(x, shift, scale, self.dtype), beside, tuple(rest)

    def after(self, x: jax.Array, seen: jax.Array, before: tuple, own: jax.Array | None = None) -> jax.Array:
        gate, shift, scale, gate_mlp, *more = before[2]
        x = x + gate * self.attn.proj(seen)
        if own is not None:
            x = x + more[2] * own
        return x + gate_mlp * self.mlp(normalize(x, shift, scale, self.dtype))


class Heads(nn.Module):
    """The linear layers of an attention, and the norms of queries and keys: `split` [B, L, width] -> 3 of [B, L, heads, D]."""

    width: int
    num_heads: int
    qk_norm: bool
    dtype: Any
    projects: bool = True

    def setup(self) -> None:
        self.qkv = _linear(3 * self.width, self.width, self.dtype)
        if self.projects:
            self.proj = _linear(self.width, self.width, self.dtype)
        if self.qk_norm:
            self.ln_q, self.ln_k = RMSNorm(dtype=self.dtype), RMSNorm(dtype=self.dtype)

    def split(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, -1), 2, 0)
        return (self.ln_q(q), self.ln_k(k), v) if self.qk_norm else (q, k, v)


def _linear(features: int, fan_in: int, dtype: Any) -> Dense:
    """A linear layer with the initialisation of `dit.linear`."""
    return Dense(features, kernel_init=xavier_uniform(fan_in, features), bias_init=ZEROS, dtype=dtype)
