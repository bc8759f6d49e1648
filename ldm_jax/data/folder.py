"""A folder of images as a source: the Hugging Face `imagefolder` convention, class subfolders, or bare files.

    root/metadata.jsonl          a row an image: file_name, relative to the metadata's own folder, and any of
                                 caption, label (with label_name), label_map_file_name, boxes, split
    root/train/metadata.jsonl    the same with a folder a split (train; val, valid or validation; test)
    root/[train/]daisy/1.jpg     without metadata: subfolders are classes
    root/[train/]1.jpg           no columns but image

`boxes` is a list of {"label": 3, "name": "car", "box": [x0, y0, x1, y1]}, in fractions of width and height.
Everything but the pixels is read and checked here, so that mistakes show before anything else happens.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.source import SPLIT_NAMES, Info, canonical_split, choose_columns, parse_split, slice_bounds

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
NAMES = {"caption": "caption", "label": "label", "label_map": "label_map_file_name", "boxes": "boxes"}
Row = dict[str, Any]


class Folder:
    """The rows of a folder; made by `folder`."""

    def __init__(self, info: Info, rows: Sequence[Row]):
        self.info = info
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self._rows[index])


def folder(
    path: str | Path,
    split: str = "train",
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    class_names: Sequence[str] | str | Path | None = None,
) -> Folder:
    """The images below `path`.

    split        a split folder, a value of the `split` column, or, where a folder has no splits, 'train' for all of
                 it. Parts are written 'train[:90%]', 'train[90%:]' (by hash of the file name: classes stay mixed).
    columns      what is needed of image, caption, label, label_map, boxes, box_labels; None: all that are there
    names        what they are called in metadata.jsonl if not caption, label, label_map_file_name, boxes
    class_names  of `label`: a list, or a JSON file with one. By default from subfolders, text labels or label_name.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    names = {**NAMES, **(names or {})}
    splits = _read_splits(root)
    if not any(splits.values()):
        raise ValueError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))}), neither directly nor in subfolders")
    rows = _select(splits, split, root)
    _check_files(rows, names["label_map"])

    has = {column: [row for row in rows if row.get(theirs) not in (None, "")] for column, theirs in names.items()}
    present = ("image", *(column for column, found in has.items() if found))
    chosen = choose_columns(str(root), columns, present + (("box_labels",) if "boxes" in present else ()))
    for column in chosen:
        found = has.get(column, rows)
        if len(found) < len(rows):
            first = next(row for row in rows if row.get(names[column]) in (None, ""))
            raise ValueError(
                f"{root}: {len(found)} of {len(rows)} rows have a {names[column]}; the first without is "
                f"{first['file_name']}. Complete metadata.jsonl or remove those rows"
            )
    every = [row for group in splits.values() for row in group]
    index = _label_index(every, names["label"], class_names, root) if "label" in chosen else {}
    boxes = _box_index(every, names["boxes"]) if "box_labels" in chosen else {}
    info = Info(str(root), chosen, tuple(map(str, index.values())) or None, tuple(boxes.values()) or None)
    number = {label: i for i, label in enumerate(index)}
    return Folder(info, [_deliver(row, chosen, names, number) for row in rows])


def _read_splits(root: Path) -> dict[str, list[Row]]:
    """All rows by split; a folder without splits has the one key ''."""
    subfolders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
    known = {name for names in SPLIT_NAMES.values() for name in names}
    if (root / "metadata.jsonl").is_file():
        splits: dict[str, list[Row]] = {}
        for row in _read_metadata(root):
            splits.setdefault(canonical_split(str(row.get("split", ""))), []).append(row)
        if "" in splits and len(splits) > 1:
            first = splits[""][0]["file_name"]
            raise ValueError(f"{root}/metadata.jsonl: {len(splits[''])} rows have no split, the first is {first}")
        return splits
    if any(name.lower() in known for name in subfolders):
        splits = {}
        for name in sorted(subfolders):
            if name.lower() in known:
                splits.setdefault(canonical_split(name), []).extend(_read_rows(root / name))
        return splits
    return {"": _read_rows(root)}


def _read_rows(root: Path) -> list[Row]:
    if (root / "metadata.jsonl").is_file():
        return _read_metadata(root)
    for other in ("metadata.csv", "metadata.parquet"):
        if (root / other).is_file():
            raise ValueError(f"{root / other}: only metadata.jsonl is read, a JSON object a line; convert it")
    rows: list[Row] = []
    for folder_name, _, files in sorted(os.walk(root, followlinks=True)):
        inside = Path(folder_name).relative_to(root)
        classes = {"label": inside.parts[0]} if inside.parts else {}
        images = sorted(f for f in files if Path(f).suffix.lower() in SUFFIXES and not f.startswith("."))
        rows += [{"file_name": (inside / f).as_posix(), "_folder": root, **classes} for f in images]
    if rows and 0 < sum("label" in row for row in rows) < len(rows):
        bare = next(row["file_name"] for row in rows if "label" not in row)
        raise ValueError(f"{root} has images in class subfolders and beside them, such as {bare}; sort them in")
    return rows


def _read_metadata(root: Path) -> list[Row]:
    rows = []
    with open(root / "metadata.jsonl", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{root}/metadata.jsonl, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise ValueError(f"{root}/metadata.jsonl, line {number}: a row needs a file_name")
            rows.append({**row, "_folder": root})
    return rows


def _select(splits: dict[str, list[Row]], split: str, root: Path) -> list[Row]:
    name, part = parse_split(split)
    key = canonical_split(name)
    if key not in splits:
        if set(splits) != {""} or key != "train":
            there = ", ".join(repr(k or "train") for k in sorted(splits))
            raise ValueError(f"{root} has no split {name!r} but {there}; parts are written 'train[:90%]', 'train[90%:]'")
        key = ""
    rows = splits[key]
    if part is not None:
        rows = sorted(rows, key=lambda row: (zlib.crc32(row["file_name"].encode()), row["file_name"]))
        rows = rows[slice_bounds(part, len(rows))]
    if not rows:
        raise ValueError(f"{root}: split {split!r} is empty")
    return rows


def _check_files(rows: list[Row], map_name: str) -> None:
    present: dict[Path, set[str]] = {}
    missing = []
    for row in rows:
        for path in (row["_folder"] / row[n] for n in ("file_name", map_name) if row.get(n) is not None):
            if path.parent not in present:
                present[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in present[path.parent]:
                missing.append(path)
    if missing:
        raise FileNotFoundError(f"{len(missing)} files named in metadata.jsonl do not exist; the first is {missing[0]}")


def _label_index(rows: list[Row], theirs: str, class_names: Any, root: Path) -> dict[Any, str]:
    """Label as written -> name, in class order, over all splits."""
    labels = [row[theirs] for row in rows if row.get(theirs) is not None]
    odd = next((v for v in labels if isinstance(v, bool) or not isinstance(v, int | str)), None)
    if odd is not None or len({type(v) for v in labels}) > 1:
        raise ValueError(f"{root}: labels must all be whole numbers or all text; found {odd if odd is not None else 'both'}")
    if isinstance(class_names, str | Path):
        class_names = json.loads(Path(class_names).expanduser().read_text(encoding="utf-8"))
    if isinstance(labels[0], str):
        order = list(class_names) if class_names is not None else sorted(set(labels))
        index = {name: name for name in order}
    else:
        said = {row[theirs]: row["label_name"] for row in rows if row.get(theirs) is not None and row.get("label_name")}
        order = class_names if class_names is not None else [said.get(i, str(i)) for i in range(max(labels) + 1)]
        index = dict(enumerate(order))
    wrong = next((row for row in rows if row.get(theirs) is not None and row[theirs] not in index), None)
    if wrong is not None:
        raise ValueError(
            f"{root}: {wrong['file_name']} has label {wrong[theirs]!r}, outside the {len(index)} classes "
            f"({', '.join(map(str, order[:8]))}{' ...' if len(order) > 8 else ''})"
        )
    return index


def _box_index(rows: list[Row], theirs: str) -> dict[int, str]:
    named: dict[int, str] = {}
    for row in rows:
        for box in row.get(theirs) or ():
            if not isinstance(box, dict) or not {"label", "box"} <= box.keys() or len(box["box"]) != 4:
                raise ValueError(f"{row['file_name']}: a box is {{'label': 0, 'box': [x0, y0, x1, y1]}}, not {box!r}")
            x0, y0, x1, y1 = box["box"]
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and isinstance(box["label"], int) and box["label"] >= 0):
                raise ValueError(f"{row['file_name']}: box {box!r}: need label >= 0, 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1")
            named.setdefault(box["label"], box.get("name", str(box["label"])))
    return {i: named.get(i, str(i)) for i in range(max(named, default=-1) + 1)}


def _deliver(row: Row, columns: Sequence[str], names: Mapping[str, str], index: Mapping[Any, int]) -> Row:
    out: Row = {"name": str(row["_folder"] / row["file_name"])}
    for column in columns:
        if column == "image":
            out[column] = out["name"]
        elif column == "label":
            out[column] = (
                list(index).index(row[names["label"]]) if isinstance(row[names["label"]], str) else row[names["label"]]
            )
        elif column == "label_map":
            out[column] = str(row["_folder"] / row[names["label_map"]])
        elif column == "caption":
            said = row[names["caption"]]
            several = said if isinstance(said, list) else [said]
            if not several or not all(isinstance(text, str) and text for text in several):
                raise ValueError(f"{out['name']}: a caption is text or a list of texts, not {said!r}")
            out[column] = tuple(several) if isinstance(said, list) else said
        elif column == "boxes":
            out[column] = np.array([box["box"] for box in row[names["boxes"]]], np.float32).reshape(-1, 4)
        elif column == "box_labels":
            out[column] = np.array([box["label"] for box in row[names["boxes"]]], np.int32)
    return out
