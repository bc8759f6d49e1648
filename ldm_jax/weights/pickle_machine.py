"""A stack machine for pickles that runs nothing of them.

A pickle is a program. Here a global is a name and never an import, a call is looked up in a closed table that the caller gives,
anything else becomes an `Inert` placeholder, and a name of code that could act on this machine is refused.

Why not `pickle.Unpickler` with an allow-list: it allocates what a file says before reading it (one LONG_BINPUT of seven bytes
takes 32 GB), hashes keys of any depth (a tuple nested 200,000 deep, used as a key, ends the interpreter), has no limit of
opcodes, and NEWOBJ and BUILD insist on real classes and their state. This machine counts what it does (`MOST_OPCODES`,
`MOST_BYTES`, `MOST_COPIED`), takes only plain keys, and drops states unseen but for those of `Parameters`.
"""

import dataclasses
import pickletools
import sys
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

MOST_OPCODES = 1_000_000  # of one pickle; a checkpoint of 10,000 tensors has 300,000
MOST_BYTES = 1 << 25  # of one pickle
_LINE = 4096  # bytes of a line, the longest name of a global
MOST_COPIED = 4_000_000  # elements that calls of list, dict, tuple, set may copy

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


class Parameters(dict):
    """torch's ParameterDict: a dict that is pickled as an object, whose state has what is in it."""


def short(value: Any) -> str:
    """A value in an error. Containers are named by their type: written out they may have no end."""
    if isinstance(value, str | int | float | bytes | Global | None):
        text = repr(value) if isinstance(value, str | bytes) else f"{value:#x}" if type(value) is int else str(value)
        return text if len(text) < 200 else text[:200] + "..."
    return f"a {type(value).__name__}"


def plain_key(value: Any) -> Any:
    """A key, if it is plain: the hash of a deep or shared tuple may have no end."""
    plain = str | int | float | bytes | Global | Inert | None
    if not isinstance(value, plain) and not (isinstance(value, tuple) and all(isinstance(each, plain) for each in value)):
        raise ValueError(f"a {type(value).__name__} as a key")
    return value


def _paired(items: list) -> dict:
    return {plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def pairs(*arguments: Any) -> dict:
    """Keys and values in turn, as pairs."""
    if not arguments or not isinstance(arguments[0], list | tuple | dict):
        return {}
    pairs = arguments[0].items() if isinstance(arguments[0], dict) else arguments[0]
    return {plain_key(key): value for key, value in pairs}


class _Bounded:
    """A file for `pickletools` that gives `MOST_BYTES` bytes, no more."""

    def __init__(self, file: Any) -> None:
        self.file, self.left = file, MOST_BYTES

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"a pickle of more than {MOST_BYTES:,} bytes")
        return self.file.read(size)

    def readline(self) -> bytes:
        start = self.file.tell()
        line = self.file.read(_LINE)
        line = line[: line.find(b"\n") + 1]
        self.file.seek(start + len(line))
        self.left -= len(line)
        return line

    def tell(self) -> int:
        return self.file.tell()


class Machine:
    """The pickle stack machine over names instead of objects."""

    def __init__(
        self, path: Path, persistent: Callable[[Any], Any], calls: Mapping[str, Callable[..., Any]], known: Container[str]
    ) -> None:
        """`persistent` resolves references to storages; `calls` are the globals that may be called, `known` other names (of
        types) that are no news. `dropped` collects the rest."""
        self.path, self.persistent, self.calls, self.known = path, persistent, calls, known
        self.dropped, self.copied = set(), 0

    def run(self, file) -> Any:
        """The object of the pickle that starts here. ValueError for anything that torch would not write."""
        try:
            return self._run(file)
        except ValueError as error:
            if str(self.path) in str(error):
                raise
            raise ValueError(f"{self.path}: the pickle is damaged, truncated or unknown: {str(error)[:300]}") from None
        except Exception as error:  # a stack too short, an argument of the wrong type, ...: each raises its own
            raise ValueError(f"{self.path}: the pickle is damaged or truncated ({repr(error)[:300]})") from None

    def name(self, module: str, name: str) -> Global:
        """The global of this name. ValueError if it is code that could act."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global whose name is no string")
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
        if str(found) not in self.calls and not (root == "torch" and name in self.known):
            self.dropped.add(str(found))
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call of a global gives: by the closed table `_CALLS`, else an `Inert`."""
        if isinstance(function, Inert):
            return function
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise ValueError(f"a call of {short(function)}")
        if str(function) == "torch._tensor._rebuild_from_type_v2":
            return self.call(arguments[0], arguments[2])
        self.count(arguments)
        if str(function) in self.calls:
            return self.calls[str(function)](*arguments)
        return Inert()

    def count(self, copied: tuple) -> None:
        """ValueError where what is copied of containers is too much, with all before."""
        self.copied += sum(len(each) for each in copied if isinstance(each, list | tuple | dict | set))
        if self.copied > MOST_COPIED:
            raise ValueError(f"its calls copy more than {MOST_COPIED:,} elements")

    def build(self, target: Any, state: Any) -> None:
        """Gives an object its state: of containers, attributes such as _metadata, which are dropped."""
        found = state.get("_parameters") if isinstance(state, dict) and isinstance(target, Parameters) else None
        if isinstance(found, dict):
            self.count((found,))
            target.update(pairs(found))

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
                target.update(_paired(items))
            elif not isinstance(target, Inert):
                raise ValueError(f"items set on {type(target).__name__}")

        def extend(target: Any, items: list) -> None:
            if isinstance(target, list):
                target.extend(items)
            elif isinstance(target, set):
                target.update(map(plain_key, items))
            elif not isinstance(target, Inert):
                raise ValueError(f"items appended to {type(target).__name__}")

        for count, (opcode, argument, _) in enumerate(pickletools.genops(_Bounded(file))):
            if count >= MOST_OPCODES:
                raise ValueError(f"more than {MOST_OPCODES:,} opcodes")
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
                    start = len(stack) - int(opcode.name[-1])
                    stack[start:] = [tuple(stack[start:])]
                case "LIST":
                    stack.append(since_mark())
                case "DICT":
                    items = since_mark()
                    stack.append(_paired(items))
                case "FROZENSET":
                    stack.append(frozenset(map(plain_key, since_mark())))
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
                    state = stack.pop()
                    self.build(stack[-1], state)
                case "PERSID" | "BINPERSID":
                    stack.append(self.persistent(argument if opcode.name == "PERSID" else stack.pop()))
                case "STOP":
                    return stack.pop()
                case "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                    raise ValueError(f"the opcode {opcode.name}, which torch never writes")
                case _:
                    stack.append(argument)  # the numbers, strings and bytes
        raise ValueError("no end of the pickle")
