"""A function on a canvas larger than it can take: overlapping windows one after the other, blended where they overlap.

A canvas is [B, *spatial, C] with any number of spatial axes. Every window is computed on its own, and where windows overlap
their results are averaged with weights that fall off linearly towards a window's border, because networks know where their
input ends. Memory grows with the window, not with the canvas. One spatial axis may be closed to a ring (`wrap`), for panoramas
and sounds that loop.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def blended(
    function: Callable[[PyTree], PyTree],
    canvas: PyTree,
    window: Sequence[int],
    stride: Sequence[int],
    *,
    into: int | Sequence[int] = 1,
    out: int | Sequence[int] = 1,
    wrap: int | None = None,
) -> PyTree:
    """`function` of a canvas, window by window.

    Args:
      function: arrays [B, *(window * into), C] -> arrays [B, *(window * out), C'], any pytrees.
      canvas: arrays [B, *(cells * into), C] that lie on each other and are cut alike.
      window, stride: cells along each spatial axis.
      into, out: pixels of the canvas and of the result per cell, along every axis or along each.
      wrap: number of the spatial axis that is closed to a ring, -1 for the last; None: none is.

    Returns:
      Arrays [B, *(cells * out), C'], float32 or wider unless one window is the whole canvas.

    Raises:
      ValueError: a stride outside 1 .. window, or a canvas smaller than the window or of another rank.
    """
    check_windows(window, stride)
    space = jax.tree.leaves(canvas)[0].shape[1:-1]
    into, out = (np.full(len(space), each) if isinstance(each, int) else np.asarray(each) for each in (into, out))
    sides = [side // cells for side, cells in zip(space, into)]
    if len(sides) != len(window) or any(side < w for side, w in zip(sides, window)):
        raise ValueError(f"The canvas {_times(sides)} is smaller than the window {_times(window)}, or has other axes.")
    ring = None if wrap is None else range(len(sides))[wrap]
    axes = list(enumerate(zip(sides, window, stride)))
    begins = [np.arange(0, side, step) if axis == ring else starts(side, w, step) for axis, (side, w, step) in axes]
    corners = np.stack(np.meshgrid(*begins, indexing="ij"), -1).reshape(-1, len(sides))
    if ring is None and len(corners) == 1:
        return function(canvas)
    ramps = [ramp(w * n, (w - step) * n) for n, (_, (_, w, step)) in zip(out, axes)]
    totals = [_total(side * n, begin * n, weight) for n, side, begin, weight in zip(out, sides, begins, ramps)]
    weight, total = (functools.reduce(np.multiply.outer, each)[None, ..., None] for each in (ramps, totals))
    grown = [side + (window[axis] if axis == ring else 0) for axis, side in enumerate(sides)]

    def close(a: jax.Array) -> jax.Array:  # the ring's beginning once more behind its end
        return a if ring is None else jnp.concatenate([a, a.take(np.arange(window[ring] * into[ring]), ring + 1)], ring + 1)

    def fold(a: jax.Array) -> jax.Array:  # and what was added there, back to the beginning
        if ring is None:
            return a
        body, rest = jnp.split(a, [sides[ring] * out[ring]], ring + 1)
        missing = [(0, body.shape[axis] - rest.shape[axis]) for axis in range(a.ndim)]
        return body + jnp.pad(rest, missing)

    around = jax.tree.map(close, canvas)

    def piece(corner: jax.Array) -> PyTree:
        def cut(a: jax.Array) -> jax.Array:
            size = (a.shape[0], *(int(w * n) for w, n in zip(window, into)), a.shape[-1])
            return jax.lax.dynamic_slice(a, _at(corner * into), size)

        return function(jax.tree.map(cut, around))

    def add(sums: PyTree, corner: jax.Array) -> tuple[PyTree, None]:
        def one(total: jax.Array, part: jax.Array) -> jax.Array:
            part = part.astype(total.dtype) * jnp.asarray(weight, total.dtype)
            present = jax.lax.dynamic_slice(total, _at(corner * out), part.shape)
            return jax.lax.dynamic_update_slice(total, present + part, _at(corner * out))

        return jax.tree.map(one, sums, piece(corner)), None

    def empty(part: jax.ShapeDtypeStruct) -> jax.Array:
        shape = (part.shape[0], *(int(side * n) for side, n in zip(grown, out)), part.shape[-1])
        some = jax.tree.leaves(canvas)[0].ravel()[0]  # zeros that differ over a `shard_map`'s axes where the canvas does
        return jnp.full(shape, jnp.where(False, some, 0), jnp.promote_types(part.dtype, jnp.float32))

    shapes = jax.eval_shape(piece, jax.ShapeDtypeStruct((len(sides),), jnp.int32))
    sums, _ = jax.lax.scan(add, jax.tree.map(empty, shapes), jnp.asarray(corners, jnp.int32))
    return jax.tree.map(lambda a: fold(a) / jnp.asarray(total, a.dtype), sums)


def decode_tiled(
    decode: Callable[[jax.Array], jax.Array],
    z: jax.Array,
    *,
    factor: int | Sequence[int],
    tile: int = 64,
    overlap: int = 16,
    wrap: int | None = None,
) -> jax.Array:
    """`decode(z)` for latents z [B, *spatial, C] -> [B, *(spatial * factor), C'], in tiles of `tile` latent pixels a side. Not
    quite what the whole would be: norms and attention see a tile only. `factor`: along every axis, or along each. `wrap`: as
    in `blended`."""
    return _tiled(decode, z, z.shape[1:-1], tile, overlap, wrap, out=factor)


def encode_tiled(
    encode: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    factor: int | Sequence[int],
    tile: int = 64,
    overlap: int = 16,
    wrap: int | None = None,
) -> jax.Array:
    """`encode(x)` for x [B, *(spatial * factor), C] -> [B, *spatial, C'], in tiles of `tile` latent pixels a side. `wrap`: as
    in `blended`."""
    space = x.shape[1:-1]
    factors = (factor,) * len(space) if isinstance(factor, int) else factor
    if any(side % n for side, n in zip(space, factors)):
        raise ValueError(f"images of {_times(space)} pixels cannot be encoded in tiles: crop to multiples of {factor}")
    return _tiled(encode, x, [side // n for side, n in zip(space, factors)], tile, overlap, wrap, into=factors)


def check_windows(window: Sequence[int], stride: Sequence[int]) -> None:
    """ValueError unless windows overlap or touch."""
    if len(window) != len(stride) or any(not 1 <= s <= w for s, w in zip(stride, window)):
        raise ValueError(f"Windows must overlap or touch: stride {tuple(stride)} within 1 .. window {tuple(window)}.")


def starts(size: int, window: int, stride: int) -> np.ndarray:
    """Offsets of windows that cover [0, size), the last flush with the end."""
    return np.append(np.arange(0, size - window, stride), size - window)


def ramp(size: int, overlap: int) -> np.ndarray:
    """Weights [size] of a window: 1, but 1 / (overlap + 1), 2 / (overlap + 1), .. from either end."""
    from_ends = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
    return np.minimum(from_ends / (overlap + 1), 1.0)


def _tiled(
    function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    sides: Sequence[int],
    tile: int,
    overlap: int,
    wrap: int | None,
    **scales: int | Sequence[int],
) -> jax.Array:
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and less than tile {tile}")
    window = [min(tile, side) for side in sides]
    stride = [
        w - (overlap if w == tile else min(overlap, w // 2)) for w in window
    ]  # a tile as wide as the canvas may be a ring's
    return blended(function, x, window, stride, wrap=wrap, **scales)


def _total(size: int, begins: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weights of all windows along one axis, those that reach over the end counted from the beginning."""
    total = np.zeros(size)
    for begin in begins:
        np.add.at(total, (begin + np.arange(len(weight))) % size, weight)
    return total


def _at(corner: jax.Array) -> tuple[Any, ...]:
    """Where `dynamic_slice` begins: at the corner, with all of the batch and of the channels."""
    return (0, *(corner[axis] for axis in range(corner.shape[0])), 0)


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))
