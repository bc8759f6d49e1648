"""The U-Net of latent diffusion (Ho et al. 2020; Dhariwal & Nichol 2021; Rombach et al. 2022, section 3.2 and 3.3).

One module covers the paper's models, Stable Diffusion 1, 2 and XL, the inpainting models and the x4 upscaler, and the
diffusers U-Nets. Fields carry the names and the defaults of CompVis/latent-diffusion
`ldm/modules/diffusionmodules/openaimodel.py: UNetModel`, as far as they change what is computed; parameters carry its
names too, so that checkpoints convert by renaming.

Conditioning `cond` is None or a dict with any of
    "concat"   [B, *space, C]  appended to x's channels, after x (super-resolution, inpainting, semantic maps)
    "context"  [B, L, D]     tokens for cross-attention
    "vector"   [B, D]        added to the time embedding through an MLP (num_classes="sequential") or a linear layer
                             ("continuous", D = 1)
    "label"    int [B]       class or noise level, looked up and added to the time embedding (num_classes an int)
    "guidance" [B]           guidance scale less 1, where the network is told it (guidance_dim)
    "residuals"              what a ControlNet gives: added to the skips, in order, and to the middle
    "hint"     [B, H', W', 3]  what a ControlNet is shown, in [0, 1], pixels

A ControlNet (Zhang et al. 2023) is the way down of a U-Net that is shown a picture besides: with `hint_channels` this module
is one, and gives residuals in place of an output. Names are those of `ControlNet` in lllyasviel/ControlNet `cldm/cldm.py`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.convolution import average_pool, check_rank, factors_of, nearest, per_axis, window_of
from ldm_jax.models.inflation import BY_PLACE, OVER_TIME
from ldm_jax.models.init import ZEROS, Rule
from ldm_jax.models.layers import (
    AUGMENT_EMBEDDING,
    Conv,
    Dense,
    Downsample,
    Embed,
    GroupNorm,
    Upsample,
    remat,
    sinusoidal_embedding,
    step_length,
)
from ldm_jax.models.partition import constrain
from ldm_jax.models.transformer import AttentionBlock, PlacedContext, SpatialTransformer, over_time, within_frames

COND_KEYS = ("concat", "context", "vector", "label", "guidance", "residuals", "hint", "augment")
OPTIONAL = ("concat", "residuals", "augment")  # whatever the fields are


class ResBlock(nn.Module):
    """Two convolutions around the time embedding, added to the input; optionally at half or twice the resolution.

    The embedding is added between the convolutions, or scales and shifts the second norm: norm(h) (1 + scale) + shift.
    With `resample` "down" (means of blocks) or "up" (nearest, to `size`), both the input and its first activation change
    resolution before the first convolution: by `factors` along each axis.
    """

    out_channels: int
    use_scale_shift_norm: bool = False
    resample: str | None = None
    dropout: float = 0.0
    num_groups: int = 32
    eps: float = 1e-5
    dtype: Any = jnp.float32
    factors: int | tuple[int, ...] = 2
    kernel_size: int | tuple[int, ...] = 3

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, size: tuple[int, ...] | None = None) -> jax.Array:
        def norm(name: str, x: jax.Array) -> jax.Array:
            return GroupNorm(self.num_groups, self.eps, self.dtype, name=name)(x)

        h = nn.silu(norm("in_layers_0", x))
        if self.resample == "down":
            h, x = average_pool(h, self.factors), average_pool(x, self.factors)
        elif self.resample == "up":
            factors = per_axis(self.factors, x.ndim - 2)
            size = size or tuple(side * factor for side, factor in zip(x.shape[1:-1], factors))
            h, x = nearest(h, *size), nearest(x, *size)
        h = Conv(self.out_channels, self.kernel_size, dtype=self.dtype, name="in_layers_2")(h)

        width = self.out_channels * (2 if self.use_scale_shift_norm else 1)
        emb = Dense(width, dtype=self.dtype, name="emb_layers_1")(nn.silu(emb))
        emb = emb[(slice(None), *[None] * (x.ndim - 2))]
        if self.use_scale_shift_norm:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = norm("out_layers_0", h) * (1 + scale) + shift
        else:
            h = norm("out_layers_0", h + emb)
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0)(nn.silu(h))
        conv = {"kernel_init": ZEROS, "bias_init": ZEROS, "dtype": self.dtype, "name": "out_layers_3"}
        h = Conv(self.out_channels, self.kernel_size, **conv)(h)
        if x.shape[-1] != self.out_channels:
            x = Dense(self.out_channels, dtype=self.dtype, name="skip_connection")(x)
        return x + h


class UNet(nn.Module):
    """x [B, *space, C], t [B], cond -> [B, *space, out_channels] in x's dtype; space is `dims` axes of any sizes.

    `in_channels` counts x and "concat" together. `attention_resolutions` are downsampling factors: 1 is full
    resolution; the middle always has attention. Of `num_heads` and `num_head_channels` (the width of a head), the
    latter wins where both are given. `num_res_blocks`, `num_heads`, `transformer_depth` and `disable_self_attentions`
    may be one value or one per level. `num_classes` is the number of labels, "sequential" (a vector of
    `adm_in_channels`) or "continuous". `channel_mult` may be fractional.

    With `second_time` the call takes `s` [B] besides, how far the network is to step, in units of t (0 where it is not given:
    the velocity at t itself). Its embedding is added to that of t and is zero at first, so that a network without it can be
    gone on from.

    With `guidance_dim` the guidance scale is an input, for distilled networks that need one evaluation where guidance takes
    two (Meng et al. 2023; latent consistency models, Luo et al. 2023): so many sinusoids of 1000 cond["guidance"] go through a
    linear layer, zero at first, into those of t.

    cond["augment"] [B, any] are numbers that tell what was done to the picture that x was made of (`data.augment`), added by a
    linear layer without bias that is zero at first: not given, as when pictures are drawn, means that nothing was done.

    `strides` are 1 or 2 for each axis: by how much a level is smaller than the one before, for all levels or one list a level
    (`convolution.factors_of`); by default 2, but 1 for the first of three axes, as the reference has it. `kernel_size` is the
    window of all convolutions along every axis, or along each: (1, 3, 3) looks at frames one by one. With
    `factorised_attention`, of three axes, pixels attend within their frame, and then each place over time, through blocks
    called "..._time" that change nothing at first; else they attend to all of space and time.

    `context_waves` is how many cosines along each axis the mean of the context steers at every attention block, through blocks
    called "..._placed" that change nothing at first (`transformer.PlacedContext`); 0, or no context: none.

    `dtype` is what it computes in (norms and softmax reduce in float32), whatever the parameters' dtype; `remat` is what the
    backward pass recomputes (`layers.remat`); with `scan_blocks` equal transformer blocks in a row are one loop, compiled once
    (`layers.scan_equal`); `attention` is explained in `ldm_jax.models.attention`. Dropout acts if the call has `train=True`,
    and needs `rngs={"dropout": key}`.
    """

    in_channels: int
    out_channels: int
    model_channels: int
    num_res_blocks: int | Sequence[int]
    attention_resolutions: Sequence[int]
    channel_mult: Sequence[float] = (1, 2, 4, 8)
    num_heads: int | Sequence[int] = -1
    num_head_channels: int = -1
    dropout: float = 0.0
    conv_resample: bool = True
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int | Sequence[int] = 1
    transformer_depth_middle: int | None = None
    context_dim: int | None = None
    disable_self_attentions: bool | Sequence[bool] = False
    disable_middle_self_attn: bool = False
    num_classes: int | str | None = None
    adm_in_channels: int | None = None
    hint_channels: Sequence[int] = ()
    # What diffusers configures and CompVis does not; its `downsample_padding` 0 pads below and to the right only.
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    downsample_padding: int = 1
    second_time: bool = False
    guidance_dim: int = 0
    dims: int = 2
    strides: Sequence[int] | Sequence[Sequence[int]] = ()
    kernel_size: int | Sequence[int] = 3
    factorised_attention: bool = False
    context_waves: int = 0
    middle_attention_groups: int | None = None  # of its norm, without a transformer; None: norm_num_groups, 0: no norm
    dtype: Any = jnp.float32
    remat: str | bool = "none"
    scan_blocks: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        cond: dict[str, jax.Array] | None = None,
        *,
        s: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array | tuple[jax.Array, ...]:
        cond, window = self._checked(x, cond), window_of(self.kernel_size, self.dims)
        out_dtype, context = x.dtype, cond.get("context")
        emb = constrain(self._embedding(t, cond, step_length(s, t, self.second_time)))
        dropout = self.dropout if train else 0.0

        def res(name: str, h: jax.Array, width: int, resample: str | None = None, factors: Any = 2, size: Any = None):
            block = remat(ResBlock, self.remat)(
                width,
                self.use_scale_shift_norm,
                resample,
                dropout,
                self.norm_num_groups,
                self.norm_eps,
                self.dtype,
                factors,
                window,
                name=name,
            )
            return constrain(block(h, emb) if size is None else block(h, emb, size))

        def attend(name: str, h: jax.Array, level: int, middle: bool = False) -> jax.Array:
            if self.context_waves and context is not None:
                h = PlacedContext(self.context_waves, self.dtype, name=name + BY_PLACE)(h, context)
            h = self._over_space(name, h, level, middle, context)
            if not self.factorised_attention:
                return constrain(h)
            heads, _ = self._heads(h.shape[-1], level)
            block = remat(AttentionBlock, self.remat)(
                heads, num_groups=self.norm_num_groups, eps=self.norm_eps, attention=self.attention, dtype=self.dtype,
                places=True, name=name + OVER_TIME,
            )  # fmt: skip
            return constrain(over_time(block, h))

        parts = [x] + ([cond["concat"]] if "concat" in cond else [])
        h = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)
        h = constrain(Conv(self.model_channels, window, dtype=self.dtype, name="input_blocks_0_0")(h))
        if self.hint_channels:
            h = h + self._hint(cond["hint"])
        skips, widths = [h], [round(self.model_channels * mult) for mult in self.channel_mult]
        levels = len(widths)
        for level, width in enumerate(widths):
            for _ in range(self._per_level("num_res_blocks", level)):
                name = f"input_blocks_{len(skips)}"
                h = res(f"{name}_0", h, width)
                if 2**level in self.attention_resolutions:
                    h = attend(f"{name}_1", h, level)
                skips.append(h)
            if level < levels - 1:
                name, factors = f"input_blocks_{len(skips)}_0", factors_of(self.strides, self.dims, level)
                if self.resblock_updown:
                    h = res(name, h, width, "down", factors)
                elif self.conv_resample:
                    down = Downsample("op", self.downsample_padding, width, self.dtype, factors, window, name=name)
                    h = constrain(down(h))
                else:
                    h = average_pool(h, factors)
                skips.append(h)

        h = res("middle_block_0", h, widths[-1])
        h = attend("middle_block_1", h, levels - 1, middle=True)
        h = res("middle_block_2", h, widths[-1])
        if self.hint_channels:
            given = [*skips, h]
            names = [*(f"zero_convs_{i}_0" for i in range(len(skips))), "middle_block_out_0"]
            return tuple(self._zero(name, part.shape[-1])(part).astype(out_dtype) for name, part in zip(names, given))
        if "residuals" in cond:
            *beside, last = (part.astype(self.dtype) for part in cond["residuals"])
            skips, h = [skip + part for skip, part in zip(skips, beside, strict=True)], h + last

        index = 0
        for level in reversed(range(levels)):
            count = self._per_level("num_res_blocks", level) + 1
            for i in range(count):
                name, inner = f"output_blocks_{index}", 1
                h = res(f"{name}_0", jnp.concatenate([h, skips.pop()], axis=-1), widths[level])
                if 2**level in self.attention_resolutions:
                    h = attend(f"{name}_1", h, level)
                    inner = 2
                if level and i == count - 1:
                    size, factors = skips[-1].shape[1:-1], factors_of(self.strides, self.dims, level - 1)
                    if self.resblock_updown:
                        h = res(f"{name}_{inner}", h, widths[level], "up", factors, size)
                    elif self.conv_resample:
                        up = Upsample(widths[level], self.dtype, factors, window, name=f"{name}_{inner}")
                        h = constrain(up(h, size))
                    else:
                        h = nearest(h, *size)
                index += 1

        h = nn.silu(GroupNorm(self.norm_num_groups, self.norm_eps, self.dtype, name="out_0")(h))
        h = Conv(self.out_channels, window, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype, name="out_2")(h)
        return constrain(h.astype(out_dtype))

    def _over_space(self, name: str, h: jax.Array, level: int, middle: bool, context: jax.Array | None) -> jax.Array:
        """Attention to all pixels of [B, *space, C], of a frame's with `factorised_attention`; and to the context."""
        heads, dim_head = self._heads(h.shape[-1], level)
        common = {"num_groups": self.norm_num_groups, "attention": self.attention, "dtype": self.dtype, "name": name}
        if not self.use_spatial_transformer:
            if middle and self.middle_attention_groups is not None:
                common["num_groups"] = self.middle_attention_groups
            block = remat(AttentionBlock, self.remat)(heads, self.use_new_attention_order, eps=self.norm_eps, **common)
            return within_frames(block, h) if self.factorised_attention else block(h)
        depth, cross_only = self._per_level("transformer_depth", level), self.disable_middle_self_attn
        if not middle:
            cross_only = self._per_level("disable_self_attentions", level)
        elif self.transformer_depth_middle is not None:
            depth = self.transformer_depth_middle
        common["scan_blocks"] = self.scan_blocks
        block = remat(SpatialTransformer, self.remat)(heads, dim_head, depth, cross_only, **common)
        return within_frames(block, h, context) if self.factorised_attention else block(h, context)

    def _zero(self, name: str, width: int) -> nn.Module:
        """A linear layer that begins with nothing."""
        return Dense(width, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype, name=name)

    def _hint(self, hint: jax.Array) -> jax.Array:
        """A picture, as features of the latents' size: halved between one of `hint_channels` and the next."""
        h, layers = hint.astype(self.dtype), [(self.hint_channels[0], 1)]
        for before, after in zip(self.hint_channels, self.hint_channels[1:]):
            layers += [(before, 1), (after, 2)]
        for i, (width, strides) in enumerate(layers):
            h = nn.silu(Conv(width, strides=strides, dtype=self.dtype, name=f"input_hint_block_{2 * i}")(h))
        name = f"input_hint_block_{2 * len(layers)}"
        return Conv(self.model_channels, kernel_init=ZEROS, bias_init=ZEROS, dtype=self.dtype, name=name)(h)

    def _embedding(self, t: jax.Array, cond: dict[str, jax.Array], s: jax.Array | None) -> jax.Array:
        """The time embedding and whatever is added to it, [B, 4 * model_channels]."""
        width = 4 * self.model_channels

        def mlp(name: str, h: jax.Array, last: Rule | None = None) -> jax.Array:
            h = nn.silu(Dense(width, dtype=self.dtype, name=f"{name}_0")(h))
            return Dense(width, kernel_init=last, bias_init=last, dtype=self.dtype, name=f"{name}_2")(h)

        def waves(t: jax.Array) -> jax.Array:
            options = {"flip_sin_to_cos": self.flip_sin_to_cos, "freq_shift": self.freq_shift}
            return sinusoidal_embedding(t, self.model_channels, **options)

        times = waves(t)
        if self.guidance_dim:
            told = sinusoidal_embedding(1000 * cond["guidance"], self.guidance_dim, flip_sin_to_cos=False, freq_shift=1.0)
            layer = Dense(self.model_channels, False, ZEROS, dtype=self.dtype, name="time_embed_cond_proj")
            times = times + layer(told).astype(times.dtype)
        emb = mlp("time_embed", times)
        if s is not None:
            emb = emb + mlp("step_embed", waves(s), ZEROS)
        if self.num_classes == "sequential":
            emb = emb + mlp("label_emb_0", cond["vector"])
        elif self.num_classes == "continuous":
            emb = emb + Dense(width, dtype=self.dtype, name="label_emb")(cond["vector"])
        elif self.num_classes is not None:
            emb = emb + Embed(self.num_classes, width, dtype=self.dtype, name="label_emb")(cond["label"])
        if "augment" in cond:
            emb = emb + Dense(width, False, ZEROS, dtype=self.dtype, name=AUGMENT_EMBEDDING)(cond["augment"])
        return emb

    def _per_level(self, field: str, level: int) -> Any:
        value = getattr(self, field)
        if not isinstance(value, Sequence):
            return value
        if len(value) != len(self.channel_mult):
            raise ValueError(f"{field} {tuple(value)} needs one value per level, {len(self.channel_mult)} in all")
        return value[level]

    def _heads(self, channels: int, level: int) -> tuple[int, int]:
        """The number and the width of the heads for so many channels."""
        if self.num_head_channels != -1:
            if channels % self.num_head_channels:
                raise ValueError(f"num_head_channels {self.num_head_channels} does not divide {channels} channels")
            return channels // self.num_head_channels, self.num_head_channels
        heads = self._per_level("num_heads", level)
        if heads < 1:
            raise ValueError("attention needs num_heads or num_head_channels")
        if channels % heads:
            raise ValueError(f"num_heads {heads} does not divide {channels} channels")
        return heads, channels // heads

    def _checked(self, x: jax.Array, cond: dict[str, jax.Array] | None) -> dict[str, jax.Array]:
        cond = dict(cond or {})
        needs = {
            "context": self.context_dim,
            "vector": {"sequential": self.adm_in_channels, "continuous": 1}.get(self.num_classes),
            "label": 0 if isinstance(self.num_classes, int) else None,
            "guidance": self.guidance_dim or None,
            "hint": 0 if self.hint_channels else None,
        }
        missing = [key for key, width in needs.items() if width is not None and key not in cond]
        excess = [key for key in cond if key not in COND_KEYS or (key not in OPTIONAL and needs[key] is None)]
        if missing or excess:
            raise ValueError(f"cond lacks {missing} and should not have {excess}; this U-Net takes {COND_KEYS} by fields")
        for key in ("context", "vector"):
            if key in cond and cond[key].shape[-1] != needs[key]:
                raise ValueError(f"cond[{key!r}] is {cond[key].shape[-1]} wide, but the U-Net takes {needs[key]}")
        check_rank(x, self.dims)
        if self.factorised_attention and self.dims != 3:
            raise ValueError(f"factorised_attention is of frames and of time, three axes; this U-Net is of dims={self.dims}")
        if self.hint_channels and self.dims != 2:
            raise ValueError(f"ControlNets are of pictures; this U-Net is of dims={self.dims}")
        channels = x.shape[-1] + (cond["concat"].shape[-1] if "concat" in cond else 0)
        if channels != self.in_channels:
            raise ValueError(f'x and cond["concat"] have {channels} channels, but in_channels is {self.in_channels}')
        return cond
