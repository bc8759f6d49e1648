"""Reading and writing the world's checkpoints: CompVis, diffusers, flax. numpy only: neither jax nor torch."""

from ldm_jax.weights.compvis_files import write as write_compvis
from ldm_jax.weights.diffusers_writer import write as write_diffusers
from ldm_jax.weights.dinov2 import read_dinov2
from ldm_jax.weights.features import read_clip, read_discriminator, read_inception, read_lpips, read_tiny_decoder
from ldm_jax.weights.read import Checkpoint, read, write_params
from ldm_jax.weights.stored import Stored

__all__ = [
    "Checkpoint",
    "Stored",
    "read",
    "read_clip",
    "read_dinov2",
    "read_discriminator",
    "read_inception",
    "read_lpips",
    "read_tiny_decoder",
    "write_compvis",
    "write_diffusers",
    "write_params",
]
