"""A picture to describe, for models of text."""

import functools
from typing import Any

import numpy as np

from ldm_jax import models
from ldm_jax.conditioning.condition import Condition, check_entries, module_of
from ldm_jax.conditioning.pictures import check_pictures, picture, written
from ldm_jax.data.control_pictures import COLUMN
from ldm_jax.data.decode import decode_rgb
from ldm_jax.data.transform import Transform, middle_square
from ldm_jax.primitives.choices import check_choice
from ldm_jax.primitives.flags import of_condition

PyTree = Any
STEMS = ("patches", "convolutions")


class Describing(Condition):
    """float32 [B, S, S, 3] in [-1, 1], S being config.conditioner.image_size -> context [B, N, D], a token for each patch of
    the picture, by a transformer that is trained with the network.

    A user gives a picture of any size; its middle square counts, as in training. The empty condition shows none.
    """

    kind = "picture"
    columns = (COLUMN,)
    flags = of_condition("describe")
    required = ("image_size", "patch_size", "n_embed", "n_layer")
    abilities = ("sample", "variation")
    of_text = True
    guidance_scale = 1.0

    @property
    def size(self) -> int:
        """S, the side of the pictures that the conditioner looks at."""
        return self.section["image_size"]

    @functools.cached_property
    def module(self) -> Any:
        fields = {name: value for name, value in self.section.items() if name != "image_size"}
        return module_of(models.PictureEmbedder, fields, dtype=self.setting.dtype)

    def init(self, key):
        return models.initialize(self.module, key, *self.null.values())

    def apply(self, params, inputs):
        return {"context": self.module.apply({"params": params}, inputs["picture"], inputs["shown"])}

    @functools.cached_property
    def null(self) -> PyTree:
        return {"picture": np.zeros((1, self.size, self.size, 3), np.float32), "shown": np.zeros(1, np.float32)}

    @property
    def takes(self) -> str:
        return "a picture to describe, float [H, W, 3] in [-1, 1], of which the middle square is looked at"

    def parse(self, values):
        pixels = (np.uint8(np.rint((picture(value) + 1) * 127.5).clip(0, 255)) for value in values)
        return self._shown(np.stack([Transform.scaled(middle_square(each, self.size)) for each in pixels]))

    def _shown(self, pictures: np.ndarray) -> PyTree:
        return {"picture": pictures, "shown": np.ones(len(pictures), np.float32)}

    def from_batch(self, batch):
        return self._shown(batch[COLUMN])

    def check(self):
        if len(self.setting.image_size) != 1:
            raise ValueError("config.conditioner.kind='picture' is of text: config.data.medium='text'")
        size, patch = self.size, self.section["patch_size"]
        if not all(isinstance(side, int) and side > 0 for side in (size, patch)) or size % patch:
            raise ValueError(f"config.conditioner.image_size={size}: must be a multiple of patch_size={patch}, both above 0")
        stem = check_choice(self.section.get("stem", "patches"), STEMS, "config.conditioner.stem")
        if stem == "convolutions" and patch & (patch - 1):
            raise ValueError(f"config.conditioner.patch_size={patch}: must be a power of two where stem='convolutions'")
        super().check()

    def check_inputs(self, inputs):
        check_entries(inputs, "picture", "shown")
        check_pictures(inputs["picture"])
        shape = np.shape(inputs["picture"])
        if shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"pictures are float [B, {self.size}, {self.size}, 3], these are {list(shape)}")

    def in_words(self, row, info) -> str:
        return row["name"]

    def as_pictures(self, batch, rows):
        return batch[COLUMN]

    def told_as(self, row, info, batch, folder):
        return written("describe", batch[COLUMN][0], folder / "example.png")

    def read(self, given):
        names = list(given["describe"])
        return [Transform.scaled(decode_rgb(name, name)) for name in names], names
