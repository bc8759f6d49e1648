"""From a spectrogram without phases to a sound: Griffin and Lim (1984), with the momentum of Perraudin, Balazs and Sondergaard,
"A fast Griffin-Lim algorithm" (2013).

    c_n = G(s exp(i arg t_{n-1})),   t_n = c_n + momentum (c_n - c_{n-1})

where G makes a spectrum consistent, the stft of its istft, and s are the wanted magnitudes. momentum 0 is Griffin and Lim's
own.
"""

import numpy as np

from ldm_jax.data.sound.mel import istft, stft


def griffin_lim(
    magnitude: np.ndarray, window: int, hop: int, iterations: int = 64, momentum: float = 0.99, seed: int = 0
) -> np.ndarray:
    """Samples float32 [..., frames * hop] whose `stft` has about these magnitudes [..., window / 2 + 1, frames]. Phases start
    at random, by `seed`: the same magnitudes give the same sound."""
    s = np.asarray(magnitude, np.float32)
    phases = np.random.default_rng(seed).uniform(0, 2 * np.pi, s.shape[-2:]).astype(np.float32)  # the same for each of a batch
    t, before = np.exp(1j * phases), np.float32(0)
    for _ in range(iterations):
        consistent = stft(istft(s * _unit(t), window, hop), window, hop)
        t, before = consistent + np.float32(momentum) * (consistent - before), consistent
    return istft(s * _unit(t), window, hop)


def _unit(spectrum: np.ndarray) -> np.ndarray:
    return spectrum / np.maximum(np.abs(spectrum), 1e-12)
