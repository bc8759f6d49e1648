"""A class: "class" through a table of the conditioner as a context token, "label" as a number that the network adds to time."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import ABILITIES, Condition, check_numbers, module_of
from ldm_jax.primitives.choices import class_number, composed
from ldm_jax.primitives.files import read_json, write_json
from ldm_jax.primitives.flags import of_condition


class Class(Condition):
    """int32 [B] -> context [B, 1, D]. A user gives a name or a number. The empty class is the last row of the table, as in the
    paper's class-conditional ImageNet model, or `null_label`; -1: there is none."""

    kind = "class"
    columns = ("label",)
    flags = of_condition("label")
    companions = of_condition("negative")
    abilities = ABILITIES
    guidance_scale = 3.0

    @functools.cached_property
    def module(self) -> Any:
        return module_of(models.ClassEmbedder, self.section, dtype=self.setting.dtype)

    @property
    def inputs(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1,), np.int32)

    @property
    def _null_label(self) -> int:
        return self.section.get("null_label", self.section["n_classes"] - 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes that can be asked for."""
        count = self._null_label if self._null_label >= 0 else self.section["n_classes"]
        return tuple(self.setting.class_names or map(str, range(count)))[:count]

    @functools.cached_property
    def null(self) -> np.ndarray:
        return np.full(1, max(self._null_label, 0), np.int32)

    def apply(self, params, inputs):
        return {"context": self.module.apply({"params": params}, inputs)}

    @property
    def takes(self) -> str:
        names = self.names
        return "a class: " + (", ".join(names) if len(names) <= 20 else f"a name or a number from 0 to {len(names) - 1}")

    def parse(self, values):
        return np.asarray([class_number(value, self.names) for value in values], np.int32)

    def check_inputs(self, inputs):
        check_numbers(inputs, ("B",), max(self.section["n_classes"], self._null_label + 1), "classes")

    def from_batch(self, batch):
        return batch["label"]

    def learn(self, source, folder: Path) -> None:
        names, room = source.info.class_names, self.section["n_classes"] - (self.kind == "class")
        if names is not None and len(names) > room:
            raise ValueError(
                f"config.conditioner.n_classes={self.section['n_classes']}: the data have {len(names)} classes, and there is "
                f"room for {room}"
            )
        keep_names(folder, "names", names)

    @classmethod
    def recall(cls, section: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
        if "class_names" in section:  # as checkpoints of the world carry them
            return {"class_names": section["class_names"]}
        return {"class_names": read_names(folder, "names")}

    def in_words(self, row, info) -> str:
        return info.class_names[row["label"]] if info.class_names else str(row["label"])

    def read(self, given):
        return list(given["label"]), list(given["label"])


class Label(Class):
    """int32 [B] -> label [B]: the network has the table, of n_classes and the empty one after them (ADM, DiT)."""

    kind = "label"
    guidance_scale = 4.0
    module = None

    @property
    def _null_label(self) -> int:
        return self.section["n_classes"]

    @property
    def network_classes(self) -> int:
        return self.section["n_classes"] + 1

    def apply(self, params, inputs):
        return {"label": inputs}


def keep_names(folder: Path, of: str, names: Sequence[str] | None) -> None:
    """Writes the names of classes, "names", or of what is in boxes, "box_names", into a working directory. ValueError where it
    has others: a model that was trained there knows classes by their numbers."""
    said, names = _said(folder), None if names is None else list(names)
    if of not in said:
        write_json(folder / "classes.json", {**said, of: names})
    elif not _alike(said[of], names):
        known, new = (", ".join(each) if each else "none" for each in (said[of], names))
        raise ValueError(
            f"the names of the classes have changed: {folder} was begun with {known}; the data have {new}. Give them back "
            "their names, or train in another --workdir"
        )


def _alike(known: list[str] | None, names: list[str] | None) -> bool:
    """Whether they are the same, however their accents are stored."""
    return known == names or [*map(composed, known or ())] == [*map(composed, names or ())]


def read_names(folder: Path | None, *of: str) -> list[str] | None:
    """The names that `keep_names` wrote, the first of those asked for that is there; None where there are none."""
    said = _said(folder) if folder else {}
    return next((said[name] for name in of if name in said), None)


def _said(folder: Path) -> dict[str, Any]:
    path = folder / "classes.json"
    if not path.is_file():
        return {}
    found = read_json(path, "Delete it: the next training run writes it again.", (dict, list, type(None)))
    return found if isinstance(found, dict) else {"names": found}  # the first working directories held the list alone
