"""Sentences of the grammar as a source: {"text", "label"}, drawn in a second by every process, always the same ones."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.data.sentences.grammar import KINDS, draw
from ldm_jax.data.source import Info, MissingSplit, choose_columns

_COLUMNS = ("text", "label")


class Sentences:
    """`count` different sentences, equally many of each kind; none of "validation" is among the first `train` of "train"."""

    def __init__(self, split: str, columns: Sequence[str] | None = None, *, train: int, validation: int):
        if split not in ("train", "validation"):
            raise MissingSplit(f"sentences: there is no split {split!r} but 'train' and 'validation'")
        chosen = choose_columns("sentences", columns, _COLUMNS)
        self.texts = _train(train) if split == "train" else _validation(train, validation)
        self.info = Info(f"sentences/{split}", chosen, KINDS if "label" in chosen else None)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = {"name": f"{self.info.name} {index}", "text": self.texts[index], "label": index % len(KINDS)}
        return {name: value for name, value in row.items() if name == "name" or name in self.info.columns}


@functools.lru_cache(maxsize=4)
def _train(count: int) -> tuple[str, ...]:
    return _different(np.random.default_rng(1), count, frozenset())


@functools.lru_cache(maxsize=4)
def _validation(train: int, count: int) -> tuple[str, ...]:
    return _different(np.random.default_rng(2), count, frozenset(_train(train)))


def _different(rng: np.random.Generator, count: int, known: frozenset[str]) -> tuple[str, ...]:
    """So many sentences that are not `known`, kinds in turn."""
    found: dict[str, None] = {}
    while len(found) < count:
        text = draw(rng, KINDS[len(found) % len(KINDS)])
        if text not in known:
            found.setdefault(text)
    return tuple(found)
