"""From a row with a sound to the arrays of one example, as `data.transform` does for images."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from ldm_jax.data.sound.files import read_sound, resampled
from ldm_jax.data.sound.mel import Mel
from ldm_jax.data.transform import Row, Task, of_task, other_columns

LOUDEST = 8.0  # 18 dB above full scale: mixes and codecs exceed 1 a little, which is cut off


@dataclasses.dataclass(frozen=True)
class SoundTransform:
    """Row -> {"image": float32 [mels, frames, channels] in [-1, 1], lowest frequencies first, and label, tokens and a task's
    columns as `Transform` has them}.

    frames    columns of the spectrogram; frames * mel.hop samples are what is seen of a sound
    channels  1 or 2
    mix       stereo becomes mono by its mean, mono both channels of stereo; otherwise that is refused
    upsample  sounds with fewer samples a second are taken, though they hold nothing of the upper frequencies; otherwise refused
    shortest  seconds; shorter sounds are refused. What is shorter than `frames` has silence around it
    crop      of longer ones, and where in the silence shorter ones lie: "center" or "random"
    """

    mel: Mel
    frames: int
    channels: int = 1
    mix: bool = False
    upsample: bool = False
    shortest: float = 0.05
    crop: str = "center"
    tokenize: Callable[[str], np.ndarray] | None = None
    task: Task | None = None
    column: ClassVar[str] = "sound"
    flip: ClassVar[bool] = False

    def __post_init__(self):
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop={self.crop!r}: choose 'center' or 'random'")
        if self.channels not in (1, 2):
            raise ValueError(f"channels={self.channels}: 1 (mono) or 2 (stereo)")
        if self.frames < 1:
            raise ValueError(f"frames={self.frames}: at least 1")

    @property
    def array_shape(self) -> tuple[int, int, int]:
        """Of an example's "image"."""
        return self.mel.mels, self.frames, self.channels

    @property
    def geometry(self) -> dict[str, Any]:
        """What of the fields the arrays depend on."""
        said = {name: getattr(self, name) for name in ("frames", "channels", "mix", "upsample", "shortest")}
        return {"flip": False, "mel": dataclasses.asdict(self.mel), **said}

    def fit(self, row: Row) -> Row:
        """The row with its sound as float32 [T, channels] at the mel's rate. A row that is so already stays as it is.
        ValueError, with the sound's name, for one that can't be read, has too few samples a second, other channels, is too
        short or silent, or has nothing but silence in the middle that is always seen of it."""
        if isinstance(row["sound"], np.ndarray):
            return row
        name = row.get("name", "sound")
        samples, rate = read_sound(row["sound"], name)
        fitted = row | {"sound": self.brought(samples, rate, name)}
        if self.crop == "center" and self._silent(self.view(fitted)["sound"]):
            raise ValueError(
                f"{name} lasts {len(samples) / rate:.3g} s, and the {self.frames * self.mel.hop / self.mel.rate:.3g} s in its "
                "middle are silent: cut it, leave it out, or take any part with config.data.crop=random"
            )
        return fitted

    def brought(self, samples: np.ndarray, rate: int, name: str) -> np.ndarray:
        """Samples [T, C] at any rate -> what `fit` gives."""
        if rate < self.mel.rate and not self.upsample:
            raise ValueError(
                f"{name} has {rate} samples a second, the model {self.mel.rate}: nothing above {rate // 2} Hz is in it. "
                f"Leave it out, set config.data.sound.rate={rate}, or take it as it is with config.data.sound.upsample=True"
            )
        if samples.shape[1] != self.channels:
            if not self.mix or min(samples.shape[1], self.channels) > 1:
                mixable = min(samples.shape[1], self.channels) == 1
                way = "set config.data.sound.mix=True to mix them" if mixable else "leave it out"
                raise ValueError(f"{name} has {samples.shape[1]} channels, the model {self.channels}: {way}")
            samples = np.repeat(samples.mean(1, keepdims=True), self.channels, 1)
        if len(samples) < self.shortest * rate:
            raise ValueError(
                f"{name} lasts {len(samples) / rate:.3f} s: shorter than config.data.sound.shortest={self.shortest:g} s"
            )
        if (peak := float(np.abs(samples).max())) > LOUDEST:
            raise ValueError(
                f"{name} reaches {peak:g}, and samples lie in [-1, 1]: whole numbers stored as floating-point ones? Divide "
                "them by what full scale is, 32768 for 16 bits"
            )
        if self._silent(samples):
            raise ValueError(f"{name} is silent: no sample reaches {self.mel.floor_db:g} dB. Leave it out")
        return np.clip(resampled(samples, rate, self.mel.rate), -1, 1)

    def _silent(self, samples: np.ndarray) -> bool:
        """Whether no sample [T, C] reaches `mel.floor_db`; a constant is not heard."""
        return 20 * np.log10(max(np.ptp(samples, axis=0).max() / 2, 1e-30)) < self.mel.floor_db

    def view(self, row: Row, rng: np.random.Generator | None = None) -> Row:
        """The row with as many samples as are seen of it, [frames * hop, channels]; without `rng` the middle."""
        row = self.fit(row)
        samples, length = row["sound"], self.frames * self.mel.hop
        free = abs(len(samples) - length)
        start = int(rng.integers(free + 1)) if self.crop == "random" and rng is not None else free // 2
        if len(samples) >= length:
            return row | {"sound": samples[start : start + length]}
        return row | {"sound": np.pad(samples, ((start, free - start), (0, 0)))}

    def scaled(self, samples: np.ndarray) -> np.ndarray:
        """Samples [T, C] of what `view` gave -> [mels, frames, C]."""
        return np.moveaxis(self.mel.scaled(self.mel.power(samples.T)), 0, -1)

    def __call__(self, row: Row, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """One example. Without `rng` nothing is random."""
        row = self.view(row, rng)
        example = {"image": self.scaled(row["sound"])} | other_columns(row, self.tokenize, 0, rng)
        return example | of_task(self.task, example, row, rng)


class WaveformTransform(SoundTransform):
    """Row -> {"image": float32 [frames * hop, channels], the samples themselves, ...}; the rest as `SoundTransform`."""

    @property
    def array_shape(self) -> tuple[int, int]:
        """Of an example's "image"."""
        return self.frames * self.mel.hop, self.channels

    def scaled(self, samples: np.ndarray) -> np.ndarray:
        """Samples as they are."""
        return samples
