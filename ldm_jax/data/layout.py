"""Layouts as tokens: what is where in a picture, in the coding of the paper's layout-to-image models.

    [class, top left, bottom right] x objects, [top left, bottom right] of the crop

    corner (x, y) in [0, 1]^2  ->  round(y (G - 1)) G + round(x (G - 1)),  G = floor(sqrt(vocabulary)), 90 for 8192

Places without an object hold the vocabulary's last token three times. Boxes are fractions of the whole picture, and the crop
says which part of it is seen: a box may reach beyond. This is CompVis/taming-transformers
`taming/data/conditional_builder/objects_bbox.py: ObjectsBoundingBoxConditionalBuilder`; with the default 30 objects, 92 tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.text_files import read_json
from ldm_jax.primitives.choices import composed, did_you_mean

WHOLE = (0.0, 0.0, 1.0, 1.0)
Objects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class LayoutCode:
    """How many `objects` fit, out of how many tokens, and whether the crop is told."""

    objects: int = 30
    vocab_size: int = 8192
    crop: bool = True

    def __post_init__(self):
        if self.objects < 1 or self.vocab_size < 5:
            raise ValueError(f"objects={self.objects}, vocab_size={self.vocab_size}: at least 1 object and 5 tokens")
        if self.grid**2 == self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size}: a square leaves no token for 'none', which is the last one; "
                f"take {self.vocab_size + 1}"
            )

    @property
    def grid(self) -> int:
        """G: corners lie on G x G points."""
        return math.isqrt(self.vocab_size)

    @property
    def none(self) -> int:
        """The token of a place without an object."""
        return self.vocab_size - 1

    @property
    def length(self) -> int:
        """Tokens of a layout."""
        return 3 * self.objects + 2 * self.crop


def layout_code(length: int, vocab_size: int) -> LayoutCode:
    """The code of rows of `length` tokens: 3 an object, and 2 of the crop if they are left over."""
    if length % 3 == 1 or length < 3:
        raise ValueError(f"{length} tokens: a layout has 3 an object, and 2 more if it tells the crop, such as 32 or 92")
    return LayoutCode(length // 3, vocab_size, length % 3 == 2)


def encode(
    code: LayoutCode,
    boxes: np.ndarray,
    labels: np.ndarray,
    crop: Sequence[float] = WHOLE,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Boxes [n, 4] (x0, y0, x1, y1) and labels [n] -> int32 [L]. With more objects than fit, the first are taken. With `rng`
    their order is random, as the reference trains. ValueError for boxes outside of the picture and unknown labels."""
    boxes, labels = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, np.int64).reshape(-1)
    if len(boxes) != len(labels):
        raise ValueError(f"{len(boxes)} boxes and {len(labels)} labels: one label a box")
    for box in (*boxes, np.asarray(crop, np.float64)):
        _check_box(box.tolist())
    if len(labels) and not (0 <= labels.min() and labels.max() < code.none):
        worst = labels.max() if labels.max() >= code.none else labels.min()
        raise ValueError(f"label {worst}: classes of this layout code are numbered 0 to {code.none - 1}")
    order = np.arange(min(len(boxes), code.objects))
    if rng is not None:
        rng.shuffle(order)
    tokens = np.full(code.length, code.none, np.int32)
    rows = tokens[: 3 * code.objects].reshape(-1, 3)
    rows[: len(order), 0] = labels[order]
    rows[: len(order), 1:] = _corner_tokens(code, boxes[order])
    if code.crop:
        tokens[-2:] = _corner_tokens(code, np.asarray(crop)[None])[0]
    return tokens


def decode(code: LayoutCode, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 [L] -> boxes float32 [n, 4], labels int32 [n], crop float32 [4]: what `encode` was given, corners to the nearest
    point of the grid."""
    tokens = np.asarray(tokens, np.int32)
    if tokens.shape != (code.length,):
        raise ValueError(f"tokens of shape {tokens.shape}: a layout of {code.objects} objects has ({code.length},)")
    rows = tokens[: 3 * code.objects].reshape(-1, 3)
    rows = rows[rows[:, 0] != code.none]
    crop = _corners(code, tokens[None, -2:])[0] if code.crop else np.float32(WHOLE)
    return _corners(code, rows[:, 1:]), rows[:, 0], crop


def layout_tokens(example: dict, rng: np.random.Generator, *, code: LayoutCode) -> dict:
    """A training example's {"layout": int32 [L]}, of its `boxes`, `box_labels` and `crop`."""
    crop = example["crop"] if code.crop else WHOLE
    return {"layout": encode(code, example["boxes"], example["box_labels"], crop, rng)}


def read_layout(source: str | Path | Objects, names: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Boxes float32 [n, 4] and labels int32 [n] of a JSON file, or of what one holds: a list of
    {"label": 3, "box": [x0, y0, x1, y1]} or {"name": "car", "box": ...}, in fractions of width and height.

    Raises ValueError that says which object is wrong: no box, a box out of range, a class that is not among `names`.
    """
    where = "layout"
    if isinstance(source, (str, Path)):
        where = str(source)
        if not Path(source).is_file():
            raise FileNotFoundError(f"no layout file {source}")
        source = read_json(source)
    if not isinstance(source, Sequence) or not all(isinstance(thing, Mapping) for thing in source):
        raise ValueError(f'{where}: a layout is a list of {{"label": 3, "box": [x0, y0, x1, y1]}}, not {str(source)[:80]}')
    boxes, labels = [], []
    for number, thing in enumerate(source):
        try:
            boxes.append(_box(thing))
            labels.append(_label(thing, names))
        except ValueError as error:
            raise ValueError(f"{where}, object {number}: {error}") from None
    return np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int32)


def _box(thing: Mapping[str, Any]) -> list[float]:
    box = thing.get("box")
    numbers = isinstance(box, Sequence) and all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in box)
    if not numbers or len(box) != 4:
        raise ValueError(f'"box" must be [x0, y0, x1, y1], it is {box!r}')
    _check_box(box)
    return list(box)


def _check_box(box: Sequence[float]) -> None:
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(
            f"box {[round(v, 4) for v in box]}: need 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, as fractions of width and "
            "height; divide pixels by the picture's size"
        )


def _label(thing: Mapping[str, Any], names: Sequence[str] | None) -> int:
    label, name = thing.get("label"), thing.get("name")
    if "label" in thing:
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or label < 0:
            raise ValueError(f'"label" must be a class number, it is {label!r}; names go into "name"')
        if names is not None and label >= len(names):
            raise ValueError(f"label {label}: classes are numbered 0 to {len(names) - 1}")
    elif "name" not in thing:
        raise ValueError('neither "label" nor "name" says what it is')
    elif names is None:
        raise ValueError(f'"name" {name!r}: this model came without names of its classes, give the number as "label"')
    forms = [composed(each.strip()) for each in names or ()]
    found = forms.index(said) if isinstance(name, str) and (said := composed(name.strip())) in forms else None
    if "label" not in thing and found is None:
        raise ValueError(f"unknown class {name!r}.{did_you_mean(name, names)} Classes: {', '.join(names[:20])}")
    if "label" in thing and found not in (None, label):
        raise ValueError(f'"label" {label} is the class {names[label]!r}, and "name" says {name!r}: give one of them')
    return int(label if found is None else found)


def _corner_tokens(code: LayoutCode, boxes: np.ndarray) -> np.ndarray:
    """[n, 4] -> [n, 2]."""
    places = np.round(boxes * (code.grid - 1)).astype(np.int32)  # halves to even, as Python's round
    return places[:, 1::2] * code.grid + places[:, 0::2]


def _corners(code: LayoutCode, tokens: np.ndarray) -> np.ndarray:
    """[n, 2] -> [n, 4]."""
    y, x = np.divmod(tokens, code.grid)
    return (np.stack([x, y], -1).reshape(-1, 4) / (code.grid - 1)).astype(np.float32)
