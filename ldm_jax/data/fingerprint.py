"""What a source holds, as a number: by contents, and by what the file system says about its files.

`contents` covers every pixel file, caption, label and box, in order, but not where the source lies: a moved or copied folder
has the same. It reads every byte once. `stamp` looks only at sizes and times of files, and changes with the
place; where it is as it was, nothing has changed and nothing need be read.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ldm_jax.data.source import FILES, Source

_SIZE = 2**256


def digest_row(source: Source, number: int, row: dict[str, Any], stat: bool = False) -> int:
    """A row as a number below 2^256: its columns and the bytes of its files, or with `stat` their sizes and times instead. A
    file that isn't there counts as such. Rows' numbers go in, so that the sum over rows depends on their order."""
    name = str(row.get("name", "")).removeprefix(source.info.name)
    digest = hashlib.sha256(f"{number}:{name}".encode(errors="surrogatepass"))  # file names need not be UTF-8
    for column, value in sorted(row.items()):
        if column == "name":
            continue
        digest.update(f";{column}=".encode())
        if column in FILES and isinstance(value, str):
            digest.update(_file(value, stat))
        elif isinstance(value, bytes):
            digest.update(value)
        elif isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
        else:
            digest.update(json.dumps(value, default=str).encode())
    return int.from_bytes(digest.digest(), "big")


def names_digest(source: Source) -> int:
    """The names of classes and of boxes' classes as a number."""
    named = json.dumps([source.info.columns, source.info.class_names, source.info.box_names])
    return int.from_bytes(hashlib.sha256(named.encode()).digest(), "big")


def total(digests: Iterable[int]) -> str:
    """The sum of rows' and names' digests, as text. Sums of parts can be added up, so processes can share the rows."""
    return f"{sum(digests) % _SIZE:064x}"


def contents(source: Source) -> str:
    """The fingerprint of all that a source holds. Reads every file."""
    with ThreadPoolExecutor() as pool:
        rows = pool.map(lambda i: digest_row(source, i, source[i]), range(len(source)))
        return total([names_digest(source), *rows])


def stamp(source: Source) -> str | None:
    """The fingerprint of sizes and times; None where rows are not in files of their own and the source has no `stamp()`."""
    if hasattr(source, "stamp"):
        return source.stamp()
    if not len(source) or not any(isinstance(source[0].get(column), str) for column in FILES):
        return None
    return total([names_digest(source), *(digest_row(source, i, source[i], stat=True) for i in range(len(source)))])


def _file(path: str, stat: bool) -> bytes:
    try:
        if os.path.isdir(path):  # of frames
            inside = [(name, os.path.join(path, name)) for name in sorted(os.listdir(path))]
            return b"".join(f";{name}=".encode(errors="surrogatepass") + _file(file, stat) for name, file in inside)
        if stat:
            status = os.stat(path)
            # the time of the last change of the inode can't be set by hand, as that of the last writing can
            return f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}".encode(errors="surrogatepass")
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b"not there"
