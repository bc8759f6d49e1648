"""Inpainting: the latents of the picture without its holes, and the mask at their size, beside the latents to draw."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from ldm_jax.conditioning.condition import Condition, alike, check_entries
from ldm_jax.conditioning.pictures import check_pictures, check_range, hole, picture, written
from ldm_jax.data import masks

PyTree = Any
CONVENTIONS = ("paper", "stable_diffusion")


class Inpainting(Condition):
    """(image [H, W, 3], mask [H, W], 1 where to paint) -> concat [B, h, w, C + 1].

    config.conditioner.convention: how the picture without its holes looks, and in which order the two come.
      "paper" (the default): holes are cut in [0, 1], so that they are -1; masked latents, then the mask in [-1, 1].
      "stable_diffusion": holes are 0 in [-1, 1]; the mask in [0, 1], then masked latents.
        Guidance steers away from the prompt alone: the picture and its mask stay in the empty condition.
    In both the mask shrinks by its top left pixels.
    """

    kind = "inpaint"
    required = ("masks", "mask_area")
    abilities = ("inpaint", "outpaint")
    encodes = ("masked",)
    spatial = True
    of_pictures = True

    @property
    def _paper(self) -> bool:
        convention = self.section.get("convention", CONVENTIONS[0])
        if convention not in CONVENTIONS:
            raise ValueError(f"config.conditioner.convention={convention!r}: choose {' or '.join(map(repr, CONVENTIONS))}")
        return convention == "paper"

    @property
    def kept(self) -> tuple[str, ...]:
        return () if self._paper else ("concat",)

    def _inputs(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """image [B, H, W, 3] in [-1, 1], mask [B, H, W, 1] of 0 and 1."""
        small = mask[:, :: self.setting.factor, :: self.setting.factor]
        if self._paper:
            return {"masked": (1 - mask) * (image + 1) - 1, "mask": 2 * small - 1}
        return {"masked": (1 - mask) * image, "mask": small}

    @functools.cached_property
    def null(self) -> PyTree:
        size = self.setting.image_size
        return self._inputs(np.zeros((1, *size, 3), np.float32), np.ones((1, *size, 1), np.float32))

    def apply(self, params, inputs):
        order = ("masked", "mask") if self._paper else ("mask", "masked")
        return {"concat": jnp.concatenate([inputs[name] for name in order], axis=-1)}

    @property
    def takes(self) -> str:
        return "a picture, float [H, W, 3] in [-1, 1], and a mask [H, W] that is 1 where to paint"

    def parse(self, values):
        images, holes = [], []
        for value in values:
            if not isinstance(value, tuple) or len(value) != 2:
                raise ValueError("this model takes (image, mask), one such pair a picture")
            images.append(picture(value[0], self.setting.factor))
            holes.append(hole(value[1], images[-1].shape[:2]))
        return self._inputs(alike(images), np.stack(holes))

    def check_inputs(self, inputs):
        check_entries(inputs, "masked", "mask")
        masked, mask = inputs["masked"], inputs["mask"]
        check_pictures(masked, self.setting.factor)
        small = (len(masked), *(side // self.setting.factor for side in masked.shape[1:-1]), 1)
        if np.shape(mask) != small:
            raise ValueError(f"mask of shape {np.shape(mask)} beside pictures of {masked.shape}: it lies on latents, {small}")
        check_range(mask, "mask")

    def from_batch(self, batch):
        return self._inputs(batch["image"], batch["hole"])

    inpainting_part = ""

    def task(self):
        kinds, area = tuple(self.section["masks"]), tuple(self.section["mask_area"])
        masks.check(kinds, area)
        return functools.partial(masks.random_hole, kinds=kinds, area=area)

    def in_words(self, row, info) -> str:
        return row["name"]

    def told_as(self, row, info, batch, folder):
        image = written("image", batch["image"][0], folder / "example.png")
        return f"{image} {written('mask', 255 * batch['hole'][0, ..., 0], folder / 'example_mask.png')}"

    def as_pictures(self, batch, rows):
        return np.where(batch["hole"] > 0, np.float32(0), batch["image"])
