"""A first stage without a diffusion model: what `load` gives for an autoencoder's own folder or file."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.api.specification import Specification
from ldm_jax.first_stage import FirstStage
from ldm_jax.primitives.explicit import automatic

PyTree = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
    """An autoencoder as functions; `params` is a plain dict {"first_stage"} and always an argument. Images are float32
    [B, H, W, 3] in [-1, 1]; latents [B, h, w, C] are scaled as its file says (scaling_factor), or raw where it doesn't."""

    specification: Specification
    params: PyTree

    @property
    def first_stage(self) -> FirstStage:
        """Its functions on raw latents, `factor` and `latent_shape`."""
        return self.specification.first_stage

    @automatic
    def encode(self, params: PyTree, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Images float [B, H, W, 3] in [-1, 1] -> scaled latents float32 [B, h, w, C]: the posterior's mean, or a draw from it
        if there is a key. ValueError unless sides are multiples of `first_stage.factor`."""
        return self.specification.encode(params, images, key)

    @automatic
    def decode(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] -> images [B, H, W, 3], not clipped."""
        return self.specification.decode(params, z)

    @automatic
    def reconstruct(self, params: PyTree, images: jax.Array) -> jax.Array:
        """Images [B, H, W, 3] through both, clipped to [-1, 1]."""
        return jnp.clip(self.decode(params, self.encode(params, images)), -1.0, 1.0)

    def describe(self) -> str:
        """What it is, in two lines."""
        section, stage = self.specification.config["first_stage"], self.first_stage
        return (
            f"{self.specification.config['name']}: a first stage ({section['kind']}), latents {stage.factor} times smaller "
            f"with {stage.channels} channels\ncan encode, decode, reconstruct"
        )
