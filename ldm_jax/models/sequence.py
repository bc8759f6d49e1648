"""First stage of text: sequences of tokens to a fixed number of latent tokens and back (Lovelace et al. 2023, "Latent diffusion
for language generation"; the latents are drawn from a posterior as in Rombach et al. 2022).

    tokens [N] -> transformer -> [N, width] -> resampler: L queries attend to them -> moments [L, 2 D]
    latents [L, D] -> transformer -> [L, width] -> N places attend to them -> scores of every token [N, V]

The resampler is the Perceiver's (Jaegle et al. 2021); query i starts from the i-th of L equal pieces of the row, and a place
from the latent of its piece, without which a small model takes long to find out what to look at. There the decoder is a
language model that writes one token after the other; here every place is decided at once, of the latents alone: what a decoded
sentence has of grammar is the latents', and decoding is one pass.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.init import normal
from ldm_jax.models.layers import Dense, Embed, LayerNorm
from ldm_jax.models.partition import constrain
from ldm_jax.models.transformer import CrossAttention, FeedForward, TransformerBlock


class Queries(nn.Module):
    """A learned vector for each of `count` places, for all of a batch: [B, count, width]."""

    count: int
    width: int
    dtype: Any

    @nn.compact
    def __call__(self, batch: int) -> jax.Array:
        table = Embed(self.count, self.width, normal(0.02), self.dtype, name="embedding")(jnp.arange(self.count))
        return jnp.broadcast_to(table, (batch, self.count, self.width))


class SelfAttentionBlock(nn.Module):
    """Pre-norm self-attention and feed-forward over [B, T, C], each added to its input."""

    heads: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = LayerNorm(dtype=self.dtype, name="norm1")(x)
        attend = CrossAttention(self.heads, x.shape[-1] // self.heads, attention=self.attention, dtype=self.dtype, name="attn1")
        x = x + attend(h)
        return constrain(x + FeedForward(self.dtype, name="ff")(LayerNorm(dtype=self.dtype, name="norm2")(x)))


class TextEncoder(nn.Module):
    """Tokens int [B, N] -> [B, latents, out_channels]."""

    vocab_size: int
    length: int
    latents: int
    width: int
    depth: int
    resampler_depth: int
    heads: int
    dropout: float
    out_channels: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        B, head = len(tokens), self.width // self.heads
        h = Embed(self.vocab_size, self.width, normal(0.02), self.dtype, name="token_embedding")(tokens)
        h = constrain(h + Queries(self.length, self.width, self.dtype, name="positions")(B))
        h = nn.Dropout(self.dropout, deterministic=not train or self.dropout == 0)(h)
        for i in range(self.depth):
            h = SelfAttentionBlock(self.heads, self.attention, self.dtype, name=f"blocks_{i}")(h)
        h = LayerNorm(dtype=self.dtype, name="norm")(h)
        q = Dense(self.width, dtype=self.dtype, name="pool")(h.reshape(B, self.latents, -1))
        q = q + Queries(self.latents, self.width, self.dtype, name="queries")(B)
        for i in range(self.resampler_depth):
            block = TransformerBlock(self.heads, head, attention=self.attention, dtype=self.dtype, name=f"resampler_{i}")
            q = constrain(block(q, h))
        q = LayerNorm(dtype=self.dtype, name="norm_out")(q)
        return Dense(self.out_channels, dtype=self.dtype, name="proj_out")(q)


class TextDecoder(nn.Module):
    """Latents [B, L, D] -> scores [B, N, vocab_size]."""

    vocab_size: int
    length: int
    width: int
    depth: int
    heads: int
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False) -> jax.Array:
        B, L, head = z.shape[0], z.shape[1], self.width // self.heads
        h = Dense(self.width, dtype=self.dtype, name="proj_in")(z)
        h = constrain(h + Queries(L, self.width, self.dtype, name="positions")(B))
        for i in range(self.depth):
            h = SelfAttentionBlock(self.heads, self.attention, self.dtype, name=f"blocks_{i}")(h)
        h = LayerNorm(dtype=self.dtype, name="norm")(h)
        q = Dense(self.length // L * self.width, dtype=self.dtype, name="spread")(h).reshape(B, self.length, self.width)
        q = q + Queries(self.length, self.width, self.dtype, name="queries")(B)
        for i in range(self.depth):
            block = TransformerBlock(self.heads, head, attention=self.attention, dtype=self.dtype, name=f"writer_{i}")
            q = constrain(block(q, h))
        q = LayerNorm(dtype=self.dtype, name="norm_out")(q)
        return Dense(self.vocab_size, dtype=self.dtype, name="to_logits")(q)


class TextAutoencoder(nn.Module):
    """A first stage of tokens, KL-regularized. Tokens are [B, length, 1], whole numbers from 0 to vocab_size - 1, of any type.

    `encode` gives moments [B, latents, 2 embed_dim], means and then log-variances; `decode` takes latents
    [B, latents, embed_dim] and gives scores float32 [B, length, vocab_size], of which the largest is the token. `length` is a
    multiple of `latents`. `depth` is of the encoder and of each half of the decoder. All computing is in `dtype`. `dropout` is
    of the encoder's input.
    """

    vocab_size: int
    length: int
    latents: int
    embed_dim: int
    width: int
    depth: int = 2
    resampler_depth: int = 1
    heads: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32
    attention: str = "auto"

    in_channels = 1
    quantizes = False  # which kinds of first stages have a codebook

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads {self.heads}")
        if self.length % self.latents:
            raise ValueError(f"length {self.length} must be a multiple of latents {self.latents}")
        common = {"width": self.width, "depth": self.depth, "heads": self.heads, "attention": self.attention}
        sizes = {"vocab_size": self.vocab_size, "length": self.length, "dtype": self.dtype}
        self.encoder = TextEncoder(
            latents=self.latents, resampler_depth=self.resampler_depth, dropout=self.dropout, out_channels=2 * self.embed_dim,
            **common, **sizes,
        )  # fmt: skip
        self.decoder = TextDecoder(**common, **sizes)

    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """The scores from the most likely latents."""
        return self.decode(self.encode(tokens, train)[..., : self.embed_dim], train)

    def encode(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        if tokens.shape[1:] != (self.length, 1):
            raise ValueError(f"tokens of shape {tokens.shape} are not [B, {self.length}, 1]")
        return self.encoder(tokens[..., 0].astype(jnp.int32), train).astype(jnp.float32)

    @staticmethod
    def drawn(scores: jax.Array) -> jax.Array:
        """Scores [B, length, vocab_size] -> the likeliest tokens, float32 [B, length, 1]."""
        return jnp.argmax(scores, axis=-1, keepdims=True).astype(jnp.float32)

    def decode(self, z: jax.Array, train: bool = False) -> jax.Array:
        if z.shape[1:] != (self.latents, self.embed_dim):
            raise ValueError(f"latents of shape {z.shape} are not [B, {self.latents}, {self.embed_dim}]")
        return self.decoder(z, train).astype(jnp.float32)
