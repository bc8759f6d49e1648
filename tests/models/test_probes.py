"""Judges as networks: shapes, unit vectors, and what they must not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.models.init import initialize
from ldm_jax.models.probes import Classifier, DualEncoder, Segmenter

WIDTHS = (8, 16)
IMAGES = jax.random.uniform(jax.random.key(1), (3, 20, 28, 3), minval=-1)
TOKENS = jnp.asarray([[1, 5, 2, 0, 0], [1, 5, 6, 7, 2], [1, 2, 0, 0, 0]], jnp.int32)


def started(network, *inputs):
    params = initialize(network, jax.random.key(0), *inputs)
    return params, jax.jit(lambda params, *inputs: network.apply({"params": params}, *inputs))


def test_a_classifier_takes_any_size_and_shows_its_features():
    network = Classifier(5, WIDTHS)
    params, apply = started(network, IMAGES)
    logits = apply(params, IMAGES)
    features = jax.jit(lambda p, x: network.apply({"params": p}, x, method="features"))(params, IMAGES)
    assert logits.shape == (3, 5) and features.shape == (3, 16)
    head = params["head"]
    np.testing.assert_allclose(logits, features @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-5)


def test_a_segmenter_says_something_of_every_pixel_of_any_size():
    network = Segmenter(4, WIDTHS)
    params, apply = started(network, IMAGES)
    logits = apply(params, IMAGES[:, :19, :27])
    assert logits.shape == (3, 19, 27, 4)
    assert len({round(float(x), 6) for x in logits[0, :, 13, 0]}) > 15  # pixels of a column differ


def test_two_towers_give_unit_vectors_and_padding_says_nothing():
    network = DualEncoder(12, WIDTHS, vocab_size=10, max_seq_len=5, n_embed=16)
    params, apply = started(network, IMAGES, TOKENS)
    images, texts, scale = apply(params, IMAGES, TOKENS)
    for vectors in (images, texts):
        assert vectors.shape == (3, 12)
        np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    assert float(scale) == pytest.approx(1 / 0.07, rel=0.01)
    alone, _, _ = apply(params, IMAGES[:, ::-1], TOKENS)
    assert not np.allclose(alone, images, atol=1e-3)


def test_without_words_pictures_are_compared_with_pictures():
    network = DualEncoder(12, WIDTHS)
    params, apply = started(network, IMAGES, IMAGES)
    assert set(params) == {"trunk", "image_projection", "log_scale"}
    a, b, _ = apply(params, IMAGES, IMAGES[::-1])
    np.testing.assert_allclose(a, b[::-1], atol=1e-5)
