"""Labels of rows, as they are written, and the classes that they are: a number and a name each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm_jax.data.metadata import is_blank
from ldm_jax.data.text_files import is_whole, read_names
from ldm_jax.primitives.choices import composed

Row = Mapping[str, Any]
_MOST_CLASSES = 2**20


def class_index(rows: list[Row], theirs: str, class_names: Any, root: Path) -> dict[Any, str]:
    """Label as written -> name, in class order, over all splits."""
    rows = [row for row in rows if not is_blank(row.get(theirs))]
    labels = [row[theirs] for row in rows]
    one_of_each = {type(row[theirs]): row for row in rows}
    if len(one_of_each) > 1 or not one_of_each.keys() <= {int, str}:
        found = " and ".join(f"{row[theirs]!r} of {row['file_name']}" for row in one_of_each.values())
        raise ValueError(f"{root}: labels must all be whole numbers or all text, in all splits; found {found}")
    if isinstance(class_names, str | Path):
        class_names = read_names(Path(class_names).expanduser())
    if isinstance(labels[0], str):
        if broken := next((label for label in labels if not is_whole(label)), None):
            raise ValueError(f"{root}: the class {broken!r} is not written in UTF-8; give its folder another name")
        order = list(map(composed, class_names)) if class_names is not None else sorted(set(labels))
        index = {name: name for name in order}
    else:
        said = {row[theirs]: row["label_name"] for row in rows if row.get("label_name")}
        for row in rows:
            if row.get("label_name") and row["label_name"] != said[row[theirs]]:
                both = f"{row['label_name']!r} and {said[row[theirs]]!r}"
                raise ValueError(f"{root}: label {row[theirs]} is called {both}, the first by {row['file_name']}")
        if max(labels) >= _MOST_CLASSES:
            raise ValueError(f"{root}: label {max(labels)}: classes are numbered from 0 on")
        order = class_names if class_names is not None else [said.get(i, str(i)) for i in range(max(labels) + 1)]
        index = dict(enumerate(order))
    wrong = next((row for row in rows if row[theirs] not in index), None)
    if wrong is not None:
        raise ValueError(
            f"{root}: {wrong['file_name']} has label {wrong[theirs]!r}, outside the {len(index)} classes "
            f"({', '.join(map(str, order[:8]))}{' ...' if len(order) > 8 else ''})"
        )
    return index


def box_index(rows: list[Row], theirs: str, root: Path) -> dict[int, str]:
    """A box's label -> its name, over all splits. ValueError for boxes that are none, or a label of two names."""
    named: dict[int, str] = {}
    most = -1
    for row in rows:
        boxes = [] if row.get(theirs) in (None, "") else row[theirs]
        if not isinstance(boxes, list):
            raise ValueError(f"{row['file_name']}: boxes are a list, not {boxes!r}")
        for box in boxes:
            if not isinstance(box, dict) or not {"label", "box"} <= box.keys() or not _is_numbers(box["box"], 4):
                raise ValueError(f"{row['file_name']}: a box is {{'label': 0, 'box': [x0, y0, x1, y1]}}, not {box!r}")
            (x0, y0, x1, y1), label = box["box"], box["label"]
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and isinstance(label, int) and 0 <= label < _MOST_CLASSES):
                raise ValueError(f"{row['file_name']}: box {box!r}: need label >= 0, 0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1")
            if "name" in box and named.setdefault(label, box["name"]) != box["name"]:
                both = f"{box['name']!r} and {named[label]!r}"
                raise ValueError(f"{root}: boxes of label {label} are called {both}, the first in {row['file_name']}")
            most = max(most, label)
    return {i: named.get(i, str(i)) for i in range(most + 1)}


def _is_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(v, int | float) for v in value)
