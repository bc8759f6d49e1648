"""Which tensors each network has, by its fields: names as in the reference checkpoints, and as in diffusers."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.weights.layouts.autoencoder import autoencoder
from ldm_jax.weights.layouts.dit import dit, dit_from_diffusers, dit_of_diffusers
from ldm_jax.weights.layouts.mmdit import mmdit, mmdit_swapped, mmdit_swaps
from ldm_jax.weights.layouts.text import bert, class_embedder, clip_text, clip_vision, spatial_rescaler, t5
from ldm_jax.weights.layouts.unet import controlnet, unet
from ldm_jax.weights.naming import Layout

__all__ = [
    "autoencoder",
    "bert",
    "class_embedder",
    "clip_text",
    "clip_vision",
    "controlnet",
    "dit",
    "dit_from_diffusers",
    "dit_of_diffusers",
    "mmdit",
    "mmdit_swapped",
    "mmdit_swaps",
    "network",
    "spatial_rescaler",
    "t5",
    "tower",
    "unet",
]  # fmt: skip


def network(fields: Mapping[str, Any]) -> Layout:
    """Names of a denoising network's tensors, whatever its kind."""
    return {"dit": dit, "mmdit": mmdit, "unet": unet}[fields["kind"]](fields)


def tower(fields: Mapping[str, Any]) -> Layout:
    """Names of the tensors of one of several text encoders, CLIP's or T5's."""
    return t5(fields) if "d_model" in fields else clip_text(fields)
