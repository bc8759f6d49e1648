import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.first_stage import shaping


def test_latents_that_are_the_features_are_aligned_and_others_learn_to_be():
    features = jax.random.normal(jax.random.key(0), (2, 4, 4, 6))
    np.testing.assert_allclose(shaping.alignment(features, features, jnp.eye(6)), 0, atol=1e-6)
    z = jax.random.normal(jax.random.key(1), features.shape)
    loss = jax.jit(jax.value_and_grad(lambda z: shaping.alignment(z, features, jnp.eye(6))))
    start = loss(z)[0]
    for _ in range(100):
        z = z - 5.0 * loss(z)[1]
    assert loss(z)[0] < 0.2 * start


def test_features_of_another_size_are_resized():
    z = jnp.ones((1, 4, 4, 3))
    assert np.isfinite(shaping.alignment(z, jnp.ones((1, 8, 8, 5)), jnp.ones((3, 5))))
