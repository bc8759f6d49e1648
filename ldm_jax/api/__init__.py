"""What research code calls: a model as functions (`LatentDiffusion`), `load` and `save`."""

from ldm_jax.api.loading import fetch, load, load_conditioner, load_conditioning, load_first_stage, load_workdir, save
from ldm_jax.api.model import LatentDiffusion

__all__ = [
    "LatentDiffusion", "fetch", "load", "load_conditioner", "load_conditioning", "load_first_stage", "load_workdir", "save",
]  # fmt: skip
