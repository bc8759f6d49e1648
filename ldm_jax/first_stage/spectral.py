"""How far apart two waveforms sound: distances of their spectra at several resolutions (Yamamoto, Song and Kim, "Parallel
WaveGAN", 2020, equations 5 to 7).

    d(x, y) = mean over windows of  |S(x) - S(y)| / |S(x)|  +  mean |log S(x) - log S(y)|

with S the magnitudes of a Fourier transform by Hann's window, a quarter of it from frame to frame, and |.| Frobenius's norm. A
distance of samples alone is deaf to what is heard: a phase that is off by half a turn costs it everything, missing overtones
nothing.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

_LEAST = 1e-5  # of a magnitude, relative to that of a sine of amplitude 1


def magnitudes(x: jax.Array, window: int) -> jax.Array:
    """S of waveforms [B, T, C]: float32 [B, C, frames, window / 2 + 1], 1 for a sine of amplitude 1. Silence lies around x."""
    hop, hann = window // 4, np.float32(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window))
    margin = window // 2
    x = jnp.pad(jnp.moveaxis(x.astype(jnp.float32), -1, 1), ((0, 0), (0, 0), (margin, margin)))
    starts = np.arange(0, x.shape[-1] - window + 1, hop)
    spectrum = jnp.fft.rfft(x[..., starts[:, None] + np.arange(window)] * (hann * (2 / hann.sum())))
    return jnp.sqrt(jnp.maximum(jnp.square(spectrum.real) + jnp.square(spectrum.imag), _LEAST**2))


def spectral_distance(x: jax.Array, y: jax.Array, windows: Sequence[int]) -> jax.Array:
    """d(x, y) [B] of waveforms [B, T, C] in [-1, 1]; x is the real one."""
    total = jnp.zeros(len(x), jnp.float32)
    for window in windows:
        s, t = magnitudes(x, window), magnitudes(y, window)
        own = tuple(range(1, s.ndim))
        convergence = jnp.sqrt(jnp.square(s - t).sum(own) + _LEAST**2) / jnp.sqrt(jnp.square(s).sum(own))
        total = total + convergence + jnp.abs(jnp.log(s) - jnp.log(t)).mean(own)
    return total / len(windows)
