"""Writing a torch checkpoint (`torch.load(path, weights_only=True)` reads it) without torch.

The zip layout of torch.save: `NAME/data.pkl` (a protocol 2 pickle, emitted here opcode by opcode), `NAME/byteorder`,
one uncompressed record `NAME/data/KEY` a tensor, its bytes aligned to 64 in the file, and `NAME/version`.
"""

import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.weights import pickles

_STORAGE_OF = {np.dtype(dtype): name for name, dtype in pickles.STORAGES.items() if name != "UntypedStorage"}
_ALIGNMENT = 64


def write(path: str | Path, value: Any) -> None:
    """Writes dicts, lists, tuples, strings, numbers, None and arrays (numpy or `Stored`, one in memory at a time)."""
    path = Path(path)
    arrays: list[Any] = []
    program = b"\x80\x02" + _emit(value, arrays) + b"."
    temporary = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _record(archive, f"{path.stem}/data.pkl", program)
        _record(archive, f"{path.stem}/byteorder", sys.byteorder.encode())
        for key, array in enumerate(arrays):
            data = np.ascontiguousarray(array)
            _record(archive, f"{path.stem}/data/{key}", memoryview(data.reshape(-1).view(np.uint8)))
        _record(archive, f"{path.stem}/version", b"3\n")
    temporary.replace(path)


def _record(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(name)
    # An extra field of identifier "FB" pads the local header, as torch's own writer does. A record of 2 GB or more
    # gets 20 more bytes of zip64 sizes from zipfile.
    large = 20 if len(data) * 1.05 > zipfile.ZIP64_LIMIT else 0
    start = archive.fp.tell() + 30 + len(name.encode()) + large + 4
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"\0" * padding
    info.file_size = len(data)
    with archive.open(info, "w", force_zip64=bool(large)) as file:
        file.write(data)


def _emit(value: Any, arrays: list[Any]) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if 0 <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        data = value.encode()
        return b"X" + struct.pack("<I", len(data)) + data
    if isinstance(value, dict):
        items = b"".join(_emit(k, arrays) + _emit(v, arrays) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, tuple):
        return b"(" + b"".join(_emit(item, arrays) for item in value) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(_emit(item, arrays) for item in value) + b"e"
    return _emit_tensor(value, arrays)


def _emit_tensor(array: Any, arrays: list[Any]) -> bytes:
    storage = _STORAGE_OF.get(np.dtype(array.dtype))
    if storage is None:
        raise ValueError(f"cannot write {array.dtype} to a torch file; known: {', '.join(map(str, _STORAGE_OF))}")
    key, count = str(len(arrays)), int(np.prod(array.shape, dtype=np.int64))
    arrays.append(array)
    strides = tuple(int(np.prod(array.shape[axis + 1 :], dtype=np.int64)) for axis in range(array.ndim))
    reference = b"(" + _emit("storage", []) + _global("torch", storage) + _emit(key, []) + _emit("cpu", [])
    reference += _emit(count, []) + b"tQ"
    arguments = reference + _emit(0, []) + _emit(tuple(array.shape), []) + _emit(strides, []) + b"\x89"
    arguments += _global("collections", "OrderedDict") + b")R"
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()
