"""Codebooks: identities, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import models
from ldm_jax.first_stage import codebook


def clusters(n=4, per=50, seed=0):
    rng = np.random.default_rng(seed)
    centre = 5 * rng.standard_normal((n, 3))
    return centre, (centre[:, None] + 0.1 * rng.standard_normal((n, per, 3))).reshape(-1, 3).astype(np.float32)


def test_straight_through_is_the_code_forwards_and_z_backwards():
    z, code = jnp.array([0.3, -0.2]), jnp.array([1.0, 2.0])
    value, gradient = jax.value_and_grad(lambda z: (3 * codebook.straight_through(z, code)).sum())(z)
    np.testing.assert_allclose(value, 9)
    np.testing.assert_allclose(gradient, 3)


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_weighs_the_commitment_and_in_the_legacy_form_the_codebook(legacy):
    z, code = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3))
    loss, (of_z, of_code) = jax.value_and_grad(lambda *a: codebook.codebook_loss(*a, 0.25, legacy), (0, 1))(z, code)
    np.testing.assert_allclose(loss, 1.25, rtol=1e-6)  # the value does not tell the two forms apart, the gradients do
    np.testing.assert_allclose(of_z.sum(), 2 * (1.0 if legacy else 0.25), rtol=1e-6)
    np.testing.assert_allclose(of_code.sum(), -2 * (0.25 if legacy else 1.0), rtol=1e-6)


def test_usage_counts_codes_and_perplexity_is_between_one_and_all():
    even = codebook.usage(codebook.counts(jnp.arange(8).repeat(5), 8))
    np.testing.assert_allclose([even["codes_used"], even["perplexity"]], [1, 8], rtol=1e-6)
    one = codebook.usage(codebook.counts(jnp.full(40, 3), 8))
    np.testing.assert_allclose([one["codes_used"], one["perplexity"]], [1 / 8, 1], rtol=1e-6)


def test_k_means_finds_clusters_and_refuses_more_codes_than_latents():
    centre, z = clusters()
    found = np.asarray(codebook.k_means(z, 4, jax.random.key(1), iterations=30))
    assert np.abs(found[:, None] - centre[None]).sum(-1).min(1).max() < 0.5
    with pytest.raises(ValueError, match="3 for 4"):
        codebook.k_means(z[:3], 4, jax.random.key(0))


def test_moving_averages_go_to_the_means_of_their_latents():
    centre, z = clusters()
    book = jnp.asarray(centre + 1.0, jnp.float32)
    average = codebook.averages(book)
    for _ in range(200):
        average = codebook.move(average, z, models.nearest_code(z, codebook.centres(average)), 0.9)
    means = z.reshape(4, -1, 3).mean(1)
    np.testing.assert_allclose(codebook.centres(average), means, atol=1e-3)
    np.testing.assert_allclose(average["count"], 50, rtol=1e-3)


def test_dead_codes_become_latents_even_if_there_are_fewer_of_these():
    z = jnp.array([[1.0, 2.0, 3.0], [1.5, 2.5, 2.0]])
    book = jnp.full((16, 3), 100.0)
    average = {"count": jnp.where(jnp.arange(16) < 2, 1.0, 0.01), "sum": book}
    new, moved, dead = codebook.revive(book, average, z, 0.1, jax.random.key(0))
    assert int(dead) == 14
    np.testing.assert_array_equal(new[:2], book[:2])
    assert float(jnp.abs(new[2:, None] - z[None]).max(-1).min(1).max()) < 0.1
    np.testing.assert_allclose(moved["count"][2:], 1)
    assert len(np.unique(np.asarray(new[2:]), axis=0)) == 14  # no two alike, or they would never part


def test_unit_codes_compare_directions():
    module = models.Codebook(2, 2, unit=True)
    params = {"params": {"embedding": {"embedding": jnp.array([[10.0, 0.0], [0.1, 0.1]])}}}
    codes, indices = module.apply(params, jnp.array([[[[1.0, 0.8]]], [[[5.0, 0.1]]]]))
    np.testing.assert_array_equal(indices.reshape(-1), [1, 0])
    np.testing.assert_allclose(jnp.linalg.norm(codes, axis=-1), 1, rtol=1e-6)


@pytest.mark.parametrize("levels", [(2, 3), (4, 5, 8), (7,)])
def test_fsq_has_exactly_its_codes_and_numbers_them(levels):
    module = models.FSQ(levels)
    z = jax.random.uniform(jax.random.key(0), (20_000, len(levels)), minval=-4, maxval=4)
    codes, indices = module.apply({}, z)
    assert sorted(np.unique(indices)) == list(range(np.prod(levels)))
    np.testing.assert_allclose(module.apply({}, indices, method="lookup"), codes, atol=1e-6)
    assert float(jnp.abs(codes).max()) <= 1
    for channel, level in enumerate(levels):
        assert len(np.unique(codes[:, channel])) == level
    # codes quantize to themselves wherever the bound can be inverted
    distance = jnp.abs(codes - module.apply({}, z, method="project"))
    assert float((distance * (np.asarray(levels) // 2)).max()) <= 0.5 + 1e-5
