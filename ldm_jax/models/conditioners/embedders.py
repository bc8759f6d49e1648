"""The paper's own conditioners for cross-attention: a class table and a transformer over tokens.

Names as in CompVis/latent-diffusion `ldm/modules/encoders/modules.py` and `ldm/modules/x_transformer.py`.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.init import normal
from ldm_jax.models.layers import Conv, Dense, Embed, LayerNorm, gelu, sinusoidal_embedding
from ldm_jax.models.partition import constrain
from ldm_jax.models.transformer import CrossAttention


class ClassEmbedder(nn.Module):
    """Class labels int [B] -> one token [B, 1, embed_dim]. A null class is one more of the `n_classes`."""

    embed_dim: int
    n_classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, labels: jax.Array) -> jax.Array:
        return constrain(Embed(self.n_classes, self.embed_dim, dtype=self.dtype, name="embedding")(labels)[:, None])


class TransformerEmbedder(nn.Module):
    """Token ids int [B, L] -> [B, L, n_embed], by a bidirectional pre-norm transformer trained from scratch.

    The paper's BERTEmbedder and TransformerEmbedder: 8 heads of width 64, GELU, learned positions, no padding mask.
    `logits` gives scores over the vocabulary instead, [B, L, vocab_size]; its layer is a parameter in any case, as in
    the reference. `token_std` is the deviation of the tokens' vectors at first, `position_std` of the positions'; the
    reference has 0.02 for both. A word then begins as so little that words which are rare or of little use are hardly told
    apart for a long time. Where words begin much longer than positions, attention can't tell which word stands beside which: a
    sentence is a bag of words, and stays one.

    With `conv_kernel`, an odd number, a convolution that sees so many words at once is added to them before attention, so that
    "red" and "circle" of "a red circle" know of one another from the start; a convolutional embedding of positions, as in
    wav2vec 2.0 (Baevski et al. 2020). The reference has none, which is 0.
    """

    n_embed: int
    n_layer: int
    vocab_size: int = 30522
    max_seq_len: int = 77
    heads: int = 8
    dim_head: int = 64
    dtype: Any = jnp.float32
    attention: str = "auto"
    token_std: float = 0.02
    position_std: float = 0.02
    conv_kernel: int = 0

    @nn.compact
    def __call__(self, tokens: jax.Array, logits: bool = False) -> jax.Array:
        return TokenTransformer(
            **{f: getattr(self, f) for f in ("n_embed", "n_layer", "vocab_size", "max_seq_len", "heads", "dim_head")},
            dtype=self.dtype,
            attention=self.attention,
            token_std=self.token_std,
            position_std=self.position_std,
            conv_kernel=self.conv_kernel,
            name="transformer",
        )(tokens, logits)


def text_time_vector(text_embeds: jax.Array, time_ids: jax.Array, dim: int = 256, **options: Any) -> jax.Array:
    """SDXL's added condition, a U-Net's "vector": text embeddings [B, D] and each of `time_ids` [B, N] in `dim` sinusoids.

    The time ids of SDXL are the original size, the crop's top left and the target size, height before width. `options` are
    those of `sinusoidal_embedding`.
    -> [B, D + N * dim]
    """
    B, N = time_ids.shape
    sinusoids = sinusoidal_embedding(time_ids.reshape(-1), dim, **options).reshape(B, N * dim)
    return jnp.concatenate([text_embeds, sinusoids.astype(text_embeds.dtype)], axis=-1)


class TokenTransformer(nn.Module):
    """The transformer inside TransformerEmbedder."""

    n_embed: int
    n_layer: int
    vocab_size: int
    max_seq_len: int
    heads: int
    dim_head: int
    dtype: Any
    attention: str
    token_std: float
    position_std: float
    conv_kernel: int

    @nn.compact
    def __call__(self, tokens: jax.Array, logits: bool = False) -> jax.Array:
        length = tokens.shape[1]
        if length > self.max_seq_len:
            raise ValueError(f"{length} tokens are more than max_seq_len {self.max_seq_len}: truncate them")
        h = Embed(self.vocab_size, self.n_embed, normal(self.token_std), self.dtype, name="token_emb")(tokens)
        h = h + PositionTable(self.max_seq_len, self.n_embed, self.position_std, self.dtype, name="pos_emb")(length)
        if self.conv_kernel:
            h = h + Conv(self.n_embed, self.conv_kernel, dtype=self.dtype, name="conv")(h)
        h = Layers(self.n_layer, self.heads, self.dim_head, self.dtype, self.attention, name="attn_layers")(h)
        h = LayerNorm(dtype=self.dtype, name="norm")(h)
        scores = Dense(self.vocab_size, dtype=self.dtype, name="to_logits")
        if logits or self.is_initializing():
            out = scores(h)
        return out if logits else h


class PositionTable(nn.Module):
    """A learned vector for each position: [L, D]."""

    max_seq_len: int
    features: int
    std: float
    dtype: Any

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        table = Embed(self.max_seq_len, self.features, normal(self.std), self.dtype, name="emb")
        return table(jnp.arange(length))[None]


class Layers(nn.Module):
    """Attention and feed-forward in turn, each behind a LayerNorm and added to its input."""

    n_layer: int
    heads: int
    dim_head: int
    dtype: Any
    attention: str

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = constrain(h)  # a table that is split over devices would hand its split on to every layer
        for i in range(0, 2 * self.n_layer, 2):
            x = LayerNorm(dtype=self.dtype, name=f"layers_{i}_0")(h)
            h = h + CrossAttention(self.heads, self.dim_head, "to_out", self.attention, self.dtype, name=f"layers_{i}_1")(x)
            x = LayerNorm(dtype=self.dtype, name=f"layers_{i + 1}_0")(h)
            h = constrain(h + MLP(self.dtype, name=f"layers_{i + 1}_1")(x))
        return h


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        h = gelu(Dense(4 * C, dtype=self.dtype, name="net_0_0")(x))
        return Dense(C, dtype=self.dtype, name="net_2")(h)
