"""Safetensors: an 8-byte length, a JSON header {name: {dtype, shape, data_offsets}}, the bytes. Read lazily, with
shards listed in `*.safetensors.index.json`; written one tensor at a time.

The package `safetensors` is not used: its numpy reader copies every tensor that it is asked for. Here a leaf is a view of the
mapped file until someone wants it or a part of it, in its own type, and the header is checked before anything is mapped.
"""

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.primitives.files import each_once, read_json
from ldm_jax.weights.stored import BFLOAT16, Stored, check_shape, in_file, looks_like, named

_DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": BFLOAT16, "I64": np.int64, "I32": np.int32,
    "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
    "BOOL": np.bool_, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
}  # fmt: skip
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_HEADER_LIMIT = 1 << 24  # bytes; the header of 50,000 tensors has 6 million


def read(path: str | Path) -> dict[str, Stored]:
    """The tensors of one file. Raises ValueError if it is truncated or no safetensors file."""
    return read_with_metadata(path)[0]


def read_with_metadata(path: str | Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of one file, and the strings that its writer put beside them. ValueError for a malformed file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            said = looks_like(path) or "; truncated, or not safetensors"
            raise ValueError(f"{path}: {size} bytes cannot hold a header of {length}{said}")
        try:
            header = json.loads(file.read(length), object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the safetensors header is not JSON ({str(error)[:100]})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: the safetensors header is a {type(header).__name__}, not a mapping of names")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: the metadata of a safetensors file are strings by name")
    tensors, spans = {}, []
    for name, entry in header.items():
        dtype, shape, (start, stop) = _entry(f"{path}: {name[:200]}", entry, size - 8 - length)
        spans += [(start, stop, name)] if stop > start else []
        tensors[name] = in_file(path, 8 + length + start, shape, dtype)
    spans.sort()
    for (_, stop, before), (start, _, name) in zip(spans, spans[1:]):
        if start < stop:
            raise ValueError(f"{path}: {before[:200]} and {name[:200]} overlap at byte {start}; the header is damaged")
    return named(tensors, path), metadata


def _entry(where: str, entry: Any, end: int) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """Type, shape and span of one tensor, checked against each other and the bytes behind the header."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"{where}: an entry should have dtype, shape and data_offsets; got {str(entry)[:100]}")
    name, span, shape = entry["dtype"], entry["data_offsets"], check_shape(entry["shape"], where)
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError(f"{where} has the unknown type {str(name)[:40]}; known: {', '.join(_DTYPES)}")
    if not isinstance(span, list) or len(span) != 2 or any(type(n) is not int for n in span):
        raise ValueError(f"{where}: data_offsets should be two whole numbers; got {str(span)[:80]}")
    dtype, (start, stop) = np.dtype(_DTYPES[name]), span
    if not 0 <= start <= stop or stop - start != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{where} {name}{list(shape)} does not fit bytes [{start}, {stop})")
    if stop > end:
        raise ValueError(f"{where} ends at byte {stop} of the data, which have {end}; the file is truncated")
    return dtype, shape, (start, stop)


def read_sharded(index: str | Path) -> dict[str, Stored]:
    """The tensors of all shards that an index file names. Raises ValueError for missing shards or tensors."""
    index = Path(index)
    weight_map = shard_names(index)
    shards = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    missing = [name for name, shard in shards.items() if not shard.is_file()]
    if missing:
        raise ValueError(f"{index}: missing shards {', '.join(missing)}; copy all {len(shards)} files into {index.parent}")
    contents = {name: read(shard) for name, shard in shards.items()}
    absent = [name for name, shard in weight_map.items() if name not in contents[shard]]
    if absent:
        raise ValueError(f"{index}: {len(absent)} tensors are not in their shards, first {absent[0]}")
    return {name: contents[shard][name] for name, shard in weight_map.items()}


def shard_names(index: Path) -> dict[str, str]:
    """The file of each tensor, by an index file. ValueError unless they are names of files beside it."""
    weight_map = read_json(index, expect=dict).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: its weight_map should be names of files by names of tensors")
    if wrong := [name for name in weight_map.values() if Path(name).name != name]:
        raise ValueError(f"{index}: {wrong[0][:100]!r} is not the name of a file beside it")
    return weight_map


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
