"""InceptionV3 as the Frechet inception distance uses it (Szegedy et al. 2016; Heusel et al. 2017).

The network of the TensorFlow release of 2015-12-05, whose average pools leave the padding out and whose last block has
a max pool; parameters are named as in mseitzer/pytorch-fid's weights for it. Batch normalization is frozen: its
statistics are parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.models.convolution import bilinear
from ldm_jax.models.init import ONES, ZEROS, torch_default
from ldm_jax.models.layers import Conv, Dense

SIZE = 299
SPATIAL = 7  # channels of the 17 x 17 map that the spatial distance compares
RESIZE = ("legacy", "tensorflow", "clean", "none")


class InceptionFeatures(NamedTuple):
    """`blocks` are the four outputs that pytorch-fid counts, after pooling."""

    blocks: tuple[jax.Array, ...]  # 64, 192, 768 and 2048 channels; the last is [B, 1, 1, 2048]
    features: jax.Array  # [B, 2048], what FID compares
    logits: jax.Array  # [B, 1008]
    logits_unbiased: jax.Array  # without the bias, as the original inception score has it
    spatial: jax.Array  # [B, 2023], what sFID compares: 7 channels of Mixed_6d (Nash et al. 2021), of 299 x 299 pixels


class InceptionV3(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] of any size -> InceptionFeatures; brought to 299 x 299 by `resize`, one of `RESIZE`."""

    dtype: Any = jnp.float32
    resize: str = "legacy"

    @nn.compact
    def __call__(self, images: jax.Array) -> InceptionFeatures:
        conv = branches(self.dtype)
        h = sized(images, self.resize)
        h = conv("Conv2d_1a_3x3", 32, 3, strides=2)(h)
        h = conv("Conv2d_2a_3x3", 32, 3, padding="VALID")(h)
        block0 = max_pool(conv("Conv2d_2b_3x3", 64, 3)(h))
        h = conv("Conv2d_4a_3x3", 192, 3, padding="VALID")(conv("Conv2d_3b_1x1", 80)(block0))
        block1 = max_pool(h)
        h = MixedA(32, self.dtype, name="Mixed_5b")(block1)
        h = MixedA(64, self.dtype, name="Mixed_5c")(h)
        h = MixedA(64, self.dtype, name="Mixed_5d")(h)
        h = MixedB(self.dtype, name="Mixed_6a")(h)
        h = MixedC(128, self.dtype, name="Mixed_6b")(h)
        h = MixedC(160, self.dtype, name="Mixed_6c")(h)
        h = MixedC(160, self.dtype, name="Mixed_6d")(h)
        spatial = h[..., :SPATIAL].astype(jnp.float32).reshape(len(h), -1)
        block2 = MixedC(192, self.dtype, name="Mixed_6e")(h)
        h = MixedD(self.dtype, name="Mixed_7a")(block2)
        h = MixedE(False, self.dtype, name="Mixed_7b")(h)
        h = MixedE(True, self.dtype, name="Mixed_7c")(h)
        features = h.astype(jnp.float32).mean((1, 2))
        unbiased, logits = Head(1008, name="fc")(features)
        return InceptionFeatures((block0, block1, block2, features[:, None, None]), features, logits, unbiased, spatial)


def sized(images: jax.Array, resize: str) -> jax.Array:
    """Images [B, H, W, 3] in [-1, 1] as the network takes them, by the way of one of the programs that published distances
    come from:

    legacy      mseitzer/pytorch-fid: bilinear between pixels' middles, without antialiasing
    tensorflow  the original network in TensorFlow, as the evaluator of guided-diffusion (ADM) runs it: bilinear between
                pixels' corners, without antialiasing, and 8-bit values v as (v - 128) / 128
    clean       clean-fid (Parmar et al. 2022): bicubic with antialiasing, as Pillow does it, and the same values
    none        as they are; sFID is then of another size
    """
    if resize == "legacy":
        return bilinear(images, SIZE, SIZE)
    if resize == "none":
        return images
    values = (images + 1) * 127.5
    if resize == "clean":
        values = jnp.clip(jax.image.resize(values, (len(images), SIZE, SIZE, 3), "cubic", antialias=True), 0, 255)
    else:
        for axis in (1, 2):
            place = np.arange(SIZE) * (images.shape[axis] / SIZE)
            low = place.astype(np.int32)
            weight = jnp.float32(place - low).reshape([SIZE if a == axis else 1 for a in range(4)])
            high = np.minimum(low + 1, images.shape[axis] - 1)
            values = jnp.take(values, low, axis) * (1 - weight) + jnp.take(values, high, axis) * weight
    return (values - 128) / 128


class ConvNorm(nn.Module):
    """A convolution without bias, a frozen batch normalization, ReLU."""

    features: int
    size: tuple[int, int]
    strides: int
    padding: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.size == (1, 1):
            h = Dense(self.features, use_bias=False, dtype=self.dtype, name="conv")(x)
        else:
            h = Conv(self.features, self.size, self.strides, self.padding, use_bias=False, dtype=self.dtype, name="conv")(x)
        return nn.relu(FrozenBatchNorm(self.dtype, name="bn")(h))


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with stored statistics, eps 1e-3."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias, mean, var = (
            self.param(name, rule, x.shape[-1:])
            for name, rule in (("scale", ONES), ("bias", ZEROS), ("running_mean", ZEROS), ("running_var", ONES))
        )
        slope = scale * jax.lax.rsqrt(var + 1e-3)
        return (x * slope + (bias - mean * slope)).astype(self.dtype)


def branches(dtype: Any) -> Callable[..., ConvNorm]:
    """A maker of named convolutions; those of stride 1 keep the size unless told."""

    def conv(
        name: str, features: int, size: int | tuple[int, int] = 1, strides: int = 1, padding: str | None = None
    ) -> ConvNorm:
        size = (size, size) if isinstance(size, int) else size
        return ConvNorm(features, size, strides, padding or ("SAME" if strides == 1 else "VALID"), dtype, name=name)

    return conv


def max_pool(h: jax.Array) -> jax.Array:
    """The largest of 3 x 3 pixels at a stride."""
    return nn.max_pool(h, (3, 3), (2, 2))


def mean_pool(h: jax.Array) -> jax.Array:
    """3x3 means at stride 1, of the pixels inside the image."""
    return nn.avg_pool(h, (3, 3), padding="SAME", count_include_pad=False)


def join(*parts: jax.Array) -> jax.Array:
    """Branches one after the other along the channels."""
    return jnp.concatenate(parts, axis=-1)


class MixedA(nn.Module):
    """Inception block A, at 35 x 35."""

    pooled: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = branches(self.dtype)
        single = conv("branch1x1", 64)(x)
        wide = conv("branch5x5_2", 64, 5)(conv("branch5x5_1", 48)(x))
        double = conv("branch3x3dbl_2", 96, 3)(conv("branch3x3dbl_1", 64)(x))
        double = conv("branch3x3dbl_3", 96, 3)(double)
        return join(single, wide, double, conv("branch_pool", self.pooled)(mean_pool(x)))


class MixedB(nn.Module):
    """Inception block B, from 35 x 35 to 17 x 17."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = branches(self.dtype)
        single = conv("branch3x3", 384, 3, strides=2)(x)
        double = conv("branch3x3dbl_2", 96, 3)(conv("branch3x3dbl_1", 64)(x))
        double = conv("branch3x3dbl_3", 96, 3, strides=2)(double)
        return join(single, double, max_pool(x))


class MixedC(nn.Module):
    """Inception block C, at 17 x 17."""

    inner: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, c = branches(self.dtype), self.inner
        single = conv("branch1x1", 192)(x)
        row = conv("branch7x7_2", c, (1, 7))(conv("branch7x7_1", c)(x))
        row = conv("branch7x7_3", 192, (7, 1))(row)
        double = conv("branch7x7dbl_2", c, (7, 1))(conv("branch7x7dbl_1", c)(x))
        double = conv("branch7x7dbl_4", c, (7, 1))(conv("branch7x7dbl_3", c, (1, 7))(double))
        double = conv("branch7x7dbl_5", 192, (1, 7))(double)
        return join(single, row, double, conv("branch_pool", 192)(mean_pool(x)))


class MixedD(nn.Module):
    """Inception block D, from 17 x 17 to 8 x 8."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = branches(self.dtype)
        single = conv("branch3x3_2", 320, 3, strides=2)(conv("branch3x3_1", 192)(x))
        row = conv("branch7x7x3_2", 192, (1, 7))(conv("branch7x7x3_1", 192)(x))
        row = conv("branch7x7x3_4", 192, 3, strides=2)(conv("branch7x7x3_3", 192, (7, 1))(row))
        return join(single, row, max_pool(x))


class MixedE(nn.Module):
    """Inception block E, at 8 x 8."""

    max_pooled: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = branches(self.dtype)

        def fork(name: str, h: jax.Array) -> jax.Array:
            return join(conv(f"{name}a", 384, (1, 3))(h), conv(f"{name}b", 384, (3, 1))(h))

        single = conv("branch1x1", 320)(x)
        short = fork("branch3x3_2", conv("branch3x3_1", 384)(x))
        long = fork("branch3x3dbl_3", conv("branch3x3dbl_2", 384, 3)(conv("branch3x3dbl_1", 448)(x)))
        pool = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pooled else mean_pool(x)
        return join(single, short, long, conv("branch_pool", 192)(pool))


class Head(nn.Module):
    """Logits without and with the bias."""

    features: int

    @nn.compact
    def __call__(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        rule = torch_default(h.shape[-1])
        unbiased = h @ self.param("kernel", rule, (h.shape[-1], self.features))
        return unbiased, unbiased + self.param("bias", rule, (self.features,))
