"""First stages: the KL- and VQ-regularized autoencoders (Rombach et al. 2022, section 3.1 and appendix G).

Fields and parameters are named as in CompVis/latent-diffusion (`ldm/models/autoencoder.py`,
`ldm/modules/diffusionmodules/model.py`). An image [B, H, W, 3] in [-1, 1] becomes a latent of
H / 2^(levels - 1) by W / 2^(levels - 1) pixels; so do sounds [B, L, C] and films or volumes [B, D, H, W, C], by `dims`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.attention import attention
from ldm_jax.models.codebook import FSQ, Codebook
from ldm_jax.models.convolution import check_rank, factors_of, folded, shrinkage, unfolded, window_of
from ldm_jax.models.init import ZEROS
from ldm_jax.models.layers import Conv, Dense, Downsample, GroupNorm, Upsample, remat, sinusoidal_embedding
from ldm_jax.models.partition import constrain
from ldm_jax.models.transformer import over_time, within_frames

Layer = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Settings:
    """What encoder and decoder have in common; see `Autoencoder`."""

    ch: int
    ch_mult: Sequence[float]
    num_res_blocks: int | Sequence[int]
    attn_resolutions: Sequence[int]
    resolution: int
    attn_type: str
    shortcuts: bool
    dropout: float
    norm_num_groups: int
    dtype: Any
    remat: str | bool
    attention: str
    dims: int
    strides: Sequence[int] | Sequence[Sequence[int]]
    kernel_size: int | Sequence[int]
    factorised_attention: bool

    @property
    def window(self) -> tuple[int, ...]:
        return window_of(self.kernel_size, self.dims)

    def factors(self, level: int) -> tuple[int, ...]:
        """By how much level + 1 is smaller than `level`, along each axis."""
        return factors_of(self.strides, self.dims, level)

    def conv(self, width: int, name: str) -> Conv:
        return Conv(width, self.window, dtype=self.dtype, name=name)

    def width(self, level: int) -> int:
        return round(self.ch * self.ch_mult[level])

    def blocks(self, level: int, decoder: bool = False) -> int:
        """How many residual blocks a level has: by a number the decoder has one more, as in the reference; by one number a
        level, both have as many."""
        if isinstance(self.num_res_blocks, Sequence):
            return self.num_res_blocks[level]
        return self.num_res_blocks + decoder

    def attends(self, level: int) -> bool:
        return self.attn_type != "none" and self.resolution // 2**level in self.attn_resolutions

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.norm_num_groups, 1e-6, self.dtype, name=name)

    def res(self, width: int, train: bool, name: str) -> nn.Module:
        return remat(ResnetBlock, self.remat)(self, width, self.dropout if train else 0.0, name=name)

    def past(self, layer: Layer, kept: Callable[..., jax.Array], h: jax.Array, factors: Any, width: int) -> jax.Array:
        """layer(h), and with `shortcuts` what `kept`, `folded` or `unfolded`, makes of h besides."""
        if not self.shortcuts:
            return layer(h)
        return layer(h) + kept(h.astype(self.dtype), factors, width)

    def attn(self, name: str, h: jax.Array) -> jax.Array:
        """Attention of pixels to all pixels; with `factorised_attention` to those of their frame, and then over time."""
        block = remat(AttnBlock, self.remat)
        if not self.factorised_attention:
            return block(self, name=name)(h)
        return over_time(block(self, places=True, name=f"{name}_time"), within_frames(block(self, name=name), h))


class ResnetBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, added to the input."""

    settings: Settings
    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s = self.settings
        h = s.conv(self.width, "conv1")(nn.silu(s.norm("norm1")(x)))
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(nn.silu(s.norm("norm2")(h)))
        h = s.conv(self.width, "conv2")(h)
        if x.shape[-1] != self.width:
            x = Dense(self.width, dtype=s.dtype, name="nin_shortcut")(x)
        return constrain(x + h)


class AttnBlock(nn.Module):
    """Single-head self-attention over the pixels of [B, *space, C], added to the input. With `places`, over [B, T, C],
    sinusoids of t are added to what is attended to, and the block changes nothing at first."""

    settings: Settings
    places: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        B, *space, C = x.shape
        dtype = self.settings.dtype
        h = self.settings.norm("norm")(x)
        if self.places:
            h = h + sinusoidal_embedding(jnp.arange(space[0]), C).astype(h.dtype)
        q, k, v = (Dense(C, dtype=dtype, name=name)(h).reshape(B, math.prod(space), 1, C) for name in "qkv")
        h = attention(q, k, v, self.settings.attention).reshape(x.shape)
        rule = ZEROS if self.places else None
        return constrain(x + Dense(C, kernel_init=rule, bias_init=rule, dtype=dtype, name="proj_out")(h))


class Middle(nn.Module):
    """The blocks between encoder levels and latents: residual, attention, residual; [B, *space, C] -> the same."""

    settings: Settings

    @nn.compact
    def __call__(self, h: jax.Array, train: bool = False) -> jax.Array:
        s = self.settings
        h = s.res(h.shape[-1], train, "block_1")(h)
        if s.attn_type != "none":
            h = s.attn("attn_1", h)
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
                h = s.attn(f"attn_{i}", h)
        if self.resample == "down":
            factors, width = s.factors(self.level), s.width(self.level + 1) if s.shortcuts else h.shape[-1]
            change = Downsample("conv", 0, width, s.dtype, factors, s.window, name="downsample")
            h = s.past(change, folded, h, factors, width)
        elif self.resample == "up":
            factors, width = s.factors(self.level - 1), s.width(self.level - 1) if s.shortcuts else h.shape[-1]
            h = s.past(Upsample(width, s.dtype, factors, s.window, name="upsample"), unfolded, h, factors, width)
        return constrain(h)


class Encoder(nn.Module):
    """Images [B, *space, C] -> [B, *latent space, out_channels]."""

    settings: Settings
    out_channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        s, last = self.settings, len(self.settings.ch_mult) - 1
        h = constrain(s.conv(s.ch, "conv_in")(x))
        for i in range(last + 1):
            h = Level(s, i, s.blocks(i), "down" if i < last else None, name=f"down_{i}")(h, train)
        h = Middle(s, name="mid")(h, train)
        last_norm, conv_out = s.norm("norm_out"), s.conv(self.out_channels, "conv_out")
        return s.past(lambda h: conv_out(nn.silu(last_norm(h))), folded, h, 1, self.out_channels)


class Decoder(nn.Module):
    """[B, *latent space, z_channels] -> images [B, *space, out_channels]; `up_0` has the highest resolution and comes last."""

    settings: Settings
    out_channels: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool = False, features: bool = False) -> jax.Array:
        """`features`: what the last convolution is given, [B, *space, ch], instead of the image."""
        s, last = self.settings, len(self.settings.ch_mult) - 1
        h = constrain(s.past(s.conv(s.width(last), "conv_in"), unfolded, z, 1, s.width(last)))
        h = Middle(s, name="mid")(h, train)
        for i in reversed(range(last + 1)):
            h = Level(s, i, s.blocks(i, decoder=True), "up" if i else None, name=f"up_{i}")(h, train)
        h = nn.silu(s.norm("norm_out")(h))
        return h if features else s.conv(self.out_channels, "conv_out")(h)


class Autoencoder(nn.Module):
    """A first stage: KL-regularized, or vector-quantized if it has a codebook of `n_embed` entries (of length one with
    `unit_codes`), or rounds channel i to fsq_levels[i] values.

    `encode` gives moments [B, *latent space, 2 embed_dim] (KL: means, then log-variances) or latents before quantization
    [B, *latent space, embed_dim] (VQ); `decode` takes such latents, quantizing first if VQ.
    `attn_resolutions` are compared with `resolution` halved per level, whatever the true size of the input.
    `attn_type` "none" removes all attention, the middle's too. `double_z` is whether the encoder gives two numbers per
    latent channel: exactly the KL models do. `dims`, `strides`, `kernel_size` and `factorised_attention` are those of the
    U-Net: how many axes space has, by how much each level shrinks them, windows, and attention of films.
    `num_res_blocks` is one number (the decoder has one block more a level) or one a level, 0 included (both have so many).
    With `shortcuts`, every change of resolution and both ends of the latents add a shortcut without parameters, pixels as
    channels and back, and resampling layers change the width (Chen et al. 2024, "Deep compression autoencoder"): what lets
    latents be 16 or 32 times smaller. All computing is in `dtype`; outputs are float32.
    """

    ch: int
    ch_mult: Sequence[float]
    num_res_blocks: int | Sequence[int]
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
    dims: int = 2
    strides: Sequence[int] | Sequence[Sequence[int]] = ()
    kernel_size: int | Sequence[int] = 3
    factorised_attention: bool = False
    shortcuts: bool = False

    def setup(self) -> None:
        if self.factorised_attention and self.dims != 3:
            raise ValueError(f"factorised_attention is of frames and time, three axes; this first stage is of dims={self.dims}")
        if self.double_z == self.quantizes:
            raise ValueError(
                f"double_z={self.double_z} with n_embed={self.n_embed}, fsq_levels={self.fsq_levels}: KL models have double_z "
                "and no codebook, VQ models a codebook and no double_z"
            )
        if self.fsq_levels and (self.n_embed or len(self.fsq_levels) != self.embed_dim or min(self.fsq_levels) < 2):
            raise ValueError(
                f"fsq_levels={self.fsq_levels}: as many numbers of at least 2 as embed_dim={self.embed_dim}, and no n_embed"
            )
        if isinstance(self.num_res_blocks, Sequence) and len(self.num_res_blocks) != len(self.ch_mult):
            raise ValueError(
                f"num_res_blocks={tuple(self.num_res_blocks)}: give one number, or one for each of {len(self.ch_mult)} levels"
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
    def factors(self) -> tuple[int, ...]:
        """How many times smaller latents are, along each axis."""
        return shrinkage(self.strides, self.dims, len(self.ch_mult))

    @property
    def codes(self) -> int:
        """How many there are; 0 without a codebook."""
        return self.n_embed or (math.prod(self.fsq_levels) if self.fsq_levels else 0)

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """The reconstruction from the most likely latents."""
        z = self.encode(x, train)
        return self.decode(z if self.quantizes else z[..., : self.embed_dim], train)

    def encode(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_rank(x, self.dims)
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"images of shape {x.shape} do not have {self.in_channels} channels last")
        h = self.encoder(x, train)
        return (self.quant_conv(h) if self.use_quant_conv else h).astype(jnp.float32)

    def decode(self, z: jax.Array, train: bool = False, quantize: bool = True, features: bool = False) -> jax.Array:
        """`quantize` False decodes VQ latents as they are; `features` stops before the last convolution, see `last_layer`."""
        check_rank(z, self.dims)
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
        """Latents [B, *space, embed_dim] -> their nearest codebook entries, and these entries' int32 indices [B, *space]."""
        return self.codebook(z)

    def lookup(self, indices: jax.Array) -> jax.Array:
        """The codebook entries of int indices [B, *space]: [B, *space, embed_dim]."""
        return self.codebook.lookup(indices)


def last_layer(params: dict, h: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """The decoder's last convolution, of its own parameters {"kernel", "bias"}: features [B, *space, ch] -> images. It is apart
    from the module because the adaptive weight of the adversarial loss wants its gradient alone."""
    window = params["kernel"].shape[:-2]
    return Conv(params["bias"].shape[0], window, dtype=dtype, parent=None).apply({"params": params}, h).astype(jnp.float32)
