"""Structural similarity (Wang, Bovik, Sheikh & Simoncelli 2004, equation 13).

    SSIM = (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)),  C1 = (0.01 L)^2, C2 = (0.03 L)^2

with means and (co)variances under a Gaussian window of 11 x 11 pixels and deviation 1.5, averaged over all places where the
window lies inside the picture, and over channels. L is the range of values. The measure isn't indifferent to a constant added
to both pictures, so they are brought to [0, 1], where L = 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.primitives.arrays import block_mean

WIDTH, DEVIATION = 11, 1.5
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # how much each counts, from fine to coarse


def ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    """The similarity [B] of x and y [B, *spatial, C] in [-1, 1], every side at least 11; 1 where they are equal. Of signals and
    volumes the window is one of as many axes.

    Raises:
      ValueError: shapes that differ, without a spatial axis, or smaller than the window; whole numbers, as of 8 bits.
    """
    if x.shape != y.shape or x.ndim < 3 or min(x.shape[1:-1]) < WIDTH:
        raise ValueError(f"ssim takes pairs [B, *spatial, C] with sides of at least {WIDTH}, not {x.shape} and {y.shape}")
    return _parts(x, y)[0].mean(-1)


def ms_ssim(x: jax.Array, y: jax.Array, scales: int = len(SCALES)) -> jax.Array:
    """The similarity [B] of x and y [B, *spatial, C] at several scales (Wang, Simoncelli & Bovik 2003): the product of the
    contrast and structure terms at each, every one half as large as the one before, and of the whole at the last, to the powers
    `SCALES`. Of fewer scales, which other tables' values can't be compared with, the powers are brought to the same sum.

    Raises:
      ValueError: shapes that differ, or too small: the shortest side is at least 11 * 2^(scales - 1), 176 for five; whole
        numbers, such as those of 8 bits.
    """
    least = WIDTH * 2 ** (scales - 1)
    if not 1 <= scales <= len(SCALES) or x.shape != y.shape or x.ndim < 3 or min(x.shape[1:-1]) < least:
        raise ValueError(
            f"ms_ssim at {scales} scales takes pairs [B, *spatial, C] with sides of at least {least}, not {x.shape} and "
            f"{y.shape}: give larger pictures or fewer scales (1 to {len(SCALES)})"
        )
    powers = np.float32(SCALES[:scales]) / np.float32(sum(SCALES[:scales])) * np.float32(sum(SCALES))
    found = jnp.ones((x.shape[0], x.shape[-1]), jnp.float32)
    for scale, power in enumerate(powers):
        whole, structure = _parts(x, y)
        found *= jnp.maximum(whole if scale == scales - 1 else structure, 0) ** power
        x, y = block_mean(x), block_mean(y)
    return found.mean(-1)


def _parts(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The similarity and, alone, its terms of contrast and structure, [B, C] each."""
    if not all(jnp.issubdtype(picture.dtype, jnp.floating) for picture in (x, y)):
        raise ValueError(f"pictures of {x.dtype} and {y.dtype}: expected floating-point numbers in [-1, 1]")
    x, y = (picture.astype(jnp.float32) / 2 for picture in (x, y))  # [0, 1] less 1/2, where squares cancel less
    mx, my = window(x), window(y)
    vx, vy, vxy = window(x * x) - mx * mx, window(y * y) - my * my, window(x * y) - mx * my
    mx, my = mx + 0.5, my + 0.5
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * vxy + c2) / (vx + vy + c2)
    similarity = (2 * mx * my + c1) / (mx * mx + my * my + c1) * structure
    axes = tuple(range(1, x.ndim - 1))
    return similarity.mean(axes), structure.mean(axes)


def window(x: jax.Array) -> jax.Array:
    """Gaussian means of [B, *spatial, C], every side 10 shorter. Sums, not a convolution, which accelerators round."""
    weights = np.exp(-0.5 * np.square((np.arange(WIDTH) - WIDTH // 2) / DEVIATION))
    weights = np.float32(weights / weights.sum())
    for axis in range(1, x.ndim - 1):
        length = x.shape[axis] - WIDTH + 1
        x = sum(w * jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i, w in enumerate(weights))
    return x
