"""Which tensors each network has, by its fields: names as in the reference checkpoints, and as in diffusers."""

from ldm_jax.weights.layouts.autoencoder import autoencoder
from ldm_jax.weights.layouts.dit import dit, dit_from_diffusers, dit_of_diffusers
from ldm_jax.weights.layouts.text import bert, class_embedder, clip_text, clip_vision, spatial_rescaler
from ldm_jax.weights.layouts.unet import controlnet, unet

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
    "spatial_rescaler",
    "unet",
]  # fmt: skip
