"""Convolutions, resizing and means of blocks over [B, *space, C], space being one, two or three axes.

Kernels are [*window, in, out]. A number for an axis (a stride, a factor, a pair of paddings) may be one for all of them.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero as Zero

from ldm_jax.models.partition import by_platform, likely_platform
from ldm_jax.primitives.arrays import block_mean

Padding = str | tuple[int, int] | Sequence[tuple[int, int]]
SPACE = {1: "W", 2: "HW", 3: "DHW"}
CACHE = 2**21  # numbers that a CPU keeps in its caches
PRODUCT = 2**26  # multiplications of a convolution, from which on its gradient by products is worth its compiling
BLOCKS = 512, 128  # pixels, and half the harmonic mean of both channels, from which on a CPU is faster by blocks of pixels
SAME = (1, 1)  # along every axis: of a window of 3, at stride 2 too; XLA's "SAME" pads (0, 1) there


def per_axis(value: Any, axes: int) -> tuple:
    """One value for each of so many axes: the value itself repeated, or the sequence that it is. ValueError for another
    number of them."""
    if not isinstance(value, Sequence):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"{tuple(value)}: give one number for each of {axes} axes")
    return tuple(value)


def check_rank(x: jax.Array, dims: int) -> None:
    """ValueError unless x is [B, *space, C] with `dims` spatial axes, one, two or three."""
    if dims not in SPACE:
        raise ValueError(f"dims={dims!r}: must be 1, 2 or 3, how many axes space has")
    if x.ndim != dims + 2:
        raise ValueError(f"an array of shape {x.shape} has {x.ndim - 2} spatial axes, but this network is of dims={dims}")


def window_of(kernel_size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """The window of a network's convolutions along each axis. ValueError for even ones, which can't keep sizes."""
    window = per_axis(kernel_size, dims)
    if any(size < 1 or size % 2 == 0 for size in window):
        raise ValueError(f"kernel_size={kernel_size}: must be odd, for all axes or for each")
    return window


def factors_of(strides: Sequence, dims: int, level: int = 0) -> tuple[int, ...]:
    """By how much a network halves each of its `dims` axes after level `level`: `strides` is one number an axis, or one such
    list a level, numbers 1 or 2. By default every axis is halved; of three the last two, as in the reference (frames, or
    slices, stay as many). ValueError for other numbers."""
    if not strides:
        return (1, 2, 2) if dims == 3 else (2,) * dims
    if isinstance(strides[0], Sequence):
        if level >= len(strides):
            raise ValueError(f"strides={tuple(map(tuple, strides))}: give one list for every level but the last")
        strides = strides[level]
    if len(strides) != dims or any(factor not in (1, 2) for factor in strides):
        raise ValueError(f"strides={tuple(strides)}: give {dims} numbers, 1 or 2, one for each axis")
    return tuple(strides)


def shrinkage(strides: Sequence, dims: int, levels: int) -> tuple[int, ...]:
    """By how much the last of `levels` levels is smaller than the first, along each axis."""
    by_level = [factors_of(strides, dims, level) for level in range(levels - 1)]
    return tuple(math.prod(factors[axis] for factors in by_level) for axis in range(dims))


def convolution(x: jax.Array, kernel: jax.Array, strides: int | Sequence[int], padding: Padding) -> jax.Array:
    """x [B, *space, in] and kernel [*window, in, out] -> [B, *space', out], in x's dtype. On a CPU, three axes, for which XLA
    has no fast convolution, are `by_frames`, large ones of 3 x 3 windows are done `by_blocks` where there is no gradient, and
    gradients of large ones are matrix products (`linear_on_cpu`)."""
    axes = x.ndim - 2
    strides, pairs = per_axis(strides, axes), _pairs(padding, axes)
    if isinstance(pairs, str):
        pairs = tuple(jax.lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, pairs))
    if axes == 3:
        frames = partial(by_frames, strides=strides, pairs=pairs)
        return by_platform(x, kernel, cpu=frames, default=partial(_whole, strides=strides, pairs=pairs))
    large = math.prod(x.shape[:-1]) * kernel.size >= PRODUCT * math.prod(strides)
    form = _on_cpu if large and likely_platform() == "cpu" else _whole  # not by_platform, which traces every form
    return form(x, kernel, strides, pairs)


def _whole(x: jax.Array, kernel: jax.Array, strides: tuple, pairs: tuple) -> jax.Array:
    names = f"N{SPACE[x.ndim - 2]}C", f"{SPACE[x.ndim - 2]}IO", f"N{SPACE[x.ndim - 2]}C"
    return jax.lax.conv_general_dilated(x, kernel, strides, pairs, dimension_numbers=names)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _on_cpu(x: jax.Array, kernel: jax.Array, strides: tuple, pairs: tuple) -> jax.Array:
    *window, C, out = kernel.shape
    plain = (*window, *strides) == (3, 3, 1, 1) and x.dtype == kernel.dtype == jnp.float32
    plain &= min(map(min, pairs)) >= 0 and min(side + lo + hi for side, (lo, hi) in zip(x.shape[1:-1], pairs)) >= 3
    large = math.prod(x.shape[:-1]) >= BLOCKS[0] and C * out >= BLOCKS[1] * (C + out)  # else making blocks is the most work
    whole = partial(_whole, strides=strides, pairs=pairs)
    return by_platform(x, kernel, cpu=partial(by_blocks, pairs=pairs), default=whole) if plain and large else whole(x, kernel)


@partial(_on_cpu.defjvp, symbolic_zeros=True)
def _derivative_on_cpu(strides: tuple, pairs: tuple, primals: tuple, tangents: tuple) -> tuple[jax.Array, Any]:
    (x, kernel), (dx, dkernel) = primals, tangents
    pairings = [(a, b) for a, b in ((dx, kernel), (x, dkernel)) if not isinstance(a, Zero) and not isinstance(b, Zero)]
    y = _whole(x, kernel, strides, pairs)  # by its own name: rematerialization keeps convolutions
    return y, linear_on_cpu(pairings, strides, pairs) if pairings else Zero.from_primal_value(y)


def by_blocks(x: jax.Array, kernel: jax.Array, pairs: Sequence[tuple[int, int]]) -> jax.Array:
    """x [B, H, W, in] and kernel [3, 3, in, out] -> [B, H', W', out], two by two pixels at once: 16 products in place of 36,
    for more additions, whose rounding is some times a convolution's own; what a window sees of infinity may end as NaN.
    (F(2 x 2, 3 x 3) of Lavin & Gray 2015, "Fast algorithms for convolutional neural networks", section 4.1; after Winograd
    1980.)"""
    size = [side + lo + hi - 2 for side, (lo, hi) in zip(x.shape[1:-1], pairs)]
    blocks = [-(-side // 2) for side in size]
    more = [(lo, hi + side % 2) for side, (lo, hi) in zip(size, pairs)]
    written = jax.lax.optimization_barrier
    x, kernel = written((jnp.pad(x, [(0, 0), *more, (0, 0)]), kernel))  # together, or a loop's program keeps all kernels' taps

    def seen(x: jax.Array, axis: int) -> list[jax.Array]:
        a, b, c, d = (jax.lax.slice_in_dim(x, i, i + 2 * blocks[axis - 1] - 1, 2, axis) for i in range(4))
        return [a - c, b + c, c - b, b - d]

    def taps(kernel: jax.Array) -> list[jax.Array]:
        a, b, c = kernel
        return [a, (a + b + c) / 2, (a - b + c) / 2, c]

    def both(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
        return a + b + c, b - c - d

    rows = []
    for row, of_row in zip(seen(x, 1), taps(kernel)):
        columns = zip(seen(written(row), 2), taps(of_row))
        rows.append(both(*(written(jnp.dot(written(block), written(tap))) for block, tap in columns)))
    pixels = [both(*column) for column in zip(*rows)]  # by column, then by row of a block
    y = jnp.stack([jnp.stack(column, 2) for column in pixels], 4)  # [B, blocks, 2, blocks, 2, out]
    y = y.reshape(x.shape[0], *(2 * n for n in blocks), kernel.shape[-1])
    return y[:, : size[0], : size[1]]


def linear_on_cpu(pairings: Sequence[tuple[jax.Array, jax.Array]], strides: tuple, pairs: tuple) -> jax.Array:
    """The sum of the convolutions of some pairs of x and kernel, as products of matrices whose rows are pixels. Its transpose
    is made of products too, which a CPU does faster than XLA's gradients of a convolution.

    What the window's taps see is moved into place before the product (x's pixels side by side: [pixels, taps * in] @
    [taps * in, out]) or after it ([pixels, in] @ [in, taps * out], whose parts are added, each moved). The first `after` axes
    are moved after it, the rest before: whichever copies least."""
    (x, kernel), window = pairings[0], pairings[0][1].shape[:-2]
    B, axes, C, out = x.shape[0], len(window), *kernel.shape[-2:]
    after = _moved_after(x.shape, kernel.shape, strides)
    space = [(n + lo + hi - k) // stride + 1 for n, k, stride, (lo, hi) in zip(x.shape[1:-1], window, strides, pairs)]
    kept = [*x.shape[1 : 1 + after], *space[after:]]
    first, rest = math.prod(window[:after]), math.prod(window[after:])

    def rows(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0)] * (1 + after) + list(pairs[after:]) + [(0, 0)])
        seen = []
        for tap in np.ndindex(*window[after:]):
            start = (0,) * (1 + after) + (*tap, 0)
            ends = [t + (n - 1) * stride + 1 for t, n, stride in zip(tap, space[after:], strides[after:])]
            steps = (1,) * (1 + after) + (*strides[after:], 1)
            seen.append(jax.lax.slice(padded, start, (*padded.shape[: 1 + after], *ends, C), steps))
        return jnp.concatenate(seen, -1).reshape(-1, rest * C)

    def columns(kernel: jax.Array) -> jax.Array:
        return kernel.reshape(first, rest * C, out).swapaxes(0, 1).reshape(rest * C, first * out)

    written = jax.lax.optimization_barrier  # or XLA makes every number anew wherever it is moved to, in time and in code
    products = [jnp.dot(written(rows(written(x))), columns(kernel)) for x, kernel in pairings]
    y = written(sum(products[1:], products[0])).reshape(B, *kept, first * out)
    if not after:
        return y
    moved, zero, unmoved = [], jnp.zeros((), y.dtype), [(0, 0, 0)] * (axes - after + 1)
    for tap, part in zip(np.ndindex(*window[:after]), jax.lax.split(y, [out] * first, y.ndim - 1)):
        shift = [(k - 1 - t, t, 0) for k, t in zip(window, tap)]
        moved.append(jax.lax.pad(part, zero, [(0, 0, 0), *shift, *unmoved]))
    cut = [(lo - k + 1, hi - k + 1, 0) for k, (lo, hi) in zip(window[:after], pairs)]
    return written(jax.lax.pad(sum(moved[1:], moved[0]), zero, [(0, 0, 0), *cut, *unmoved]))


def _moved_after(x: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> int:
    """Along how many axes taps are moved after the product: none of a strided convolution, for whose pixels that aren't kept
    it would be computed; all where that writes least and fits a CPU's caches; else the first."""
    *window, C, out = kernel
    if any(stride > 1 for stride in strides):
        return 0
    moved = math.prod(window) * out
    both = 2 * math.prod(window[1:]) * C + window[0] * out
    return len(window) if moved <= both and moved * math.prod(x[:-1]) <= CACHE else 1


def by_frames(x: jax.Array, kernel: jax.Array, strides: Sequence[int], pairs: Sequence[tuple[int, int]]) -> jax.Array:
    """`convolution` of three axes as one of two: every frame beside those that the window sees before and after it."""
    B, _, H, W, C = x.shape
    taps, stride = kernel.shape[0], strides[0]
    padded = jnp.pad(x, ((0, 0), pairs[0], (0, 0), (0, 0), (0, 0)))
    frames = (padded.shape[1] - taps) // stride + 1
    if frames < 1:
        raise ValueError(f"{x.shape[1]} frames are fewer than a window of {taps} takes")
    seen = [padded[:, j : j + (frames - 1) * stride + 1 : stride] for j in range(taps)]
    beside = jnp.concatenate(seen, axis=-1).reshape(B * frames, H, W, taps * C)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], taps * C, kernel.shape[-1])
    out = convolution(beside, flat, strides[1:], pairs[1:])
    return out.reshape(B, frames, *out.shape[1:])


def _pairs(padding: Padding, axes: int) -> str | tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        return padding
    return (tuple(padding),) * axes if isinstance(padding[0], int) else tuple(padding)


def upsampled_convolution(x: jax.Array, kernel: jax.Array, factors: int | Sequence[int] = 2) -> jax.Array:
    """Nearest-neighbour upsampling by `factors`, then a convolution with an odd window that keeps sizes:
    [B, *space, in] -> [B, *(space * factors), out].

    The same function in three forms: the plain two steps; on a CPU, `by_phases`; on a TPU, `by_zeros`.
    """
    factors = per_axis(factors, x.ndim - 2)
    small = x.shape[0] * math.prod(factors) * math.prod(x.shape[1:-1]) < 16 * kernel.shape[-1]
    forms = {name: _with(form, factors) for name, form in (("two", in_two_steps), ("zeros", by_zeros), ("phases", by_phases))}
    tpu = forms["two" if small else "zeros"]
    return by_platform(x, kernel, cpu=forms["phases"], tpu=tpu, default=forms["two"])


def _with(form: Any, factors: tuple[int, ...]) -> Any:
    return lambda x, kernel: form(x, kernel, factors)


def in_two_steps(x: jax.Array, kernel: jax.Array, factors: Sequence[int]) -> jax.Array:
    """`upsampled_convolution` as it is defined."""
    sizes = [side * factor for side, factor in zip(x.shape[1:-1], factors)]
    return convolution(nearest(x, *sizes), kernel, 1, [(k // 2, k // 2) for k in kernel.shape[:-2]])


def by_zeros(x: jax.Array, kernel: jax.Array, factors: Sequence[int]) -> jax.Array:
    """`upsampled_convolution` of the small array with zeros between its pixels, through a larger window whose taps are sums
    of the kernel's: the large one is never written, which pays where memory is the limit."""
    axes, window = x.ndim - 2, kernel.shape[:-2]
    spread = np.ones((1, 1), np.float32)
    for k, f in zip(window, factors):  # tap i of the larger window sees what tap j of the kernel saw through a repeat
        i, j = np.arange(f + k - 1)[:, None], np.arange(k)
        spread = np.kron(spread, np.float32((j <= i) & (i < j + f)))
    taps = jnp.asarray(spread, kernel.dtype)
    larger = [f + k - 1 for k, f in zip(window, factors)]
    kernel = jnp.matmul(taps, kernel.reshape(math.prod(window), -1), precision=jax.lax.Precision.HIGHEST)
    kernel = kernel.reshape(*larger, x.shape[-1], -1)
    around = [(f - 1 + k // 2,) * 2 for k, f in zip(window, factors)]
    names = f"N{SPACE[axes]}C", f"{SPACE[axes]}IO", f"N{SPACE[axes]}C"
    return jax.lax.conv_general_dilated(
        x, kernel, (1,) * axes, around, lhs_dilation=tuple(factors), dimension_numbers=names
    )


def by_phases(x: jax.Array, kernel: jax.Array, factors: Sequence[int]) -> jax.Array:
    """`upsampled_convolution` as one convolution for each phase of the output: a phase sees few pixels of the small array,
    through sums of the kernel's taps. In two dimensions 2.25 times fewer operations, which pays where those are the limit."""
    axes, window = len(factors), kernel.shape[:-2]

    def taps(kernel: jax.Array, axis: int, phase: int) -> tuple[jax.Array, tuple[int, int]]:
        """The sums of those taps that see the same pixel, and how far these pixels lie before and after."""
        k, f = window[axis], factors[axis]
        pixels = [(phase + j - k // 2) // f for j in range(k)]
        split = jnp.split(kernel, k, axis)
        groups = [[tap for tap, at in zip(split, pixels) if at == pixel] for pixel in range(pixels[0], pixels[-1] + 1)]
        return jnp.concatenate([sum(group[1:], group[0]) for group in groups], axis), (-pixels[0], pixels[-1])

    def phases(part: jax.Array, around: tuple, axis: int) -> jax.Array:
        """All phases along this axis and those after it: [B, n, phase, m, phase, ..., C]."""
        if axis == axes:
            return convolution(x, part, 1, around)
        summed = [taps(part, axis, phase) for phase in range(factors[axis])]
        return jnp.stack([phases(part, (*around, pair), axis + 1) for part, pair in summed], axis=axis + 2)

    sizes = [side * factor for side, factor in zip(x.shape[1:-1], factors)]
    return phases(kernel, (), 0).reshape(x.shape[0], *sizes, kernel.shape[-1])


def folded(x: jax.Array, factors: int | Sequence[int], features: int) -> jax.Array:
    """Blocks of pixels as channels, brought to `features` of them: [B, *space, C] -> [B, *(space / factors), features]; what is
    left over at an end of space is dropped. ("Space-to-channel" and "channel averaging" of Chen et al. 2024, "Deep compression
    autoencoder for efficient high-resolution diffusion models"; channels in the order of PyTorch's `pixel_unshuffle`.)"""
    axes, C = x.ndim - 2, x.shape[-1]
    factors = per_axis(factors, axes)
    for axis, factor in enumerate(factors, start=1):
        x = jax.lax.slice_in_dim(x, 0, x.shape[axis] // factor * factor, axis=axis)
    split = [n for side, factor in zip(x.shape[1:-1], factors) for n in (side // factor, factor)]
    space, within = range(1, 2 * axes + 1, 2), range(2, 2 * axes + 1, 2)
    blocks = x.reshape(x.shape[0], *split, C).transpose(0, *space, 2 * axes + 1, *within)
    return _matched(blocks.reshape(x.shape[0], *split[::2], C * math.prod(factors)), features)


def unfolded(x: jax.Array, factors: int | Sequence[int], features: int) -> jax.Array:
    """Channels brought to blocks of pixels of `features` channels each: [B, *space, C] -> [B, *(space * factors), features].
    The way back from `folded` where that keeps all ("channel duplicating" and "channel-to-space" of the same paper)."""
    axes = x.ndim - 2
    factors = per_axis(factors, axes)
    blocks = _matched(x, features * math.prod(factors)).reshape(*x.shape[:-1], features, *factors)
    order = [place for axis in range(axes) for place in (axis + 1, axis + axes + 2)]
    sizes = [side * factor for side, factor in zip(x.shape[1:-1], factors)]
    return blocks.transpose(0, *order, axes + 1).reshape(x.shape[0], *sizes, features)


def _matched(x: jax.Array, features: int) -> jax.Array:
    """[..., C] -> [..., features]: means of neighbouring channels, or channels repeated; where one number doesn't divide the
    other, groups overlap by one as in PyTorch's adaptive pooling, or differ by one in size."""
    C = x.shape[-1]
    if C % features == 0:
        return x.reshape(*x.shape[:-1], features, C // features).mean(-1)
    group = np.arange(features)
    if C < features:
        return jnp.take(x, group * C // features, axis=-1)
    first, end = group * C // features, -(-(group + 1) * C // features)
    inside = (np.arange(C)[:, None] >= first) & (np.arange(C)[:, None] < end)
    return jnp.matmul(x, jnp.asarray(inside / (end - first), x.dtype), precision=jax.lax.Precision.HIGHEST)


def nearest(x: jax.Array, *sizes: int) -> jax.Array:
    """Nearest-neighbour resizing of [B, *space, C] as PyTorch does it: pixel i comes from floor(i * old / new).

    `jax.image.resize` takes the pixel under the centre instead, which differs when shrinking.
    """
    for axis, size in enumerate(sizes, start=1):
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


def average_pool(x: jax.Array, factors: int | Sequence[int] = 2) -> jax.Array:
    """The mean of blocks of pixels, 2 along every axis; what is left over at an end is dropped."""
    return block_mean(x, factors)
