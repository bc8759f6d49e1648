"""The radially averaged power spectrum: what a decoder has lost of fine detail shows at its right end.

Power is |FFT|^2 over the number of pixels, so white noise of variance s^2 has power s^2 at every frequency.
"""

import jax
import jax.numpy as jnp
import numpy as np


def power_spectrum(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frequencies [F] in cycles a pixel, from 0 to 1/2, and power [F] of arrays [B, *spatial, C]: the mean over the batch,
    channels and directions. Rings are 1 over the shortest side wide; the corners beyond 1/2 are left out.

    Raises:
      ValueError: an array without a spatial axis.
    """
    if images.ndim < 3:
        raise ValueError(f"pictures of shape {images.shape}: expected [B, *spatial, C], such as [B, H, W, C]")
    sides = images.shape[1:-1]
    rings = min(sides) // 2 + 1
    frequencies = np.meshgrid(*map(np.fft.fftfreq, sides), indexing="ij")
    radius = np.sqrt(sum(np.square(frequency) for frequency in frequencies))
    ring = np.minimum(np.rint(radius * min(sides)).astype(np.int32), rings).reshape(-1)  # the last one is dropped
    spectrum = jnp.fft.fftn(images.astype(jnp.float32), axes=tuple(range(1, images.ndim - 1)))
    power = jnp.square(jnp.abs(spectrum)).mean((0, -1)) / np.prod(sides)
    sums = jax.ops.segment_sum(power.reshape(-1), ring, rings + 1)[:rings]
    return jnp.arange(rings) / min(sides), sums / np.bincount(ring, minlength=rings + 1)[:rings]
