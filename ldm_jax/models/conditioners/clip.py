"""The text and image towers of CLIP (Radford et al. 2021), as Stable Diffusion and retrieval augmentation use them.

Fields are named as in the configurations of Hugging Face transformers (`CLIPTextConfig`, `CLIPVisionConfig`), and
parameters as in its `CLIPTextModelWithProjection` and `CLIPVisionModelWithProjection`, less the prefixes `text_model.`
and `vision_model.`. OpenCLIP's towers (Stable Diffusion 2, the second one of SDXL) are the same networks with
`hidden_act` "gelu".
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.attention import attention
from ldm_jax.models.init import normal
from ldm_jax.models.layers import Conv, Dense, Embed, LayerNorm, gelu
from ldm_jax.models.partition import constrain

ACTIVATIONS = {"quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x), "gelu": gelu}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class TextFeatures(NamedTuple):
    """What a text tower can give: Stable Diffusion 1 takes `last`, 2 `penultimate`, XL `hidden_states[-2]` and `embeds`."""

    hidden_states: tuple[jax.Array, ...]  # the embeddings, then every layer's output, [B, L, hidden_size] each
    last: jax.Array  # the last of these after the final norm
    penultimate: jax.Array  # the last but one after the final norm
    pooled: jax.Array  # `last` at the end-of-text token, [B, hidden_size]
    embeds: jax.Array | None  # `pooled` projected, [B, projection_dim]


class VisionFeatures(NamedTuple):
    """What an image tower gives."""

    hidden_states: tuple[jax.Array, ...]
    pooled: jax.Array  # the class token after the final norm, [B, hidden_size]
    embeds: jax.Array | None  # `pooled` projected, [B, projection_dim]


class CLIPText(nn.Module):
    """Token ids int [B, L], L at most `max_position_embeddings`, -> TextFeatures. Attention is causal, padding is seen.

    The end of the text is the first `eos_token_id`, or, where that is None or 2 (as released configurations wrongly
    have it), the first largest id.
    """

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = None
    eos_token_id: int | None = None
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, ids: jax.Array) -> TextFeatures:
        B, L = ids.shape
        if self.max_position_embeddings < L:
            raise ValueError(f"{L} tokens are more than {self.max_position_embeddings}: truncate them")
        h = TextEmbeddings(self.vocab_size, self.max_position_embeddings, self.hidden_size, self.dtype, name="embeddings")(ids)
        states = encoder(self, causal=True)(h)
        norm = LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="final_layer_norm")
        last = norm(states[-1])
        marks = ids if self.eos_token_id in (None, 2) else ids == self.eos_token_id
        pooled = last[jnp.arange(B), marks.argmax(-1)]
        embeds = projection(self, "text_projection", pooled)
        return TextFeatures(states, last, norm(states[-2]), pooled, embeds)


class CLIPVision(nn.Module):
    """Images [B, image_size, image_size, num_channels], normalized (see `clip_normalize`), -> VisionFeatures."""

    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = 768
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, images: jax.Array) -> VisionFeatures:
        expected = (self.image_size, self.image_size, self.num_channels)
        if images.shape[1:] != expected:
            raise ValueError(f"images of shape {images.shape[1:]} should be {expected}: resize them")
        h = VisionEmbeddings(
            self.image_size // self.patch_size, self.patch_size, self.hidden_size, self.dtype, name="embeddings"
        )(images)
        h = LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="pre_layrnorm")(h)
        states = encoder(self, causal=False)(h)
        pooled = LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="post_layernorm")(states[-1][:, 0])
        return VisionFeatures(states, pooled, projection(self, "visual_projection", pooled))


def clip_normalize(images: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] in [-1, 1] -> what CLIP's image tower expects: from [0, 1], less its mean, over its deviation."""
    return ((images + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)


def encoder(tower: nn.Module, causal: bool) -> "Encoder":
    """The transformer of a tower, layers one after the other: [B, L, D] -> hidden states."""
    return Encoder(
        tower.num_hidden_layers,
        tower.num_attention_heads,
        tower.intermediate_size,
        tower.hidden_act,
        tower.layer_norm_eps,
        causal,
        tower.attention,
        tower.dtype,
        name="encoder",
    )


def projection(tower: nn.Module, name: str, pooled: jax.Array) -> jax.Array | None:
    """A linear map to the space that pictures and texts share, without bias."""
    if tower.projection_dim is None:
        return None
    return Dense(tower.projection_dim, use_bias=False, dtype=tower.dtype, name=name)(pooled)


class TextEmbeddings(nn.Module):
    """Token and position embeddings: int32 [B, L] -> [B, L, D]."""

    vocab_size: int
    length: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        tokens = Embed(self.vocab_size, self.features, normal(0.02), self.dtype, name="token_embedding")(ids)
        positions = Embed(self.length, self.features, normal(0.02), self.dtype, name="position_embedding")
        return tokens + positions(jnp.arange(ids.shape[1]))


class VisionEmbeddings(nn.Module):
    """Patches, a class token before them, positions: [B, H, W, 3] -> [B, 1 + N, D]."""

    grid: int
    patch_size: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        B, p = images.shape[0], self.patch_size
        patches = Conv(self.features, p, p, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding")(images).reshape(
            B, self.grid**2, -1
        )
        mark = self.param("class_embedding", normal(self.features**-0.5), (self.features,)).astype(self.dtype)
        tokens = jnp.concatenate([jnp.broadcast_to(mark, (B, 1, self.features)), patches], axis=1)
        positions = Embed(self.grid**2 + 1, self.features, normal(0.02), self.dtype, name="position_embedding")
        return tokens + positions(jnp.arange(tokens.shape[1]))


class Encoder(nn.Module):
    """Pre-norm transformer layers; returns the input and every layer's output."""

    layers: int
    heads: int
    intermediate_size: int
    hidden_act: str
    eps: float
    causal: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, h: jax.Array) -> tuple[jax.Array, ...]:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown: use one of {', '.join(ACTIVATIONS)}")
        states = [constrain(h)]
        for i in range(self.layers):
            layer = EncoderLayer(
                self.heads,
                self.intermediate_size,
                self.hidden_act,
                self.eps,
                self.causal,
                self.attention,
                self.dtype,
                name=f"layers_{i}",
            )
            states.append(constrain(layer(states[-1])))
        return tuple(states)


class EncoderLayer(nn.Module):
    """Norm, attention, norm, MLP, each with its residual: [B, L, D] -> the same."""

    heads: int
    intermediate_size: int
    hidden_act: str
    eps: float
    causal: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = LayerNorm(self.eps, dtype=self.dtype, name="layer_norm1")(x)
        x = x + SelfAttention(self.heads, self.causal, self.attention, self.dtype, name="self_attn")(h)
        h = LayerNorm(self.eps, dtype=self.dtype, name="layer_norm2")(x)
        return x + Mlp(self.intermediate_size, self.hidden_act, self.dtype, name="mlp")(h)


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases: [B, L, D] -> the same."""

    heads: int
    causal: bool
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, L, C = x.shape

        def project(name: str) -> jax.Array:
            return Dense(C, dtype=self.dtype, name=name)(x).reshape(B, L, self.heads, -1)

        h = attention(project("q_proj"), project("k_proj"), project("v_proj"), self.attention, causal=self.causal)
        return Dense(C, dtype=self.dtype, name="out_proj")(h.reshape(B, L, C))


class Mlp(nn.Module):
    """Two linear layers with the tower's activation between them."""

    features: int
    hidden_act: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = ACTIVATIONS[self.hidden_act](Dense(self.features, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)
