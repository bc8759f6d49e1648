"""Volumes: [D, H, W, 1], such as scans."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.stack_transforms import VolumeTransform, in_window, out_of_window
from ldm_jax.data.stacks import VOLUMES, gif, read_volume
from ldm_jax.media.film import IN_SPACE, check_fields, strips
from ldm_jax.media.medium import Medium
from ldm_jax.pictures import to_uint8

SLICES = 8  # that are shown


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
