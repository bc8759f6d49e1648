"""Reading torch's pickles (`.ckpt`, `.pt`, `.pth`, `.bin`; zip and legacy) without running them.

`pickle_machine` follows the pickle; what it may build is in `_CALLS` here: tensors, parameters, plain containers. Callbacks and
hyperparameters of training frameworks end as inert placeholders; a file that names code able to touch the system (a function of
the standard library such as `os.system` or `open`) is refused.

Formats: a zip archive holds `NAME/data.pkl` and one uncompressed record `NAME/data/KEY` a storage; the legacy file is
five pickles (magic, version, system, object, storage keys) followed by the storages, each after its int64 length.
"""

import dataclasses
import io
import math
import mmap
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.weights.pickle_machine import MOST_BYTES, Global, Machine, Parameters, pairs, plain_key, short
from ldm_jax.weights.stored import BFLOAT16, Stored, check_shape, looks_like, mapped

MOST_DIRECTORY = 1 << 23  # bytes of a zip archive's directory: 80,000 records

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

STORAGES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
_DTYPES = {
    "float64": np.float64, "double": np.float64, "float32": np.float32, "float": np.float32, "float16": np.float16,
    "half": np.float16, "bfloat16": BFLOAT16, "int64": np.int64, "long": np.int64, "int32": np.int32, "int": np.int32,
    "int16": np.int16, "short": np.int16, "int8": np.int8, "uint8": np.uint8, "uint16": np.uint16,
    "uint32": np.uint32, "uint64": np.uint64, "bool": np.bool_, "complex64": np.complex64,
    "complex128": np.complex128, "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
}  # fmt: skip

@dataclasses.dataclass
class _Storage:
    """A run of elements in the file; `offset` in bytes is filled in once the layout of the file is known."""

    path: Path
    dtype: np.dtype
    numel: int
    offset: int = -1
    swapped: bool = False
    root: "_Storage | None" = None  # of a legacy view: the storage that it lies in, `offset` elements in

    def elements(self, dtype: np.dtype) -> np.ndarray:
        offset, path = self.offset, self.path
        if self.root is not None:
            offset = self.root.offset + self.offset * self.dtype.itemsize
        raw = mapped(path, offset, self.numel * self.dtype.itemsize)
        return raw.view(dtype.newbyteorder()) if self.swapped else raw.view(dtype)


def read(path: str | Path) -> tuple[Any, list[str]]:
    """The object in a torch file, its tensors as `Stored`, and the names of the globals that were dropped as inert.

    Raises ValueError if the file is truncated, is no torch pickle, or names code that could touch the system.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    with open(path, "rb") as file:
        start = file.read(9)
    if len(start) < 4:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are no checkpoint; the file is empty or truncated")
    if start[8:] == b"{" and (said := looks_like(path)):
        raise ValueError(f"{path}: no torch checkpoint{said}")
    start = start[:4]
    if start == b"PK\x03\x04":
        return _read_zip(path)
    if start[0] == 0x80:
        return _read_legacy(path)
    raise ValueError(f"{path}: starts with {start!r}, neither a zip archive nor a pickle{looks_like(path)}")


def _read_zip(path: Path) -> tuple[Any, list[str]]:
    _check_directory(path)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged directories raise what they like
        raise ValueError(f"{path}: the zip directory at the end of the file is damaged; truncated? ({error})") from None
    with archive:
        records = {info.filename: info for info in archive.infolist()}
        if len(records) < len(archive.infolist()):
            raise ValueError(f"{path}: a zip archive with two records of one name; torch never writes that")
        pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: a zip archive with {len(pickles)} records data.pkl; torch writes exactly one")
        prefix = pickles[0][: -len("data.pkl")]
        if prefix + "constants.pkl" in records:
            raise ValueError(f"{path}: a TorchScript archive (it holds code); save the state dict instead")
        program = _small_record(path, archive, records[pickles[0]])
        order = records.get(prefix + "byteorder")
        order = b"little" if order is None else _small_record(path, archive, order)
    swapped = order.strip() != sys.byteorder.encode()
    storages: dict[str, _Storage] = {}

    def persistent(reference: Any) -> _Storage:
        kind, key, numel = _storage_reference(path, reference)[:3]
        if key not in storages:
            storages[key] = _zip_storage(path, records.get(f"{prefix}data/{key}"), f"{prefix}data/{key}", kind, numel)
            storages[key].swapped = swapped
        return storages[key]

    machine = Machine(path, persistent, _CALLS, {*STORAGES, *_DTYPES})
    return machine.run(io.BytesIO(program)), sorted(machine.dropped)


def _check_directory(path: Path) -> None:
    """ValueError if the directory of a zip archive is too large to be read."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 98))
        tail = file.read()
    end, large = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    size = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    if size == 0xFFFFFFFF and large >= 0:
        size = int.from_bytes(tail[large + 40 : large + 48], "little")
    if size > MOST_DIRECTORY:
        raise ValueError(f"{path}: its zip directory has {size:,} bytes; torch writes at most {MOST_DIRECTORY:,}")


def _small_record(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise ValueError(f"{path}: the record {info.filename} is compressed, so not written by torch; unpack and zip -0 again")
    if info.file_size > MOST_BYTES:
        raise ValueError(f"{path}: the record {info.filename} has {info.file_size:,} bytes; at most {MOST_BYTES:,} are read")
    try:
        return archive.read(info)
    except Exception as error:  # wrong checksums, offsets, flags: each raises its own
        raise ValueError(f"{path}: {info.filename} is damaged ({error})") from None


def _zip_storage(path: Path, info: zipfile.ZipInfo | None, name: str, dtype: np.dtype, numel: int) -> _Storage:
    if info is None:
        raise ValueError(f"{path}: the record {name} is missing; the archive is incomplete")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path}: the record {name} is compressed, so not written by torch; unpack and zip -0 again")
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise ValueError(f"{path}: no record at byte {info.header_offset}; the archive is damaged")
    offset = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    if dtype == np.uint8 and numel != info.file_size:
        numel = info.file_size
    if info.file_size < numel * dtype.itemsize or offset + info.file_size > path.stat().st_size:
        raise ValueError(f"{path}: the record {name} has {info.file_size} bytes, {numel} x {dtype} are needed; truncated?")
    return _Storage(path, dtype, numel, offset)


def _read_legacy(path: Path) -> tuple[Any, list[str]]:
    storages: dict[str, _Storage] = {}

    def persistent(reference: Any) -> _Storage:
        kind, key, numel, view = _storage_reference(path, reference)
        root = storages.setdefault(key, _Storage(path, kind, numel))
        if view is None:
            return root
        _, offset, length = view
        if not 0 <= offset <= offset + length <= root.numel:
            raise ValueError(f"{path}: storage {key}: view [{offset}, {offset + length}) of {root.numel} elements")
        return _Storage(path, kind, length, offset, root=root)

    machine = Machine(path, persistent, _CALLS, {*STORAGES, *_DTYPES})
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic = machine.run(data)
        if type(magic) is not int or magic != LEGACY_MAGIC:
            raise ValueError(f"{path}: a plain pickle, not written by torch.save; its weights cannot be told apart")
        version, system, result = machine.run(data), machine.run(data), machine.run(data)
        if type(version) is not int or version != 1001 or not isinstance(system, dict):
            raise ValueError(f"{path}: torch format version {short(version)}; 1001 is known")
        keys = machine.run(data)
        swapped = bool(system.get("little_endian", True)) != (sys.byteorder == "little")
        plain = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not plain or sorted(keys) != sorted(storages):
            raise ValueError(f"{path}: the list of storages does not match the tensors; the file is damaged")
        position, end = data.tell(), len(data)
        for key in keys:
            storage = storages[key]
            numel = int.from_bytes(data[position : position + 8], "big" if swapped and sys.byteorder == "little" else "little")
            storage.offset, storage.swapped = position + 8, swapped
            position += 8 + storage.numel * storage.dtype.itemsize
            if position > end:
                raise ValueError(f"{path}: storage {key} ends at byte {position}, the file at {end}; it is truncated")
            if numel != storage.numel:
                raise ValueError(f"{path}: storage {key} has {numel} elements, {storage.numel} are expected; damaged")
    return result, sorted(machine.dropped)


def _storage_reference(path: Path, reference: Any) -> tuple[np.dtype, str, int, Any]:
    match reference:
        case ("storage", Global(name=name), str(key), str(), int(numel), *view) if name in STORAGES and numel >= 0:
            return np.dtype(STORAGES[name]), key, numel, view[0] if view else None
    raise ValueError(f"{path}: unknown reference {short(reference)} to a storage")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> Stored:
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor over {short(storage)}, which is no storage")
    dtype = storage.dtype if dtype is None else dtype
    numel = storage.numel * storage.dtype.itemsize // dtype.itemsize
    shape, strides = check_shape(shape, "a tensor"), check_shape(strides, "a tensor's strides")
    if len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise ValueError(f"a tensor of shape {shape}, strides {strides}, offset {short(offset)}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if 0 not in shape and last >= numel:
        raise ValueError(f"a tensor reaches element {last} of a storage of {numel}; the file is damaged")
    if math.prod(shape) > numel:
        raise ValueError(f"a tensor of shape {shape} over a storage of {numel} elements, larger than it; the file is damaged")

    def view() -> np.ndarray:
        if 0 in shape:
            return np.zeros(shape, dtype)
        elements = storage.elements(dtype)[offset:]
        steps = [s * dtype.itemsize for s in strides]
        return np.lib.stride_tricks.as_strided(elements, shape, steps, writeable=False)

    return Stored(tuple(shape), dtype, view)


def _dtype(value: Any) -> np.dtype:
    if isinstance(value, Global) and value.module == "torch" and value.name in _DTYPES:
        return np.dtype(_DTYPES[value.name])
    raise ValueError(f"unknown tensor type {short(value)}")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, strides, grad, hooks, dtype, *_: _tensor(
        storage, offset, shape, strides, _dtype(dtype)
    ),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,
    "torch.nn.modules.container.ParameterDict": lambda *_: Parameters(),
    "torch.Size": lambda shape: tuple(shape),
    "collections.OrderedDict": pairs,
    "collections.defaultdict": lambda factory=None, *items: pairs(*items),
    "builtins.dict": pairs,
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): set(map(plain_key, items)),
    "builtins.frozenset": lambda items=(): frozenset(map(plain_key, items)),
}
