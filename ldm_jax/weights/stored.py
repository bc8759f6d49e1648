"""An array that is still in its file.

Checkpoints are read as trees of `Stored`: shape and dtype are known, the bytes stay where they are until the leaf is
asked for (`np.asarray(leaf)`, or `leaf[index]` for the part that one device needs). Each request maps the file,
copies, and unmaps, so the host never holds more than the leaf at hand.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Stored:
    """`view()` gives the array, which may be a view of a read-only mapping; `np.asarray` gives a copy of one's own."""

    shape: tuple[int, ...]
    dtype: np.dtype
    view: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return owned(self.view(), dtype)

    def __getitem__(self, index) -> np.ndarray:
        return owned(self.view()[index])

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "Stored":
        """The array after `function`, which keeps the dtype and returns `shape`; nothing is read yet."""
        return Stored(tuple(shape), self.dtype, lambda: function(self.view()))


def owned(array: np.ndarray, dtype: np.dtype | None = None) -> np.ndarray:
    """A C-contiguous copy. A kernel [O, I, h, w] seen as [h, w, I, O] is copied as a matrix transpose first: walking
    the nine taps innermost would touch a new cache line for every element."""
    array = np.asarray(array)
    dtype = array.dtype if dtype is None else np.dtype(dtype)
    if array.ndim == 4 and array.shape[0] * array.shape[1] > 1 and array.transpose(3, 2, 0, 1).flags.c_contiguous:
        h, w, i, o = array.shape
        matrix = np.array(array.transpose(3, 2, 0, 1).reshape(o, i * h * w).T, dtype, order="C")
        array = matrix.reshape(i, h, w, o).transpose(1, 2, 0, 3)
    return np.array(array, dtype, order="C")


def in_file(path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Stored:
    """A C-contiguous array at a byte offset of a file."""
    dtype, count = np.dtype(dtype), int(np.prod(shape, dtype=np.int64))

    def view() -> np.ndarray:
        if count == 0:
            return np.zeros(shape, dtype)
        raw = np.memmap(path, np.uint8, "r", offset=offset, shape=(count * dtype.itemsize,))
        return np.asarray(raw).view(dtype).reshape(shape)

    return Stored(tuple(shape), dtype.newbyteorder("="), view)


def in_memory(array: np.ndarray) -> Stored:
    return Stored(array.shape, array.dtype, lambda: array)
