"""What is to be measured, and how: read and checked before jax is imported."""

import dataclasses
import math

from ldm_jax.primitives.choices import check_choice

SPLITS = ("train", "validation")
RESIZE = ("legacy", "tensorflow", "clean", "none")  # those of `models.inception`, known before jax is there


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be measured, and how.

    num                  pictures of every setting
    samplers, steps, guidance_scales
                         every combination is a setting; empty: the config's own
    features, resize     see `scoring.features.load`
    reference            "train", "validation", or a file of statistics
    reference_num        real pictures at most
    conditions           "train" or "validation": whose conditions are drawn
    memorisation         also compare with the nearest training pictures
    reconstructions      also measure the first stage
    likelihood           bits per dimension of so many held-out pictures; 0: none
    pictures             write every picture
    resamples            of the bootstrap; 0: no intervals
    size                 of pictures that are compared: folders are brought to it, arrays must have it; 0: as they are
    """

    num: int = 50_000
    samplers: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    guidance_scales: tuple[float, ...] = ()
    features: str = "auto"
    resize: str = "legacy"
    reference: str = "train"
    reference_num: int = 50_000
    conditions: str = "validation"
    batch_size: int = 64
    seed: int = 0
    resamples: int = 10
    memorisation: bool = False
    reconstructions: bool = False
    likelihood: int = 0
    pictures: bool = False
    size: int = 0

    def check(self) -> None:
        """ValueError for numbers that can't be meant."""
        for name, least in (("num", 2), ("reference_num", 2), ("batch_size", 1), ("seed", 0), ("resamples", 0), ("size", 0),
                            ("likelihood", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
        check_choice(self.conditions, SPLITS, "conditions")
        for value in self.guidance_scales:
            if not math.isfinite(value):
                raise ValueError(f"guidance_scale={value}: must be finite")
        if any(count < 1 for count in self.steps):
            raise ValueError(f"steps={min(self.steps)}: at least 1")
