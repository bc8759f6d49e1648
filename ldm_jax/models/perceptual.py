"""LPIPS, the perceptual distance (Zhang et al. 2018, "The unreasonable effectiveness of deep features"), on VGG16.

    d(x, y) = sum over layers of mean over pixels of w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2

Parameters are named as in CompVis/taming-transformers `taming/modules/losses/lpips.py`; VGG16's layers keep the numbers
they have in torchvision's `vgg16().features`. The dropout that the original has before the weights w_l is absent.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.init import ONES
from ldm_jax.models.layers import Conv, Dense

SHIFT, SCALE = np.float32([-0.030, -0.088, -0.188]), np.float32([0.458, 0.448, 0.450])
# The convolutions of each slice; a 2x2 max-pool comes before every slice but the first.
SLICES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class LPIPS(nn.Module):
    """The distance [B] of images x and y [B, H, W, 3] in [-1, 1]; H and W are at least 16.

    Untrained weights w_l are ones, so that a network without them compares the directions of features.
    """

    widths: Sequence[int] = (64, 128, 256, 512, 512)
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.net = VGG16(self.widths, self.dtype)
        self.lin = [LinearLayer(name=f"lin{i}") for i in range(len(SLICES))]

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.layers(x, y).sum(0)

    def layers(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The distance at every layer, [layers, B]."""
        if min(*x.shape[1:3]) < 16:
            raise ValueError(f"LPIPS compares images of at least 16 x 16 pixels, not {x.shape[1:3]}")
        pairs = zip(self.lin, self.features(x), self.features(y))
        return jnp.stack([lin(jnp.square(unit(a) - unit(b))).mean((1, 2, 3)) for lin, a, b in pairs])

    def features(self, x: jax.Array) -> list[jax.Array]:
        """VGG16's activations after each slice, [B, H / 2^l, W / 2^l, widths[l]]."""
        return self.net((x - SHIFT) / SCALE)


class VGG16(nn.Module):
    """Convolutions of VGG16 (Simonyan & Zisserman 2015): pictures -> features of its five stages."""

    widths: Sequence[int]
    dtype: Any

    @nn.compact
    def __call__(self, h: jax.Array) -> list[jax.Array]:
        features = []
        for i, convolutions in enumerate(SLICES):
            if i:
                h = nn.max_pool(h, (2, 2), (2, 2))
            for number in convolutions:
                h = nn.relu(Conv(self.widths[i], dtype=self.dtype, name=f"slice{i + 1}_{number}")(h))
            features.append(h)
        return features


class LinearLayer(nn.Module):
    """LPIPS's weight for each channel of a stage, without bias."""

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        return Dense(1, use_bias=False, kernel_init=ONES, name="model_1")(h)


def unit(h: jax.Array) -> jax.Array:
    """Feature vectors of length one. Zero vectors stay zero, with a zero gradient where that of a root is infinite."""
    h = h.astype(jnp.float32)
    square = jnp.square(h).sum(-1, keepdims=True)
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return h / (norm + 1e-10)
