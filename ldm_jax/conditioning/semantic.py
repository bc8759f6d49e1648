"""Semantic synthesis: a class for every pixel."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import ABILITIES, Condition, alike, check_numbers, module_of
from ldm_jax.conditioning.pictures import check_size, written
from ldm_jax.data import label_maps
from ldm_jax.primitives.flags import of_condition


class SemanticMap(Condition):
    """int32 [B, H, W], -1 for none -> concat [B, h, w, D]: one-hot, resized to the latents and mapped to D channels."""

    kind = "semantic"
    columns = ("label_map",)
    flags = of_condition("map")
    companions = of_condition("palette")
    abilities = ABILITIES
    spatial = True

    @functools.cached_property
    def module(self) -> Any:
        return module_of(models.SpatialRescaler, self.section)

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.module.in_channels

    @functools.cached_property
    def null(self) -> np.ndarray:
        return np.full((1, *self.setting.image_size), -1, np.int32)

    def init(self, key):
        return models.initialize(self.module, key, jax.ShapeDtypeStruct((*self.null.shape, self.classes), jnp.float32))

    def apply(self, params, inputs):
        return {"concat": self.module.apply({"params": params}, jax.nn.one_hot(inputs, self.classes))}

    @property
    def takes(self) -> str:
        return f"a label map, int [H, W] with classes 0 to {self.classes - 1}"

    def parse(self, values):
        maps = []
        for value in values:
            value = np.asarray(value)
            if value.ndim != 2 or not np.issubdtype(value.dtype, np.integer):
                raise ValueError(f"a label map is int [H, W], this is {value.dtype.name} {list(value.shape)}")
            if value.min() < -1 or value.max() >= self.classes:
                worst = value.max() if value.max() >= self.classes else value.min()
                raise ValueError(f"label map with class {worst}: this model knows 0 to {self.classes - 1}, and -1 for none")
            check_size(value.shape, self.setting.factor)
            maps.append(value.astype(np.int32))
        return alike(maps)

    def check_inputs(self, inputs):
        check_numbers(inputs, ("B", "H", "W"), self.classes, "label maps' classes", least=-1)
        check_size(np.shape(inputs)[1:], self.setting.factor)

    def from_batch(self, batch):
        return batch["label_map"]

    def task(self):
        return functools.partial(label_maps.checked_map, n_classes=self.classes)

    def in_words(self, row, info) -> str:
        return row["name"]

    def as_pictures(self, batch, rows):
        palette = label_maps.bit_palette(self.classes)
        return label_maps.to_colours(batch["label_map"], palette).astype(np.float32) / 127.5 - 1

    def told_as(self, row, info, batch, folder):
        return written("map", batch["label_map"][0], folder / "example.png")

    def read(self, given):
        palette = label_maps.read_palette(given["palette"]) if given.get("palette") else None
        return [label_maps.read_map(path, self.classes, palette) for path in given["map"]], list(given["map"])
