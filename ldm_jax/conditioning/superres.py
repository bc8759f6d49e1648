"""Super-resolution: a small picture beside the latents of the large one."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ldm_jax.conditioning.condition import Condition, alike, check_entries, check_numbers
from ldm_jax.conditioning.pictures import check_pictures, picture, written
from ldm_jax.data import degradation
from ldm_jax.primitives.choices import check_choice

PyTree = Any


class SuperResolution(Condition):
    """float [B, h, w, 3] -> concat: a picture `scale` times smaller than the one to draw, beside latents that are `factor`
    times smaller. Where it is larger than they, its pixels go into channels; where it is smaller, it is enlarged bicubically.

    With noise levels, noise of one of them was added to it in training and the network is told which as its label; inputs are
    then {"low", "level" int32 [B]}, and a user's picture gets noise of the level that comes with it, as (image, level), or next
    to none.
    """

    kind = "superres"
    required = ("scale", "degradation", "noise_levels")
    abilities = ("upscale",)
    spatial = True
    of_pictures = True

    def __init__(self, section, setting):
        super().__init__(section, setting)
        self.levels = section.get("noise_levels", 0)
        for side in setting.image_size:
            if side % self.scale:
                raise ValueError(f"config.conditioner.scale={self.scale} does not divide config.data.image_size={side}")
        self.down, self.up = max(setting.factor // self.scale, 1), max(self.scale // setting.factor, 1)
        if self.down * self.scale != self.up * setting.factor:
            raise ValueError(
                f"scale={self.scale}: a first stage that shrinks {setting.factor} times takes multiples or fractions of "
                f"{setting.factor}"
            )

    @property
    def scale(self) -> int:
        """How many times larger the picture gets: config.conditioner.scale. CompVis's models don't say it, but their networks
        have 3 n^2 channels beside the latents for a picture n times as large as these."""
        if "scale" in self.section:
            return self.section["scale"]
        channels = self.setting.network["in_channels"] - self.setting.channels
        return self.setting.factor // math.isqrt(channels // 3)

    @property
    def network_classes(self) -> int:
        return self.levels

    @functools.cached_property
    def null(self) -> PyTree:
        small = (side // self.scale for side in self.setting.image_size)
        return self._together(np.zeros((1, *small, 3), np.float32), np.zeros(1, np.int32))

    def _together(self, low: Any, level: Any) -> Any:
        return {"low": low, "level": level} if self.levels else low

    def apply(self, params, inputs):
        low = space_to_depth(inputs["low"] if self.levels else inputs, self.down)
        if self.up > 1:
            B, H, W, C = low.shape
            low = jax.image.resize(low, (B, self.up * H, self.up * W, C), "cubic")
        return {"concat": low} | ({"label": inputs["level"]} if self.levels else {})

    @property
    def takes(self) -> str:
        level = f", or with a noise level from 0 to {self.levels - 1}" if self.levels else ""
        return f"a picture to enlarge {self.scale} times, float [h, w, 3] in [-1, 1]{level}"

    def parse(self, values):
        chosen = [value if isinstance(value, tuple) else (value, 0) for value in values]
        low = alike([picture(image, self.down) for image, _ in chosen])
        if not self.levels:
            if any(isinstance(value, tuple) for value in values):
                raise ValueError("(image, level): this model was trained without noise levels, give the image alone")
            return low
        said = np.asarray([number for _, number in chosen])
        if said.dtype.kind not in "iuf" or not ((said >= 0) & (said < self.levels) & (said == np.rint(said))).all():
            raise ValueError(f"noise levels {said.tolist()}: this model knows the whole numbers 0 to {self.levels - 1}")
        numbers = said.astype(np.int32)
        rng = np.random.default_rng(0)
        noisy = [degradation.add_noise(image, number, rng) for image, number in zip(low, numbers)]
        return self._together(np.stack(noisy), numbers)

    def check_inputs(self, inputs):
        if self.levels:
            check_entries(inputs, "low", "level")
            check_numbers(inputs["level"], ("B",), self.levels, "noise levels")
        check_pictures(inputs["low"] if self.levels else inputs, self.down, noisy=bool(self.levels))

    def from_batch(self, batch):
        return self._together(batch["low"], batch["level"] if self.levels else None)

    def task(self):
        kind = check_choice(self.section["degradation"], degradation.KINDS, "config.conditioner.degradation")
        return functools.partial(degradation.low_resolution, scale=self.scale, kind=kind, noise_levels=self.levels)

    def in_words(self, row: Mapping[str, Any], info: Any) -> str:
        return row["name"]

    def told_as(self, row, info, batch, folder):
        return written("upscale", degradation.degrade(batch["image"][0], self.scale), folder / "example.png")

    def as_pictures(self, batch, rows):
        return np.repeat(np.repeat(batch["low"], self.scale, 1), self.scale, 2)


def space_to_depth(x: jax.Array, n: int) -> jax.Array:
    """[B, H, W, C] -> [B, H / n, W / n, n n C]: every n x n pixels become channels, row by row."""
    B, H, W, C = x.shape
    x = x.reshape(B, H // n, n, W // n, n, C).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H // n, W // n, n * n * C)
