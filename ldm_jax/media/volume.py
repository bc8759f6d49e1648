"""Volumes: [D, H, W, 1], such as scans."""

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.source import spread_rows
from ldm_jax.data.stack_transforms import VolumeTransform, in_window, out_of_window
from ldm_jax.data.stacks import VOLUMES, gif, read_volume
from ldm_jax.media.film import IN_SPACE, check_fields, strips
from ldm_jax.media.medium import Medium
from ldm_jax.pictures import to_uint8

SLICES = 8  # that are shown
LOOKED_AT = 16  # volumes whose range is looked at


class Volume(Medium):
    """.npy and .npz arrays and folders of slices; config.data.image_size is (depth, height, width), config.data.window what is
    black and white. Shown as slices from top to bottom, written as a GIF through all of them and as .npy, in the numbers of the
    window, or in [-1, 1] where there is none."""

    name = "volume"
    files = VOLUMES
    sources = ("vessels", "folder")
    axes, unit = 3, "voxels"
    one, many = "volume", "volumes"
    abilities = IN_SPACE
    channels = 1

    @property
    def window(self) -> tuple[float, float] | None:
        """config.data.window, None where it is ()."""
        found = tuple(self.section.get("window", ()))
        return found or None

    def check(self) -> None:
        """A window that goes from one number to a larger one, and no fields of pictures."""
        check_fields(self.section, self.name)
        if self.window is not None and not (len(self.window) == 2 and -math.inf < self.window[0] < self.window[1] < math.inf):
            raise ValueError(f"config.data.window={self.window}: two numbers, black and then a larger one, white; or ()")

    def transform(self, **columns: Any) -> VolumeTransform:
        """Cut as config.data says; never resized."""
        section, size = self.section, self.section["image_size"]
        size = (size,) * 3 if isinstance(size, int) else tuple(size)
        return VolumeTransform(size, self.window, section["crop"], section["flip"], **columns)

    def look(self, source: Any) -> str:
        """Where numbers use little of a range that nobody named, that they do: 12 bits in 16 are nearly black. Of some volumes,
        spread over all; what can't be read is refused elsewhere."""
        ranges = []
        for i in spread_rows(len(source), min(len(source), LOOKED_AT)) if self.window is None else ():
            with contextlib.suppress(ValueError, OSError):
                volume = read_volume(source[int(i)]["volume"], "")
                whole = np.iinfo(volume.dtype).max if volume.dtype.kind == "u" else 1
                ranges.append((float(volume.min()), float(volume.max()), whole))
        if not ranges:
            return ""
        low, high, whole = (pick(column) for pick, column in zip((min, max, max), zip(*ranges)))
        if whole > 1 and high < whole / 8:
            odd = f"{high:g} of {whole} is the most that volumes hold, so that all are nearly black"
        elif whole == 1 and 0 <= low < high <= 1:
            odd = f"volumes hold {low:g} to {high:g}, and -1 is black, so that none is darker than grey"
        else:
            return ""
        return f"{odd}; say which numbers are black and white, --config.data.window='({low:g}, {high:g})'"

    def read(self, path: str | Path) -> np.ndarray:
        """float32 [D, H, W, 1] of a file or a folder of slices."""
        return in_window(read_volume(path, str(path)), self.window, str(path))[..., None]

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """Slices along the first axis, evenly spread, side by side."""
        depth = arrays.shape[1]
        return strips(arrays[:, np.linspace(0, depth - 1, min(depth, SLICES)).round().astype(int)])

    def files_of(self, array: np.ndarray) -> dict[str, bytes]:
        """A way through all slices, and the numbers, which `read` reads as this array."""
        file = io.BytesIO()
        np.save(file, out_of_window(array[..., 0], self.window))
        return {"gif": gif(np.repeat(to_uint8(array), 3, axis=-1)), "npy": file.getvalue()}
