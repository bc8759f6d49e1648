"""Semantic maps from files: a class for every pixel, int32 [H, W].

Files hold the class numbers themselves (a palette or greyscale PNG), or a colour for every class, with a palette: a JSON
file, [[r, g, b], ...] in class order or {"sky": [128, 128, 128], ...}.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ldm_jax.data.decode import Encoded, decode_map, decode_rgb
from ldm_jax.data.text_files import read_json

Palette = tuple[tuple[int, int, int], ...]


def read_map(
    encoded: Encoded,
    n_classes: int,
    palette: Palette | None = None,
    size: tuple[int, int] | None = None,
    name: str = "",
) -> np.ndarray:
    """int32 [H, W] with classes 0 to n_classes - 1, of a file or its bytes.

    Raises ValueError for a class out of range, a colour that the palette lacks, and another `size` (height, width) than asked.
    """
    name = name or ("label map" if isinstance(encoded, bytes) else str(encoded))
    if palette is None:
        found = decode_map(encoded, name).astype(np.int32)
    else:
        found = from_colours(decode_rgb(encoded, name), palette, name)
    if size is not None and found.shape != tuple(size):
        raise ValueError(
            f"{name} is {found.shape[0]} x {found.shape[1]} (height x width), wanted {size[0]} x {size[1]}: resize it "
            "with nearest-neighbour sampling, which mixes no classes"
        )
    return check_map(found, n_classes, name)


def check_map(found: np.ndarray, n_classes: int, name: str = "label map") -> np.ndarray:
    """The map itself; ValueError if there are classes in it that don't exist."""
    if found.max() >= n_classes or found.min() < 0:
        worst = int(found.max() if found.max() >= n_classes else found.min())
        share = np.mean(found == worst)
        raise ValueError(
            f"{name}: class {worst} in {share:.1%} of its pixels, but classes are numbered 0 to {n_classes - 1}; "
            "if it means 'nothing', give it a class of its own"
        )
    return found


def checked_map(example: dict, rng: np.random.Generator, *, n_classes: int) -> dict:
    """A training example's label map, once it is known to hold no other classes."""
    return {"label_map": check_map(example["label_map"], n_classes, f"label map of {example['name']}")}


def read_palette(path: str | Path, names: Sequence[str] | None = None) -> Palette:
    """Colours by class number, from JSON; `names` orders those that are written by name."""
    found = read_json(path)
    if isinstance(found, Mapping):
        if names is not None and set(names) != set(found):
            raise ValueError(f"{path}: its classes are {', '.join(found)}, the model's {', '.join(names)}")
        found = [found[name] for name in names or found]
    valid = isinstance(found, list) and all(
        isinstance(c, list) and len(c) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in c) for c in found
    )
    if not valid or not found:
        raise ValueError(f"{path}: a palette is [[r, g, b], ...] or {{name: [r, g, b], ...}} with values from 0 to 255")
    palette = tuple(tuple(colour) for colour in found)
    if len(set(palette)) < len(palette):
        twice = next(colour for colour in palette if palette.count(colour) > 1)
        raise ValueError(f"{path}: two classes have the colour {twice}")
    return palette


def from_colours(pixels: np.ndarray, palette: Palette, name: str = "label map") -> np.ndarray:
    """uint8 [H, W, 3] -> int32 [H, W]. ValueError for a colour that is not in the palette, and what is near it."""
    number = {_packed(np.array(colour)).item(): i for i, colour in enumerate(palette)}
    colours, inverse = np.unique(_packed(pixels), return_inverse=True)
    classes = np.array([number.get(colour, -1) for colour in colours.tolist()], np.int32)
    found = classes[inverse].reshape(pixels.shape[:2])
    if (found < 0).any():
        wrong = pixels[found < 0]
        distance = np.abs(np.array(palette) - wrong[0].astype(int)).sum(1)
        raise ValueError(
            f"{name}: colour {tuple(wrong[0].tolist())} is none of the palette's {len(palette)} (nearest: class "
            f"{distance.argmin()}, {palette[distance.argmin()]}); {len(wrong) / found.size:.1%} of its pixels are of no class. "
            "JPEG and smooth resizing change colours: use PNG and nearest-neighbour sampling"
        )
    return found


def to_colours(found: np.ndarray, palette: Palette) -> np.ndarray:
    """int [..., H, W] -> uint8 [..., H, W, 3]; what is no class is black."""
    table = np.array([*palette, (0, 0, 0)], np.uint8)
    return table[np.where((found >= 0) & (found < len(palette)), found, len(palette))]


def bit_palette(n_classes: int) -> Palette:
    """Well separated colours: the bits of a class's number, plus one, dealt to red, green and blue from the highest down, as
    PASCAL VOC does."""

    def colour(number: int) -> tuple[int, int, int]:
        channels = [sum((number >> (3 * bit + c) & 1) << (7 - bit) for bit in range(8)) for c in range(3)]
        return tuple(channels)

    return tuple(colour(i + 1) for i in range(n_classes))


def _packed(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.int64) @ np.array([65536, 256, 1])
