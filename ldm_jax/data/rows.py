"""Some rows of every batch, as a part of grain's pipeline; apart from `pipeline`, as grain takes half a second to import."""

from collections.abc import Sequence
from typing import Any

import grain


class Rows(grain.MapDataset):
    """Of `examples`, taken as batches of `batch_size` one after the other, the rows of these numbers, in their order."""

    def __init__(self, examples: grain.MapDataset, rows: Sequence[int], batch_size: int):
        super().__init__(examples)
        self._examples, self._rows, self._batch_size = examples, tuple(map(int, rows)), batch_size

    def __len__(self) -> int:
        return len(self._examples) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index, len(self._rows))
        return self._examples[batch * self._batch_size + self._rows[place]]
