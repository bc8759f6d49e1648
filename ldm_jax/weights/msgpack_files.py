"""The msgpack files of flax.serialization (`diffusion_flax_model.msgpack`, `flax_model.msgpack`), without flax.

Nested maps; an array is extension type 1 holding (shape, dtype name, bytes), a complex number type 2, a numpy scalar
type 3; an array above 1 GB is a map {"__msgpack_chunked_array__", "shape", "chunks"} of flat pieces.
"""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from ldm_jax.weights.stored import BFLOAT16, Stored, in_memory

_CHUNKED = "__msgpack_chunked_array__"


def read(path: str | Path) -> dict[str, Stored]:
    """The arrays by their path, joined with dots. The file is one message, so all of it is in memory at once."""
    path = Path(path)
    data = path.read_bytes()
    try:
        tree = msgpack.unpackb(data, ext_hook=_extension, raw=False, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(f"{path}: not a whole flax msgpack file; truncated? ({error})") from error
    arrays: dict[str, Stored] = {}
    _flatten(path, tree, (), arrays)
    return arrays


def _extension(code: int, data: bytes) -> Any:
    if code not in (1, 3):
        return complex(*msgpack.unpackb(data)) if code == 2 else None
    shape, name, buffer = msgpack.unpackb(data, raw=True)
    name = name.decode()
    dtype = BFLOAT16 if name == "bfloat16" else np.dtype(name)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _flatten(path: Path, tree: Any, names: tuple[str, ...], arrays: dict[str, Stored]) -> None:
    if isinstance(tree, dict) and _CHUNKED in tree:
        shape = [tree["shape"][key] for key in sorted(tree["shape"], key=int)]
        tree = np.concatenate([tree["chunks"][key] for key in sorted(tree["chunks"], key=int)]).reshape(shape)
    if isinstance(tree, dict):
        for key, value in tree.items():
            _flatten(path, value, (*names, str(key)), arrays)
    elif isinstance(tree, np.ndarray):
        arrays[".".join(names)] = in_memory(tree)
    else:
        raise ValueError(f"{path}: {'.'.join(names)} is a {type(tree).__name__}; only arrays are expected")
