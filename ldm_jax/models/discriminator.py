"""The patch discriminator of the first stages' adversarial loss (Isola et al. 2017; Esser et al. 2021).

Fields and parameters are named as in CompVis/taming-transformers `taming/modules/discriminator/model.py:
NLayerDiscriminator`. Batch normalization keeps no state: it uses the statistics of the batch it sees, which under `jit`
is the whole batch however it is sharded. (The reference also normalizes with the batch's statistics while training.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ldm_jax.models.convolution import SAME, check_rank, factors_of
from ldm_jax.models.init import ONES, ZEROS, normal
from ldm_jax.models.layers import Conv

WEIGHTS = normal(0.02)


class Discriminator(nn.Module):
    """Images [B, *space, 3] in [-1, 1], space being `dims` axes -> a logit per patch [B, *space', 1], high for real ones.

    With 3 layers a patch is 70 pixels wide. Along an axis that `strides` leaves as it is (by default the first of three: see
    `factors_of`) windows are 3 pixels instead of 4, and there are as many logits as frames. `use_actnorm` replaces batch
    normalization by a learned affine map that `calibrate` initializes from data.
    """

    ndf: int = 64
    n_layers: int = 3
    use_actnorm: bool = False
    dtype: Any = jnp.float32
    dims: int = 2
    strides: Sequence[int] = ()

    @nn.compact
    def __call__(
        self, x: jax.Array, statistics: Mapping[str, Any] | None = None, measure: bool = False
    ) -> jax.Array | dict[str, Any]:
        """`statistics`, {name of a norm: {"mean", "var"} [C]}, replaces the batch's statistics where given.

        `measure` returns such statistics of every norm's input instead, each norm using its batch's.
        """
        check_rank(x, self.dims)
        measured, halved = {}, factors_of(self.strides, self.dims)
        window = tuple(4 if factor == 2 else 3 for factor in halved)
        h = Conv(self.ndf, window, halved, SAME, kernel_init=WEIGHTS, dtype=self.dtype, name="main_0")(x)
        h = jax.nn.leaky_relu(h, 0.2)
        index = 2
        for n in range(1, self.n_layers + 1):
            strides = halved if n < self.n_layers else 1
            width = self.ndf * min(2**n, 8)
            conv = Conv(
                width,
                window,
                strides,
                SAME,
                use_bias=self.use_actnorm,
                kernel_init=WEIGHTS,
                dtype=self.dtype,
                name=f"main_{index}",
            )
            name = f"main_{index + 1}"
            h = conv(h)
            measured[name] = moments(h)
            if self.use_actnorm:
                h = ActNorm(self.dtype, name=name)(h, measured[name] if measure else None)
            else:
                h = BatchNorm(self.dtype, name=name)(h, (statistics or {}).get(name, measured[name]))
            h = jax.nn.leaky_relu(h, 0.2)
            index += 3
        logits = Conv(1, window, 1, SAME, kernel_init=WEIGHTS, dtype=self.dtype, name=f"main_{index}")(h)
        if not logits.size:
            raise ValueError(f"images of shape {x.shape} are too small for a discriminator of {self.n_layers} layers")
        return measured if measure else logits.astype(jnp.float32)


def moments(x: jax.Array) -> dict[str, jax.Array]:
    """Mean and variance per channel of [B, ..., C], in float32."""
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    return {"mean": mean, "var": jnp.square(x - mean).mean(axes)}


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + 1e-5), scaled and shifted, with the given statistics."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, statistics: Mapping[str, jax.Array]) -> jax.Array:
        scale = self.param("scale", normal(0.02, mean=1.0), x.shape[-1:])
        bias = self.param("bias", ZEROS, x.shape[-1:])
        slope = scale * jax.lax.rsqrt(statistics["var"] + 1e-5)
        return ((x.astype(jnp.float32) - statistics["mean"]) * slope + bias).astype(self.dtype)


class ActNorm(nn.Module):
    """scale (x + loc); with `statistics`, the scale and loc that normalize data of these statistics."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, statistics: Mapping[str, jax.Array] | None) -> jax.Array:
        loc, scale = self.param("loc", ZEROS, x.shape[-1:]), self.param("scale", ONES, x.shape[-1:])
        if statistics is not None:
            loc, scale = normalizing(statistics)
        return ((x.astype(jnp.float32) + loc) * scale).astype(self.dtype)


def normalizing(statistics: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Shift and scale that bring activations to mean 0 and deviation 1, from one batch."""
    return -statistics["mean"], 1 / (jnp.sqrt(statistics["var"]) + 1e-6)


def calibrate(discriminator: Discriminator, params: dict, x: jax.Array) -> dict:
    """The parameters with every ActNorm set so that its output for the images `x` has mean 0 and deviation 1."""
    if not discriminator.use_actnorm:
        raise ValueError("only discriminators with use_actnorm are calibrated")
    measured = discriminator.apply({"params": params}, x, measure=True)
    return params | {name: dict(zip(("loc", "scale"), normalizing(found))) for name, found in measured.items()}
