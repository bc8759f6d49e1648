"""The data that a command names: a working directory's, or a folder of images."""

from pathlib import Path
from typing import Any

from ldm_jax.primitives.files import read_json


def data_of(path: str | Path) -> dict[str, Any]:
    """A config of the data at `path`, as far as `build.make_source` reads it: those of a working directory, or a folder of
    images, whose pictures have no size of their own (image_size 0)."""
    path = Path(path)
    if (path / "config.json").is_file():
        return read_json(path / "config.json")
    splits = {"train_split": "train", "validation_split": "validation"}
    return {"data": {"source": "folder", "path": str(path), "image_size": 0, **splits}}
