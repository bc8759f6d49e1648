"""What is in a folder of pictures, or in a prepared TFDS data set, before anything is decided about it."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.decode import look_at
from ldm_jax.data.folder import folder
from ldm_jax.data.metadata import CAPTIONS, LABELS
from ldm_jax.data.source import MissingColumn, MissingSplit, Source, Spread, describe
from ldm_jax.data.text_files import read_json
from ldm_jax.data.tokenizer import caption_texts, words_of
from ldm_jax.data.transform import Transform
from ldm_jax.data.walk import is_hidden

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
    lacking           what is wrong with that column in the second split, in words; "" where nothing is
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
    lacking: str = ""


def survey(
    path: str | Path, conditions: bool = True, names: Mapping[str, str] | None = None, splits: Sequence[str] = ("", "")
) -> Survey:
    """Looks into `path`: a folder of images, or one that TFDS has prepared (its data_dir, that of a data set in it, or of a
    version).

    conditions  whether captions and labels are looked for
    names       what the columns image, caption and label are called; those that aren't named are looked for under usual names,
                and labels that are named before captions that are not
    splits      of training and validation, or parts of them; "": the usual ones

    Raises FileNotFoundError or ValueError, in one sentence, for what can't be trained on: see `folder` and `tfds_source`.
    """
    path, named = Path(path).expanduser(), dict(names or {})
    kind, place, name, open_split = _opener(path)
    image = {column: theirs for column, theirs in named.items() if column == "image" and kind == "tfds"}

    def make(split: str, columns: Sequence[str], called: Mapping[str, str]) -> Source:
        return open_split(split, columns, {**image, **called})

    first = splits[0] or "train"
    train = make(first, ("image",), {})
    captioned = labelled = None
    caption = label = ""
    if conditions and ("caption" in named or "label" not in named):
        captioned, caption = _first(make, first, "caption", named, CAPTIONS)
    if conditions and not caption:
        labelled, label = _first(make, first, "label", named, LABELS)
    second, held = _held_out(make, splits[1])
    lacking = ""
    if second and (caption or label):
        column = "caption" if caption else "label"
        try:
            make(second, ("image", column), {column: caption or label})
        except ValueError as error:
            lacking = f"{error}. Pictures that are held out need a {column}, as those of {first} have it"
    texts = [] if captioned is None else list(caption_texts(_rows(Spread(captioned, LOOKED_AT * 10))))
    lengths = [len(words_of(text)) for text in texts]
    sides, modes = _heads(Spread(train, LOOKED_AT))
    return Survey(
        kind=kind,
        path=str(place),
        name=name,
        train=len(train),
        held_out=0 if held is None else len(held),
        splits=(first, second),
        caption=caption,
        label=label,
        class_names=tuple(labelled.info.class_names or ()) if labelled is not None else (),
        words=math.ceil(np.percentile(lengths, 95)) if lengths else 0,
        different=len({word for text in texts for word in words_of(text)}),
        sides=tuple(sides),
        modes=tuple(modes.items()),
        seconds=_seconds(Spread(train, DECODED)),
        said=describe(captioned or labelled or train),
        lacking=lacking,
    )


Make = Callable[[str, Sequence[str], dict[str, str]], Source]


def _opener(path: Path) -> tuple[str, Path, str, Make]:
    """(kind, place, name, function that opens a split with these columns, called so)."""
    places = dict.fromkeys((Path(os.path.abspath(path)), path.resolve()))  # TFDS goes by folders' names, which links change
    found = next((found for place in places for depth in range(4) if (found := _prepared(place, depth))), {})
    if not found:
        return "folder", path, "", lambda split, columns, names: folder(path, split, columns, names)
    from ldm_jax.data.tfds_source import tfds_source  # TFDS takes a second to import

    known = {}  # of several versions the last
    for file, full in found.items():
        known[full] = (f"{full}:{file.parent.name}", file.parents[full.count("/") + 2], file.parent.parent)
    if len(known) > 1:
        below = known[min(known)][2]
        raise ValueError(f"{path} holds {len(known)} data sets, {_some(known)}: name one, such as --data={below}")
    ((name, place, _),) = known.values()
    return "tfds", place, name, lambda split, columns, names: tfds_source(name, split, place, columns, names)


def _prepared(path: Path, depth: int) -> dict[Path, str]:
    """What TFDS has prepared so far below `path`: the file of every version, and the data set's name with its config. Other
    programs have files called so, too; TFDS's name a data set and a version, and lie in folders called like these."""
    found = {}
    for file in sorted(path.glob("*/" * depth + "dataset_info.json")):
        if any(map(is_hidden, file.relative_to(path).parts)):
            continue
        try:
            told = read_json(file)
        except (ValueError, OSError):
            continue
        said = [told.get("name"), told.get("configName") or "", told.get("version")] if isinstance(told, dict) else [None]
        if all(isinstance(each, str) for each in said):
            full = "/".join(filter(None, said[:2]))
            if file.parent.as_posix().endswith(f"/{full}/{said[2]}"):
                found[file] = full
    return found


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")


def _first(
    make: Make, split: str, column: str, named: Mapping[str, str], usual: Sequence[str]
) -> tuple[Source | None, str]:
    """The split with `column` as it is named, which it must have then, or under the first of the usual names that it has."""
    if column in named:
        return make(split, ("image", column), {column: named[column]}), named[column]
    for name in usual:
        try:
            return make(split, ("image", column), {column: name}), name
        except MissingColumn:
            continue
    return None, ""


def _held_out(make: Make, split: str) -> tuple[str, Source | None]:
    """The split that is named, or the first of the usual ones that there is."""
    if split:
        return split, make(split, ("image",), {})
    for usual in ("validation", "test"):
        try:
            return usual, make(usual, ("image",), {})
        except MissingSplit:
            continue
    return "", None


def _rows(source: Source) -> list[dict[str, Any]]:
    return [source[i] for i in range(len(source))]


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
