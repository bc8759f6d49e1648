"""Conditioners: from labels, token ids, images and maps to what the denoiser is conditioned on."""

from ldm_jax.models.conditioners.clip import CLIPText, CLIPVision, clip_normalize
from ldm_jax.models.conditioners.embedders import ClassEmbedder, TransformerEmbedder, text_time_vector
from ldm_jax.models.conditioners.pictures import PictureEmbedder
from ldm_jax.models.conditioners.spatial import SpatialRescaler
from ldm_jax.models.conditioners.t5 import T5Encoder

__all__ = [
    "CLIPText",
    "CLIPVision",
    "ClassEmbedder",
    "PictureEmbedder",
    "SpatialRescaler",
    "T5Encoder",
    "TransformerEmbedder",
    "clip_normalize",
    "text_time_vector",
]
