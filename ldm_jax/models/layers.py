"""The layers that all networks share, with the numerics of the reference implementations.

Parameters are float32 and are cast to `dtype` for computing; norms reduce in float32 whatever `dtype` is. Kernels are
[in, out] for linear layers and 1x1 convolutions, [height, width, in, out] for others. A group
norm's eps has no default: the references use 1e-5 or 1e-6 by place, and a wrong one changes what a network computes.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.init import ONES, ZEROS, Rule, normal, torch_default
from ldm_jax.models.partition import by_platform, gathered
from ldm_jax.primitives.arrays import block_mean
from ldm_jax.primitives.choices import check_choice

Padding = str | tuple[tuple[int, int], tuple[int, int]]
STEP_EMBEDDINGS = ("step_embed_0", "step_embed_2", "s_embedder")  # what `second_time` adds to a U-Net, to a DiT
ADDED_INPUTS = (*STEP_EMBEDDINGS, "time_embed_cond_proj")  # and `guidance_dim`; they add nothing at first
REMAT = ("none", "dots", "blocks")
SAME = ((1, 1), (1, 1))  # of a 3x3 kernel, at stride 2 too; XLA's "SAME" pads (0, 1) there


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by erf: jax.nn.gelu approximates it by tanh unless told."""
    return jax.nn.gelu(x, approximate=False)


class Dense(nn.Module):
    """x @ kernel + bias over the last axis; also the 1x1 convolution of [B, H, W, C]."""

    features: int
    use_bias: bool = True
    kernel_init: Rule | None = None
    bias_init: Rule | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init or torch_default(fan_in), (fan_in, self.features))
        y = linear_map(x.astype(self.dtype), gathered(kernel, (*self.path, "kernel"), self.dtype))
        if self.use_bias:
            bias = self.param("bias", self.bias_init or torch_default(fan_in), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


def linear_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] and kernel [in, out] -> [..., out].

    A matrix product; but on a TPU pixels [B, H, W, in] are convolved, because XLA lays a product's operands out in another
    order than a convolution's, and could then fuse neither with its neighbours.
    """
    if x.ndim != 4:
        return jnp.dot(x, kernel)
    return by_platform(x, kernel, tpu=lambda x, kernel: convolution(x, kernel[None, None], 1, "VALID"), default=jnp.dot)


class Conv(nn.Module):
    """A convolution over [B, H, W, C]; `kernel_size` 1 belongs to Dense."""

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int = 1
    padding: Padding = SAME
    use_bias: bool = True
    kernel_init: Rule | None = None
    bias_init: Rule | None = None
    upsample: bool = False  # nearest x2 before a 3x3 convolution, as one operation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = (self.kernel_size,) * 2 if isinstance(self.kernel_size, int) else self.kernel_size
        shape = (*size, x.shape[-1], self.features)
        fan_in = math.prod(shape[:-1])
        kernel = self.param("kernel", self.kernel_init or torch_default(fan_in), shape)
        kernel = gathered(kernel, (*self.path, "kernel"), self.dtype)
        x = x.astype(self.dtype)
        if self.upsample:
            y = upsampled_convolution(x, kernel)
        else:
            y = convolution(x, kernel, self.strides, self.padding)
        if self.use_bias:
            bias = self.param("bias", self.bias_init or torch_default(fan_in), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


def convolution(x: jax.Array, kernel: jax.Array, strides: int, padding: Padding) -> jax.Array:
    """x [B, H, W, in] and kernel [height, width, in, out] -> [B, H', W', out], in x's dtype."""
    return jax.lax.conv_general_dilated(x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def upsampled_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest-neighbour upsampling by two followed by a 3x3 convolution: [B, H, W, C] -> [B, 2H, 2W, C_out].

    The same function in three forms: the plain two steps; on a CPU, `by_phases`; on a TPU, `by_zeros`.
    """
    small = x.shape[0] * 4 * x.shape[1] * x.shape[2] < 16 * kernel.shape[-1]
    return by_platform(x, kernel, cpu=by_phases, tpu=in_two_steps if small else by_zeros, default=in_two_steps)


def in_two_steps(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`upsampled_convolution` as it is defined."""
    return convolution(nearest(x, 2 * x.shape[1], 2 * x.shape[2]), kernel, 1, SAME)


def by_zeros(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`upsampled_convolution` of the image with zeros between its pixels, through a 4x4 kernel whose taps are sums of the
    3x3 kernel's: the large image is never written, which pays where memory is the limit."""
    spread = np.float32([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
    taps = jnp.asarray(np.kron(spread, spread), kernel.dtype)
    kernel = jnp.matmul(taps, kernel.reshape(9, -1), precision=jax.lax.Precision.HIGHEST).reshape(4, 4, *kernel.shape[2:])
    around = ((2, 2), (2, 2))
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), around, lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def by_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`upsampled_convolution` as four convolutions: each of the four output phases sees a 2x2 neighbourhood of the small
    image, through sums of the 3x3 kernel's taps. 2.25 times fewer operations, which pays where those are the limit."""

    def taps(k: jax.Array, axis: int, phase: int) -> jax.Array:
        k0, k1, k2 = jnp.split(k, 3, axis)
        return jnp.concatenate([k0, k1 + k2] if phase == 0 else [k0 + k1, k2], axis)

    rows = []
    for i in (0, 1):
        phases = [convolution(x, taps(taps(kernel, 0, i), 1, j), 1, ((1 - i, i), (1 - j, j))) for j in (0, 1)]
        rows.append(jnp.stack(phases, axis=3))  # [B, H, W, phase, C]
    B, H, W, _, C = rows[0].shape
    return jnp.stack(rows, axis=2).reshape(B, 2 * H, 2 * W, C)


class GroupNorm(nn.Module):
    """Group normalization over [B, ..., C], in float32, returned in `dtype`.

    Statistics are per channel and then combined per group, and the result is one multiply-add per element, into which
    XLA fuses a following SiLU: about twice as fast on a CPU as reducing over a [.., groups, C / groups] view.

    The variance E[x^2] - E[x]^2 cancels where |mean| >> deviation. So float32 inputs are taken relative to some value of each
    channel. 16-bit inputs are not: bfloat16 can't hold a deviation that float32 sums would lose, and without the subtraction
    XLA computes the sums where x is made, and never writes x in float32.
    """

    num_groups: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        C = x.shape[-1]
        if C % self.num_groups:
            raise ValueError(
                f"{self.num_groups} groups cannot share {C} channels in {'/'.join(self.path)}: choose widths that are "
                f"multiples of {self.num_groups}, or another number of norm groups"
            )
        scale = self.param("scale", ONES, (C,)).astype(jnp.float32)
        bias = self.param("bias", ZEROS, (C,)).astype(jnp.float32)
        axes = tuple(range(1, x.ndim - 1))
        pivot = jax.lax.stop_gradient(x[(slice(None), *([slice(0, 1)] * len(axes)))]) if x.dtype == jnp.float32 else 0.0
        x = x.astype(jnp.float32)
        shifted = x - pivot
        first = shifted.mean(axes, keepdims=True)
        second = jnp.square(shifted).mean(axes, keepdims=True) - jnp.square(first)

        def groups(per_channel: jax.Array) -> jax.Array:
            return per_channel.reshape(x.shape[0], self.num_groups, -1)

        means = groups(pivot + first)
        mean = means.mean(-1, keepdims=True)
        variance = (groups(second) + jnp.square(means - mean)).mean(-1, keepdims=True)
        slope = jax.lax.rsqrt(jnp.maximum(variance, 0.0) + self.eps) * scale.reshape(1, self.num_groups, -1)
        shape = (x.shape[0], *([1] * len(axes)), C)
        offset = bias.reshape(1, self.num_groups, -1) - mean * slope
        return (x * slope.reshape(shape) + offset.reshape(shape)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, in float32, returned in `dtype`; `affine` False has no parameters."""

    eps: float = 1e-5
    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        if self.affine:
            scale = self.param("scale", ONES, x.shape[-1:])
            bias = self.param("bias", ZEROS, x.shape[-1:])
            y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(self.dtype)


class Embed(nn.Module):
    """A table of `num_embeddings` rows: integers [...] -> [..., features]. Out-of-range integers give NaN."""

    num_embeddings: int
    features: int
    embedding_init: Rule = normal(1.0)
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.num_embeddings, self.features))

    def __call__(self, indices: jax.Array) -> jax.Array:
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(f"{'/'.join(self.path)} looks up integers, but was given {indices.dtype}")
        return jnp.take(self.embedding, indices, axis=0, mode="fill").astype(self.dtype)


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2. `padding` 1: one pixel on every side (the U-Net's); 0: after the last row and
    column only (the autoencoder's). `conv_name` is the convolution's name."""

    conv_name: str
    padding: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        padding = SAME if self.padding else ((0, 1), (0, 1))
        return Conv(self.features, strides=2, padding=padding, dtype=self.dtype, name=self.conv_name)(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (height, width), by default twice the input's, then a 3x3 convolution."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int] | None = None) -> jax.Array:
        doubled = (2 * x.shape[1], 2 * x.shape[2])
        double = size is None or tuple(size) == doubled
        x = x if double else nearest(x, *size)
        return Conv(self.features, upsample=double, dtype=self.dtype, name="conv")(x)


def nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Nearest-neighbour resizing of [B, H, W, C] as PyTorch does it: pixel i comes from floor(i * H / height).

    `jax.image.resize` takes the pixel under the centre instead, which differs when shrinking.
    """
    for axis, size in ((1, height), (2, width)):
        old = x.shape[axis]
        if size % old == 0:
            x = jnp.repeat(x, size // old, axis)
        else:
            x = jnp.take(x, jnp.arange(size) * old // size, axis)
    return x


def bilinear(x: jax.Array, height: int, width: int, scale: float | None = None) -> jax.Array:
    """Bilinear resizing of [B, H, W, C] as PyTorch does it: without antialiasing, so that halving takes means of 2x2.

    Pixel i comes from (i + 0.5) / scale - 0.5, clamped to the image; `scale` is by default new size / old size.
    """
    for axis, size in ((1, height), (2, width)):
        last = x.shape[axis] - 1
        place = np.clip((np.arange(size) + 0.5) / (scale or size / (last + 1)) - 0.5, 0, last)
        low = np.floor(place).astype(np.int32)
        weight = jnp.asarray(place - low, x.dtype).reshape([size if a == axis else 1 for a in range(4)])
        x = jnp.take(x, low, axis) * (1 - weight) + jnp.take(x, np.minimum(low + 1, last), axis) * weight
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """The mean of 2x2 pixels; an odd last row or column is dropped."""
    return block_mean(x, 2)


def sinusoidal_embedding(
    t: jax.Array, dim: int, *, max_period: float = 10000.0, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> jax.Array:
    """Times [B] -> float32 [B, dim]: cosines and sines of t * max_period^(-i / (dim/2 - freq_shift)).

    Cosines come first if `flip_sin_to_cos`; an odd `dim` ends with a zero. (Vaswani et al. 2017; the names are those of
    diffusers.)
    """
    half = dim // 2
    if half <= freq_shift:
        raise ValueError(f"an embedding of {dim} numbers is too short: it needs more than {2 * freq_shift:g}")
    # Rounded where PyTorch rounds: at t = 1000 the last bit of a frequency is worth 1e-4 of an angle.
    exponents = np.float32(-math.log(max_period)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies
    halves = [jnp.cos(angles), jnp.sin(angles)]
    embedding = jnp.concatenate(halves if flip_sin_to_cos else halves[::-1], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, dim % 2)))


def step_length(s: jax.Array | None, t: jax.Array, taken: bool) -> jax.Array | None:
    """How far a network is to step, [B], in units of t: `s`, or 0 where it is not given; None for a network that doesn't take
    it (`second_time` off). ValueError if that one is given it."""
    if not taken:
        if s is not None:
            raise ValueError("this network takes no step's length s: train one with config.network.second_time=True")
        return None
    return jnp.zeros_like(t, jnp.float32) if s is None else s


def remat(block: type[nn.Module], what: str | bool) -> type[nn.Module] | Callable:
    """The block, as far as `what` recomputed in the backward pass instead of stored.

    "none"    everything is stored
    "dots"    what linear layers and convolutions give is stored, the rest (norms, activations, attention) recomputed
    "blocks"  the block's input is stored, everything else recomputed

    False and True, as configs had them before there were names, are "none" and "blocks".
    """
    if isinstance(what, bool):
        what = "blocks" if what else "none"
    check_choice(what, REMAT, "remat")
    if what == "none":
        return block
    return nn.remat(block, policy=_is_product if what == "dots" else None)


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether it multiplies by weights: a convolution, or a matrix product without batch dimensions."""
    if primitive is jax.lax.dot_general_p:
        return not params["dimension_numbers"][1][0]
    return primitive is jax.lax.conv_general_dilated_p
