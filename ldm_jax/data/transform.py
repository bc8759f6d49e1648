"""From a row of raw columns to the arrays of one example.

`fit` decodes and resizes (bicubic, anti-aliased) until the shorter side fits; `Transform` crops and flips what `fit`
leaves, and turns the other columns along with it. The two are apart so that `in_memory` can keep the result of the first.

What every transform is, whatever its rows hold (`Transform` is that of images): called as (row, rng) -> example, with

    column            of the rows, such as "image"; examples call the array "image" in any case
    array_shape       of that array, (*space, channels)
    fit(row)          the row with its datum decoded: what `in_memory` keeps
    view(row, rng)    the row as it is seen in one visit, in the numbers that are kept
    scaled(datum)     float32 in [-1, 1] of what `view` gave
    crop, flip        whether visits differ ("random"), and whether half of them are mirrored
    geometry          what the arrays depend on beside rows, {name: value}, for caches
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ldm_jax.data import augment, label_maps
from ldm_jax.data.decode import decode_map, decode_rgb
from ldm_jax.data.layout import WHOLE

_MOST_PIXELS = 2**27  # of a resized picture
PICTURES = ("image", "label_map", "conditioning")  # columns that lie on the picture's grid
Row = dict[str, Any]
Task = Callable[[Row, np.random.Generator], Row]


@dataclass(frozen=True)
class Transform:
    """Row -> {"image": float32 [H, W, 3] in [-1, 1], ...}, with as many of these as the row has columns for:

    label        int32 []
    tokens       int32 [L], `tokenize` of the caption, one drawn if there are several; left out without `tokenize`
    label_map    int32 [H, W]
    conditioning float32 [H, W, 3] in [-1, 1]
    boxes        float32 [max_boxes, 4] as fractions of the crop, largest first, padded with 0;
    box_labels   int32 [max_boxes], padded with -1; both left out if max_boxes is 0
    augment      float32 [augment.NUMBERS], what was done to the image; left out if `augment` is 0

    size         of the output: a side, or (height, width)
    crop         "center" or "random"
    flip         left-right in half of the visits. Not for captions or labels that tell left from right.
    augment      how likely each of size, turn, stretch and place is changed in a visit (`data.augment`), of the image alone
    short_side   of the resized image, before the crop; 0: as short as the crop allows; -1: not resized unless too small
    min_side     images with a shorter side than this are refused
    palette      of label maps that hold colours instead of class numbers
    task         what else a training task makes of an example: called last, with all of the above (boxes not padded), the row's
                 `name` and `crop`; what it returns is added
    whole_boxes  boxes as fractions of the whole picture, not cut off at the crop; `crop` [4] says which part is seen
    """

    size: int | tuple[int, int]
    crop: str = "center"
    flip: bool = False
    min_side: int = 1
    tokenize: Callable[[str], np.ndarray] | None = None
    max_boxes: int = 0
    palette: label_maps.Palette | None = None
    task: Task | None = None
    whole_boxes: bool = False
    short_side: int = 0
    augment: float = 0.0
    column: ClassVar[str] = "image"

    def __post_init__(self):
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop={self.crop!r}: choose 'center' or 'random'")
        if min(self.shape) < 1:
            raise ValueError(f"size={self.size!r}: at least 1 pixel")
        if self.short_side > 0 and self.short_side < min(self.shape) or self.short_side < -1:
            raise ValueError(f"short_side={self.short_side}: at least the crop's {min(self.shape)} pixels, or 0, or -1")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the output."""
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    @property
    def array_shape(self) -> tuple[int, ...]:
        """Of an example's "image"."""
        return (*self.shape, 3)

    @property
    def geometry(self) -> dict[str, Any]:
        """What of the fields the arrays depend on."""
        optional = {"short_side": self.short_side, "whole_boxes": self.whole_boxes, "palette": self.palette}
        return {"size": self.shape, "flip": self.flip, **{name: value for name, value in optional.items() if value}}

    def fit(self, row: Row) -> Row:
        """The row with its image as uint8 [h, w, 3] (its conditioning picture too; label map: integers [h, w]), resized so that
        it just covers the output. A row that is so already stays as it is. ValueError, with the image's name, for one that
        can't be read, is smaller than `min_side`, or too narrow, and for a label map or a conditioning picture of another
        aspect."""
        if isinstance(row["image"], np.ndarray):
            return row
        height, width = self.shape
        row = dict(row)
        name = row.get("name", "image")
        at_least = 0 if self.short_side < 0 else max(height, width, self.min_side, self.short_side)
        image = decode_rgb(row["image"], name, at_least)
        if min(image.shape[:2]) < self.min_side:
            raise ValueError(f"{name} is {image.shape[1]} x {image.shape[0]}: smaller than the allowed {self.min_side} pixels")
        scale = max(height / image.shape[0], width / image.shape[1])
        if self.short_side:
            scale = max(scale, self.short_side / min(image.shape[:2]) if self.short_side > 0 else 1)
        to = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
        if to[0] * to[1] > _MOST_PIXELS:
            raise ValueError(f"{name} is {image.shape[1]} x {image.shape[0]}: so narrow that it would become {to[0]} x {to[1]}")
        row["image"] = _resize(image, to, Image.Resampling.BICUBIC)
        if "label_map" in row:
            indices = self._read_map(row["label_map"], f"label map of {name}")
            _check_aspect(f"{name}: its label map", indices, image)
            row["label_map"] = _resize(indices, to, Image.Resampling.NEAREST)
        if "conditioning" in row:
            picture = decode_rgb(row["conditioning"], f"conditioning picture of {name}")
            _check_aspect(f"{name}: its conditioning picture", picture, image)
            row["conditioning"] = _resize(picture, to, Image.Resampling.BICUBIC)
        return row

    def _read_map(self, encoded: Any, name: str) -> np.ndarray:
        if self.palette is None:
            return decode_map(encoded, name)
        return label_maps.from_colours(decode_rgb(encoded, name), self.palette, name)

    def view(self, row: Row, rng: np.random.Generator | None = None) -> Row:
        """The row as it is seen in one visit: cropped and perhaps mirrored, image and label map still integers, boxes as
        fractions of the crop. Without `rng` nothing is random: centre crop, no flip."""
        row = self.fit(row)
        (height, width), (full_height, full_width) = self.shape, row["image"].shape[:2]
        free = full_height - height, full_width - width
        if self.crop == "random" and rng is not None:
            top, left = (int(rng.integers(f + 1)) for f in free)
        else:
            top, left = (f // 2 for f in free)
        window = np.s_[top : top + height, left : left + width]
        seen = row | {name: row[name][window] for name in PICTURES if name in row}
        if "boxes" in row:
            full = np.float32([full_width, full_height] * 2)
            pixels = row["boxes"] * full - np.float32([left, top] * 2)
            order, cut = clip_boxes(pixels / np.float32([width, height] * 2))
            seen["boxes"] = np.asarray(row["boxes"], np.float32)[order] if self.whole_boxes else cut
            seen["box_labels"] = row["box_labels"][order]
            seen["crop"] = np.float32([left, top, left + width, top + height]) / full
        if rng is None:
            return seen | ({"augment": np.zeros(augment.NUMBERS, np.float32)} if self.augment else {})
        seen = mirror(seen) if self.flip and rng.random() < 0.5 else seen
        if self.augment:
            seen["augment"] = augment.draw(rng, self.augment)
            seen["image"] = augment.apply(seen["image"], seen["augment"])
        return seen

    @staticmethod
    def scaled(image: np.ndarray) -> np.ndarray:
        """0..255 -> float32 in [-1, 1]."""
        return image.astype(np.float32) / np.float32(127.5) - np.float32(1)

    def __call__(self, row: Row, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """One example. Without `rng` nothing is random: centre crop, no flip, the first caption, and of a task what the row's
        name draws."""
        row = self.view(row, rng)
        example = {"image": self.scaled(row["image"])} | other_columns(row, self.tokenize, self.max_boxes, rng)
        return example | of_task(self.task, example, row, rng)


@dataclass(frozen=True)
class LatentTransform:
    """A row of a latent cache -> {"moments": float32 [h, w, 2C], ...} with the other columns as `Transform` gives them.
    `flip`: use the mirrored copy in half of the visits."""

    flip: bool = False
    tokenize: Callable[[str], np.ndarray] | None = None
    max_boxes: int = 0
    task: Task | None = None

    def __call__(self, row: Row, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        if self.flip and "mirrored" not in row:
            raise ValueError(f"{row['name']}: flip=True, but this latent cache holds no mirrored copies; rebuild it with them")
        if self.flip and rng is not None and rng.random() < 0.5:
            row = mirror({**row, "moments": row["mirrored"]}, ("label_map",))
        example = {"moments": row["moments"].astype(np.float32)} | other_columns(row, self.tokenize, self.max_boxes, rng)
        return example | of_task(self.task, example, row, rng)


def other_columns(
    row: Row, tokenize: Callable[[str], np.ndarray] | None, max_boxes: int, rng: np.random.Generator | None
) -> dict[str, np.ndarray]:
    """All that goes with an image: label, tokens of one of the captions, label map, padded boxes, what was done to it."""
    example = {"augment": row["augment"]} if "augment" in row else {}
    if "label" in row:
        example["label"] = np.int32(row["label"])
    if tokenize is not None:
        if "caption" not in row:
            raise ValueError(f"{row.get('name', 'row')} has no caption to tokenize; ask the source for that column")
        said = row["caption"]
        if not isinstance(said, str):
            said = said[int(rng.integers(len(said))) if rng is not None and len(said) > 1 else 0]
        example["tokens"] = tokenize(said)
    if "label_map" in row:
        example["label_map"] = row["label_map"].astype(np.int32)
    if "conditioning" in row:
        example["conditioning"] = Transform.scaled(row["conditioning"])
    if "boxes" in row and max_boxes:
        boxes, labels = np.zeros((max_boxes, 4), np.float32), np.full(max_boxes, -1, np.int32)
        count = min(max_boxes, len(row["boxes"]))
        boxes[:count], labels[:count] = row["boxes"][:count], row["box_labels"][:count]
        example |= {"boxes": boxes, "box_labels": labels}
    return example


def of_task(task: Task | None, example: Row, row: Row, rng: np.random.Generator | None) -> Row:
    """What a task adds to an example."""
    if task is None:
        return {}
    name = row.get("name", "")
    uncut = {column: row[column] for column in ("boxes", "box_labels") if column in row}
    steady = np.random.default_rng(zlib.crc32(name.encode(errors="surrogateescape"))) if rng is None else rng
    return task({**example, **uncut, "name": name, "crop": row.get("crop", np.float32(WHOLE))}, steady)


def mirror(row: Row, pictures: tuple[str, ...] = PICTURES) -> Row:
    """The row with left and right exchanged."""
    row = row | {name: row[name][:, ::-1] for name in pictures if name in row}
    for name in ("boxes", "crop"):
        if name in row:
            b = row[name]
            row[name] = np.stack([1 - b[..., 2], b[..., 1], 1 - b[..., 0], b[..., 3]], -1)
    return row


def clip_boxes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes are kept, largest first, and these clipped to [0, 1]; those of which less than a tenth is left are not."""
    inside = np.clip(boxes, 0, 1)
    area, left = (np.prod(b[:, 2:] - b[:, :2], -1) for b in (boxes, inside))
    order = np.argsort(-left, kind="stable")
    order = order[left[order] > 0.1 * area[order]]
    return order, inside[order]


def middle_square(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, 3] -> [size, size, 3]: the largest square around the middle, resized."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])
    return _resize(square, (size, size), Image.Resampling.BICUBIC)


def _check_aspect(what: str, picture: np.ndarray, image: np.ndarray) -> None:
    height, width = picture.shape[:2]
    if abs(height * image.shape[1] - width * image.shape[0]) > max(height, width):
        raise ValueError(f"{what} is {(width, height)}, of another aspect than the image")


def _resize(pixels: np.ndarray, to: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    if pixels.shape[1::-1] == to:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(to, how))
