"""What a source is: random access to rows, each a dict of raw columns.

    image        bytes, a path, or decoded uint8 [H, W, 3]
    sound        the same of a sound: bytes, a path, or decoded float32 [T, channels]
    film         the same of a film: a path (of a file, or of a folder of frames), or decoded uint8 [T, H, W, 3]
    volume       the same of a volume: a path, or decoded numbers [D, H, W]
    text         str, one line
    caption      str, or a tuple of them (one is drawn a visit)
    label        int in [0, len(info.class_names))
    label_map    like image: the file of a semantic map, one index a pixel
    conditioning like image: what a ControlNet is shown beside it
    boxes        float32 [n, 4]: x0, y0, x1, y1 as fractions of width and height
    box_labels   int32 [n]

and `name`, a str that says in errors which row it is. Sources pickle, so that worker processes can have them.
"""

import functools
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

DATA = ("image", "sound", "film", "volume", "text")  # columns with what is learnt and drawn; a source has one of them
FILES = (*(column for column in DATA if column != "text"), "label_map", "conditioning")  # that may hold the path of a file
COLUMNS = (*DATA, "caption", "label", "label_map", "conditioning", "boxes", "box_labels")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class DamagedData(ValueError):
    """Stored rows that are not what was written. Never passed by as an unreadable image is, since they can be made again."""


class MissingColumn(ValueError):
    """A column that a source doesn't have."""


class MissingSplit(ValueError):
    """A split that a source doesn't have."""


@dataclass(frozen=True)
class Info:
    """What a source holds.

    columns      what every row has
    class_names  of `label`, None if there are no labels or no names to them; `box_names` likewise of `box_labels`
    captions     how many there are, None where nobody counted
    left_out     what was found and is no row: (what it is, how many), such as ("hidden or system folders", 2)
    remarks      further sentences about it
    """

    name: str
    columns: tuple[str, ...]
    class_names: tuple[str, ...] | None = None
    box_names: tuple[str, ...] | None = None
    captions: int | None = None
    left_out: tuple[tuple[str, int], ...] = ()
    remarks: tuple[str, ...] = ()


class Source(Protocol):
    """Random access to rows. Sources may also have

    __getitems__(numbers)   many rows at once, where that is faster
    stamp()                 text that changes whenever files of the source do, without reading them (see `latent_cache`)
    skipped                 how many rows could not be read and are left out
    all_texts()             the column "text" of all rows, where other columns of a row take time
    """

    info: Info

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def describe(source: Source) -> str:
    """What was found, in one line: images (or sounds), classes, captions, and how many things are left out and why."""
    info = source.info
    what = next((column for column in DATA if column in info.columns), "row")
    said = [_counted(len(source), what)]
    if "label" in info.columns and info.class_names:
        some = ", ".join(info.class_names[:6]) + (", ..." if len(info.class_names) > 6 else "")
        said.append(f"{_counted(len(info.class_names), 'class', 'classes')} ({some})")
    elif "label" in info.columns:
        said.append("labels")
    if "caption" in info.columns:
        said.append("captions" if info.captions is None else _counted(info.captions, "caption"))
    others = ("label_map", "label maps"), ("conditioning", "conditioning pictures"), ("boxes", "boxes")
    said += [words for column, words in others if column in info.columns]
    skipped = getattr(source, "skipped", 0)
    left = [*info.left_out, *([(f"{what}s that can't be read", skipped)] if skipped else [])]
    passed = ["left out: " + ", ".join(f"{count} {what}" for what, count in left)] if left else []
    return "; ".join([", ".join(said), *info.remarks, *passed])


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def choose_columns(
    name: str, asked: Sequence[str] | None, present: Sequence[str], others: Collection[str] = ()
) -> tuple[str, ...]:
    """The columns to deliver: those asked for, or all that are present; says which are missing. `others`: what else the rows
    say under names that nobody asked for, one of which may be meant."""
    unknown = [c for c in asked or () if c not in COLUMNS]
    if unknown:
        raise ValueError(f"{name}: unknown column {unknown[0]!r}; choose from {', '.join(COLUMNS)}")
    missing = [c for c in asked or () if c not in present]
    if missing:
        meant = ""
        if others:
            one = next(iter(others)) if len(others) == 1 else "NAME"
            flag = f"--config.data.{missing[0]}_column={one}"
            meant = f". They say {', '.join(sorted(others)[:8])} besides: if one of them is meant, name it, {flag}"
        have = ", ".join(present) or "none"
        raise MissingColumn(f"{name}: there is no column {missing[0]!r}; its rows have {have}{meant}")
    return tuple(c for c in COLUMNS if c in (present if asked is None else asked))


def canonical_split(name: str) -> str:
    """'val' -> 'validation' and the like; other names stay."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), name)


def parse_split(split: str) -> tuple[str, tuple[str, str] | None]:
    """'train[:90%]' -> ('train', ('', '90%')); 'train' -> ('train', None)."""
    match = re.fullmatch(r"(\w[\w-]*)(?:\[(\d+%?)?:(\d+%?)?\])?", split)
    if match is None:
        raise ValueError(f"split={split!r}: expected a name such as 'train', or part of one: 'train[:90%]', 'train[90%:]'")
    if "[" not in split:
        return match[1], None
    bounds = match[2] or "", match[3] or ""
    if wrong := [bound for bound in bounds if bound.endswith("%") and int(bound[:-1]) > 100]:
        raise ValueError(f"split={split!r}: {wrong[0]} is more than there is; parts end at 100%")
    alike = bounds[0].endswith("%") == bounds[1].endswith("%")
    if all(bounds) and alike and int(bounds[0].rstrip("%")) >= int(bounds[1].rstrip("%")):
        raise ValueError(f"split={split!r}: the part begins where it ends or behind that, so nothing is in it")
    return match[1], bounds


def slice_bounds(bounds: tuple[str, str], count: int) -> slice:
    """The slice of `count` rows that bounds like ('', '90%') or ('100', '') name."""

    def position(text: str, default: int) -> int:
        if not text:
            return default
        return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    return slice(position(bounds[0], 0), position(bounds[1], count))


def select(splits: Mapping[str, list[dict[str, Any]]], split: str, column: str, where: str) -> list[dict[str, Any]]:
    """The rows of a split, or of a part of one: the parts of rows in the order of their `column`'s hash, so that each is a fair
    sample, and rows alike in it are in one part. `splits`: rows by name, or all of them as ""; `where`: whose they are.
    MissingSplit, or ValueError for no rows."""
    name, part = parse_split(split)
    key = canonical_split(name)
    if key not in splits:
        if set(splits) != {""} or key != "train":
            there = ", ".join(repr(k or "train") for k in sorted(splits))
            raise MissingSplit(f"{where} has no split {name!r} but {there}; parts are written 'train[:90%]', 'train[90%:]'")
        key = ""
    rows = splits[key]
    if part is not None:
        rows = sorted(rows, key=lambda row: (zlib.crc32(row[column].encode(errors="surrogateescape")), row[column]))
        bounds = slice_bounds(part, len(rows))
        rows = rows[_between(rows, bounds.start, column) : _between(rows, bounds.stop, column)]
    if not rows:
        raise ValueError(f"{where}: split {split!r} is empty")
    return rows


def _between(rows: list[dict[str, Any]], at: int, column: str) -> int:
    """`at`, or the next place that doesn't part rows that are alike."""
    while 0 < at < len(rows) and rows[at - 1][column] == rows[at][column]:
        at += 1
    return at


def check_on_error(on_error: str) -> None:
    """Refuses what is neither "raise" nor "skip", the two things to do about an unreadable image."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: choose 'raise' or 'skip'")


def spread_rows(count: int, num: int) -> np.ndarray:
    """Which `num` of `count` rows stand for all, int64 [num], in order: one of each of `num` equal parts, so that classes keep
    their shares where rows are sorted by class; any one of its part, so that they do where classes take turns. Always the same
    ones. ValueError for more than there are."""
    if num > count:
        raise ValueError(f"num={num} rows of {count}")
    ends = np.arange(num + 1, dtype=np.int64) * count // max(num, 1)
    return ends[:-1] + np.floor(np.random.default_rng(0).random(num) * np.diff(ends)).astype(np.int64)


@dataclass(frozen=True)
class Spread:
    """`count` rows of a source (all, if it has fewer), spread over it, `spread_rows`."""

    source: Source
    count: int

    @property
    def info(self) -> Info:
        """That of the whole source."""
        return self.source.info

    def __len__(self) -> int:
        return min(self.count, len(self.source))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.source[int(self._rows[index])]

    @functools.cached_property
    def _rows(self) -> np.ndarray:
        return spread_rows(len(self.source), len(self))
