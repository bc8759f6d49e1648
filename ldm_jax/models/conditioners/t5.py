"""The encoder of T5 (Raffel et al. 2020), as Stable Diffusion 3 uses it: version 1.1 and mT5, or the first.

Fields are named as in the configuration of Hugging Face transformers (`T5Config`), parameters as in its `T5EncoderModel`.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.init import normal
from ldm_jax.models.layers import Dense, Embed, RMSNorm
from ldm_jax.models.partition import constrain

FEED_FORWARD = ("gated-gelu", "relu")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The fields of a `T5Encoder` that its parts need."""

    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    feed_forward_proj: str
    dtype: Any


class T5Encoder(nn.Module):
    """Token ids int [B, L] -> [B, L, d_model], after the final norm. Padding is seen. Attention isn't divided by the root of
    the width; a learnt number for each head and distance is added, the first layer's for all."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        if self.feed_forward_proj not in FEED_FORWARD:
            raise ValueError(f"feed_forward_proj={self.feed_forward_proj!r}: known are {', '.join(FEED_FORWARD)}")
        h = constrain(Embed(self.vocab_size, self.d_model, normal(1.0), self.dtype, name="shared")(ids))
        sizes = Sizes(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Sizes)})
        return Blocks(sizes, name="encoder")(h)


class Blocks(nn.Module):
    """The blocks of the encoder, and the final norm."""

    of: Sizes

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        of, bias = self.of, None
        for i in range(of.num_layers):
            h, bias = Block(of, name=f"block_{i}")(h, bias)
        return RMSNorm(of.layer_norm_epsilon, of.dtype, name="final_layer_norm")(h)


class Block(nn.Module):
    """Attention and feed-forward: [B, L, D], and the added numbers [heads, L, L], None in the first, -> both."""

    of: Sizes

    @nn.compact
    def __call__(self, h: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        h, bias = AttentionLayer(self.of, name="layer_0")(h, bias)
        return constrain(FeedForwardLayer(self.of, name="layer_1")(h)), bias


class AttentionLayer(nn.Module):
    """A norm, attention, and what came in."""

    of: Sizes

    @nn.compact
    def __call__(self, h: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        seen = RMSNorm(self.of.layer_norm_epsilon, self.of.dtype, name="layer_norm")(h)
        out, bias = SelfAttention(self.of, name="SelfAttention")(seen, bias)
        return h + out, bias


class SelfAttention(nn.Module):
    """Attention over all tokens, with the number of each head and distance."""

    of: Sizes

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        of, (B, L, _) = self.of, x.shape
        inner = of.num_heads * of.d_kv
        q, k, v = (_linear(inner, of, name)(x).reshape(B, L, of.num_heads, of.d_kv) for name in "qkv")
        if bias is None:
            table = Embed(of.relative_attention_num_buckets, of.num_heads, normal(0.02), name="relative_attention_bias")
            far = buckets(L, of.relative_attention_num_buckets, of.relative_attention_max_distance)
            bias = table(jnp.asarray(far)).transpose(2, 0, 1)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) + bias.astype(jnp.float32)
        out = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1).astype(of.dtype), v)
        return _linear(of.d_model, of, "o")(out.reshape(B, L, inner)), bias


class FeedForwardLayer(nn.Module):
    """A norm, two layers, and what came in."""

    of: Sizes

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        seen = RMSNorm(self.of.layer_norm_epsilon, self.of.dtype, name="layer_norm")(h)
        return h + FeedForward(self.of, name="DenseReluDense")(seen)


class FeedForward(nn.Module):
    """The tanh approximation of GELU, gated, or ReLU."""

    of: Sizes

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        of = self.of
        if of.feed_forward_proj == "relu":
            h = jax.nn.relu(_linear(of.d_ff, of, "wi")(x))
        else:
            h = jax.nn.gelu(_linear(of.d_ff, of, "wi_0")(x), approximate=True) * _linear(of.d_ff, of, "wi_1")(x)
        return _linear(of.d_model, of, "wo")(h)


def _linear(features: int, of: Sizes, name: str) -> Dense:
    return Dense(features, False, dtype=of.dtype, name=name)


def buckets(length: int, count: int, farthest: int) -> np.ndarray:
    """Which row of the table a query (rows) has for a key (columns), int32 [length, length]: half of the `count` for keys after
    it; of each half, half for a distance each, and the rest for distances up to `farthest`, ever wider ones."""
    far = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = count // 2
    exact, distance = half // 2, np.abs(far)
    steps = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(farthest / exact))
    wide = np.minimum(exact + (steps * (half - exact)).astype(np.int32), half - 1)
    return np.int32(half * (far > 0) + np.where(distance < exact, distance, wide))
