"""Pictures: [H, W, 3], the medium that everything was first made for."""

from pathlib import Path
from typing import Any

import numpy as np

from ldm_jax.data import label_maps
from ldm_jax.data.decode import decode_rgb
from ldm_jax.data.transform import Transform
from ldm_jax.data.walk import IMAGES
from ldm_jax.media.medium import Medium


class Image(Medium):
    """Files of all kinds that Pillow reads, cut to config.data.image_size."""

    name = "image"
    files = IMAGES
    sources = ("shapes", "folder", "tfds")
    one, many = "picture", "pictures"
    channels = 3

    def transform(self, **columns: Any) -> Transform:
        """Decoded, resized and cropped as config.data says."""
        section = self.section
        if section["flip"] and section["source"] == "shapes":
            raise ValueError("config.data.flip=True: captions of shapes say left and right, which a flip exchanges")
        return Transform(
            section["image_size"],
            section["crop"],
            section["flip"],
            palette=label_maps.read_palette(section["palette"]) if section.get("palette") else None,
            short_side=section.get("short_side", 0),
            augment=section.get("augment", 0.0),
            **columns,
        )

    def read(self, path: str | Path) -> np.ndarray:
        """float32 [H, W, 3] of any image file: EXIF applied, transparency on white, 16 bits as 8."""
        return Transform.scaled(decode_rgb(path, str(path)))

    def shown(self, arrays: np.ndarray) -> np.ndarray:
        """Themselves."""
        return arrays
