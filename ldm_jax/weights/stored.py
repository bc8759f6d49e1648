"""An array that is still in its file.

Checkpoints are read as trees of `Stored`: shape and dtype are known, the bytes stay where they are until the leaf is
asked for (`np.asarray(leaf)`, or `leaf[index]` for the part that one device needs). Each request maps the file,
copies, and unmaps, so the host never holds more than the leaf at hand.
"""

import dataclasses
import math
import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

TILE, WINDOW_TILE = (64, 512), (8, 128)  # rows and columns of linear kernels, of convolutions'
ALIGNMENT = 64  # bytes: from here on XLA takes memory of others
_BEGINNINGS = {  # what files begin with that are often met under another's name, and the way out
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself, by git lfs pull",
    b"PK\x03\x04": "a torch checkpoint: name it .ckpt",
    b"\x80\x02": "a torch checkpoint: name it .ckpt",
    b"<!DOCTYPE": "a web page: download the file again",
    b"<html": "a web page: download the file again",
}
RANK = 32  # the most axes of an array that is read
EXTENT = 1 << 40  # the longest axis
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Stored:
    """`view()` gives the array, which may be a view of a read-only mapping; `np.asarray` gives a copy of one's own, and raises
    ValueError where a number of it is not finite. `name`: the file and the tensor, for that."""

    shape: tuple[int, ...]
    dtype: np.dtype
    view: Callable[[], np.ndarray]
    name: str = ""

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that the array takes in memory."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return checked(owned(self.view(), dtype), self.name)

    def __getitem__(self, index) -> np.ndarray:
        return checked(owned(self.view()[index]), self.name)

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Stored":
        """The array after `function`, which keeps the dtype and returns `shape`; nothing is read yet."""
        return Stored(tuple(shape), self.dtype, lambda: function(self.view()), self.name)


def check_shape(shape: Any, where: str) -> tuple[int, ...]:
    """A shape found in a file. ValueError unless it is a list or tuple of at most `RANK` whole numbers from 0 to `EXTENT`."""
    axes = list(shape) if isinstance(shape, list | tuple) else [None]
    if len(axes) > RANK or any(type(n) is not int or not 0 <= n <= EXTENT for n in axes):
        raise ValueError(f"{where}: a shape should be up to {RANK} whole numbers from 0 to 2^40; got {str(shape)[:80]}")
    return tuple(shape)


def owned(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """A C-contiguous copy, aligned so that JAX's CPU backend can take it as it is. Transposed kernels are copied in tiles of
    their last two axes, which stay in the cache."""
    array = np.asarray(array)
    copy = aligned(array.shape, np.dtype(array.dtype if dtype is None else dtype))
    if array.ndim < 2 or array.flags.c_contiguous:
        copy[...] = array
        return copy
    rows, columns = TILE if array.ndim == 2 else WINDOW_TILE
    for row in range(0, array.shape[-2], rows):
        for column in range(0, array.shape[-1], columns):
            tile = (..., slice(row, row + rows), slice(column, column + columns))
            copy[tile] = array[tile] if array.dtype == copy.dtype else np.array(array[tile], order="C")  # casts go along rows
    return copy


def checked(array: np.ndarray, name: str) -> np.ndarray:
    """The array. ValueError where it holds floating-point numbers that are not finite: a network with one of them draws nothing
    else. 0.3 to 0.7 s for 860 million."""
    flat = array.reshape(-1)
    if array.dtype in (BFLOAT16, np.float16):
        exponent = np.uint16(0x7F80 if array.dtype == BFLOAT16 else 0x7C00)
        bad = flat.view(np.uint16) & exponent == exponent
    elif array.dtype in (np.float32, np.float64):
        with np.errstate(over="ignore", invalid="ignore"):
            bad = () if np.isfinite(np.dot(flat, flat)) else ~np.isfinite(flat)
    else:
        return array
    if np.any(bad):
        found = f"{np.sum(bad)} of {flat.size} numbers are not finite as {array.dtype.name}"
        raise ValueError(
            f"{name or 'a tensor'}: {found} (NaN, infinite or too large): the file is damaged, or its training had failed; "
            "copy it again, or take another one"
        )
    return array


def named(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    """The tensors of a file, each knowing its name."""
    return {name: dataclasses.replace(tensor, name=f"{path}: {name[:200]}") for name, tensor in tensors.items()}


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of one's own, of no particular values, that begins at a multiple of `ALIGNMENT` bytes."""
    nbytes = math.prod(shape) * dtype.itemsize
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def mapped(path: Path, offset: int, nbytes: int) -> np.ndarray:
    """Bytes of a file as a read-only mapping, which ends with the last view of it. All pages are asked for at once, where
    the system can (Linux): one by one they would cost more than the copy."""
    if nbytes == 0:
        return np.zeros(0, np.uint8)
    start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = offset + nbytes - start
    with open(path, "rb") as file:
        if hasattr(mmap, "MAP_POPULATE"):
            flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
            pages = mmap.mmap(file.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=start)
        else:
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
    return np.frombuffer(pages, np.uint8, nbytes, offset - start)


def in_file(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Stored:
    """A C-contiguous array at a byte offset of a file, little-endian as the machine."""
    dtype, nbytes = np.dtype(dtype), math.prod(shape) * np.dtype(dtype).itemsize
    return Stored(tuple(shape), dtype, lambda: mapped(path, offset, nbytes).view(dtype).reshape(shape))


def in_memory(array: np.ndarray) -> Stored:
    """An array that is in memory already."""
    return Stored(array.shape, array.dtype, lambda: array)


def looks_like(path: Path) -> str:
    """What a file that can't be read begins like, as the end of a sentence; "" where that says nothing."""
    with open(path, "rb") as file:
        start = file.read(32)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size:
        return "; it looks like a safetensors file: name it .safetensors"
    found = next((said for beginning, said in _BEGINNINGS.items() if start.startswith(beginning)), "")
    return f"; it looks like {found}" if found else ""
