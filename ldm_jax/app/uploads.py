"""Bytes of files that anyone may have sent, and strokes of a brush -> arrays. Everything stays in memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ldm_jax.data.decode import decode_rgb, look_at
from ldm_jax.data.transform import Transform

MOST_BYTES = 8 * 2**20
MOST_PIXELS = 4096 * 4096
Stroke = Sequence[tuple[float, float]]  # (x, y) in pixels, x to the right


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """uint8 [H, W, 3], and what it is called in flags and as a file."""

    name: str
    pixels: np.ndarray

    @property
    def scaled(self) -> np.ndarray:
        """float32 in [-1, 1]."""
        return Transform.scaled(self.pixels)


def read_picture(data: bytes, name: str, size: tuple[int, int]) -> Picture:
    """An image file cut to `size` (height, width): the largest part in the middle, resized. ValueError for one that is too
    large, or can't be read."""
    _check(data, name)
    pixels = Transform(size).view({"image": data, "name": _short(name)})["image"]
    return Picture(f"{_short(name).rsplit('.', 1)[0]}_{size[1]}x{size[0]}.png", pixels)


def read_small(data: bytes, name: str, most: int) -> Picture:
    """An image file as it is, of at most `most` pixels a side. ValueError as `read_picture`."""
    width, height = _check(data, name)
    if max(width, height) > most:
        raise ValueError(f"{_short(name)} is {width} x {height} pixels: at most {most} a side are enlarged here")
    return Picture(f"{_short(name).rsplit('.', 1)[0]}.png", decode_rgb(data, _short(name)))


def _check(data: bytes, name: str) -> tuple[int, int]:
    if len(data) > MOST_BYTES:
        raise ValueError(f"{_short(name)} has {len(data) / 2**20:.1f} MB: at most {MOST_BYTES // 2**20} are taken")
    width, height, _ = look_at(data, _short(name))
    if width * height > MOST_PIXELS:
        raise ValueError(f"{_short(name)} is {width} x {height} pixels: at most {MOST_PIXELS} are taken, 4096 x 4096")
    return width, height


def _short(name: str) -> str:
    """The name of a file without folders, what isn't printed, and most of its length."""
    name = "".join(letter for letter in name.replace("\\", "/").rsplit("/", 1)[-1] if letter.isprintable())
    stem, dot, suffix = name.rpartition(".")
    return f"{stem[:60]}.{suffix[:8]}" if dot and stem else name[:60] or "picture"


def mask_of(strokes: Sequence[Stroke], size: tuple[int, int], width: float) -> np.ndarray:
    """float32 [H, W], 1 within `width` / 2 pixels of the strokes: where a round brush went that is so wide. A point lies at
    the middle of its pixel: pixel (row, column) at (column + 0.5, row + 0.5)."""
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    mask = np.zeros(size, bool)
    for stroke in strokes:
        points = np.asarray(stroke, float).reshape(-1, 2)
        for start, end in zip(points[:1] if len(points) == 1 else points[:-1], points[:1] if len(points) == 1 else points[1:]):
            along = end - start
            length = along @ along
            t = ((columns - start[0]) * along[0] + (rows - start[1]) * along[1]) / (length or 1.0)
            t = np.clip(t, 0, 1)
            mask |= np.hypot(columns - start[0] - t * along[0], rows - start[1] - t * along[1]) <= width / 2
    return mask.astype(np.float32)
