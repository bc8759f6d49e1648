"""Bits per dimension: masses that sum to one, and models whose likelihood is known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ldm_jax import diffusion
from ldm_jax.evaluation import discretized_laplace
from ldm_jax.scoring import likelihood
from tests import tiny

VALUES = np.linspace(-1, 1, 256)


@pytest.mark.parametrize("mean", [-1.0, -0.3, 0.001, 1.0])
@pytest.mark.parametrize("scale", [0.002, 0.03, 0.7])
def test_masses_are_those_of_the_intervals_and_sum_to_one(mean, scale):
    with jax.enable_x64(True):
        found = np.asarray(discretized_laplace(jnp.asarray(VALUES), mean, scale))
    edges = np.concatenate([[-np.inf], (VALUES[1:] + VALUES[:-1]) / 2, [np.inf]])
    law = stats.laplace(mean, scale)
    expected = np.where(edges[:-1] > mean, law.sf(edges[:-1]) - law.sf(edges[1:]), law.cdf(edges[1:]) - law.cdf(edges[:-1]))
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-9)
    seen = expected > 1e-250
    np.testing.assert_allclose(found[seen], np.log(expected[seen]), rtol=1e-6, atol=1e-9)
    single = np.asarray(discretized_laplace(jnp.float32(VALUES), jnp.float32(mean), scale))
    assert np.isfinite(single).all()
    np.testing.assert_allclose(single, found, rtol=2e-3, atol=2e-3)


class Rows(list):
    """A source of pictures."""


@pytest.fixture
def gaussian(monkeypatch):
    """A model of latents that are N(mean, std^2) exactly, behind a first stage whose parts are known: it keeps every second
    pixel, doubled, with a posterior of deviation 0.1, and decodes to them and their neighbours."""
    mean, std = 0.2, 0.7
    recipe = diffusion.make_recipe("cosine", "v")

    def denoise(x, level):
        total = (level.alpha * std) ** 2 + level.sigma**2
        x0 = mean + level.alpha * std**2 / total * (x - level.alpha * mean)
        eps = level.sigma / total * (x - level.alpha * mean)
        return diffusion.Prediction(x0, eps)

    def encode(params, x):
        z = 2 * x[:, ::2]
        return {"moments": jnp.concatenate([z, jnp.full_like(z, 2 * np.log(0.1))], -1)}

    stage = types.SimpleNamespace(
        module=types.SimpleNamespace(quantizes=False), encode=encode, channels=3,
        decode=lambda params, z: jnp.repeat(z / 2, 2, 1),
        latent_shape=lambda h, w: (h // 2, w, 3),
    )  # fmt: skip
    spec = types.SimpleNamespace(
        first_stage=stage, scale=np.float32([0.5, 1.0, 2.0]), shift=np.float32(0.1), image_size=(8, 8),
        recipe=lambda sampler, grid: recipe.with_grid(grid), denoiser=lambda params, cond: denoise,
    )  # fmt: skip
    return spec, mean, std


def test_terms_are_those_of_a_gaussian(gaussian):
    spec, mean, std = gaussian
    images = jnp.round(jax.random.uniform(jax.random.key(0), (4, 8, 8, 3), minval=0, maxval=255)) / 127.5 - 1
    batch = {"image": images, "inputs": None}
    params = {"first_stage": {}}
    found = jax.jit(lambda batch: likelihood._terms(spec, params, batch, jax.random.key(1), 0.3, 60))(batch)
    z, entropy = likelihood._draw(spec, params, images, jax.random.split(jax.random.key(1))[0])
    raw_mean, raw_std = mean / spec.scale + spec.shift, std / spec.scale
    expected = stats.norm(raw_mean, raw_std).logpdf(np.asarray(z)).sum((1, 2, 3))
    np.testing.assert_allclose(found.prior, expected, rtol=5e-3)
    posterior = stats.norm(2 * np.asarray(images)[:, ::2], 0.1).logpdf(np.asarray(z)).sum((1, 2, 3))
    np.testing.assert_allclose(found.posterior, -posterior, rtol=1e-4)
    np.testing.assert_allclose(found.posterior, entropy, rtol=1e-6)
    again = jnp.clip(jnp.repeat(z / 2, 2, 1), -1, 1)
    np.testing.assert_allclose(found.reconstruction, discretized_laplace(images, again, 0.3).sum((1, 2, 3)), rtol=1e-5)


def test_a_vq_model_has_none():
    ldm = tiny.model("none")
    stage = types.SimpleNamespace(module=types.SimpleNamespace(quantizes=True))
    with pytest.raises(ValueError, match="a VQ first stage has no density"):
        likelihood.check_density(types.SimpleNamespace(first_stage=stage))
    likelihood.check_density(ldm.specification)
