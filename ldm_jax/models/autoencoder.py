"""First stages: the KL- and VQ-regularized autoencoders (Rombach et al. 2022, section 3.1 and appendix G).

Fields and parameters are named as in CompVis/latent-diffusion (`ldm/models/autoencoder.py`,
`ldm/modules/diffusionmodules/model.py`). An image [B, H, W, 3] in [-1, 1] becomes a latent of
H / 2^(levels - 1) by W / 2^(levels - 1) pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.attention import attention
from ldm_jax.models.codebook import FSQ, Codebook
from ldm_jax.models.layers import Conv, Dense, Downsample, GroupNorm, Upsample, remat
from ldm_jax.models.partition import constrain


@dataclass(frozen=True)
class Settings:
    """What encoder and decoder have in common; see `Autoencoder`."""

    ch: int
    ch_mult: Sequence[float]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    attn_type: str
    dropout: float
    norm_num_groups: int
    dtype: Any
    remat: str | bool
    attention: str

    def width(self, level: int) -> int:
        return round(self.ch * self.ch_mult[level])

    def attends(self, level: int) -> bool:
        return self.attn_type != "none" and self.resolution // 2**level in self.attn_resolutions

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.norm_num_groups, 1e-6, self.dtype, name=name)

    def res(self, width: int, train: bool, name: str) -> nn.Module:
        return remat(ResnetBlock, self.remat)(self, width, self.dropout if train else 0.0, name=name)

    def attn(self, name: str) -> nn.Module:
        return remat(AttnBlock, self.remat)(self, name=name)


class ResnetBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, added to the input."""

    settings: Settings
    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.settings
        h = Conv(self.width, dtype=s.dtype, name="conv1")(nn.silu(s.norm("norm1")(x)))
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(nn.silu(s.norm("norm2")(h)))
        h = Conv(self.width, dtype=s.dtype, name="conv2")(h)
        if x.shape[-1] != self.width:
            x = Dense(self.width, dtype=s.dtype, name="nin_shortcut")(x)
        return constrain(x + h)


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of [B, H, W, C], added to the input."""

    settings: Settings

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, H, W, C = x.shape
        dtype = self.settings.dtype
        h = self.settings.norm("norm")(x)
        q, k, v = (Dense(C, dtype=dtype, name=name)(h).reshape(B, H * W, 1, C) for name in "qkv")
        h = attention(q, k, v, self.settings.attention).reshape(B, H, W, C)
        return constrain(x + Dense(C, dtype=dtype, name="proj_out")(h))


class Middle(nn.Module):
    """The blocks between encoder levels and latents: residual, attention, residual; [B, h, w, C] -> the same."""

    settings: Settings

    @nn.compact
    def __call__(self, h: jax.Array, train: bool = False) -> jax.Array:
        s = self.settings
        h = s.res(h.shape[-1], train, "block_1")(h)
        if s.attn_type != "none":
            h = s.attn("attn_1")(h)
        return s.res(h.shape[-1], train, "block_2")(h)


class Level(nn.Module):
    """The blocks of one resolution, then a change of resolution: "down", "up" or none."""

    settings: Settings
    level: int
    blocks: int
    resample: str | None

    @nn.compact
    def __call__(self, h: jax.Array, train: bool = False) -> jax.Array:
        s, width = self.settings, self.settings.width(self.level)
        for i in range(self.blocks):
            h = s.res(width, train, f"block_{i}")(h)
            if s.attends(self.level):
                h = s.attn(f"attn_{i}")(h)
        if self.resample == "down":
            h = Downsample("conv", 0, width, s.dtype, name="downsample")(h)
        elif self.resample == "up":
            h = Upsample(width, s.dtype, name="upsample")(h)
        return constrain(h)


class Encoder(nn.Module):
    """Images [B, H, W, C] -> [B, h, w, out_channels]."""

    settings: Settings
    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        s, last = self.settings, len(self.settings.ch_mult) - 1
        h = constrain(Conv(s.ch, dtype=s.dtype, name="conv_in")(x))
        for i in range(last + 1):
            h = Level(s, i, s.num_res_blocks, "down" if i < last else None, name=f"down_{i}")(h, train)
        h = Middle(s, name="mid")(h, train)
        return Conv(self.out_channels, dtype=s.dtype, name="conv_out")(nn.silu(s.norm("norm_out")(h)))


class Decoder(nn.Module):
    """[B, h, w, z_channels] -> images [B, H, W, out_channels]; `up_0` has the highest resolution and comes last."""

    settings: Settings
    out_channels: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False, features: bool = False) -> jax.Array:
        """`features`: what the last convolution is given, [B, H, W, ch], instead of the image."""
        s, last = self.settings, len(self.settings.ch_mult) - 1
        h = constrain(Conv(s.width(last), dtype=s.dtype, name="conv_in")(z))
        h = Middle(s, name="mid")(h, train)
        for i in reversed(range(last + 1)):
            h = Level(s, i, s.num_res_blocks + 1, "up" if i else None, name=f"up_{i}")(h, train)
        h = nn.silu(s.norm("norm_out")(h))
        return h if features else Conv(self.out_channels, dtype=s.dtype, name="conv_out")(h)


class Autoencoder(nn.Module):
    """A first stage: KL-regularized, or vector-quantized if it has a codebook of `n_embed` entries (of length one with
    `unit_codes`), or rounds channel i to fsq_levels[i] values.

    `encode` gives moments [B, h, w, 2 embed_dim] (KL: means, then log-variances) or latents before quantization
    [B, h, w, embed_dim] (VQ); `decode` takes latents [B, h, w, embed_dim], quantizing first if VQ.
    `attn_resolutions` are compared with `resolution` halved per level, whatever the true size of the input.
    `attn_type` "none" removes all attention, the middle's too. `double_z` is whether the encoder gives two numbers per
    latent channel: exactly the KL models do. All computing is in `dtype`; outputs are float32.
    """

    ch: int
    ch_mult: Sequence[float]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    z_channels: int
    embed_dim: int
    n_embed: int | None = None  # or 0: no codebook
    unit_codes: bool = False
    fsq_levels: Sequence[int] = ()
    in_channels: int = 3
    out_ch: int = 3
    double_z: bool = True
    attn_type: str = "vanilla"
    dropout: float = 0.0
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    norm_num_groups: int = 32
    dtype: Any = jnp.float32
    remat: str | bool = "none"
    attention: str = "auto"

    def setup(self) -> None:
        if self.double_z == self.quantizes:
            raise ValueError(
                f"double_z={self.double_z} with n_embed={self.n_embed}, fsq_levels={self.fsq_levels}: KL models have double_z "
                "and no codebook, VQ models a codebook and no double_z"
            )
        if self.fsq_levels and (self.n_embed or len(self.fsq_levels) != self.embed_dim or min(self.fsq_levels) < 2):
            raise ValueError(
                f"fsq_levels={self.fsq_levels}: as many numbers of at least 2 as embed_dim={self.embed_dim}, and no n_embed"
            )
        if self.attn_type not in ("vanilla", "none"):
            raise ValueError(f'attn_type {self.attn_type!r} is unknown: use "vanilla" or "none"')
        for field in ("use_quant_conv", "use_post_quant_conv"):
            if not getattr(self, field) and self.embed_dim != self.z_channels:
                raise ValueError(f"without {field}, embed_dim {self.embed_dim} must be z_channels {self.z_channels}")
        settings = Settings(**{field.name: getattr(self, field.name) for field in fields(Settings)})
        moments = 2 if self.double_z else 1
        self.encoder = Encoder(settings, moments * self.z_channels)
        self.decoder = Decoder(settings, self.out_ch)
        if self.use_quant_conv:
            self.quant_conv = Dense(moments * self.embed_dim, dtype=self.dtype)
        if self.use_post_quant_conv:
            self.post_quant_conv = Dense(self.z_channels, dtype=self.dtype)
        if self.fsq_levels:
            self.codebook = FSQ(self.fsq_levels, name="quantize")
        elif self.n_embed:
            self.codebook = Codebook(self.n_embed, self.embed_dim, self.unit_codes, name="quantize")

    @property
    def quantizes(self) -> bool:
        return bool(self.n_embed or self.fsq_levels)

    @property
    def codes(self) -> int:
        """How many there are; 0 without a codebook."""
        return self.n_embed or (math.prod(self.fsq_levels) if self.fsq_levels else 0)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The reconstruction from the most likely latents."""
        z = self.encode(x, train)
        return self.decode(z if self.quantizes else z[..., : self.embed_dim], train)

    def encode(self, x: jax.Array, train: bool = False) -> jax.Array:
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"images of shape {x.shape} do not have {self.in_channels} channels last")
        h = self.encoder(x, train)
        return (self.quant_conv(h) if self.use_quant_conv else h).astype(jnp.float32)

    def decode(self, z: jax.Array, train: bool = False, quantize: bool = True, features: bool = False) -> jax.Array:
        """`quantize` False decodes VQ latents as they are; `features` stops before the last convolution, see `last_layer`."""
        if z.shape[-1] != self.embed_dim:
            raise ValueError(f"latents of shape {z.shape} do not have {self.embed_dim} channels last")
        if quantize and self.quantizes:
            z, _ = self.quantize(z)
        h = self.post_quant_conv(z) if self.use_post_quant_conv else z
        return self.decoder(h, train, features) if features else self.decoder(h, train).astype(jnp.float32)

    def project(self, z: jax.Array) -> jax.Array:
        """VQ latents as they are compared with codes: themselves, of length one, or bounded."""
        return self.codebook.project(z)

    def quantize(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Latents [B, h, w, embed_dim] -> their nearest codebook entries, and these entries' int32 indices [B, h, w]."""
        return self.codebook(z)

    def lookup(self, indices: jax.Array) -> jax.Array:
        """The codebook entries of int indices [B, h, w]: [B, h, w, embed_dim]."""
        return self.codebook.lookup(indices)


def last_layer(params: dict, h: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The decoder's last convolution, of its own parameters {"kernel", "bias"}: features [B, H, W, ch] -> images. It is apart
    from the module because the adaptive weight of the adversarial loss wants its gradient alone."""
    return Conv(params["bias"].shape[0], dtype=dtype, parent=None).apply({"params": params}, h).astype(jnp.float32)
