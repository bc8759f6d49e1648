"""What research code calls: a model as functions (`LatentDiffusion`), `load` and `save`."""

from ldm_jax.api.autoencoder import Autoencoder
from ldm_jax.api.load import (
    fetch,
    load,
    load_condition,
    load_conditioner,
    load_first_stage,
    load_scale,
    load_whole,
    load_workdir,
    resolve,
    save,
)
from ldm_jax.api.model import LatentDiffusion
from ldm_jax.api.specification import Specification

__all__ = [
    "Autoencoder", "LatentDiffusion", "Specification", "fetch", "load", "load_condition", "load_conditioner",
    "load_first_stage", "load_scale", "load_whole", "load_workdir", "resolve", "save",
]  # fmt: skip
