"""The networks: Flax Linen modules with the parameters and the numerics of the reference implementations."""

from ldm_jax.models.autoencoder import Autoencoder, Posterior, nearest_code, posterior
from ldm_jax.models.conditioners import ClassEmbedder, SpatialRescaler, TransformerEmbedder
from ldm_jax.models.init import count, initialize, shapes
from ldm_jax.models.layers import nearest, sinusoidal_embedding
from ldm_jax.models.unet import UNet

__all__ = [
    "Autoencoder",
    "ClassEmbedder",
    "Posterior",
    "SpatialRescaler",
    "TransformerEmbedder",
    "UNet",
    "count",
    "initialize",
    "nearest",
    "nearest_code",
    "posterior",
    "shapes",
    "sinusoidal_embedding",
]
