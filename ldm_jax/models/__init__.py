"""The networks: Flax Linen modules with the parameters and the numerics of the reference implementations."""

from ldm_jax.models.adapters import apply_lora, init_lora, scale_lora
from ldm_jax.models.autoencoder import Autoencoder, last_layer
from ldm_jax.models.codebook import FSQ, Codebook, nearest_code, unit_length
from ldm_jax.models.conditioners import (
    ClassEmbedder,
    CLIPText,
    CLIPVision,
    PictureEmbedder,
    SpatialRescaler,
    T5Encoder,
    TransformerEmbedder,
    clip_normalize,
    text_time_vector,
)
from ldm_jax.models.convolution import nearest
from ldm_jax.models.dinov2 import DINOv2, imagenet_normalize
from ldm_jax.models.discriminator import Discriminator, calibrate
from ldm_jax.models.dit import DIT_SIZES, DiT
from ldm_jax.models.inception import InceptionFeatures, InceptionV3
from ldm_jax.models.inflation import BY_PLACE, OVER_TIME, inflated, widened
from ldm_jax.models.init import count, initialize, shapes
from ldm_jax.models.layers import ADDED_INPUTS, AUGMENT_EMBEDDING, STEP_EMBEDDINGS, sinusoidal_embedding
from ldm_jax.models.mmdit import MMDiT
from ldm_jax.models.partition import constrain, in_parts, partitioned
from ldm_jax.models.perceptual import LPIPS
from ldm_jax.models.probes import Classifier, DualEncoder, Segmenter
from ldm_jax.models.sequence import TextAutoencoder
from ldm_jax.models.steering import HINT, Steered, begun
from ldm_jax.models.tiny import TinyDecoder
from ldm_jax.models.unet import UNet

__all__ = [
    "ADDED_INPUTS",
    "AUGMENT_EMBEDDING",
    "DINOv2",
    "DIT_SIZES",
    "Autoencoder",
    "CLIPText",
    "CLIPVision",
    "ClassEmbedder",
    "Classifier",
    "Codebook",
    "DiT",
    "Discriminator",
    "DualEncoder",
    "FSQ",
    "HINT",
    "InceptionFeatures",
    "InceptionV3",
    "LPIPS",
    "MMDiT",
    "OVER_TIME",
    "BY_PLACE",
    "STEP_EMBEDDINGS",
    "Segmenter",
    "PictureEmbedder",
    "SpatialRescaler",
    "Steered",
    "T5Encoder",
    "TextAutoencoder",
    "TinyDecoder",
    "TransformerEmbedder",
    "UNet",
    "apply_lora",
    "begun",
    "calibrate",
    "clip_normalize",
    "constrain",
    "count",
    "init_lora",
    "initialize",
    "last_layer",
    "nearest",
    "nearest_code",
    "imagenet_normalize",
    "inflated",
    "in_parts",
    "partitioned",
    "scale_lora",
    "shapes",
    "sinusoidal_embedding",
    "text_time_vector",
    "unit_length",
    "widened",
]
