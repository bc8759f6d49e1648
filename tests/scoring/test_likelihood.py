"""Bits per dimension: masses that sum to one, and models whose likelihood is known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ldm_jax import build, diffusion
from ldm_jax.evaluation import discretized_laplace
from ldm_jax.scoring import likelihood
from ldm_jax.training import sharding
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
    batch = {"image": images, "inputs": None, "number": jnp.arange(4)}
    params = {"first_stage": {}}
    found = jax.jit(lambda batch: likelihood._terms(spec, params, batch, jax.random.key(1), 0.3, 60))(batch)
    z, entropy = likelihood._draw(spec, params, batch, jax.random.split(jax.random.key(1))[0])
    raw_mean, raw_std = mean / spec.scale + spec.shift, std / spec.scale
    expected = stats.norm(raw_mean, raw_std).logpdf(np.asarray(z)).sum((1, 2, 3))
    np.testing.assert_allclose(found.prior, expected, rtol=5e-3)
    posterior = stats.norm(2 * np.asarray(images)[:, ::2], 0.1).logpdf(np.asarray(z)).sum((1, 2, 3))
    np.testing.assert_allclose(found.posterior, -posterior, rtol=1e-4)
    np.testing.assert_allclose(found.posterior, entropy, rtol=1e-6)
    again = jnp.clip(jnp.repeat(z / 2, 2, 1), -1, 1)
    np.testing.assert_allclose(found.reconstruction, discretized_laplace(images, again, 0.3).sum((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 1])
def test_pixels_that_are_all_alike_likely_take_eight_bits(gaussian, monkeypatch, channels):
    """A density that is uniform over the 256 values and their noise: 256 intervals of 2/255, the outer ones beyond -1 and 1."""
    spec, _, _ = gaussian
    spec.first_stage = types.SimpleNamespace(
        module=None, encode=lambda params, x: {"latents": x}, decode=lambda params, z: z,
        latent_shape=lambda h, w: (h, w, channels), image_channels=channels,
    )  # fmt: skip
    spec.scale, spec.shift, spec.config = np.float32(2.0), np.float32(0.0), {}
    spec.condition = types.SimpleNamespace(kind="none")

    def uniform(denoise, x, grid, key):
        inside = jnp.all(jnp.abs(x) <= 2 * 256 / 255 + 1e-6, (1, 2, 3))  # the scale is 2
        return jnp.where(inside, -np.prod(x.shape[1:]) * np.log(2 * 512 / 255), -jnp.inf), x

    monkeypatch.setattr(diffusion, "log_likelihood", uniform)
    monkeypatch.setattr(build, "make_transform", lambda *_: lambda row, rng: row)
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, channels))
    pictures[0], pictures[1] = 0, 255
    rows = Rows({"image": np.float32(picture / 127.5 - 1)} for picture in pictures)
    found = likelihood.measure_likelihood(spec, {"first_stage": {}}, (rows, rows), 6, sharding.make_mesh(), batch_size=8)
    assert found["bits_per_dimension"] == found["prior"] == pytest.approx(8, abs=1e-5)
    assert found["reconstruction"] == found["posterior"] == 0
    # noise is spread over the values' own intervals, evenly
    flat = {"image": jnp.zeros((1, 64, 64, 3)), "number": jnp.zeros(1, int)}
    noise = np.asarray(likelihood._draw(spec, {"first_stage": {}}, flat, jax.random.key(0))[0]).ravel()
    assert stats.kstest(noise, stats.uniform(-1 / 255, 2 / 255).cdf).pvalue > 1e-3


def test_it_depends_on_neither_batches_nor_devices(gaussian, monkeypatch):
    spec, _, _ = gaussian
    spec.first_stage.image_channels, spec.config, spec.condition = 3, {}, types.SimpleNamespace(kind="none")
    monkeypatch.setattr(build, "make_transform", lambda *_: lambda row, rng: row)
    pictures = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3))
    rows = Rows({"image": np.float32(picture / 127.5 - 1)} for picture in pictures)

    def measured(devices, batch_size):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        arguments = spec, {"first_stage": {}}, (rows, rows), 7, mesh
        return likelihood.measure_likelihood(*arguments, batch_size=batch_size, steps=5)

    assert measured(8, 3) == pytest.approx(measured(1, 3), rel=1e-4)


def test_a_vq_model_has_none():
    ldm = tiny.model("none")
    stage = types.SimpleNamespace(module=types.SimpleNamespace(quantizes=True))
    with pytest.raises(ValueError, match="a VQ first stage has no density"):
        likelihood.check_density(types.SimpleNamespace(first_stage=stage))
    likelihood.check_density(ldm.specification)
