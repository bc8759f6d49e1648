"""Reading torch's pickles (`.ckpt`, `.pt`, `.pth`, `.bin`; zip and legacy) without running them.

A pickle is a program for a small stack machine. `_run` is that machine with the dangerous half taken out: a global is
a name and never an import, a call is looked up in a closed table (tensors, parameters, plain containers), and anything
else becomes an `Inert` placeholder. Callbacks and hyperparameters of training frameworks end there, harmless; a file
that names code able to touch the system (a function of the standard library such as `os.system` or `open`) is refused.

Formats: a zip archive holds `NAME/data.pkl` and one uncompressed record `NAME/data/KEY` a storage; the legacy file is
five pickles (magic, version, system, object, storage keys) followed by the storages, each after its int64 length.
"""

import dataclasses
import io
import mmap
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.weights.stored import BFLOAT16, Stored, mapped

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
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

# Of the standard library, only these may be named by a checkpoint; everything else there can reach the system.
_HARMLESS = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "collections": {"OrderedDict", "defaultdict", "deque", "Counter"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "types": {"SimpleNamespace"},
    "typing": {"Any", "Dict", "List", "Optional", "Tuple", "Union"},
    "uuid": {"UUID"},
    "builtins": {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range",
        "set", "slice", "str", "tuple",
    },
}  # fmt: skip
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
# Loaders and compilers outside the standard library: naming one is as good as naming exec.
_LOADERS = (
    "cloudpickle", "commands", "dill", "joblib", "numpy.load", "numpy.testing", "pip", "popen2", "setuptools",
    "torch.hub", "torch.jit", "torch.load", "torch.package", "torch.serialization", "torch.storage._load_from_bytes",
    "torch.utils.cpp_extension",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Global:
    """The name of something importable; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Inert:
    """Stands for an object that only code could build."""


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
    with open(path, "rb") as file:
        start = file.read(4)
    if len(start) < 4:
        raise ValueError(f"{path}: {path.stat().st_size} bytes are no checkpoint; the file is empty or truncated")
    if start == b"PK\x03\x04":
        return _read_zip(path)
    if start[0] == 0x80:
        return _read_legacy(path)
    raise ValueError(f"{path}: starts with {start!r}, neither a zip archive nor a pickle; is it a torch checkpoint?")


def _read_zip(path: Path) -> tuple[Any, list[str]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: the zip directory at the end of the file is missing; the file is truncated") from error
    with archive:
        records = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: a zip archive with {len(pickles)} records data.pkl; torch writes exactly one")
        prefix = pickles[0][: -len("data.pkl")]
        if prefix + "constants.pkl" in records:
            raise ValueError(f"{path}: a TorchScript archive (it holds code); save the state dict instead")
        try:
            program = archive.read(pickles[0])
            order = archive.read(prefix + "byteorder") if prefix + "byteorder" in records else b"little"
        except (zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: {pickles[0]} is damaged ({error})") from error
    swapped = order.strip() != sys.byteorder.encode()
    storages: dict[str, _Storage] = {}

    def persistent(reference: Any) -> _Storage:
        kind, key, numel = _storage_reference(path, reference)[:3]
        if key not in storages:
            storages[key] = _zip_storage(path, records.get(f"{prefix}data/{key}"), f"{prefix}data/{key}", kind, numel)
            storages[key].swapped = swapped
        return storages[key]

    machine = _Machine(path, persistent)
    return machine.run(io.BytesIO(program)), sorted(machine.dropped)


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

    machine = _Machine(path, persistent)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic = machine.run(data)
        if magic != LEGACY_MAGIC:
            raise ValueError(f"{path}: a plain pickle, not written by torch.save; its weights cannot be told apart")
        version, system, result = machine.run(data), machine.run(data), machine.run(data)
        if version != 1001 or not isinstance(system, dict):
            raise ValueError(f"{path}: torch format version {version!r}; 1001 is known")
        keys = machine.run(data)
        swapped = bool(system.get("little_endian", True)) != (sys.byteorder == "little")
        if not isinstance(keys, list) or set(keys) != set(storages):
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
        case ("storage", Global(name=name), str(key), str(), int(numel), *view) if name in _STORAGES and numel >= 0:
            return np.dtype(_STORAGES[name]), key, numel, view[0] if view else None
    raise ValueError(f"{path}: unknown reference {_short(reference)} to a storage")


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) < 200 else text[:200] + "..."


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: np.dtype | None = None) -> Stored:
    if not isinstance(storage, _Storage):
        raise ValueError(f"a tensor over {_short(storage)}, which is no storage")
    dtype = storage.dtype if dtype is None else dtype
    numel = storage.numel * storage.dtype.itemsize // dtype.itemsize
    whole = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in whole):
        raise ValueError(f"a tensor of shape {shape}, strides {strides}, offset {offset}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if 0 not in shape and last >= numel:
        raise ValueError(f"a tensor reaches element {last} of a storage of {numel}; the file is damaged")

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
    raise ValueError(f"unknown tensor type {_short(value)}")


def _pairs(*arguments: Any) -> dict:
    return dict(arguments[0]) if arguments and isinstance(arguments[0], list | tuple | dict) else {}


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, shape, strides, *_: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v3": lambda storage, offset, shape, strides, grad, hooks, dtype, *_: _tensor(
        storage, offset, shape, strides, _dtype(dtype)
    ),
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch.nn.parameter.Parameter": lambda tensor, *_: tensor,
    "torch.Size": lambda shape: tuple(shape),
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": lambda factory=None, *items: _pairs(*items),
    "builtins.dict": _pairs,
    "builtins.list": lambda items=(): list(items),
    "builtins.tuple": lambda items=(): tuple(items),
    "builtins.set": lambda items=(): set(items),
    "builtins.frozenset": lambda items=(): frozenset(items),
}


class _Machine:
    """The pickle stack machine over names instead of objects."""

    def __init__(self, path: Path, persistent: Callable[[Any], _Storage]):
        self.path, self.persistent, self.dropped = path, persistent, set()

    def run(self, file) -> Any:
        try:
            return self._run(file)
        except (IndexError, KeyError, TypeError, UnicodeDecodeError, EOFError, OverflowError) as error:
            raise ValueError(f"{self.path}: the pickle is damaged or truncated ({error!r})") from error
        except ValueError as error:
            if str(self.path) in str(error):
                raise
            raise ValueError(f"{self.path}: the pickle is damaged, truncated or unknown: {error}") from error

    def name(self, module: str, name: str) -> Global:
        module = _PYTHON_2.get(module, module)
        found = Global(module, name)
        root = module.split(".")[0]
        library = root in sys.stdlib_module_names and name not in _HARMLESS.get(module, ())
        loader = any(f"{found}.".startswith(f"{prefix}.") for prefix in _LOADERS)
        if library or loader:
            raise ValueError(
                f"{self.path}: refused. The pickle names {found}, code that could act on this machine; nothing of it was "
                "run. Weights never need it: take the file from a source you trust, or its safetensors form."
            )
        if str(found) not in _CALLS and not (root == "torch" and (name in _STORAGES or name in _DTYPES)):
            self.dropped.add(str(found))
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Inert):
            return function
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError(f"a call of {_short(function)}")
        if str(function) == "torch._tensor._rebuild_from_type_v2":
            return self.call(arguments[0], arguments[2])
        if str(function) in _CALLS:
            return _CALLS[str(function)](*arguments)
        return Inert()

    def _run(self, file) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        def set_items(target: Any, items: list) -> None:
            if isinstance(target, dict):
                target.update(zip(items[::2], items[1::2], strict=True))
            elif not isinstance(target, Inert):
                raise ValueError(f"items set on {type(target).__name__}")

        def extend(target: Any, items: list) -> None:
            if isinstance(target, list):
                target.extend(items)
            elif isinstance(target, set):
                target.update(items)
            elif not isinstance(target, Inert):
                raise ValueError(f"items appended to {type(target).__name__}")

        for opcode, argument, _ in pickletools.genops(file):
            match opcode.name:
                case "PROTO" | "FRAME":
                    pass
                case "MARK":
                    marks.append(len(stack))
                case "NONE":
                    stack.append(None)
                case "NEWTRUE":
                    stack.append(True)
                case "NEWFALSE":
                    stack.append(False)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "EMPTY_SET":
                    stack.append(set())
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "LIST":
                    stack.append(since_mark())
                case "DICT":
                    items = since_mark()
                    stack.append(dict(zip(items[::2], items[1::2], strict=True)))
                case "FROZENSET":
                    stack.append(frozenset(since_mark()))
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    set_items(stack[-1], [key, value])
                case "SETITEMS":
                    items = since_mark()
                    set_items(stack[-1], items)
                case "APPEND":
                    item = stack.pop()
                    extend(stack[-1], [item])
                case "APPENDS" | "ADDITEMS":
                    items = since_mark()
                    extend(stack[-1], items)
                case "POP":
                    if marks and marks[-1] == len(stack):
                        marks.pop()
                    else:
                        stack.pop()
                case "POP_MARK":
                    since_mark()
                case "DUP":
                    stack.append(stack[-1])
                case "PUT" | "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "GET" | "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "GLOBAL":
                    stack.append(self.name(*argument.split(" ", 1)))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(self.name(module, name))
                case "REDUCE" | "NEWOBJ":
                    arguments = stack.pop()
                    stack[-1] = self.call(stack[-1], arguments)
                case "NEWOBJ_EX":
                    _, arguments = stack.pop(), stack.pop()
                    stack[-1] = self.call(stack[-1], arguments)
                case "INST":
                    arguments = tuple(since_mark())
                    stack.append(self.call(self.name(*argument.split(" ", 1)), arguments))
                case "OBJ":
                    function, *arguments = since_mark()
                    stack.append(self.call(function, tuple(arguments)))
                case "BUILD":
                    stack.pop()  # the state of an object: of a container, attributes such as _metadata
                case "PERSID" | "BINPERSID":
                    stack.append(self.persistent(argument if opcode.name == "PERSID" else stack.pop()))
                case "STOP":
                    return stack.pop()
                case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                    raise ValueError(f"the opcode {opcode.name}, which torch never writes")
                case _:
                    stack.append(argument)  # the numbers, strings and bytes
        raise ValueError("no end of the pickle")
