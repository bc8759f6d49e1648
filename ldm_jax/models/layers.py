"""The layers that all networks share, with the numerics of the reference implementations.

Parameters are float32 and are cast to `dtype` for computing; norms reduce in float32 whatever `dtype` is. Kernels are
[in, out] for linear layers and 1x1 convolutions, [*window, in, out] for others. Pixels are [B, *space, C], space being one,
two or three axes. A group norm's eps has no default: the references use 1e-5 or 1e-6 by place, and a wrong one changes what a
network computes.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.convolution import Padding, convolution, nearest, per_axis, upsampled_convolution
from ldm_jax.models.init import ONES, ZEROS, Rule, normal, parameter, torch_default
from ldm_jax.models.partition import by_platform, gathered, likely_platform
from ldm_jax.primitives.choices import check_choice

STEP_EMBEDDINGS = ("step_embed_0", "step_embed_2", "s_embedder")  # what `second_time` adds to a U-Net, to a DiT
AUGMENT_EMBEDDING = "augment_embed"  # of cond["augment"], which only training has
ADDED_INPUTS = (*STEP_EMBEDDINGS, "time_embed_cond_proj", AUGMENT_EMBEDDING)  # and `guidance_dim`; they add nothing at first
REMAT = ("none", "dots", "blocks")


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, by erf: jax.nn.gelu approximates it by tanh unless told."""
    return jax.nn.gelu(x, approximate=False)


class Dense(nn.Module):
    """x @ kernel + bias over the last axis; also the 1x1 convolution of [B, *space, C]."""

    features: int
    use_bias: bool = True
    kernel_init: Rule | None = None
    bias_init: Rule | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        kernel = parameter(self, "kernel", self.kernel_init or torch_default(fan_in), (fan_in, self.features))
        y = linear_map(x.astype(self.dtype), gathered(kernel, (*self.path, "kernel"), self.dtype))
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init or torch_default(fan_in), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


def linear_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., in] and kernel [in, out] -> [..., out].

    A matrix product. On a CPU its rows are one axis: with more, XLA is three to four times as slow at the kernel's gradient.
    On a TPU pixels [B, H, W, in] or [B, D, H, W, in] are convolved, because XLA lays a product's operands out in another order
    than a convolution's, and could then fuse neither with its neighbours.
    """
    if x.ndim < 3:
        return jnp.dot(x, kernel)
    if x.ndim == 3:  # not by_platform, which traces every form
        return _rows_map(x, kernel) if likely_platform() == "cpu" else jnp.dot(x, kernel)
    return by_platform(x, kernel, cpu=_rows_map, tpu=_window_map, default=jnp.dot)


def _window_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolution(x, kernel[(None,) * (x.ndim - 2)], 1, "VALID")


def _rows_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.dot(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Conv(nn.Module):
    """A convolution over [B, *space, C]; a window of one pixel belongs to Dense. `kernel_size` and `strides` are one number for
    all axes or one for each; `padding` is by default half the window on every side."""

    features: int
    kernel_size: int | tuple[int, ...] = 3
    strides: int | tuple[int, ...] = 1
    padding: Padding | None = None
    use_bias: bool = True
    kernel_init: Rule | None = None
    bias_init: Rule | None = None
    upsample: bool | tuple[int, ...] = False  # nearest, by 2 or by these factors, before the convolution: one operation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = per_axis(self.kernel_size, x.ndim - 2)
        shape = (*size, x.shape[-1], self.features)
        fan_in = math.prod(shape[:-1])
        kernel = parameter(self, "kernel", self.kernel_init or torch_default(fan_in), shape)
        kernel = gathered(kernel, (*self.path, "kernel"), self.dtype)
        x = x.astype(self.dtype)
        if self.upsample:
            y = upsampled_convolution(x, kernel, 2 if self.upsample is True else self.upsample)
        else:
            padding = [(k // 2, k // 2) for k in size] if self.padding is None else self.padding
            y = convolution(x, kernel, self.strides, padding)
        if self.use_bias:
            bias = parameter(self, "bias", self.bias_init or torch_default(fan_in), (self.features,))
            y = y + bias.astype(self.dtype)
        return y


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
        scale = parameter(self, "scale", ONES, (C,)).astype(jnp.float32)
        bias = parameter(self, "bias", ZEROS, (C,)).astype(jnp.float32)
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
            scale = parameter(self, "scale", ONES, x.shape[-1:])
            bias = parameter(self, "bias", ZEROS, x.shape[-1:])
            y = y * scale.astype(jnp.float32) + bias.astype(jnp.float32)
        return y.astype(self.dtype)


class RMSNorm(nn.Module):
    """Division by the root of the mean square over the last axis, in float32, returned in `dtype` (Zhang & Sennrich 2019)."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (y * parameter(self, "scale", ONES, x.shape[-1:]).astype(jnp.float32)).astype(self.dtype)


class Embed(nn.Module):
    """A table of `num_embeddings` rows: integers [...] -> [..., features]. Out-of-range integers give NaN."""

    num_embeddings: int
    features: int
    embedding_init: Rule = normal(1.0)
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.embedding = parameter(self, "embedding", self.embedding_init, (self.num_embeddings, self.features))

    def __call__(self, indices: jax.Array) -> jax.Array:
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise ValueError(f"{'/'.join(self.path)} looks up integers, but was given {indices.dtype}")
        return jnp.take(self.embedding, indices, axis=0, mode="fill").astype(self.dtype)


class Downsample(nn.Module):
    """A convolution with a window of 3 and a stride of 2 along the axes whose factor is 2. `padding` 1: one pixel on every side
    (the U-Net's); 0: along these axes after the last row only (the autoencoder's; of larger windows one less before it than
    after). `conv_name` is the convolution's name.
    `factors` and `kernel_size`: one number for all axes, or one for each."""

    conv_name: str
    padding: int
    features: int
    dtype: Any = jnp.float32
    factors: int | tuple[int, ...] = 2
    kernel_size: int | tuple[int, ...] = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factors, size = (per_axis(value, x.ndim - 2) for value in (self.factors, self.kernel_size))
        before = [k // 2 if self.padding or f == 1 else max(k // 2 - 1, 0) for k, f in zip(size, factors)]
        padding = [(pad, k // 2) for pad, k in zip(before, size)]
        return Conv(self.features, size, factors, padding, dtype=self.dtype, name=self.conv_name)(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to `size` (the spatial shape), by default the input's times `factors`, then a
    convolution."""

    features: int
    dtype: Any = jnp.float32
    factors: int | tuple[int, ...] = 2
    kernel_size: int | tuple[int, ...] = 3

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, ...] | None = None) -> jax.Array:
        factors = per_axis(self.factors, x.ndim - 2)
        larger = tuple(side * factor for side, factor in zip(x.shape[1:-1], factors))
        whole = size is None or tuple(size) == larger
        x = x if whole else nearest(x, *size)
        return Conv(self.features, self.kernel_size, upsample=factors if whole else False, dtype=self.dtype, name="conv")(x)


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


def scan_equal(
    parent: nn.Module, block: nn.Module, names: Sequence[str], step: Callable[[Callable, Any], tuple[Any, Any]], x: Any
) -> tuple[Any, Any]:
    """Equal blocks one after the other as one loop, which is compiled once whatever their number: `x` after all of them, and
    what `step` gave beside it, stacked.

    `block` has no parent (`parent=None`); `names` are those under which `parent` holds the parameters of each; `step` takes a
    function that applies a block, and `x`, and gives `x` and something more or None. Parameters keep their places; the loop
    takes a stacked copy of them. For `apply` alone: where `parent` initialises, blocks have no parameters yet."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(parent.variables["params"][name] for name in names))
    return jax.lax.scan(lambda x, params: step(functools.partial(block.apply, {"params": params}), x), x, stacked)


def _is_product(primitive: Any, *_: Any, **params: Any) -> bool:
    """Whether it multiplies by weights: a convolution, or a matrix product without batch dimensions."""
    if primitive is jax.lax.dot_general_p:
        return not params["dimension_numbers"][1][0]
    return primitive is jax.lax.conv_general_dilated_p
