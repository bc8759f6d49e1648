"""Safetensors: an 8-byte length, a JSON header {name: {dtype, shape, data_offsets}}, the bytes. Read lazily, with
shards listed in `*.safetensors.index.json`; written one tensor at a time.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.weights.stored import BFLOAT16, Stored, in_file

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": BFLOAT16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 100_000_000


def read(path: str | Path) -> dict[str, Stored]:
    """The tensors of one file. Raises ValueError if it is truncated or no safetensors file."""
    return read_with_metadata(path)[0]


def read_with_metadata(path: str | Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of one file, and the strings that its writer put beside them."""
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ValueError(f"{path}: {size} bytes cannot hold a header of {length}; truncated, or not safetensors")
        try:
            header = json.loads(file.read(length))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: the safetensors header is not JSON ({error})") from error
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{path}: {name} has the unknown type {entry['dtype']}")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        if not 0 <= start <= stop or stop - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
            raise ValueError(f"{path}: {name} {entry['dtype']}{list(shape)} does not fit bytes [{start}, {stop})")
        if 8 + length + stop > size:
            raise ValueError(f"{path}: {name} ends at byte {8 + length + stop}, the file at {size}; it is truncated")
        tensors[name] = in_file(path, 8 + length + start, shape, dtype)
    return tensors, metadata


def read_sharded(index: str | Path) -> dict[str, Stored]:
    """The tensors of all shards that an index file names. Raises ValueError for missing shards or tensors."""
    index = Path(index)
    weight_map = json.loads(index.read_text())["weight_map"]
    shards = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    missing = [name for name, shard in shards.items() if not shard.is_file()]
    if missing:
        raise ValueError(f"{index}: missing shards {', '.join(missing)}; copy all {len(shards)} files into {index.parent}")
    contents = {name: read(shard) for name, shard in shards.items()}
    absent = [name for name, shard in weight_map.items() if name not in contents[shard]]
    if absent:
        raise ValueError(f"{index}: {len(absent)} tensors are not in their shards, first {absent[0]}")
    return {name: contents[shard][name] for name, shard in weight_map.items()}


def write(path: str | Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Writes arrays (numpy or `Stored`), one in memory at a time. The metadata is by default what PyTorch's readers ask for."""
    path, offset = Path(path), 0
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    # Widest types first, as the reference writer does, so that every tensor is aligned to its item size.
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    for name in order:
        dtype, shape = np.dtype(tensors[name].dtype), tuple(map(int, tensors[name].shape))
        if dtype not in _NAMES:
            raise ValueError(f"{name}: safetensors has no type for {dtype}; known: {', '.join(_DTYPES)}")
        stop = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(memoryview(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8)))
    temporary.replace(path)
