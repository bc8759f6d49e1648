"""A picture to change, for models that follow instructions (InstructPix2Pix, Brooks et al. 2023): its latents lie beside those
to draw. Together with a prompt, as a part of "combined", it is led by two scales: how much the prompt counts, and how much the
picture. A data set for training has pictures as they become, their captions say what is done, and beside each lies the picture
as it was: its column "conditioning"."""

import functools
from typing import Any

import numpy as np

from ldm_jax.conditioning.condition import Condition, alike, check_entries
from ldm_jax.conditioning.pictures import check_pictures, picture, written
from ldm_jax.data.control_pictures import COLUMN
from ldm_jax.data.decode import decode_rgb
from ldm_jax.primitives.flags import of_condition

PyTree = Any


class Instruct(Condition):
    """image [H, W, 3] in [-1, 1] -> concat [B, h, w, C]: scaled latents times config.conditioner.factor (published models take
    them unscaled), 0 in the empty condition."""

    kind = "instruct"
    columns = (COLUMN,)
    companions = of_condition("picture")
    abilities = ("sample", "variation")
    encodes = ("picture",)
    spatial = True
    image_guidance_scale = 1.5

    @functools.cached_property
    def null(self) -> PyTree:
        return {"picture": np.zeros((1, *self.setting.image_size, 3), np.float32), "shown": np.zeros(1, np.float32)}

    def apply(self, params, inputs):
        shown = inputs["shown"].reshape(-1, *[1] * (inputs["picture"].ndim - 1))
        return {"concat": inputs["picture"] * (shown * self.section.get("factor", 1.0))}

    @property
    def takes(self) -> str:
        return "a picture to change, float [H, W, 3] in [-1, 1]"

    def parse(self, values):
        images = alike([picture(value, self.setting.factor) for value in values])
        return {"picture": images, "shown": np.ones(len(images), np.float32)}

    def check_inputs(self, inputs):
        check_entries(inputs, "picture", "shown")
        check_pictures(inputs["picture"], self.setting.factor)

    def from_batch(self, batch):
        return {"picture": batch[COLUMN], "shown": np.ones(len(batch[COLUMN]), np.float32)}

    def as_pictures(self, batch, rows):
        return batch[COLUMN]

    def told_as(self, row, info, batch, folder):
        return written("picture", batch[COLUMN][0], folder / "example.png")

    def check(self):
        super().check()
        check_apart(self)

    def check_flags(self, given):
        if not given.get("picture"):
            raise ValueError("this model changes a picture as a prompt says: give --picture PHOTO.png beside it")

    def beside(self, given):
        return decode_rgb(given["picture"], given["picture"]).astype(np.float32) / np.float32(127.5) - np.float32(1)


def check_apart(condition: Condition) -> None:
    """ValueError for a share to drop of a prompt and a picture, each alone and both, that three times over is more than all."""
    share = condition.section.get("null_probability", 0.0)
    if condition.image_guidance_scale is not None and share > 1 / 3:
        raise ValueError(
            f"config.conditioner.null_probability={share}: that share loses the prompt, as much the picture, and as much both; "
            "set it to a third or less, 0.05 as published"
        )
