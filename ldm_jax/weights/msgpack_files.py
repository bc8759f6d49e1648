"""The msgpack files of flax.serialization (`diffusion_flax_model.msgpack`, `flax_model.msgpack`), without flax.

Nested maps; an array is extension type 1 holding (shape, dtype name, bytes), a complex number type 2, a numpy scalar
type 3; an array above 1 GB is a map {"__msgpack_chunked_array__", "shape", "chunks"} of flat pieces.
"""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ldm_jax.primitives.choices import choose
from ldm_jax.weights.stored import BFLOAT16, Stored, check_shape, in_memory

_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {str(dtype): dtype for dtype in map(np.dtype, "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 ?".split())}
_DTYPES["bfloat16"] = BFLOAT16


def read(path: str | Path) -> dict[str, Stored]:
    """The arrays by their path, joined with dots. The file is one message, so all of it is in memory at once. ValueError if it
    is truncated, or holds anything but nested maps of arrays."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    arrays: dict[str, Stored] = {}
    try:
        tree = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=_extension,
            object_pairs_hook=_unique,
            raw=False,
            strict_map_key=False,
            max_array_len=1 << 12,
            max_map_len=1 << 20,
        )
        _flatten(tree, (), arrays)
    except Exception as error:  # each kind of damage raises its own
        raise ValueError(f"{path}: not a whole flax msgpack file; truncated? ({str(error)[:200]})") from None
    return arrays


def _unique(pairs: list[tuple[Any, Any]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _extension(code: int, data: bytes) -> Any:
    if code not in (1, 3):
        return complex(*msgpack.unpackb(data)) if code == 2 else None
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    return np.frombuffer(buffer, choose(_DTYPES, name.decode(), "dtype")).reshape(check_shape(shape, "array"))


def _flatten(tree: Any, names: tuple[str, ...], arrays: dict[str, Stored]) -> None:
    if isinstance(tree, dict) and _CHUNKED in tree:
        shape = [tree["shape"][key] for key in sorted(tree["shape"], key=int)]
        tree = np.concatenate([tree["chunks"][key] for key in sorted(tree["chunks"], key=int)])
        tree = tree.reshape(check_shape(shape, ".".join(names)))
    if isinstance(tree, dict):
        for key, value in tree.items():
            _flatten(value, (*names, str(key)), arrays)
    elif isinstance(tree, np.ndarray):
        arrays[".".join(names)] = in_memory(tree)
    else:
        raise ValueError(f"{'.'.join(names)} is a {type(tree).__name__}; only arrays are expected")
