"""Text files as people's editors save them: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one, lines that end
in LF, CR LF or CR. Anything else is a ValueError that names the file and the line."""

import codecs
import json
import re
from pathlib import Path
from typing import Any

from ldm_jax.primitives.files import each_once

_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def is_whole(text: str) -> bool:
    """Whether it can be written as UTF-8: JSON's escapes and broken command lines can hold halves of characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: str | Path) -> str:
    """The text of a file, without its byte order mark, its lines ended by "\\n". FileNotFoundError if there is none; ValueError
    with the file's name, the line and the byte if it is in no known encoding."""
    data = Path(path).read_bytes()
    mark, encoding = next(((mark, encoding) for mark, encoding in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    data = data[len(mark) :]
    if not mark and b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: a zero byte (UTF-16 without a byte order mark?); save the file as UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1 if encoding == "utf-8" else "unknown"
        raise ValueError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is not {encoding.upper()} (text of Latin-1 or a "
            "Windows code page?); save the file as UTF-8"
        ) from None
    return re.sub(r"\r\n?", "\n", text)


def read_json(path: str | Path) -> Any:
    """The value of a JSON file; errors as of `read_text`, and ValueError with the file's name for what is no JSON."""
    return parse_json(read_text(path), f"{path} is")


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. ValueError, "{where} no JSON: ...", if it is none."""
    try:
        return json.loads(text, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        said = "it is empty" if not text.strip() else f"{error}".splitlines()[0]
        raise ValueError(f"{where} no JSON: {said}") from None


def read_names(path: str | Path) -> list[str]:
    """A list of names, such as classes in order: a JSON list of text, or a file with a name a line. ValueError, with the file's
    name, for anything else, for names that occur twice, and for an empty list."""
    text = read_text(path)
    if text.lstrip()[:1] in ("[", "{", '"') or Path(path).suffix.lower() == ".json":
        names = parse_json(text, f"{path} is")
    else:
        names = [line.strip() for line in text.split("\n") if line.strip()]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a list of names, as JSON or a name a line")
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: the name {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return names
