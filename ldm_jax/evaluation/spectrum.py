"""The radially averaged power spectrum: what a decoder has lost of fine detail shows at its right end.

Power is |FFT|^2 / (H W), so white noise of variance s^2 has power s^2 at every frequency.
"""

import jax
import jax.numpy as jnp
import numpy as np


def power_spectrum(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frequencies [F] in cycles a pixel, from 0 to 1/2, and power [F] of pictures [B, H, W, C]: the mean over pictures,
    channels and directions. Rings are 1 / min(H, W) wide; the corners beyond 1/2 are left out."""
    if images.ndim != 4:
        raise ValueError(f"pictures of shape {images.shape}: expected [B, H, W, C]")
    H, W = images.shape[1:3]
    rings = min(H, W) // 2 + 1
    radius = np.hypot(np.fft.fftfreq(H)[:, None], np.fft.fftfreq(W)[None])
    ring = np.minimum(np.rint(radius * min(H, W)).astype(np.int32), rings)  # the last one is dropped
    power = jnp.square(jnp.abs(jnp.fft.fft2(images.astype(jnp.float32), axes=(1, 2)))).mean((0, 3)) / (H * W)
    sums = jax.ops.segment_sum(power.reshape(-1), ring.reshape(-1), rings + 1)[:rings]
    return jnp.arange(rings) / min(H, W), sums / np.bincount(ring.reshape(-1), minlength=rings + 1)[:rings]
