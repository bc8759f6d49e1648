"""Text files as a source: {"text", and where they are there "label" and "caption"}, a row a sentence.

    root/train.txt            a sentence a line; blank lines are passed by
    root/train.jsonl          an object a line: {"text": ..., "label": ..., "caption": ...}
    root/train/poems/1.txt    folders are classes; also right below the root
    root/train/1.txt          without classes
    one.txt, one.jsonl        a single file in place of the folder

Splits are files or folders of the root that are named so (train; val, valid or validation; test). Where there are none all is
'train'. Parts are written 'train[:90%]', 'train[90%:]', by hash of the text: equal sentences stay in one part. White space at
the ends of a line is passed by, and so are hidden files (`walk`). Files of other kinds are counted in `info.left_out`.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm_jax.data.source import SPLIT_NAMES, Info, Source, canonical_split, choose_columns, select
from ldm_jax.data.text_files import is_whole, parse_json, read_text
from ldm_jax.data.walk import entries_of, is_hidden
from ldm_jax.primitives.choices import composed
from ldm_jax.primitives.files import is_workdir

SUFFIXES = (".txt", ".jsonl")
NAMES = {"text": "text", "label": "label", "caption": "caption"}
Row = dict[str, Any]


class Texts:
    """The rows of text files; made by `texts`."""

    def __init__(self, info: Info, rows: Sequence[Row]):
        self.info = info
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return dict(self._rows[index])


def all_texts(source: Source) -> list[str]:
    """The text of every row of a source."""
    return source.all_texts() if hasattr(source, "all_texts") else [source[i]["text"] for i in range(len(source))]


def texts(
    path: str | Path, split: str = "train", columns: Sequence[str] | None = None, names: Mapping[str, str] | None = None
) -> Texts:
    """The sentences below `path`, or of that file.

    columns  what is needed of text, label and caption; None: all that are there
    names    what .jsonl files call them, if not so
    Raises FileNotFoundError if nothing is there, ValueError, with file and line, for everything else that is wrong.
    """
    root = Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"no folder and no file {root}")
    names, left = {**NAMES, **(names or {})}, Counter()
    files = _splits(root, left)
    if not any(files.values()):
        passed = "".join(f"; passed by: {count} {what}" for what, count in left.items())
        raise ValueError(f"{root} holds no text ({', '.join(SUFFIXES)}), neither directly nor in subfolders{passed}")
    every = {name: [row for each in found for row in _read(*each, names)] for name, found in files.items()}
    rows = select(every, split, "text", str(root))
    together = [row for group in every.values() for row in group]
    present = tuple(column for column in names if any(column in row for row in together))
    chosen = choose_columns(str(root), columns, present)
    for column in chosen:
        if lacking := next((row for row in together if column not in row), None):
            raise ValueError(f"{lacking['name']} has no {names[column]}, and others do: complete it, or take it out")
    classes = _classes(together, root) if "label" in chosen else {}
    delivered = [
        {name: classes[value] if name == "label" else value for name, value in row.items() if name in ("name", *chosen)}
        for row in rows
    ]
    captions = len(rows) if "caption" in chosen else None
    class_names = tuple(map(str, classes)) or None
    return Texts(Info(str(root), chosen, class_names, captions=captions, left_out=tuple(left.items())), delivered)


def _splits(root: Path, left: Counter) -> dict[str, list[tuple[Path, str | None]]]:
    """Files and their classes by split; what has no splits has the one key ''."""
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{root}: text is read from files {' and '.join(SUFFIXES)}, or from a folder of them")
        return {"": [(root, None)]}
    known = {name for names in SPLIT_NAMES.values() for name in names}
    entries = [entry for entry in entries_of(root) if not is_hidden(entry.name)]
    entries = [entry for entry in entries if (_of_folder(Path(entry.path)) if entry.is_dir() else _is_text(entry.path))]
    told = [entry for entry in entries if Path(entry.name).stem.lower() in known]
    others = [entry.name for entry in entries if entry not in told]
    if told and others:
        raise ValueError(
            f"{root}: {told[0].name!r} names a split, and {others[0]!r} beside it none. Put everything into splits, or the "
            "classes into a folder of their own"
        )
    found: dict[str, list[tuple[Path, str | None]]] = {}
    for entry in told:
        path = Path(entry.path)
        inside = _of_folder(path, left) if entry.is_dir() else [(path, None)]
        found.setdefault(canonical_split(path.stem if not entry.is_dir() else path.name), []).extend(inside)
    return found or {"": _of_folder(root, left)}


def _of_folder(root: Path, left: Counter | None = None) -> list[tuple[Path, str | None]]:
    """Text files below a folder, each with the folder right below it that is its class; none of a training's working
    directory. Only with `left`, what is passed by, all is looked at and checked."""
    found: list[tuple[Path, str | None]] = []
    if is_workdir(root):
        return found
    seen: set[str] = set()
    top = os.path.realpath(root)
    for folder, subfolders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen or top.startswith(f"{real.rstrip(os.sep)}{os.sep}"):
            if left is not None:
                left["links to folders that are read already, or hold this one"] += 1
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not is_hidden(name) and not is_workdir(Path(folder) / name)]
        # links last: a folder is found under its own name where it has one
        subfolders.sort(key=lambda name, folder=folder: (os.path.islink(os.path.join(folder, name)), name))
        inside = Path(folder).relative_to(root).parts
        for name in sorted(names):
            if not is_hidden(name):
                if _is_text(name):
                    found.append((Path(folder) / name, composed(inside[0].strip()) if inside else None))
                    if left is None:
                        return found
                elif left is not None:
                    left["files that are no text"] += 1
    if len({place is None for _, place in found}) > 1:
        bare = next(path for path, place in found if place is None)
        raise ValueError(f"{root} has text in class subfolders and beside them, such as {bare.name}; sort it in")
    return found


def _is_text(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _read(path: Path, place: str | None, names: Mapping[str, str]) -> list[Row]:
    """The rows of one file; `place`: the class that its folder names."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line, name = line.strip(), f"{path}, line {number}"
        if not line:
            continue
        row: Row = {"text": line}
        if path.suffix.lower() == ".jsonl":
            said = parse_json(line, f"{name}:")
            if not isinstance(said, dict):
                raise ValueError(f'{name}: a line is an object such as {{"{names["text"]}": "a sentence"}}, not {line[:60]!r}')
            row = {column: said[theirs] for column, theirs in names.items() if said.get(theirs) is not None}
            for column in ("text", "caption"):
                if column in row and not (isinstance(row[column], str) and row[column].strip()):
                    raise ValueError(f"{name}: {names[column]} is text, not {row[column]!r}")
                if not is_whole(row.get(column, "")):
                    raise ValueError(f"{name}: {row[column]!r} has half of a character; write it anew, as UTF-8")
            if "text" not in row:
                raise ValueError(f"{name}: it has no {names['text']!r} but {', '.join(map(repr, said)) or 'nothing'}")
            row = {column: " ".join(v.split()) if column == "text" else v for column, v in row.items()}
            if isinstance(row.get("label"), str):
                row["label"] = composed(row["label"].strip())
            if row.get("label") == "":
                del row["label"]
        rows.append({"name": name} | row | ({"label": place} if place is not None and "label" not in row else {}))
    return rows


def _classes(rows: Sequence[Row], root: Path) -> dict[Any, int]:
    """Label as written -> number, in order: text sorted, whole numbers as they are, from 0 on."""
    labels = {row["label"] for row in rows if isinstance(row["label"], str | int) and not isinstance(row["label"], bool)}
    odd = next((row for row in rows if not isinstance(row["label"], str | int) or isinstance(row["label"], bool)), None)
    if odd is not None:
        raise ValueError(f"{odd['name']}: a label is text or a whole number, not {odd['label']!r}")
    if len(one_of_each := {type(row["label"]): row for row in rows}) > 1:
        found = " and ".join(f"{row['label']!r} of {row['name']}" for row in one_of_each.values())
        raise ValueError(f"{root}: labels must all be whole numbers or all text, in all splits; found {found}")
    if broken := next((label for label in labels if not is_whole(str(label))), None):
        raise ValueError(f"{root}: the class {broken!r} is not written in UTF-8; give it another name")
    if all(isinstance(label, str) for label in labels):
        return {label: number for number, label in enumerate(sorted(labels))}
    if min(labels) < 0 or max(labels) >= 2**20:
        raise ValueError(f"{root}: label {min(labels) if min(labels) < 0 else max(labels)}: classes are numbered from 0 on")
    return {label: label for label in range(max(labels) + 1)}
