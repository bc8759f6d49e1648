"""What research code calls: a model as functions (`LatentDiffusion`), `load` and `save`, `apply_lora`."""

from ldm_jax.api.autoencoder import Autoencoder
from ldm_jax.api.learnt import load_lora, save_control, save_embedding
from ldm_jax.api.load import (
    adapted,
    description_of,
    fetch,
    first_stage_of,
    load,
    load_condition,
    load_conditioner,
    load_first_stage,
    load_scale,
    load_whole,
    load_workdir,
    resolve,
    save,
    scale_of,
)
from ldm_jax.api.model import LatentDiffusion
from ldm_jax.api.specification import Specification
from ldm_jax.models import apply_lora

__all__ = [
    "Autoencoder", "LatentDiffusion", "Specification", "adapted", "apply_lora", "description_of", "fetch", "first_stage_of",
    "load", "load_condition", "load_conditioner", "load_first_stage", "load_lora", "load_scale", "load_whole", "load_workdir",
    "resolve", "save", "save_control", "save_embedding", "scale_of",
]  # fmt: skip
