"""What a source is: random access to rows, each a dict of raw columns.

    image        bytes, a path, or decoded uint8 [H, W, 3]
    caption      str, or a tuple of them (one is drawn a visit)
    label        int in [0, len(info.class_names))
    label_map    like image: the file of a semantic map, one index a pixel
    boxes        float32 [n, 4]: x0, y0, x1, y1 as fractions of width and height
    box_labels   int32 [n]

and `name`, a str that says in errors which row it is. Sources pickle, so that worker processes can have them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

COLUMNS = ("image", "caption", "label", "label_map", "boxes", "box_labels")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


@dataclass(frozen=True)
class Info:
    """`columns`: what every row has. `class_names`: of `label`, None if there are no labels or no names to them."""

    name: str
    columns: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    box_names: tuple[str, ...] | None = None


class Source(Protocol):
    info: Info

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def choose_columns(name: str, asked: Sequence[str] | None, present: Sequence[str]) -> tuple[str, ...]:
    """The columns to deliver: those asked for, or all that are present; says which are missing."""
    unknown = [c for c in asked or () if c not in COLUMNS]
    if unknown:
        raise ValueError(f"{name}: unknown column {unknown[0]!r}; choose from {', '.join(COLUMNS)}")
    missing = [c for c in asked or () if c not in present]
    if missing:
        raise ValueError(f"{name}: there is no column {missing[0]!r}; its rows have {', '.join(present) or 'none'}")
    return tuple(c for c in COLUMNS if c in (present if asked is None else asked))


def canonical_split(name: str) -> str:
    """'val' -> 'validation' and the like; other names stay."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), name)


def parse_split(split: str) -> tuple[str, tuple[str, str] | None]:
    """'train[:90%]' -> ('train', ('', '90%')); 'train' -> ('train', None)."""
    match = re.fullmatch(r"(\w[\w-]*)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if match is None:
        raise ValueError(f"split={split!r}: expected a name such as 'train', or part of one: 'train[:90%]', 'train[90%:]'")
    return match[1], (match[2] or "", match[3] or "") if "[" in split else None


def slice_bounds(bounds: tuple[str, str], count: int) -> slice:
    """The slice of `count` rows that bounds like ('', '90%') or ('100', '') name."""

    def position(text: str, default: int) -> int:
        if not text:
            return default
        return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    return slice(position(bounds[0], 0), position(bounds[1], count))


def check_on_error(on_error: str) -> None:
    """Refuses what is neither "raise" nor "skip", the two things to do about an unreadable image."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: choose 'raise' or 'skip'")


@dataclass(frozen=True)
class Spread:
    """`count` rows of a source, evenly spread over it: sources are often sorted by class."""

    source: Source
    count: int

    @property
    def info(self) -> Info:
        return self.source.info

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[index * len(self.source) // len(self)]
