"""Sounds as log-mel spectrograms: [mels, frames, channels], heard again through Griffin and Lim's vocoder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.sound import SOUNDS, Mel, SoundTransform, griffin_lim, read_sound, wav_bytes
from ldm_jax.media.medium import Medium
from ldm_jax.primitives.choices import construct

# Colours [8 bits] of the lowest, ... the highest level: dark to light, so that loud parts stand out on any screen.
COLOURS = np.float32([[8, 6, 30], [60, 20, 100], [150, 40, 105], [225, 90, 60], [250, 180, 80], [255, 250, 220]])


@dataclasses.dataclass(frozen=True)
class Setting:
    """Fields of config.data.sound: those of `Mel` but its bands, of `SoundTransform` but its frames, and `iterations` of the
    vocoder."""

    rate: int = 16000
    window: int = 1024
    hop: int = 256
    low: float = 0.0
    high: float = 0.0
    scale: str = "slaney"
    floor_db: float = -80.0
    channels: int = 1
    mix: bool = False
    upsample: bool = False
    shortest: float = 0.05
    iterations: int = 64


class Sound(Medium):
    """Sound files, cut or padded to config.data.image_size = (mels, frames), frames * config.data.sound.hop samples.

    A stereo sound has two spectrograms, heard without what differs between the channels' phases."""

    name = "sound"
    files = SOUNDS
    unit = "bands and frames"
    one, many = "sound", "sounds"

    def __init__(self, section: Mapping[str, Any], workdir: Path | None = None):
        """ValueError for fields of config.data.sound that there are not, or that can't be meant."""
        super().__init__(section, workdir)
        self.setting = construct(Setting, section.get("sound", {}), "config.data.sound")

    @property
    def mel(self) -> Mel:
        """How sounds become spectrograms."""
        return self._mel(self._size[0])

    def _mel(self, mels: int) -> Mel:
        names = ("rate", "window", "hop", "low", "high", "scale", "floor_db")
        try:
            return Mel(mels=mels, **{name: getattr(self.setting, name) for name in names})
        except ValueError as error:
            raise ValueError(f"config.data.sound: {error}") from None

    @property
    def _size(self) -> tuple[int, int]:
        size = self.section["image_size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def channels(self) -> int:
        """1, or 2 of stereo."""
        return self.setting.channels

    def check(self) -> None:
        """ValueError where config.data can't be meant."""
        for name, off in (("flip", False), ("short_side", 0), ("palette", "")):
            if self.section.get(name, off) != off:
                raise ValueError(f"config.data.{name}={self.section[name]!r}: of pictures; for sounds leave it at {off!r}")
        if self.setting.iterations < 1:
            raise ValueError(f"config.data.sound.iterations={self.setting.iterations}: at least 1")
        self.transform()

    def transform(self, **columns: Any) -> SoundTransform:
        """Resampled, mixed, cropped or padded as config.data and config.data.sound say."""
        return self._transform(SoundTransform, self._size[1], columns)

    def _transform(self, cls: type[SoundTransform], frames: int, columns: dict[str, Any]) -> SoundTransform:
        columns = {name: value for name, value in columns.items() if name != "whole_boxes"}
        fields = {name: getattr(self.setting, name) for name in ("channels", "mix", "upsample", "shortest")}
        try:
            return cls(self.mel, frames, crop=self.section.get("crop", "center"), **fields, **columns)
        except ValueError as error:
            raise ValueError(f"config.data.sound: {error}") from None

    def read(self, path: str | Path) -> np.ndarray:
        """The spectrogram of a sound file of any length, as many frames as begin in it."""
        transform = self.transform()
        samples = transform.brought(*read_sound(path, str(path)), str(path))
        return transform.scaled(np.pad(samples, ((0, -len(samples) % self.mel.hop), (0, 0))))

    def check_size(self, size: Sequence[int]) -> None:
        """ValueError for another number of bands: no vocoder could say what they are."""
        if size[0] != self._size[0]:
            raise ValueError(
                f"size {' x '.join(map(str, size))}: a sound has {self._size[0]} bands, and any number of frames, "
                f"such as {self._size[0]}x{2 * self._size[1]}"
            )

    def laid(self, mask: np.ndarray) -> np.ndarray:
        """A mask for a spectrogram as `shown`, low frequencies below: of stereo what is marked on either channel."""
        if self.channels == 2 and len(mask) == 2 * self._size[0]:
            mask = np.maximum(*np.split(mask, 2))
        return mask[::-1]

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """In colours, low frequencies below; the left channel above the right one."""
        levels = np.clip((np.concatenate(np.split(arrays[:, ::-1], arrays.shape[-1], -1), 1) + 1) / 2, 0, 1)[..., 0]
        places = np.linspace(0, 1, len(COLOURS))
        colours = np.stack([np.interp(levels, places, COLOURS[:, i]) for i in range(3)], -1)
        return np.float32(colours / 127.5 - 1)

    def samples(self, array: np.ndarray) -> np.ndarray:
        """A spectrogram [mels, frames, channels] -> samples [frames * hop, channels], float32 in [-1, 1]."""
        mel = self.mel
        magnitude = mel.magnitude(np.moveaxis(np.asarray(array), -1, 0))
        return np.clip(griffin_lim(magnitude, mel.window, mel.hop, self.setting.iterations).T, -1, 1)

    def files_of(self, array: np.ndarray) -> dict[str, bytes]:
        """A WAV file of 16 bits."""
        return {"wav": wav_bytes(self.samples(array), self.setting.rate)}
