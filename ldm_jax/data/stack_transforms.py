"""From a row of a film or a volume to the array of one example; what a transform is says `data.transform`.

A film is resized until it just covers (height, width), as a picture is; then frames and pixels are cut: in the middle, or
anywhere ("random"). A volume is never resized: its voxels have a size in the world.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ldm_jax.data.stacks import read_film, read_volume
from ldm_jax.data.transform import Row, Task, Transform, of_task, other_columns


@dataclass(frozen=True)
class FilmTransform:
    """Row -> {"image": float32 [T, H, W, 3] in [-1, 1], and label and tokens as of `Transform`}.

    size         frames, height and width of the output
    frame_step   every how-manieth frame is taken
    crop, flip   as of `Transform`: of frames and pixels; left and right of all frames alike
    """

    size: tuple[int, int, int]
    crop: str = "center"
    flip: bool = False
    frame_step: int = 1
    tokenize: Callable[[str], np.ndarray] | None = None
    task: Task | None = None
    whole_boxes: bool = False
    column: ClassVar[str] = "film"

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Of an example's "image"."""
        return (*self.size, 3)

    @property
    def geometry(self) -> dict[str, Any]:
        """What of the fields the arrays depend on."""
        return {"size": self.size, "flip": self.flip, "frame_step": self.frame_step}

    def fit(self, row: Row) -> Row:
        """The row with its film as uint8 [t, h, w, 3], every frame just covering the output. ValueError, with the film's name,
        for one that can't be read or has too few frames."""
        frames, height, width = self.size
        name = row.get("name", "film")
        film = read_film(row["film"], name)
        if len(film) < (needed := (frames - 1) * self.frame_step + 1):
            step = f" at frame_step={self.frame_step}" if self.frame_step > 1 else ""
            raise ValueError(f"{name} has {len(film)} frames: {frames} of config.data.image_size take {needed}{step}")
        scale = max(height / film.shape[1], width / film.shape[2])
        to = max(width, round(film.shape[2] * scale)), max(height, round(film.shape[1] * scale))
        if to != film.shape[2:0:-1]:
            film = np.stack([np.asarray(Image.fromarray(each).resize(to, Image.Resampling.BICUBIC)) for each in film])
        return {**row, "film": film}

    def view(self, row: Row, rng: np.random.Generator | None = None) -> Row:
        """The row as it is seen in one visit: cut and perhaps mirrored, still uint8."""
        row = self.fit(row)
        span = (self.size[0] - 1) * self.frame_step + 1
        film = cut(row["film"], (span, *self.size[1:]), rng if self.crop == "random" else None)[:: self.frame_step]
        return {**row, "film": film[:, :, ::-1] if self.flip and rng is not None and rng.random() < 0.5 else film}

    @staticmethod
    def scaled(film: np.ndarray) -> np.ndarray:
        """0..255 -> float32 in [-1, 1]."""
        return Transform.scaled(film)

    def __call__(self, row: Row, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """One example; without `rng` nothing is random."""
        return example(self, row, rng)


@dataclass(frozen=True)
class VolumeTransform:
    """Row -> {"image": float32 [D, H, W, 1] in [-1, 1], and label and tokens as of `Transform`}.

    size      of the output
    window    the numbers that become -1 and 1, what is beyond is clipped; None: all of an unsigned integer's range, and
              floating-point numbers as they are, in [-1, 1]
    crop      "center" or "random"; flip: the last axis mirrored in half of the visits
    """

    size: tuple[int, int, int]
    window: tuple[float, float] | None = None
    crop: str = "center"
    flip: bool = False
    tokenize: Callable[[str], np.ndarray] | None = None
    task: Task | None = None
    whole_boxes: bool = False
    column: ClassVar[str] = "volume"

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Of an example's "image"."""
        return (*self.size, 1)

    @property
    def geometry(self) -> dict[str, Any]:
        """What of the fields the arrays depend on."""
        return {"size": self.size, "flip": self.flip, "window": self.window}

    def fit(self, row: Row) -> Row:
        """The row with its volume as float32 [d, h, w, 1] in [-1, 1]. ValueError, with the volume's name, for one that can't be
        read, is smaller than the output, or has numbers of unknown range."""
        name = row.get("name", "volume")
        if isinstance(row["volume"], np.ndarray) and row["volume"].dtype == np.float32 and row["volume"].ndim == 4:
            return row
        volume = read_volume(row["volume"], name)
        if any(side < wanted for side, wanted in zip(volume.shape, self.size)):
            here, there = (" x ".join(map(str, sides)) for sides in (volume.shape, self.size))
            raise ValueError(f"{name} is {here} voxels: smaller than config.data.image_size, {there}; volumes are not resized")
        return {**row, "volume": in_window(volume, self.window, name)[..., None]}

    def view(self, row: Row, rng: np.random.Generator | None = None) -> Row:
        """The row as it is seen in one visit."""
        row = self.fit(row)
        volume = cut(row["volume"], self.size, rng if self.crop == "random" else None)
        return {**row, "volume": volume[:, :, ::-1] if self.flip and rng is not None and rng.random() < 0.5 else volume}

    @staticmethod
    def scaled(volume: np.ndarray) -> np.ndarray:
        """Itself."""
        return volume

    def __call__(self, row: Row, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """One example; without `rng` nothing is random."""
        return example(self, row, rng)


def example(transform: Any, row: Row, rng: np.random.Generator | None) -> dict[str, np.ndarray]:
    """The array of a row's datum and what goes with it."""
    row = transform.view(row, rng)
    found = {"image": transform.scaled(row[transform.column])} | other_columns(row, transform.tokenize, 0, rng)
    return found | of_task(transform.task, found, row, rng)


def cut(array: np.ndarray, size: tuple[int, ...], rng: np.random.Generator | None) -> np.ndarray:
    """A block of this size out of [*sides, C]: the middle one, or a random one."""
    free = [side - wanted for side, wanted in zip(array.shape, size)]
    begins = [n // 2 if rng is None else int(rng.integers(n + 1)) for n in free]
    return array[tuple(slice(begin, begin + wanted) for begin, wanted in zip(begins, size))]


def in_window(volume: np.ndarray, window: tuple[float, float] | None, name: str = "volume") -> np.ndarray:
    """Numbers as float32 in [-1, 1] (`VolumeTransform.window`). ValueError for some that are not finite."""
    if volume.dtype.kind == "f" and (odd := int((~np.isfinite(volume)).sum())):
        raise ValueError(f"{name}: {odd} of {volume.size} numbers are not finite; put others in their place")
    if window is None:
        if volume.dtype.kind == "u":
            window = 0, np.iinfo(volume.dtype).max
        elif volume.dtype.kind == "f" and np.abs(volume).max() <= 1:
            return volume.astype(np.float32)
        else:
            low, high = volume.min(), volume.max()
            raise ValueError(
                f"{name} holds {volume.dtype} from {low:g} to {high:g}: say which numbers are black and white, "
                "--config.data.window=(low, high)"
            )
    low, high = window
    if (least := volume.min()) < (most := volume.max()) and (most <= low or least >= high):
        raise ValueError(f"{name} holds {least:g} to {most:g}, nothing inside of config.data.window=({low:g}, {high:g})")
    scaled = (np.clip(volume.astype(np.float32), low, high) - np.float32(low)) * np.float32(2 / (high - low))
    return scaled - np.float32(1)


def out_of_window(array: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """The inverse of `in_window` inside of the window: numbers in [-1, 1], what exceeds that is cut off, as those that they
    stand for, float32; in [-1, 1] where there is no window."""
    low, high = (-1, 1) if window is None else window
    return (low + (np.clip(np.asarray(array, np.float64), -1, 1) + 1) * ((high - low) / 2)).astype(np.float32)
