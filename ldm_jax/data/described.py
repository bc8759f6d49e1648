"""Captions of pictures as text: rows of a source of pictures with the caption as what is learnt, and the picture beside it."""

import dataclasses
from typing import Any

import numpy as np

from ldm_jax.data import fingerprint
from ldm_jax.data.decode import decode_rgb
from ldm_jax.data.source import Source
from ldm_jax.data.transform import middle_square


class Described:
    """{"text", "conditioning"} of rows {"caption", "image"}: the first caption as one line, and the picture as uint8
    [size, size, 3], its middle square; "text" alone if `size` is 0.

    Raises ValueError, with the row's name, for a caption of blanks alone."""

    def __init__(self, source: Source, size: int = 0):
        self._source, self._size = source, size
        columns = ("text", "conditioning") if size else ("text",)
        self.info = dataclasses.replace(source.info, columns=columns, class_names=None, box_names=None, captions=None)

    @property
    def skipped(self) -> int:
        """How many rows could not be read and are left out."""
        return getattr(self._source, "skipped", 0)

    def stamp(self) -> str | None:
        """As of the pictures."""
        return fingerprint.stamp(self._source)

    def all_texts(self) -> list[str]:
        """All texts, without a look at the pictures."""
        return [self._text(self._source[i], i) for i in range(len(self))]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._source[index]
        seen: dict[str, Any] = {"name": self._name(row, index), "text": self._text(row, index)}
        if self._size:
            image = row["image"]
            pixels = image if isinstance(image, np.ndarray) else decode_rgb(image, seen["name"], self._size)
            seen["conditioning"] = middle_square(pixels, self._size)
        return seen

    def _name(self, row: dict[str, Any], index: int) -> str:
        return row.get("name", f"{self.info.name} {index}")

    def _text(self, row: dict[str, Any], index: int) -> str:
        said = row["caption"] if isinstance(row["caption"], str) else row["caption"][0]
        if not (text := " ".join(said.split())):
            raise ValueError(f"{self._name(row, index)}: its caption is blank")
        return text
