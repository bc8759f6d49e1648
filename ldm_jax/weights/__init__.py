"""Reading and writing the world's checkpoints: CompVis, diffusers, flax. numpy only: neither jax nor torch."""

from ldm_jax.weights.compvis_files import write as write_compvis
from ldm_jax.weights.control_files import read as read_control
from ldm_jax.weights.control_files import write as write_control
from ldm_jax.weights.diffusers_writer import write as write_diffusers
from ldm_jax.weights.dinov2 import read_dinov2
from ldm_jax.weights.embedding_files import read as read_embedding
from ldm_jax.weights.embedding_files import write as write_embedding
from ldm_jax.weights.features import read_clip, read_discriminator, read_inception, read_lpips, read_tiny_decoder
from ldm_jax.weights.hub import beside as beside_of_hub
from ldm_jax.weights.hub import wanted as wanted_of_hub
from ldm_jax.weights.lora_files import read as read_lora
from ldm_jax.weights.lora_files import write as write_lora
from ldm_jax.weights.pipelines import latent_factor
from ldm_jax.weights.read import Checkpoint, read, write_params
from ldm_jax.weights.stored import Stored

__all__ = [
    "Checkpoint",
    "Stored",
    "beside_of_hub",
    "latent_factor",
    "read",
    "read_clip",
    "read_control",
    "read_dinov2",
    "read_discriminator",
    "read_embedding",
    "read_inception",
    "read_lora",
    "read_lpips",
    "read_tiny_decoder",
    "wanted_of_hub",
    "write_compvis",
    "write_control",
    "write_diffusers",
    "write_embedding",
    "write_lora",
    "write_params",
]
