"""Text and JSON on disk: UTF-8 whatever the locale, written whole or not at all, read with the file's name in every error."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: str | Path, text: str) -> None:
    """Writes a temporary file beside `path`, flushes it to the disk and renames it: a reader, or a power cut, finds the old file
    or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as JSON, by `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, way_out: str = "", expect: type | tuple[type, ...] = (dict, list)) -> Any:
    """The value of a JSON file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: names the file and what is wrong with it, followed by `way_out`, a sentence that says what to do.
    """
    path = Path(path)
    hint = f" {way_out}" if way_out else ""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        what = "it is empty" if path.stat().st_size == 0 else str(error).splitlines()[0]
        raise ValueError(f"{path} can't be read as JSON: {what}.{hint}") from None
    if not isinstance(value, expect):
        raise ValueError(f"{path} holds a {type(value).__name__} where something else belongs.{hint}")
    return value
