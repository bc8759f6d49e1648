"""Sounds as their samples: [T, channels], for first stages of one axis (dims=1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.sound import Mel, WaveformTransform, read_sound
from ldm_jax.media.sound import Sound


class Waveform(Sound):
    """Sound files, cut or padded to config.data.image_size = (T,) samples, a multiple of config.data.sound.hop. What is drawn
    is heard as it is, without a vocoder; `window`, `hop`, `low`, `high`, `scale` and `floor_db` are of the spectrogram that
    shows it."""

    name = "waveform"
    axes, unit = 1, "samples"
    abilities = ("sample", "panorama", "image_to_image", "outpaint", "edit", "variation", "interpolate")  # all but masks
    shown_mels = 64

    @property
    def mel(self) -> Mel:
        """How waveforms are shown."""
        return self._mel(self.shown_mels)

    def transform(self, **columns: Any) -> WaveformTransform:
        """Resampled, mixed, cropped or padded as config.data and config.data.sound say."""
        return self._transform(WaveformTransform, self._frames, columns)

    @property
    def _frames(self) -> int:
        """Of the spectrogram that shows it, and its length in hops."""
        size = self.section["image_size"]
        length = size if isinstance(size, int) else size[0]
        if length % self.setting.hop:
            raise ValueError(f"config.data.image_size={size}: a multiple of config.data.sound.hop={self.setting.hop}")
        return length // self.setting.hop

    def judged(self) -> dict[str, Any]:
        """Their spectrograms."""
        return {**self.section, "medium": Sound.name, "image_size": [self.shown_mels, self._frames]}

    def seen(self, arrays: np.ndarray) -> np.ndarray:
        """Their spectrograms, up to the last whole frame, and of one at least: [N, mels, frames, channels]."""
        length = max(arrays.shape[1] // self.mel.hop, 1) * self.mel.hop
        samples = np.clip(np.moveaxis(np.asarray(arrays, np.float32)[:, :length], -1, 1), -1, 1)
        samples = np.pad(samples, ((0, 0), (0, 0), (0, length - samples.shape[-1])))
        return np.moveaxis(self.mel.scaled(self.mel.power(samples)), 1, -1)

    def read(self, path: str | Path) -> np.ndarray:
        """The samples of a sound file of any length."""
        return self.transform().brought(*read_sound(path, str(path)), str(path))

    def check_size(self, size: Sequence[int]) -> None:
        """Nothing: sounds are of any length."""

    def laid(self, mask: np.ndarray) -> np.ndarray:
        """ValueError: a picture can't say which samples are meant."""
        raise ValueError("--mask is a picture, which says nothing of the samples of a waveform")

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """Their spectrograms in colours."""
        return super().shown(self.seen(arrays))

    def samples(self, array: np.ndarray) -> np.ndarray:
        """Itself, in [-1, 1]."""
        return np.clip(np.asarray(array, np.float32), -1, 1)
