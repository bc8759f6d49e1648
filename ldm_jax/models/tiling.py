"""Autoencoders on images larger than they can hold at once: overlapping tiles, blended at the seams.

Every tile is encoded or decoded on its own, one after the other, and where tiles overlap their results are averaged with
weights that fall off linearly towards a tile's border. Memory grows with the tile, not with the image. The result is not
quite that of the whole image: norms and attention see a tile only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def decode_tiled(
    decode: Callable[[jax.Array], jax.Array], z: jax.Array, *, factor: int, tile: int = 64, overlap: int = 16
) -> jax.Array:
    """`decode(z)` for latents z [B, h, w, C] -> [B, h * factor, w * factor, C'], in tiles of `tile` latent pixels."""
    return _tiled(decode, z, _starts(z, 1, tile, overlap), tile, overlap, 1, factor)


def encode_tiled(
    encode: Callable[[jax.Array], jax.Array], x: jax.Array, *, factor: int, tile: int = 64, overlap: int = 16
) -> jax.Array:
    """`encode(x)` for images x [B, h * factor, w * factor, C] -> [B, h, w, C'], in tiles of `tile` latent pixels."""
    if x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"images of {x.shape[1]} x {x.shape[2]} pixels cannot be encoded in tiles: crop to multiples of {factor}"
        )
    return _tiled(encode, x, _starts(x, factor, tile, overlap), tile, overlap, factor, 1)


def _starts(x: jax.Array, factor: int, tile: int, overlap: int) -> tuple[list[int], list[int]]:
    """Where tiles begin along height and width, in latent pixels; the last tile ends with the image."""
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap {overlap} must be at least 0 and less than tile {tile}")
    sizes = (x.shape[1] // factor, x.shape[2] // factor)
    return tuple([*range(0, max(size - tile, 0), tile - overlap), max(size - tile, 0)] for size in sizes)


def _tiled(
    f: Callable, x: jax.Array, starts: tuple[list[int], list[int]], tile: int, overlap: int, into: int, out: int
) -> jax.Array:
    """`into` and `out` are the pixels of x and of the result per latent pixel."""
    height, width = (min(tile, size // into) for size in x.shape[1:3])
    corners = np.asarray([(i, j) for i in starts[0] for j in starts[1]])
    if len(corners) == 1:
        return f(x)

    def ramp(size: int) -> np.ndarray:
        distance = np.minimum(np.arange(size * out), np.arange(size * out)[::-1])
        return np.minimum((distance + 1) / (overlap * out + 1), 1.0).astype(np.float32)

    window = (ramp(height)[:, None] * ramp(width))[None, :, :, None]
    total = np.zeros((1, x.shape[1] // into * out, x.shape[2] // into * out, 1), np.float32)
    for i, j in corners * out:
        total[:, i : i + height * out, j : j + width * out] += window

    def piece(corner: jax.Array) -> jax.Array:
        origin = (0, corner[0] * into, corner[1] * into, 0)
        return f(jax.lax.dynamic_slice(x, origin, (x.shape[0], height * into, width * into, x.shape[3])))

    def add(canvas: jax.Array, corner: jax.Array) -> tuple[jax.Array, None]:
        origin = (0, corner[0] * out, corner[1] * out, 0)
        result = piece(corner) * window
        old = jax.lax.dynamic_slice(canvas, origin, result.shape)
        return jax.lax.dynamic_update_slice(canvas, old + result, origin), None

    channels = jax.eval_shape(piece, jax.ShapeDtypeStruct((2,), jnp.int32)).shape[-1]
    canvas = jnp.zeros((x.shape[0], *total.shape[1:3], channels), jnp.float32)
    canvas, _ = jax.lax.scan(add, canvas, jnp.asarray(corners, jnp.int32))
    return canvas / total
