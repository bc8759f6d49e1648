"""Conditioners: from labels, token ids, images and maps to what the denoiser is conditioned on."""

from ldm_jax.models.conditioners.embedders import ClassEmbedder, TransformerEmbedder
from ldm_jax.models.conditioners.spatial import SpatialRescaler

__all__ = ["ClassEmbedder", "SpatialRescaler", "TransformerEmbedder"]
