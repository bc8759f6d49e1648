"""A picture to change, for models that follow instructions (InstructPix2Pix, Brooks et al. 2023): its latents lie beside those
to draw. Together with a prompt, as a part of "combined", it is led by two scales: how much the prompt counts, and how much the
picture. Such models are loaded and drawn with, not trained: no data set here has pictures before and after."""

import functools
from typing import Any

import numpy as np

from ldm_jax.conditioning.condition import Condition, alike
from ldm_jax.conditioning.pictures import picture
from ldm_jax.data.decode import decode_rgb
from ldm_jax.primitives.flags import of_condition

PyTree = Any


class Instruct(Condition):
    """image [H, W, 3] in [-1, 1] -> concat [B, h, w, C]: scaled latents times config.conditioner.factor (published models take
    them unscaled), 0 in the empty condition."""

    kind = "instruct"
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

    def check_flags(self, given):
        if not given.get("picture"):
            raise ValueError("this model changes a picture as a prompt says: give --picture PHOTO.png beside it")

    def beside(self, given):
        return decode_rgb(given["picture"], given["picture"]).astype(np.float32) / np.float32(127.5) - np.float32(1)

    def check(self):
        raise ValueError("config.conditioner.kind='instruct': such models can be loaded and drawn with, but not trained here")
