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


def test_noise_is_of_half_of_the_rows_and_measured_in_deviations_of_their_channels():
    most, rows = 0.8, jnp.arange(1000)
    z = jax.random.normal(jax.random.key(0), (1000, 4, 4, 3)) * jnp.array([0.1, 1.0, 30.0]) + 5
    noised = jax.jit(shaping.noised, static_argnums=3)
    found = noised(z, jax.random.key(1), rows, most)
    noise = (found - z) / z.std((0, 1, 2))
    some = np.asarray(jnp.any(noise != 0, (1, 2, 3)))
    assert 0.45 < some.mean() < 0.55
    level = np.sqrt(np.mean(np.square(noise[some]), (1, 2, 3)))  # of each row: even from 0 to `most`
    assert level.max() < 1.5 * most
    np.testing.assert_allclose(np.mean(np.square(noise[some]), (0, 1, 2)), most**2 / 3, rtol=0.1)
    np.testing.assert_allclose(np.quantile(level, [0.25, 0.5, 0.75]), most * np.array([0.25, 0.5, 0.75]), atol=0.06)
    np.testing.assert_allclose(noised(7 * z, jax.random.key(1), rows, most), 7 * found, rtol=1e-4)
    slope = jax.grad(lambda z: noised(z, jax.random.key(1), rows[:4], most).sum())(jnp.ones((4, 4, 4, 3)))
    assert np.isfinite(slope).all()  # of latents that are all the same
    # another row's place in a batch changes nothing of its own
    turned = noised(z[::-1], jax.random.key(1), rows[::-1], most)[::-1]
    np.testing.assert_allclose(turned, found, rtol=1e-5, atol=1e-4)


def test_features_of_another_size_are_resized():
    z = jnp.ones((1, 4, 4, 3))
    assert np.isfinite(shaping.alignment(z, jnp.ones((1, 8, 8, 5)), jnp.ones((3, 5))))
