"""A source whose rows all get the same captions: for a few pictures of one thing, which nobody described one by one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ldm_jax.data.source import Info, Source


class Captioned:
    """The rows of a source, each with these captions, of which training draws one a visit."""

    def __init__(self, source: Source, captions: Sequence[str]):
        self._source, self._captions = source, tuple(captions)

    @property
    def info(self) -> Info:
        """The source's, with captions."""
        info = self._source.info
        columns = (*info.columns, "caption")
        return dataclasses.replace(info, columns=columns, captions=len(self) * len(self._captions))

    @property
    def skipped(self) -> int:
        """How many rows could not be read and are left out."""
        return getattr(self._source, "skipped", 0)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._source[index] | {"caption": self._captions}
