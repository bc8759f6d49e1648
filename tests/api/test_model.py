"""A model as functions: what its programs hold, what research code wraps, and what is refused before anything is traced."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import diffusion
from ldm_jax.api import Specification
from tests.tiny import model


def test_compiled_programs_hold_no_parameters():
    """A model that is deleted leaves no parameters behind, without clearing any cache."""
    ldm = model("class")
    params = jax.tree.map(jnp.array, ldm.params)
    spec = Specification(ldm.config, ldm.condition, 0.5, 0.25)
    copy = ldm_jax.LatentDiffusion(spec, params)
    copy.sample(params, jax.random.key(0), copy.embed(params, [0]), steps=1).block_until_ready()
    alive = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)]
    del copy, params
    gc.collect()
    assert not [ref for ref in alive if ref() is not None]


def test_the_denoiser_is_what_sample_uses():
    ldm = model("class")
    cond, noise = ldm.embed(ldm.params, [0, 1]), ldm.noise(jax.random.key(1), 2)
    recipe = ldm.specification.recipe("ddim")
    grid = recipe.grid(3)
    denoise = ldm.denoiser(ldm.params, cond, 2.0)
    z = diffusion.sample(denoise, recipe.sampler(3), diffusion.start(noise, noise.shape, grid, recipe.start_scale), grid)
    images = ldm.sample(ldm.params, jax.random.key(0), cond, noise=noise, sampler="ddim", steps=3, guidance_scale=2.0)
    np.testing.assert_allclose(jnp.clip(ldm.decode(ldm.params, z), -1, 1), images, atol=1e-4)


def test_every_sampler_runs_by_name_and_as_an_object():
    ldm = model("class")
    cond = ldm.embed(ldm.params, [0])
    for name in diffusion.SAMPLERS:  # traced; their numbers are tested in tests/diffusion
        draw = functools.partial(ldm.sample, sampler=name, steps=4, guidance_scale=1.0)
        assert jax.eval_shape(draw, ldm.params, jax.random.key(0), cond).shape == (1, 8, 8, 3), name
    for name in ("dpmpp_3m_sde", "pndm"):
        images = ldm.sample(ldm.params, jax.random.key(0), cond, sampler=name, steps=4, guidance_scale=1.0)
        assert np.isfinite(images).all(), name
    made = diffusion.make_sampler("heun", ldm.schedule)
    np.testing.assert_array_equal(
        ldm.sample(ldm.params, jax.random.key(0), cond, sampler=made, steps=2),
        ldm.sample(ldm.params, jax.random.key(0), cond, sampler="heun", steps=2),
    )


def test_what_has_another_meaning_is_refused_in_one_sentence():
    ldm = model("class")
    p, cond, key = ldm.params, ldm.embed(ldm.params, [0]), jax.random.key(0)
    image = np.zeros((1, 8, 8, 3), np.float32)
    for attempt, message in (
        (lambda: ldm.image_to_image(p, key, image + 255, cond), "bring it to"),
        (lambda: ldm.image_to_image(p, key, image * np.nan, cond), "bring it to"),
        (lambda: ldm.inpaint(p, key, image, np.full((1, 8, 8), 255, np.uint8), cond), "mask / 255"),
        (lambda: ldm.sample(p, key, cond, num=3), "num=3 for 1 conditions"),
        (lambda: ldm.sample(p, key, "star"), "cond is a str"),
        (lambda: ldm.embed(p, "star"), "takes a list"),
        (lambda: ldm.sample(p, key, cond, sampelr="ddim"), "Did you mean 'sampler'"),
        (lambda: ldm.sample(p, 7, cond), "give a random key"),
        (lambda: ldm.sample(p, key, cond, steps=2.5), "whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    legacy = ldm.sample(p, jax.random.PRNGKey(3), cond, steps=1)
    np.testing.assert_array_equal(legacy, ldm.sample(p, jax.random.key(3), cond, steps=1))
