"""Short films: [frames, H, W, 3], and volumes: [D, H, W, 1]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data.stack_transforms import FilmTransform
from ldm_jax.data.stacks import FILMS, gif, read_film
from ldm_jax.data.transform import Transform
from ldm_jax.media.medium import Medium
from ldm_jax.pictures import to_uint8

IN_SPACE = ("sample", "image_to_image", "edit", "variation", "interpolate")  # what is not of height and width alone


class Film(Medium):
    """GIF, MP4 (with imageio), .npy and .npz stacks and folders of frames; config.data.image_size is (frames, height, width).
    Shown as a strip of frames, written as GIF."""

    name = "film"
    files = FILMS
    sources = ("moving_shapes", "folder")
    axes = 3
    one, many = "film", "films"
    abilities = IN_SPACE
    channels = 3

    def check(self) -> None:
        """No flip where words say left and right, and no fields of pictures."""
        check_fields(self.section, self.name)
        if self.section["flip"] and self.section["source"] == "moving_shapes":
            raise ValueError("config.data.flip=True: captions of moving_shapes say left and right, which a flip exchanges")

    def transform(self, **columns: Any) -> FilmTransform:
        """Decoded, resized and cut as config.data says."""
        section = self.section
        size = tuple(section["image_size"])
        return FilmTransform(size, section["crop"], section["flip"], section.get("frame_step", 1), **columns)

    def read(self, path: str | Path) -> np.ndarray:
        """float32 [frames, H, W, 3] of a file or a folder of frames. ValueError, too, for a picture, which has one."""
        film = read_film(path, str(path))
        if len(film) < 2:
            raise ValueError(f"{path} has one frame: a picture. Give a film, as GIF, .npy or a folder of frames")
        return Transform.scaled(film)

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """The frames side by side."""
        return strips(arrays)

    def files_of(self, array: np.ndarray) -> dict[str, bytes]:
        """An animated picture."""
        return {"gif": gif(to_uint8(array))}


def check_fields(section: Mapping[str, Any], name: str) -> None:
    """ValueError for fields of config.data that mean something for pictures alone."""
    for field in ("short_side", "palette"):
        if section.get(field):
            raise ValueError(f"config.data.{field}={section[field]!r}: of pictures, not of medium={name!r}; leave it as it was")


def strips(arrays: np.ndarray) -> np.ndarray:
    """[N, T, H, W, C] -> pictures [N, H, T W + (T - 1), 3], a white line between one frame and the next."""
    N, T, H, W, C = arrays.shape
    lined = np.concatenate([arrays, np.ones((N, T, H, 1, C), arrays.dtype)], axis=3)
    row = np.moveaxis(lined, 1, 2).reshape(N, H, T * (W + 1), C)[:, :, :-1]
    return row if C == 3 else np.repeat(row, 3, axis=-1)
