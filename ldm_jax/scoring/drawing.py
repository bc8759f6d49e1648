"""Pictures of a model, numbered, drawn over the devices for conditions of its data.

Picture i depends on the seed and i alone, not on the batches, the devices or an interruption.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax import api, build
from ldm_jax.api import drawing
from ldm_jax.data.pipeline import example
from ldm_jax.data.source import spread_rows
from ldm_jax.data.transform import other_columns
from ldm_jax.primitives.arrays import key_of, row_keys
from ldm_jax.scoring.looking import Pictures, full_batch
from ldm_jax.training import distributed, sharding

PyTree = Any


@dataclasses.dataclass(frozen=True)
class _AsTold:
    """A source's rows with classes as a model numbers them. `labels`, `boxes`: the model's number for each of the source's;
    None: the same."""

    source: Any
    labels: np.ndarray | None
    boxes: np.ndarray | None

    @property
    def info(self) -> Any:
        return self.source.info

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.source[index]
        if self.labels is not None:
            row = row | {"label": int(self.labels[row["label"]])}
        return row if self.boxes is None else row | {"box_labels": self.boxes[np.asarray(row["box_labels"], np.int64)]}


def as_told(source: Any, condition: Any) -> Any:
    """A source's rows as a model is told them: of other data the classes, and those of boxes, may be numbered otherwise, so
    their names count. Where one of both has no names, numbers do. ValueError for a class that the model doesn't know."""
    known = condition.setting.class_names
    if known is None or isinstance(known, Mapping):
        return source
    number, found = {name: i for i, name in enumerate(known)}, {}
    for column, names in (("label", source.info.class_names), ("box_labels", source.info.box_names)):
        if column not in condition.columns or names is None or tuple(names) == tuple(known[: len(names)]):
            continue
        if strange := [name for name in names if name not in number]:
            some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise ValueError(f"{source.info.name}: the model knows no class {strange[0]!r}; its classes are {some}")
        found[column] = np.array([number[name] for name in names], np.int32)
    return _AsTold(source, found.get("label"), found.get("box_labels")) if found else source


class Conditions:
    """What pictures 0 to num - 1 are drawn for: the conditions of a source's rows, spread over it (`spread_rows`), after all of
    them time and again where there are fewer. So classes have the source's own balance. `on_error`: "raise", or "skip": the
    next row whose picture can be read stands for one that can't, where a condition is made of pictures."""

    def __init__(self, config: Mapping[str, Any], condition: Any, source: Any, num: int, on_error: str = "raise"):
        self.condition, self.source, self.num, self.on_error = condition, source, num, on_error
        self._told = as_told(source, condition)
        self.transform = build.make_transform(config, condition)
        # labels and captions need no pixels
        self.plain = self.transform.task is None and set(condition.columns) <= {"label", "caption"}
        self._taken: dict[int, int] = {}
        self._rest = spread_rows(len(source), num % len(source))

    def row(self, number: int) -> int:
        """The source's row for picture `number`."""
        turn, place = divmod(number, len(self.source))
        return int(self._rest[place]) if turn == self.num // len(self.source) else place

    def taken(self, number: int) -> int:
        """`row`, or the one that stands for it."""
        row = self.row(number)
        if self.plain or self.on_error == "raise":
            return row
        if row not in self._taken:
            skipped = example(self.source, self.transform, row, self.on_error)["skipped"]
            self._taken[row] = int(row + skipped) % len(self.source)
        return self._taken[row]

    def inputs(self, numbers: np.ndarray) -> PyTree:
        """The conditioner's inputs for these pictures; None for a model without a condition."""
        if self.condition.kind == "none":
            return None
        rows = [self.row(int(i)) for i in numbers]
        if self.plain:
            examples = [other_columns(self._told[row], self.transform.tokenize, 0, None) for row in rows]
        else:
            examples = [example(self._told, self.transform, row, self.on_error) for row in rows]
        return self.condition.from_batch({name: np.stack([e[name] for e in examples]) for name in examples[0]})

    def labels(self) -> np.ndarray | None:
        """int64 [num], the classes as the source numbers them; None where the model is not told them."""
        if "label" not in self.condition.columns:
            return None
        of_rows = np.int64([self.source[i]["label"] for i in range(len(self.source))])
        return of_rows[[self.taken(i) for i in range(self.num)]]

    def texts(self) -> list[str] | None:
        """What all pictures are drawn for in a user's words; None where the condition is no text."""
        if "caption" not in self.condition.columns:
            return None
        return self.words(np.arange(self.num))

    def words(self, numbers: np.ndarray) -> list[str]:
        """The conditions of these pictures in words."""
        return [self.condition.in_words(self.source[self.taken(int(i))], self.source.info) for i in numbers]


class Drawer:
    """Draws with a model's parameters, replicated over the mesh. `options`: those of `sample` (sampler, steps, grid,
    guidance_scale)."""

    def __init__(self, spec: api.Specification, params: PyTree, conditions: Conditions, mesh: Any, seed: int = 0):
        self.spec, self.params, self.conditions, self.mesh = spec, params, conditions, mesh
        self.key = key_of(seed)

    def __call__(self, numbers: np.ndarray, options: Mapping[str, Any]) -> jax.Array:
        """Pictures [B, H, W, 3] over the devices, for numbers int64 [B]; below 0 the last one again."""
        numbers = np.where(numbers < 0, self.conditions.num - 1, numbers)
        mine = numbers[sharding.local_rows(self.mesh, len(numbers))]
        with jax.set_mesh(self.mesh):
            inputs = self.conditions.inputs(mine)
            cond = None
            if inputs is not None:
                placed = jax.tree.map(lambda x: sharding.to_device(self.mesh, np.asarray(x)), inputs)
                cond = self.spec.embed(self.params, placed)
            keys = _row_keys(self.key, sharding.to_device(self.mesh, mine.astype(np.int32)))
            return drawing.sample(self.spec, self.params, keys, cond, num=len(numbers), **options)

    def batches(self, numbers: np.ndarray, batch_size: int, options: Mapping[str, Any]) -> Iterator[Pictures]:
        """All pictures of these numbers, a batch at a time."""
        batch_size = full_batch(batch_size, self.mesh)
        for start in range(0, len(numbers), batch_size):
            distributed.stop_point()
            part = numbers[start : start + batch_size]
            rows = np.concatenate([part, np.full(batch_size - len(part), -1)])
            yield Pictures(rows, self(rows, options))


_row_keys = jax.jit(row_keys)
