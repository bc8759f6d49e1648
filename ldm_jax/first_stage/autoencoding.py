"""An autoencoder as functions: pictures to raw latents and back."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import models
from ldm_jax.first_stage import latents

PyTree = Any
# Pixels whose activations a decoder may hold: eight pictures at 512. A TPU's compiler makes fewer than eight rows at once by
# cutting images into strips: four pictures at 512 move 57 GB, one by one 23.
AT_ONCE = 2**21


@dataclasses.dataclass(frozen=True)
class FirstStage:
    """Images [B, *space, C] in [-1, 1], C the medium's channels, <-> raw latents [B, *space / factors, channels], as pure
    functions of params.

    `module` is None where diffusion runs on pixels. `factors`: how many times smaller latents are, along each axis. `size`:
    spatial shape that parameters are initialised with. `samples`: whether a diffusion model learns draws from the posterior (of
    a KL model), or its means.
    """

    module: Any = None
    factors: tuple[int, ...] = (1, 1)
    channels: int = 3
    size: tuple[int, ...] = ()
    samples: bool = True

    @property
    def factor(self) -> int:
        """The largest of `factors`; of pictures, that of both sides."""
        return max(self.factors)

    @property
    def image_channels(self) -> int:
        """Of what is encoded."""
        return self.channels if self.module is None else self.module.in_channels

    def init(self, key: jax.Array) -> PyTree:
        """Random parameters."""
        return {} if self.module is None else models.initialize(self.module, key, self._image)

    def shapes(self) -> PyTree:
        """Those of `init`, as ShapeDtypeStructs, without drawing any."""
        return {} if self.module is None else models.shapes(self.module, self._image)

    @property
    def _image(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *self.size, self.module.in_channels), jnp.float32)

    def encode(self, params: PyTree, x: jax.Array) -> dict[str, jax.Array]:
        """{"moments": [..., 2C]} of the posterior (KL), or {"latents": [..., C]} before quantization (VQ, pixels); raw."""
        if self.module is None:
            return {"latents": x}
        out = self.module.apply({"params": params}, x, method="encode")
        return {"latents" if self.module.quantizes else "moments": out}

    def decode(self, params: PyTree, z: jax.Array) -> jax.Array:
        """Raw latents -> images, not clipped; VQ models quantize first. Every device decodes AT_ONCE pixels at a time."""
        if self.module is None:
            return z

        def decoded(params: PyTree, z: jax.Array) -> jax.Array:
            return self.module.apply({"params": params}, z, method="decode")

        rows = max(AT_ONCE // math.prod(self.grown(z.shape[1:-1])), 1)
        return models.in_parts(decoded, params, z, rows, tpu_least=8)

    def drawn(self, decoded: jax.Array) -> jax.Array:
        """A datum of what `decode` gave: clipped to [-1, 1]; of scores of tokens the likeliest."""
        of_module = getattr(self.module, "drawn", None)
        return jnp.clip(decoded, -1.0, 1.0) if of_module is None else of_module(decoded)

    def latent_shape(self, *size: int) -> tuple[int, ...]:
        """(*space, channels) of the latents of a picture of this size in pixels; ValueError if it isn't a multiple, has another
        number of sides, or another length than the one that a first stage of sentences has."""
        there = " x ".join(map(str, size))
        if len(size) != len(self.factors):
            raise ValueError(
                f"image size {there}: {len(size)} sides, but this model is of {len(self.factors)} (its dims)"
            )
        if (length := getattr(self.module, "length", None)) is not None and size != (length,):
            raise ValueError(f"size {there}: all sentences of this model have {length} tokens, begin and end among them")
        if any(side % factor or side < factor for side, factor in zip(size, self.factors)):
            if len({*self.factors}) > 1:
                raise ValueError(f"image size {there}: sides must be multiples of {' x '.join(map(str, self.factors))}")
            which = {1: "it", 2: "both sides"}.get(len(size), "all sides")
            raise ValueError(f"image size {there}: {which} must be multiples of {self.factor}")
        return (*(side // factor for side, factor in zip(size, self.factors)), self.channels)

    def grown(self, space: Sequence[int]) -> tuple[int, ...]:
        """The size in pixels of what has latents of this spatial shape."""
        return tuple(side * factor for side, factor in zip(space, self.factors, strict=True))

    def encode_mean(self, params: PyTree, x: jax.Array) -> jax.Array:
        """The posterior's mean, or the latents before quantization, raw [B, ..., C]."""
        return draw(self.encode(params, x))


def learnt(
    stage: FirstStage, encoded: dict[str, jax.Array], key: jax.Array, rows: Sequence[int] | jax.Array | None = None
) -> jax.Array:
    """The raw latents [B, ..., C] that a diffusion model learns, of what `stage.encode` gave: draws from the posterior, or its
    means unless `stage.samples`."""
    return draw(encoded, key if stage.samples else None, rows)


def draw(
    encoded: dict[str, jax.Array], key: jax.Array | None = None, rows: Sequence[int] | jax.Array | None = None
) -> jax.Array:
    """Raw latents [B, ..., C] of what `FirstStage.encode` gave: with a key a draw from the posterior, without its mean."""
    if "latents" in encoded:
        return encoded["latents"]
    return latents.mode(encoded["moments"]) if key is None else latents.sample_posterior(encoded["moments"], key, rows)
