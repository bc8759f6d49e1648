"""What is said of the images of a folder: a table beside them (metadata.jsonl or metadata.csv), or a text file beside each.

    metadata.jsonl   a JSON object a line, {"file_name": "1.jpg", "caption": "a red bird"}
    metadata.csv     the same with a line of column names, commas, semicolons or tabs between the cells, blanks around which
                     don't count; labels that are all whole numbers are numbers
    1.txt            the caption of 1.jpg

Whole numbers among labels may be written 3.0, as pandas writes them where a label is missing.
"""

import csv
import io
import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm_jax.data.text_files import parse_json, read_text
from ldm_jax.data.walk import plain_suffix
from ldm_jax.primitives.choices import composed

TABLES = ("metadata.jsonl", "metadata.csv")
CAPTIONS, LABELS = ("caption", "text"), ("label", "class")  # what columns are called, the usual name first
Row = dict[str, Any]
_WHOLE = r"-?[0-9]+(\.0*)?"  # a whole number, in a table's cell
_NUMBERS = r"(?:[-+]?[0-9.]+(?:e[-+]?[0-9]+)?(?: |$))*"  # numbers only, as lines of boxes have them


def table_in(folder: Path) -> Path | None:
    """The folder's table, of two the first of `TABLES`; None if it has none. ValueError for one in a format that isn't read."""
    found = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if found is None and (folder / "metadata.parquet").is_file():
        raise ValueError(f"{folder / 'metadata.parquet'}: only {' and '.join(TABLES)} are read; convert it to one of them")
    return found


def read_table(path: Path, label: str = LABELS[0]) -> list[Row]:
    """Its rows, each with `_folder`, where `file_name` counts from; `label`: the column that holds labels. ValueError names the
    file, the line and what is wrong."""
    rows = _of_csv(path, label) if path.suffix == ".csv" else _of_json_lines(path)
    for number, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
            raise ValueError(f"{path}, line {number}: a row needs a file_name")
        if not isinstance(row.get("split") or "", str) or isinstance(row.get("split"), int | float):
            raise ValueError(f"{path}, line {number}: split is {row['split']!r}, not a name such as 'train'")
    names = label, "label_name", "split"
    told = [{**row, **{n: _tidy(row[n]) for n in names if n in row}, "_folder": path.parent} for _, row in rows]
    return [{**row, "file_name": _plain(row["file_name"])} for row in told]


def _plain(name: str) -> str:
    """One name for a file: without "./" and doubled slashes."""
    return name if ".." in name.split("/") else posixpath.normpath(name)


def _tidy(value: Any) -> Any:
    """A name without the blanks around it, its accents in one form; 3.0 as 3."""
    if isinstance(value, str):
        return composed(value.strip())
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_json_lines(path: Path) -> list[tuple[int, Any]]:
    lines = enumerate(read_text(path).split("\n"), 1)
    return [(number, parse_json(line, f"{path}, line {number}:")) for number, line in lines if line.strip()]


def _of_csv(path: Path, label: str) -> list[tuple[int, Row]]:
    text = read_text(path)
    between = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, skipinitialspace=True, strict=True)
    rows: list[tuple[int, Row]] = []
    try:
        head = [name.strip() for name in next(reader, [])]
        if "file_name" not in head or len(set(head)) < len(head):
            said = ",".join(head)[:80]
            raise ValueError(f"{path}, line 1: the first line names the columns, each once, also file_name, not {said!r}")
        for cells in ([cell.strip() for cell in line] for line in reader):
            if not any(cells):
                continue
            if len(cells) != len(head):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells for {len(head)} columns; text with "
                    f'{between!r} in it goes into quotes, "a cat{between} asleep"'
                )
            rows.append((reader.line_num, {name: cell for name, cell in zip(head, cells) if cell != ""}))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    labels = [row[label] for _, row in rows if label in row]
    if all(re.fullmatch(_WHOLE, cell) for cell in labels):
        rows = [(number, row | {label: int(row[label].split(".")[0])} if label in row else row) for number, row in rows]
    return rows


def _separator(text: str) -> str:
    """What is between a table's cells: a comma, or the semicolon or tab of other countries' spreadsheets."""
    names = text.partition("\n")[0]
    return next((each for each in ",;\t" if "file_name" in (cell.strip(' "\r') for cell in names.split(each))), ",")


def is_blank(value: Any) -> bool:
    """Whether a cell of a table says nothing."""
    return value is None or (isinstance(value, str) and not value.strip())


def add_captions(rows: Sequence[Row], theirs: str, every: Sequence[Row]) -> None:
    """Rows get the caption of the text file beside the image (or the folder of frames), if there is one, under the name
    `theirs`: those of folders whose rows, `every` one, have no captions of any name, unless all of those files hold numbers
    only, such as boxes."""
    told = {row["_folder"] for row in every if not all(is_blank(row.get(name)) for name in (theirs, *CAPTIONS))}
    there: dict[Path, dict[str, str]] = {}  # by folder: how its files are called, by their names with small suffixes

    def beside(row: Row) -> str:
        path = row["_folder"] / row["file_name"]
        if path.parent not in there:
            names = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
            there[path.parent] = {plain_suffix(name): name for name in names}
        text = f"{path.name}.txt"  # of a folder of frames, which may be called "clip.1"
        if text not in there[path.parent] or not os.path.isdir(path):
            text = f"{path.stem}.txt"
        found = path.parent / there[path.parent].get(text, text)
        return " ".join(read_text(found).split()) if found.is_file() else ""

    bare = [row for row in rows if row["_folder"] not in told]
    texts = [beside(row) for row in bare]
    others = (beside(row) for row in every if row["_folder"] not in told)
    if any(not re.fullmatch(_NUMBERS, text) for group in (texts, others) for text in group):
        for row, text in zip(bare, texts):
            row[theirs] = text
