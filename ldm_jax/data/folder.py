"""A folder of images (or sounds) as a source: the Hugging Face `imagefolder` convention, class subfolders, or bare files.

    root/metadata.jsonl          a row an image: file_name, relative to the metadata's own folder, and any of
    (or metadata.csv)            caption, label (with label_name), label_map_file_name, conditioning_file_name, boxes, split
    root/train/metadata.jsonl    the same with a folder a split (train; val, valid or validation; test)
    root/[train/]daisy/1.jpg     without metadata: subfolders are classes
    root/[train/]1.jpg           no columns but image
    1.txt beside 1.jpg           its caption, where no metadata have captions, and unless all those files hold numbers only
    root/[train/]conditioning/   what a ControlNet is shown beside each image, under its name (conditioning/1.png for 1.jpg),
                                 where it is asked for and no metadata say it

Subfolders are splits if all that hold images are named so, or if those that are have metadata of their own; a folder "train"
beside others is refused, since it may be a class. Of metadata in the root without a column `split`, the folders in its
file names are splits likewise. Hidden and system folders are passed by (`walk`), and every file is an image
whose suffix the installed Pillow can open (of other kinds, what their `FileKind` says). `info.left_out` says what was found
and not taken.

`boxes` is a list of {"label": 3, "name": "car", "box": [x0, y0, x1, y1]}, in fractions of width and height.
Everything but the pixels is read and checked here, so that mistakes show before anything else happens.
"""

import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.classes import box_index, class_index
from ldm_jax.data.metadata import add_captions, is_blank, read_table, table_in
from ldm_jax.data.source import SPLIT_NAMES, Info, canonical_split, choose_columns, parse_split, select
from ldm_jax.data.text_files import is_whole
from ldm_jax.data.walk import IMAGES, READ, FileKind, Found, find_files
from ldm_jax.primitives.choices import composed

NAMES = {"caption": "caption", "label": "label", "label_map": "label_map_file_name",
         "conditioning": "conditioning_file_name", "boxes": "boxes"}  # fmt: skip
BESIDE = ("label_map", "conditioning")  # columns that are files, too
Row = dict[str, Any]
CONDITIONING = "conditioning"  # the column, and the folder


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
    kind: FileKind = IMAGES,
) -> Folder:
    """The images below `path`, or the files of another kind.

    split        a split folder, a value of the `split` column, or, where a folder has no splits, 'train' for all of
                 it. Parts are written 'train[:90%]', 'train[90%:]' (by hash of the file name: classes stay mixed).
    columns      what is needed of image (or the kind's column), caption, label, label_map, conditioning, boxes, box_labels;
                 None: all that are there, of a folder `conditioning` none
    names        what the metadata call them if not caption, label, label_map_file_name, conditioning_file_name, boxes
    class_names  of `label`: a list, or a file with one (JSON, or a name a line). By default from subfolders, text labels or
                 label_name.
    kind         of files that are looked for; its column takes the place of "image"
    Raises FileNotFoundError for a folder or named files that are not there, ValueError for everything else that is wrong.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    names = {**NAMES, **(names or {})}
    found, beside = find_files(root, kind), columns is not None and CONDITIONING in columns
    if beside:
        files = {name: those for name, those in found.files.items() if CONDITIONING not in name.split("/")}
        found = Found(files, tuple(n for n in found.folders if CONDITIONING not in n.split("/")), found.left_out)
    splits = _read_splits(root, found, kind, names["label"])
    if not any(splits.values()):
        for folder in found.folders:
            if (not folder or _is_split(folder)) and (table := table_in(root / folder)):
                raise ValueError(f"{table} has no rows, so it names no {kind.many}; complete it, or remove it")
        passed = "".join(f"; passed by: {count} {what}" for what, count in found.left_out.items())
        raise ValueError(
            f"{root} holds no {kind.many} ({', '.join(sorted(kind.suffixes()))}), neither directly nor in subfolders{passed}"
            + (f". {hint}" if (hint := kind.hint()) else "")
        )
    rows = select(splits, split, "file_name", str(root))
    where = _where(root, rows, split if len(splits) > 1 else "")
    every = [row for group in splits.values() for row in group]
    if beside:
        _add_beside(rows, names[CONDITIONING], kind)
    others = tuple(names[column] for column in BESIDE)
    _check_files(rows, others)
    if columns is None or "caption" in columns:
        add_captions(rows, names["caption"], every)

    has = {column: [row for row in rows if not is_blank(row.get(theirs))] for column, theirs in names.items()}
    present = (kind.column, *(column for column, found in has.items() if found))
    further = {name for row in rows for name in row} - {"file_name", "_folder", "split", "label_name", *names.values()}
    chosen = choose_columns(where, columns, present + (("box_labels",) if "boxes" in present else ()), further)
    for column in chosen:
        having = has.get(column, rows)
        if len(having) < len(rows):
            first = next(row for row in rows if is_blank(row.get(names[column])))
            raise ValueError(
                f"{where}: {len(having)} of {len(rows)} rows have a {names[column]}; the first without is "
                f"{first['file_name']}. Complete them or remove those {kind.many}"
            )
    index = class_index(every, names["label"], class_names, root) if "label" in chosen else {}
    boxes = box_index(every, names["boxes"], root) if "box_labels" in chosen else {}
    number = {label: i for i, label in enumerate(index)}
    delivered = [_deliver(row, chosen, names, number, kind) for row in rows]
    info = Info(
        str(root),
        chosen,
        tuple(map(str, index.values())) or None,
        tuple(boxes.values()) or None,
        sum(1 if isinstance(row["caption"], str) else len(row["caption"]) for row in delivered)
        if "caption" in chosen
        else None,
        tuple((_left_out(root, found, every, others, kind) + _of_no_use(splits, split)).items()),
        _in_several(splits, kind) if table_in(root) else (),
    )
    return Folder(info, delivered)


def _read_splits(root: Path, found: Found, kind: FileKind, label: str) -> dict[str, list[Row]]:
    """All rows by split; a folder without splits has the one key ''."""
    splits: dict[str, list[Row]] = {}
    if table := table_in(root):
        rows = read_table(table, label)
        named = [row.get("split") or "" for row in rows]
        for row, name in zip(rows, named if any(named) else _split_folders(rows, table)):
            splits.setdefault(canonical_split(name), []).append(row)
        if "" in splits and len(splits) > 1:
            first = splits[""][0]["file_name"]
            raise ValueError(f"{table}: {len(splits[''])} rows have no split, the first is {first}")
        return splits
    top = {folder for folder in found.folders if folder and "/" not in folder}
    told = {folder for folder in top if _is_split(folder) and table_in(root / folder)}
    holders = {folder.split("/")[0] for folder in found.files if folder} | told
    named = {folder for folder in holders if _is_split(folder)}
    others = holders - named
    if named and others and named != told:
        raise ValueError(
            f"{root}: {_listed(named)} may be a split or a class, since there is {_listed(others)} beside it. If all are "
            f"classes, put them into a folder of their own: {root / 'train' / min(others)}, {root / 'train' / min(named)}, "
            f"...; if {_listed(named)} is a split, move the other folders elsewhere"
        )
    if not named:
        _check_no_splits_below(root, found)
    for folder in sorted(named):
        splits.setdefault(canonical_split(folder), []).extend(_read_rows(root / folder, _below(found, folder), kind, label))
    return splits or {"": _read_rows(root, found, kind, label)}


def _in_several(splits: Mapping[str, list[Row]], kind: FileKind) -> tuple[str, ...]:
    """What is to be said of files of two of the usual splits: what is trained on is held out, too."""
    names = {split: {row["file_name"]: None for row in splits[split]} for split in SPLIT_NAMES if split in splits}
    said = []
    for one, other in itertools.combinations(names, 2):
        if both := [name for name in names[one] if name in names[other]]:
            what = f"{kind.one} of {one!r} is" if len(both) == 1 else f"{kind.many} of {one!r} are"
            said.append(f"{len(both)} {what} in {other!r} too ({both[0]})")
    return tuple(said)


def _where(root: Path, rows: Sequence[Row], split: str) -> str:
    """Whose rows they are, for errors: the split's folder, if they all come from it; or the root and, if given, the split."""
    folders = {row["_folder"] for row in rows}
    return str(*folders) if len(folders) == 1 and root not in folders else f"{root}, split {split!r}" if split else str(root)


def _is_split(folder: str) -> bool:
    return canonical_split(folder) in SPLIT_NAMES


def _split_folders(rows: Sequence[Row], table: Path) -> list[str]:
    """The folder of every row that is its split's: the first, below folders that all rows are in; "" where those are no splits.
    ValueError if only some are."""
    parts = [posixpath.normpath(row["file_name"]).split("/")[:-1] for row in rows]
    while rows and all(parts) and len({part[0] for part in parts}) == 1 and not _is_split(parts[0][0]):
        parts = [part[1:] for part in parts]
    first = [part[0] if part else "" for part in parts]
    splits, others = ({folder for folder in first if _is_split(folder) is so} for so in (True, False))
    if splits and others:
        row = next(row for row, folder in zip(rows, first) if folder in others)
        raise ValueError(
            f"{table}: the folder {_listed(splits)} may be a split or a class, since other rows lie elsewhere, such as "
            f"{row['file_name']}. Add a column split that says it: train, validation or test"
        )
    return first if splits else [""] * len(rows)


def _check_no_splits_below(root: Path, found: Found) -> None:
    """ValueError if folders inside of what would be classes are named like splits: all of them, or two side by side."""
    inside: dict[str, set[str]] = {}
    for name in found.files:
        parts = name.split("/")
        at = next((i for i in range(1, len(parts)) if _is_split(parts[i])), 0)
        inside.setdefault("/".join(parts[:at]), set()).update(parts[at : at + 1] if at else ())
    splits = {folder for folders in inside.values() for folder in folders}
    several = any(len({*map(canonical_split, folders)}) > 1 for folders in inside.values())
    if splits and (several or "" not in inside):
        places = inside.keys() - {""}
        first = min(places)
        advice = (
            f"Name the folder that holds them, {root / first}"
            if len(places) == 1
            else f"Put splits above the classes: {root / min(splits) / first}, ..."
        )
        raise ValueError(f"{root}: the pictures of {_listed(places)} lie in {_listed(splits)}, which may be splits. {advice}")


def _listed(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)[:3])) + (", ..." if len(names) > 3 else "")


def _below(found: Found, folder: str) -> Found:
    """What was found in one of the root's folders, as seen from there."""
    inside = {name[len(folder) + 1 :]: files for name, files in found.files.items() if f"{name}/".startswith(f"{folder}/")}
    return Found(inside, (), found.left_out)


def _read_rows(root: Path, found: Found, kind: FileKind, label: str) -> list[Row]:
    if table := table_in(root):
        rows = read_table(table, label)
        split = canonical_split(root.name)
        if wrong := next((row for row in rows if canonical_split(row.get("split") or split) != split), None):
            raise ValueError(
                f"{table}: {wrong['file_name']} has the split {wrong['split']!r} and lies in {root.name}. Remove the column "
                f"split if the folder is right; if the column is, put the table into {root.parent}"
            )
        return rows
    rows: list[Row] = []
    for folder, names in found.files.items():
        classes = {"label": composed(folder.split("/")[0])} if folder else {}
        rows += [{"file_name": f"{folder}/{name}" if folder else name, "_folder": root, **classes} for name in names]
    if rows and 0 < sum("label" in row for row in rows) < len(rows):
        bare = next(row["file_name"] for row in rows if "label" not in row)
        raise ValueError(f"{root} has {kind.many} in class subfolders and beside them, such as {bare}; sort them in")
    return rows


def _left_out(root: Path, found: Found, rows: list[Row], others: Sequence[str], kind: FileKind) -> Counter:
    """What was passed by; files that no row of any split has; class folders without files."""
    left = Counter(found.left_out)
    bases = {row["_folder"]: Path(os.path.relpath(row["_folder"], root)).as_posix() for row in rows}
    told = [table for base in bases if (table := table_in(base))]
    taken = {
        posixpath.normpath(f"{bases[row['_folder']]}/{row[n]}")
        for row in rows
        for n in ("file_name", *others)
        if isinstance(row.get(n), str)
    }
    if count := len(set(found.paths()) - taken):
        left[f"{kind.many} {f'that {told[0].name} does not name' if told else 'outside of the split folders'}"] = count
    unread = [at for at in found.folders if (at or ".") not in bases.values() and any((root / at / n).is_file() for n in READ)]
    if unread:
        left[f"tables in folders where none is looked for ({_listed(set(unread))})"] = len(unread)
    labels = {(bases[row["_folder"]], row["label"]) for row in rows if "label" in row and not told}
    for base in {base for base, _ in labels}:
        deep = [folder if base == "." else folder.removeprefix(f"{base}/") for folder in found.folders if folder]
        named = {label for _, label in labels}
        empty = {folder for folder in deep if "/" not in folder and folder != base and composed(folder) not in named}
        if empty and base == ".":
            left[f"class folders without {kind.many} ({_listed(empty)})"] = len(empty)
    return left


def _of_no_use(splits: Mapping[str, list[Row]], asked: str) -> Counter:
    """Rows of splits whose names nobody asks for by default, but the one that is asked for."""
    odd = splits.keys() - {"", *SPLIT_NAMES, canonical_split(parse_split(asked)[0])}
    what = f"rows of the split{'s' if len(odd) > 1 else ''} {_listed(odd)}"
    return +Counter({what: sum(len(splits[name]) for name in odd)})


def _add_beside(rows: Sequence[Row], theirs: str, kind: FileKind) -> None:
    """Rows without a conditioning picture get that of the folder beside the image, if there is one, under the name `theirs`."""
    there: dict[Path, dict[str, str]] = {}
    for row in rows:
        place = Path(CONDITIONING, row["file_name"]).parent
        if row.get(theirs) in (None, ""):
            if (folder := row["_folder"] / place) not in there:
                names = os.listdir(folder) if folder.is_dir() else []
                there[folder] = {Path(n).stem: n for n in sorted(names) if Path(n).suffix.lower() in kind.suffixes()}
            if name := there[folder].get(Path(row["file_name"]).stem):
                row[theirs] = (place / name).as_posix()


def _check_files(rows: list[Row], others: Sequence[str]) -> None:
    present: dict[Path, set[str]] = {}
    missing = []
    for row in rows:
        for n in ("file_name", *others):
            if row.get(n) is None:
                continue
            if not isinstance(row[n], str):
                raise ValueError(f"{row['file_name']}: {n} is {row[n]!r}, not the name of a file")
            path = row["_folder"] / row[n]
            if path.parent not in present:
                present[path.parent] = set(os.listdir(path.parent)) if path.parent.is_dir() else set()
            if path.name not in present[path.parent]:
                missing.append((table_in(row["_folder"]), path))
    if missing:
        table, path = missing[0]
        told = table.name if table else "what was found"
        raise FileNotFoundError(
            f"{len(missing)} files named in {told} do not exist; the first is {path}{_near(path, present[path.parent])}"
        )


def _near(path: Path, present: set[str]) -> str:
    """A hint for a name that is there in another spelling."""
    if "\\" in path.name:
        return ". Folders are parted by / there"

    def plain(name: str) -> str:
        return composed(name).casefold().strip()

    found = next((name for name in sorted(present) if plain(name) == plain(path.name)), None)
    same = found and composed(found) == composed(path.name)
    return "" if not found else f". There is {found!r}" + (", whose accents are stored in another Unicode form" if same else "")


def _deliver(
    row: Row, columns: Sequence[str], names: Mapping[str, str], index: Mapping[Any, int], kind: FileKind
) -> Row:
    out: Row = {"name": str(row["_folder"] / row["file_name"])}
    for column in columns:
        if column == kind.column:
            out[column] = out["name"]
        elif column == "label":
            out[column] = index[row[names["label"]]]
        elif column in BESIDE:
            out[column] = str(row["_folder"] / row[names[column]])
        elif column == "caption":
            said = row[names["caption"]]
            several = said if isinstance(said, list) else [said]
            if not several or not all(isinstance(text, str) and text.strip() for text in several):
                raise ValueError(f"{out['name']}: a caption is text or a list of texts, not {said!r}")
            if not all(map(is_whole, several)):
                raise ValueError(f"{out['name']}: the caption {said!r} has half of a character; write it anew, as UTF-8")
            out[column] = tuple(several) if isinstance(said, list) else said
        elif column == "boxes":
            out[column] = np.array([box["box"] for box in row[names["boxes"]]], np.float32).reshape(-1, 4)
        elif column == "box_labels":
            out[column] = np.array([box["label"] for box in row[names["boxes"]]], np.int32)
    return out
