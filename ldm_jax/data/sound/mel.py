"""Spectrograms on the mel scale, in decibels: sounds as pictures.

    X[k, m] = sum_n w[n] x[m hop + n - (window - hop) / 2] exp(-2 pi i k n / window)      x is 0 outside
    P[k, m] = |X[k, m]|^2 / (sum_n w[n] / 2)^2                                            1 for a sine of amplitude 1 at bin k
    array[j, m] = 10 log10 sum_k F[j, k] P[k, m], from floor_db..TOP_DB to -1..1

with w Hann's window. T = frames * hop samples give exactly `frames` columns. F are triangles, equidistant on the mel scale and
1 at their middles, so that where they overlap they add up to 1 and the power of a column is the sum over its bands. By
Parseval, a column of a sound in [-1, 1] holds at most 3 (4.77 dB): nothing is cut off above.

Scales: "htk" mel(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987); "slaney" (his Auditory Toolbox, and librosa's default):
3 f / 200 up to 1000 Hz, from there 15 + 27 ln(f / 1000) / ln 6.4.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from ldm_jax.primitives.choices import check_choice

TOP_DB = 10 * np.log10(3.0)
SCALES = ("slaney", "htk")
_LINEAR, _KNEE = 200 / 3, 1000.0  # Hz a mel below the knee, in Hz
_STEP = np.log(6.4) / 27


def to_mel(hertz: Any, scale: str = "slaney") -> np.ndarray:
    """Frequency in Hz -> mel."""
    hertz = np.asarray(hertz, np.float64)
    if check_choice(scale, SCALES, "scale") == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    return np.where(hertz < _KNEE, hertz / _LINEAR, _KNEE / _LINEAR + np.log(np.maximum(hertz, _KNEE) / _KNEE) / _STEP)


def to_hertz(mel: Any, scale: str = "slaney") -> np.ndarray:
    """The inverse of `to_mel`."""
    mel = np.asarray(mel, np.float64)
    if check_choice(scale, SCALES, "scale") == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < _KNEE / _LINEAR, mel * _LINEAR, _KNEE * np.exp(_STEP * (mel - _KNEE / _LINEAR)))


def stft(samples: np.ndarray, window: int, hop: int) -> np.ndarray:
    """X above: samples [..., T], T a multiple of `hop`, -> complex64 [..., window / 2 + 1, T / hop]."""
    margin = (window - hop) // 2
    padded = np.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(margin, window - hop - margin)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=-1)[..., ::hop, :]
    return np.moveaxis(np.fft.rfft(frames * hann(window)), -1, -2)


def istft(spectrum: np.ndarray, window: int, hop: int) -> np.ndarray:
    """The samples [..., T] whose `stft` is nearest to `spectrum` [..., window / 2 + 1, frames] (Griffin and Lim 1984,
    equation 6)."""
    frames = np.fft.irfft(np.moveaxis(spectrum, -2, -1), window) * hann(window)
    count, margin = frames.shape[-2], (window - hop) // 2
    length = (count - 1) * hop + window
    out, weight = np.zeros((*frames.shape[:-2], length), np.float32), np.zeros(length, np.float32)
    for m in range(count):
        out[..., m * hop : m * hop + window] += frames[..., m, :]
        weight[m * hop : m * hop + window] += hann(window) ** 2
    kept = slice(margin, margin + count * hop)
    return out[..., kept] / np.maximum(weight[kept], 1e-8)


@functools.cache
def hann(window: int) -> np.ndarray:
    """Hann's window, float32, periodic."""
    made = np.float32(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window))
    made.flags.writeable = False
    return made


@dataclasses.dataclass(frozen=True)
class Mel:
    """How sounds become pictures.

    rate      samples a second
    mels      bands, from `low` to `high` Hz; high 0: up to half the rate
    window    samples that a column looks at; hop: samples from one to the next
    scale     "slaney" or "htk"
    floor_db  what counts as silence, relative to a sine of amplitude 1
    Raises ValueError for what can't be meant, and for bands so narrow that no frequency of the window falls into one.
    """

    rate: int = 16000
    mels: int = 64
    window: int = 1024
    hop: int = 256
    low: float = 0.0
    high: float = 0.0
    scale: str = "slaney"
    floor_db: float = -80.0

    def __post_init__(self):
        check_choice(self.scale, SCALES, "scale")
        if min(self.rate, self.mels, self.hop) < 1:
            raise ValueError(f"rate={self.rate}, mels={self.mels}, hop={self.hop}: at least 1")
        if not 2 * self.hop <= self.window:
            raise ValueError(f"hop={self.hop}: at most half of window={self.window}, or samples between columns are lost")
        if not 0 <= self.low < self.top <= self.rate / 2:
            raise ValueError(f"low={self.low:g}, high={self.high:g}: must be 0 <= low < high <= rate / 2 = {self.rate / 2:g}")
        if not self.floor_db < 0:
            raise ValueError(f"floor_db={self.floor_db:g}: below 0, such as -80")
        if empty := int((self.filters.sum(1) == 0).sum()):
            raise ValueError(
                f"mels={self.mels}: {empty} bands lie between two frequencies of a window of {self.window} samples; choose "
                "fewer bands or a longer window"
            )

    @property
    def top(self) -> float:
        """The highest frequency, in Hz."""
        return self.high or self.rate / 2

    @functools.cached_property
    def middles(self) -> np.ndarray:
        """Hz [mels + 2]: the bands' middles, and where the first begins and the last ends."""
        return to_hertz(np.linspace(to_mel(self.low, self.scale), to_mel(self.top, self.scale), self.mels + 2), self.scale)

    @functools.cached_property
    def filters(self) -> np.ndarray:
        """F, float32 [mels, window / 2 + 1]."""
        bins, f = np.arange(self.window // 2 + 1) * self.rate / self.window, self.middles[:, None]
        return np.float32(np.maximum(0, np.minimum((bins - f[:-2]) / (f[1:-1] - f[:-2]), (f[2:] - bins) / (f[2:] - f[1:-1]))))

    def power(self, samples: np.ndarray) -> np.ndarray:
        """F P: samples [..., T], T a multiple of hop, -> float32 [..., mels, frames]."""
        spectrum = np.abs(stft(np.asarray(samples, np.float32), self.window, self.hop)) ** 2
        return self.filters @ (spectrum / np.float32((hann(self.window).sum() / 2) ** 2))

    def scaled(self, power: np.ndarray) -> np.ndarray:
        """Power -> decibels in [-1, 1]."""
        least = 10 ** (self.floor_db / 10)
        decibels = 10 * np.log10(np.maximum(power, np.float32(least)))
        return np.maximum(np.float32(2 * (decibels - self.floor_db) / (TOP_DB - self.floor_db) - 1), np.float32(-1))

    def unscaled(self, array: np.ndarray) -> np.ndarray:
        """The inverse; what is -1 or less becomes 0, and what exceeds 1 counts as 1."""
        array = np.clip(np.asarray(array, np.float32), -1, 1)
        decibels = (array + 1) / 2 * (TOP_DB - self.floor_db) + self.floor_db
        return np.where(array > -1, 10 ** (decibels / 10), 0).astype(np.float32)

    def magnitude(self, array: np.ndarray, iterations: int = 100) -> np.ndarray:
        """|X| [..., window / 2 + 1, frames], none negative, whose bands are nearest to those of `array` [..., mels, frames]:
        least squares by the multiplicative updates of Lee and Seung (2001)."""
        f = self.filters
        wanted = f.T @ self.unscaled(array)  # each band spread over its triangle
        found = wanted.copy()
        for _ in range(iterations):
            found *= wanted / np.maximum(f.T @ (f @ found), 1e-20)
        return np.sqrt(found) * np.float32(hann(self.window).sum() / 2)
