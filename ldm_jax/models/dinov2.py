"""DINOv2's vision transformer (Oquab et al. 2023; with registers: Darcet et al. 2023), which looks at pictures for distances.

Parameters are named as in Meta's files (`dinov2_vitl14_pretrain.pth`).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.attention import attention
from ldm_jax.models.init import normal
from ldm_jax.models.layers import Conv, Dense, LayerNorm, gelu

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalize(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] -> of ImageNet's mean and deviation per channel, as DINOv2 expects."""
    return ((images + 1) / 2 - jnp.asarray(MEAN)) / jnp.asarray(STD)


class DINOv2(nn.Module):
    """Images [B, image_size, image_size, 3], normalized (see `imagenet_normalize`), -> the class token after the final norm,
    [B, hidden_size]. `swiglu`: the gated MLP of the giant model."""

    image_size: int = 224
    patch_size: int = 14
    hidden_size: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    mlp_size: int = 4096
    registers: int = 0
    swiglu: bool = False
    layer_norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        expected = (self.image_size, self.image_size, 3)
        if images.shape[1:] != expected:
            raise ValueError(f"images of shape {images.shape[1:]} should be {expected}: resize them")
        B, D, p = len(images), self.hidden_size, self.patch_size
        patches = Patches(D, p, self.dtype, name="patch_embed")(images)

        def tokens(name: str, count: int) -> jax.Array:
            return self.param(name, normal(0.02), (1, count, D)).astype(self.dtype)

        mark = jnp.broadcast_to(tokens("cls_token", 1), (B, 1, D))
        x = jnp.concatenate([mark, patches], 1) + tokens("pos_embed", 1 + patches.shape[1])
        if self.registers:
            registers = jnp.broadcast_to(tokens("register_tokens", self.registers), (B, self.registers, D))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], 1)
        for i in range(self.num_layers):
            x = Block(self.num_heads, self.mlp_size, self.swiglu, self.layer_norm_eps, self.dtype, name=f"blocks_{i}")(x)
        return LayerNorm(self.layer_norm_eps, dtype=self.dtype, name="norm")(x[:, 0])


class Patches(nn.Module):
    """[B, H, W, 3] -> [B, N, D], row by row."""

    features: int
    size: int
    dtype: Any

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        h = Conv(self.features, self.size, self.size, "VALID", dtype=self.dtype, name="proj")(images)
        return h.reshape(len(images), -1, self.features)


class Block(nn.Module):
    """Norm, attention, norm, MLP, each scaled per channel before it is added: [B, L, D] -> the same."""

    heads: int
    mlp_size: int
    swiglu: bool
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = LayerNorm(self.eps, dtype=self.dtype, name="norm1")(x)
        x = x + LayerScale(name="ls1")(Attention(self.heads, self.dtype, name="attn")(h))
        h = LayerNorm(self.eps, dtype=self.dtype, name="norm2")(x)
        return x + LayerScale(name="ls2")(Mlp(self.mlp_size, self.swiglu, self.dtype, name="mlp")(h))


class LayerScale(nn.Module):
    """A learnt factor for every channel."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        return h * self.param("gamma", nn.initializers.ones, h.shape[-1:]).astype(h.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with biases: [B, L, D] -> the same."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        B, L, D = h.shape
        q, k, v = jnp.moveaxis(Dense(3 * D, dtype=self.dtype, name="qkv")(h).reshape(B, L, 3, self.heads, -1), 2, 0)
        return Dense(D, dtype=self.dtype, name="proj")(attention(q, k, v).reshape(B, L, D))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, or the gated SwiGLU."""

    features: int
    swiglu: bool
    dtype: Any

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        D = h.shape[-1]
        if self.swiglu:
            gate, h = jnp.split(Dense(2 * self.features, dtype=self.dtype, name="w12")(h), 2, -1)
            return Dense(D, dtype=self.dtype, name="w3")(nn.silu(gate) * h)
        return Dense(D, dtype=self.dtype, name="fc2")(gelu(Dense(self.features, dtype=self.dtype, name="fc1")(h)))
