"""What flags name: pictures and masks, from files or held in memory, and sizes."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax import build
from ldm_jax.api import LatentDiffusion
from ldm_jax.data.decode import decode_mask

# {name: float32 [H, W, 3] in [-1, 1], or [H, W] of a mask}: arrays that stand for files
Held = Mapping[str, np.ndarray]
NOTHING: Held = {}


def picture(ldm: LatentDiffusion, name: str, held: Held = NOTHING) -> np.ndarray:
    """What is held by this name, or the file, as the model's medium reads it."""
    return held[name] if name in held else build.make_medium(ldm.config).read(name)


def prepared(
    ldm: LatentDiffusion, flags: Mapping[str, Any], name: str, held: Held = NOTHING
) -> tuple[np.ndarray, np.ndarray | None, tuple[int, ...]]:
    """The picture and the mask on a canvas that the model takes, and the size of what is wanted of it."""
    if len(flags["image"]) != 1:
        raise ValueError(f"--image {len(flags['image'])} times: one, except for --interpolate")
    medium = build.make_medium(ldm.config)
    image, mask = picture(ldm, flags["image"][0], held), None
    if name == "inpaint":
        mask = read_mask(flags["mask"], image.shape[:2], held, medium.laid)
    if name == "outpaint":
        sides = _sides(flags["outpaint"], image.ndim - 1)
        mask = np.pad(np.zeros(image.shape[:-1], np.float32), sides, constant_values=1)
        image = np.pad(image, (*sides, (0, 0)), "edge")
        medium.check_size(image.shape[:-1])
    return padded(ldm, image), None if mask is None else padded(ldm, mask), image.shape[:-1]


def padded(ldm: LatentDiffusion, array: np.ndarray) -> np.ndarray:
    """A picture [H, W, C], a mask or a label map [H, W], whose last rows and columns are repeated up to sides that the first
    stage takes."""
    factors = ldm.first_stage.factors
    padding = [(0, -side % factor) for side, factor in zip(array.shape, factors)]
    return np.pad(array, (*padding, *[(0, 0)] * (array.ndim - len(factors))), "edge")


def map_size(
    ldm: LatentDiffusion, values: Sequence[Any], size: tuple[int, ...] | None = None, flag: str = "map"
) -> tuple[int, ...] | None:
    """The one size [H, W] of label maps; None where conditions are no maps. ValueError for several, and for another than the
    `size` of the picture that they lie on."""
    if ldm.condition.kind != "semantic":
        return size
    sizes = list(dict.fromkeys([*([] if size is None else [size]), *(value.shape for value in values)]))
    if len(sizes) > 1:
        here, there = (f"{w} x {h}" for h, w in sizes[:2])
        said = f"maps of {here} and {there} pixels" if size is None else f"a map of {there} pixels on a picture of {here}"
        raise ValueError(f"--{flag}: {said}: those drawn together must be of one size")
    return sizes[0]


def read_mask(
    path: str | Path, size: tuple[int, int], held: Held = NOTHING, laid: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray:
    """float32 [H, W], 1 where the mask is drawn (see `decode_mask`). `laid`: how it lies on the array, `Medium.laid`.
    ValueError if it isn't as large as the picture, or paints nothing."""
    mask = laid(held[path] if path in held else decode_mask(path, str(path)))
    if mask.shape != size:
        there, wanted = (f"{w} x {h}" for h, w in (mask.shape, size))
        raise ValueError(f"{path} is {there} pixels and the picture {wanted}: they must be of one size")
    if not mask.any():
        raise ValueError(f"{path} is black, or clear, all over: white is what to paint")
    return mask


def size_of(text: str, axes: int = 2) -> tuple[int, ...]:
    """The sides in an array's order, "64x256" or, of films, "8x32x32"."""
    if not re.fullmatch(r"\d+(x\d+)*", text) or text.count("x") != axes - 1:
        how = {1: "LENGTH, such as 256", 2: "HEIGHTxWIDTH, such as 64x256", 3: "FRAMESxHEIGHTxWIDTH, such as 8x32x32"}[axes]
        raise ValueError(f"--size {text!r}: write it {how}")
    return tuple(map(int, text.split("x")))


def _sides(values: Sequence[str], axes: int = 2) -> tuple[tuple[int, int], ...]:
    """((top, bottom), (left, right)), of a waveform ((before, behind),); one number is all of them."""
    number = 2 * axes
    values = list(values) * (number if len(values) == 1 else 1)
    if len(values) != number or not all(value.isdecimal() for value in values) or not any(map(int, values)):
        told = {1: "samples to add, BEFORE,BEHIND", 2: "pixels to add, TOP,BOTTOM,LEFT,RIGHT"}[axes]
        raise ValueError(f"--outpaint {','.join(values)}: {told}, or one number for all {number}")
    sides = tuple(map(int, values))
    return tuple(zip(sides[::2], sides[1::2]))
