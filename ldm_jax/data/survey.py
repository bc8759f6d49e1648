"""What is in a folder of pictures, or in a prepared TFDS data set, before anything is decided about it."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.decode import look_at
from ldm_jax.data.folder import folder
from ldm_jax.data.metadata import CAPTIONS, LABELS
from ldm_jax.data.source import MissingColumn, MissingSplit, Source, Spread, describe
from ldm_jax.data.text_files import read_json
from ldm_jax.data.tokenizer import caption_texts
from ldm_jax.data.transform import Transform

LOOKED_AT = 500  # pictures whose heads are read; captions that are counted
DECODED = 32


@dataclass(frozen=True)
class Survey:
    """What was found.

    kind, path, name  "folder" or "tfds"; the folder, or TFDS's data_dir and the data set's name in it
    train, held_out   how many pictures the splits have; held_out is 0 where there is one split only
    splits            their names, of training and validation; the second is "" where there is one split only
    caption, label    names of the columns; "" where there is none
    class_names       of the labels
    words, different  of captions: the words of one that 95 % do not exceed, and how many different ones there are
    sides             (width, height) of some pictures
    modes             how many of those are "RGB", "grey" and "clear" (with transparency), and "unread"
    seconds           that reading and shrinking one picture takes
    said              all of it in one line
    """

    kind: str
    path: str
    name: str
    train: int
    held_out: int
    splits: tuple[str, str]
    caption: str
    label: str
    class_names: tuple[str, ...]
    words: int
    different: int
    sides: tuple[tuple[int, int], ...]
    modes: tuple[tuple[str, int], ...]
    seconds: float
    said: str


def survey(path: str | Path, conditions: bool = True) -> Survey:
    """Looks into `path`: a folder of images, or one that TFDS has prepared (its data_dir, that of a data set in it, or of a
    version). Without `conditions`, captions and labels are not looked for.

    Raises FileNotFoundError or ValueError, in one sentence, for what can't be trained on: see `folder` and `tfds_source`.
    """
    path = Path(path).expanduser()
    kind, place, name, make = _opener(path)
    train = make("train", ("image",), {})
    split, held = "", None
    for other in ("validation", "test"):
        try:
            split, held = other, make(other, ("image",), {})
            break
        except MissingSplit:
            split = ""
    captioned, caption = _first(make, "caption", CAPTIONS) if conditions else (None, "")
    labelled, label = _first(make, "label", LABELS) if conditions and not caption else (None, "")
    texts = [] if captioned is None else list(caption_texts(_rows(Spread(captioned, LOOKED_AT * 10))))
    lengths = [len(_words(text)) for text in texts]
    sides, modes = _heads(Spread(train, LOOKED_AT))
    return Survey(
        kind=kind,
        path=str(place),
        name=name,
        train=len(train),
        held_out=0 if held is None else len(held),
        splits=("train", split),
        caption=caption,
        label=label,
        class_names=tuple(labelled.info.class_names or ()) if labelled is not None else (),
        words=math.ceil(np.percentile(lengths, 95)) if lengths else 0,
        different=len({word.lower() for text in texts for word in _words(text)}),
        sides=tuple(sides),
        modes=tuple(modes.items()),
        seconds=_seconds(Spread(train, DECODED)),
        said=describe(captioned or labelled or train),
    )


Make = Callable[[str, Sequence[str], dict[str, str]], Source]


def _opener(path: Path) -> tuple[str, Path, str, Make]:
    """(kind, place, name, function that opens a split with these columns, called so)."""
    found = next((found for depth in range(4) if (found := sorted(path.glob("*/" * depth + "dataset_info.json")))), [])
    if not found:
        return "folder", path, "", lambda split, columns, names: folder(path, split, columns, names)
    from ldm_jax.data.tfds_source import tfds_source  # TFDS takes a second to import

    known = {}  # of several versions the last
    for file in found:
        told = read_json(file)
        full = "/".join(filter(None, (told.get("name"), told.get("configName"))))
        known[full] = (f"{full}:{told.get('version')}", file.parents[full.count("/") + 2], file.parent.parent)
    if len(known) > 1:
        below = known[min(known)][2]
        raise ValueError(f"{path} holds {len(known)} data sets, {_some(known)}: name one, such as --data={below}")
    ((name, place, _),) = known.values()
    return "tfds", place, name, lambda split, columns, names: tfds_source(name, split, place, columns, names)


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")


def _first(make: Make, column: str, names: Sequence[str]) -> tuple[Source | None, str]:
    """The training split with `column` under the first of `names` that it has."""
    for name in names:
        try:
            return make("train", ("image", column), {column: name}), name
        except MissingColumn:
            continue
    return None, ""


def _rows(source: Source) -> list[dict[str, Any]]:
    return [source[i] for i in range(len(source))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _heads(source: Source) -> tuple[list[tuple[int, int]], Counter]:
    sides, modes = [], Counter()
    for row in _rows(source):
        try:
            width, height, mode = look_at(row["image"], row["name"])
        except (ValueError, FileNotFoundError):
            modes["unread"] += 1
        else:
            sides.append((width, height))
            modes[mode] += 1
    if not sides:
        raise ValueError(f"{source.info.name}: none of {modes['unread']} pictures can be read; are they images?")
    return sides, modes


def _seconds(source: Source) -> float:
    """That `Transform.fit` of one picture takes, on the average of some."""
    fit, count = Transform(64).fit, 0
    began = time.perf_counter()
    for row in _rows(source):
        try:
            fit(row)
        except (ValueError, FileNotFoundError):
            continue
        count += 1
    return (time.perf_counter() - began) / max(count, 1)
