"""From a row of raw columns to the arrays of one example.

`fit` decodes and resizes (bicubic, anti-aliased) until the shorter side fits; `Transform` crops and flips what `fit`
leaves, and turns the other columns along with it. The two are apart so that `in_memory` can keep the result of the first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ldm_jax.data.decode import decode_map, decode_rgb

Row = dict[str, Any]


@dataclass(frozen=True)
class Transform:
    """Row -> {"image": float32 [H, W, 3] in [-1, 1], ...}, with as many of these as the row has columns for:

    label        int32 []
    tokens       int32 [L], `tokenize` of the caption, one drawn if there are several; left out without `tokenize`
    label_map    int32 [H, W]
    boxes        float32 [max_boxes, 4] as fractions of the crop, largest first, padded with 0;
    box_labels   int32 [max_boxes], padded with -1; both left out if max_boxes is 0

    size         of the output: a side, or (height, width)
    crop         "center" or "random"
    flip         left-right in half of the visits. Not for captions or labels that tell left from right.
    min_side     images with a shorter side than this are refused
    """

    size: int | tuple[int, int]
    crop: str = "center"
    flip: bool = False
    min_side: int = 1
    tokenize: Callable[[str], np.ndarray] | None = None
    max_boxes: int = 0

    def __post_init__(self):
        if self.crop not in ("center", "random"):
            raise ValueError(f"crop={self.crop!r}: choose 'center' or 'random'")
        if min(self.shape) < 1:
            raise ValueError(f"size={self.size!r}: at least 1 pixel")

    @property
    def shape(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)

    def fit(self, row: Row) -> Row:
        """The row with its image as uint8 [h, w, 3] (and label map as int32 [h, w]), resized so that it just covers
        the output. A row that is so already stays as it is."""
        if isinstance(row["image"], np.ndarray):
            return row
        height, width = self.shape
        row = dict(row)
        name = row.get("name", "image")
        image = decode_rgb(row["image"], name, max(height, width, self.min_side))
        if min(image.shape[:2]) < self.min_side:
            raise ValueError(f"{name} is {image.shape[1]} x {image.shape[0]}: smaller than the allowed {self.min_side} pixels")
        scale = max(height / image.shape[0], width / image.shape[1])
        to = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
        row["image"] = _resize(image, to, Image.Resampling.BICUBIC)
        if "label_map" in row:
            indices = decode_map(row["label_map"], f"label map of {name}")
            if abs(indices.shape[0] * image.shape[1] - indices.shape[1] * image.shape[0]) > max(indices.shape):
                raise ValueError(f"{name}: its label map is {indices.shape[::-1]}, of another aspect than the image")
            row["label_map"] = _resize(indices, to, Image.Resampling.NEAREST)
        return row

    def __call__(self, row: Row, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """One example. Without `rng` nothing is random: centre crop, no flip, the first caption."""
        row = self.fit(row)
        height, width = self.shape
        free = row["image"].shape[0] - height, row["image"].shape[1] - width
        if self.crop == "random" and rng is not None:
            top, left = (int(rng.integers(f + 1)) for f in free)
        else:
            top, left = (f // 2 for f in free)
        window = np.s_[top : top + height, left : left + width]
        mirror = self.flip and rng is not None and rng.random() < 0.5
        turn = np.s_[:, ::-1] if mirror else np.s_[:, :]
        example = {"image": row["image"][window][turn].astype(np.float32) / np.float32(127.5) - np.float32(1)}
        if "label_map" in row:
            example["label_map"] = np.ascontiguousarray(row["label_map"][window][turn])
        if "boxes" in row and self.max_boxes:
            full = np.array([row["image"].shape[1], row["image"].shape[0]] * 2, np.float32)
            boxes = (row["boxes"] * full - np.float32([left, top] * 2)) / np.float32([width, height] * 2)
            example |= pad_boxes(mirror_boxes(boxes) if mirror else boxes, row["box_labels"], self.max_boxes)
        return example | words_and_label(row, self.tokenize, rng)


def words_and_label(row: Row, tokenize: Callable[[str], np.ndarray] | None, rng: np.random.Generator | None) -> dict:
    """The columns that have no geometry: label, and the tokens of one of the captions."""
    example = {}
    if "label" in row:
        example["label"] = np.int32(row["label"])
    if tokenize is not None:
        said = row["caption"]
        if not isinstance(said, str):
            said = said[int(rng.integers(len(said))) if rng is not None and len(said) > 1 else 0]
        example["tokens"] = tokenize(said)
    return example


def mirror_boxes(boxes: np.ndarray) -> np.ndarray:
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], -1)


def pad_boxes(boxes: np.ndarray, labels: np.ndarray, most: int) -> dict[str, np.ndarray]:
    """Boxes clipped to [0, 1]; those of which the crop left less than a tenth are dropped."""
    inside = np.clip(boxes, 0, 1)
    area, left = (np.prod(b[:, 2:] - b[:, :2], -1) for b in (boxes, inside))
    order = [i for i in np.argsort(-left, kind="stable") if left[i] > 0.1 * area[i]][:most]
    out = np.zeros((most, 4), np.float32), np.full(most, -1, np.int32)
    out[0][: len(order)], out[1][: len(order)] = inside[order], labels[order]
    return {"boxes": out[0], "box_labels": out[1]}


def _resize(pixels: np.ndarray, to: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    if pixels.shape[1::-1] == to:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(to, how))
