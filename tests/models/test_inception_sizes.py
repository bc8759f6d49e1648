"""How pictures are brought to Inception's size, against Pillow and against the definition of TensorFlow 1."""

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax.models import InceptionV3
from ldm_jax.models.inception import SIZE, sized

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("sides", [(32, 48), (320, 300)])
def test_clean_is_pillow_s_bicubic(sides):
    """In floating point, a channel at a time, cut off at 0 and 255, as (v - 128) / 128."""
    images = RNG.integers(0, 256, (2, *sides, 3)).astype(np.float32)
    expected = np.stack([
        np.stack([np.asarray(Image.fromarray(image[..., c], "F").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
                  for c in range(3)], -1)
        for image in images
    ])  # fmt: skip
    found = sized(images / 127.5 - 1, "clean")
    np.testing.assert_allclose(found, (np.clip(expected, 0, 255) - 128) / 128, atol=2e-4)


def test_tensorflow_takes_pixels_from_their_corners():
    images = RNG.integers(0, 256, (1, 40, 30, 3)).astype(np.float32)
    expected = np.zeros((1, SIZE, SIZE, 3))
    for i in range(SIZE):
        for j in range(SIZE):
            y, x = i * 40 / SIZE, j * 30 / SIZE
            t, u = int(y), int(x)
            b, r = min(t + 1, 39), min(u + 1, 29)
            top = images[:, t, u] * (1 - x + u) + images[:, t, r] * (x - u)
            low = images[:, b, u] * (1 - x + u) + images[:, b, r] * (x - u)
            expected[:, i, j] = top * (1 - y + t) + low * (y - t)
    np.testing.assert_allclose(sized(images / 127.5 - 1, "tensorflow"), (expected - 128) / 128, atol=1e-4)
    first = np.asarray(sized(images / 127.5 - 1, "legacy"))[:, 0, 0]
    np.testing.assert_allclose(first, images[:, 0, 0] / 127.5 - 1, atol=1e-5)


def test_pictures_of_the_right_size_stay_and_the_spatial_features_have_their_size():
    images = RNG.uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
    for resize in ("legacy", "none"):
        np.testing.assert_allclose(sized(images, resize), images, atol=1e-6)
    for resize in ("clean", "tensorflow"):
        np.testing.assert_allclose(sized(images, resize), ((images + 1) * 127.5 - 128) / 128, atol=1e-5)
    shapes = jax.eval_shape(InceptionV3().init_with_output, jax.random.key(0), images)[0]
    assert shapes.spatial.shape == (1, 2023) and shapes.features.shape == (1, 2048)
