"""A model as functions: what its programs hold, what research code wraps, and what is refused before anything is traced."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ldm_jax
from ldm_jax import diffusion
from ldm_jax.api import Specification, drawing
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


def test_a_sampler_runs_by_name_and_as_an_object():
    """All names: `test_names.py`."""
    ldm = model("class")
    cond = ldm.embed(ldm.params, [0])
    made = diffusion.make_sampler("deis", ldm.schedule)
    np.testing.assert_array_equal(
        ldm.sample(ldm.params, jax.random.key(0), cond, sampler=made, steps=2),
        ldm.sample(ldm.params, jax.random.key(0), cond, sampler="deis", steps=2),
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
        (lambda: ldm.sample(p, 7, cond), "key=7: give a random key"),
        (lambda: ldm.trajectory(p, 7, cond), "key=7: give a random key"),
        (lambda: ldm.variation(p, 7, cond, noise=ldm.noise(key, 1)), "key=7: give a random key"),
        (lambda: ldm.interpolate(p, 7, cond, 2, noise=ldm.noise(key, 2)), "key=7: give a random key"),
        (lambda: ldm.image_to_image(p, 7, image, cond), "key=7: give a random key"),
        (lambda: ldm.inpaint(p, 7, image, np.ones((1, 8, 8)), cond), "key=7: give a random key"),
        (lambda: ldm.edit(p, 7, image, cond), "key=7: give a random key"),
        (lambda: ldm.sample(p, key, cond, steps=2.5), "whole number"),
        (lambda: ldm.sample(p, key, cond, steps=float("inf")), "steps=inf: must be a whole number"),
        (lambda: ldm.sample(p, key, cond, steps="3"), "steps='3'"),
        (lambda: ldm.sample(p, key, cond, sampler=diffusion.samplers.ddim), "sampler=<function ddim"),
        (lambda: ldm.sample(p, key, cond, sampler=3), "sampler=3"),
        (lambda: ldm.sample(p, key, cond, grid=[1.0, 0.5, 0.0]), "grid is a list"),
        (lambda: ldm.sample(p, key, cond, guidance_scale="3"), "guidance_scale='3'"),
        (lambda: ldm.sample(p, key, cond, guidance_scale=np.nan), "guidance_scale=nan"),
        (lambda: ldm.sample(p, key, cond, guidance_scale=[np.inf]), "must be a finite number"),
        (lambda: ldm.sample(p, key, cond, negative="star"), "negative is a str"),
        (lambda: ldm.sample(p, key, cond, negative=["star"]), "negative is a list"),
        (lambda: ldm.sample(p, key, {}), "cond is an empty dict"),
        (lambda: ldm.sample(p, key, cond, size=8), "size=8: give 2 whole numbers"),
        (lambda: ldm.sample(p, key, cond, size="8x8"), "size='8x8'"),
        (lambda: ldm.sample(p, key, cond, size=(8, 8, 8)), r"size=\(8, 8, 8\)"),
        (lambda: ldm.sample(p, key, cond, tile="8"), "tile='8'"),
        (lambda: ldm.image_to_image(p, key, image, cond, strength="0.5"), "strength='0.5'"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    for names in (np.array(["star"]), iter(["star"])):  # a list by another name
        np.testing.assert_array_equal(ldm.embed(p, names)["context"], ldm.embed(p, ["star"])["context"])
    legacy = ldm.sample(p, jax.random.PRNGKey(3), cond, steps=1)
    np.testing.assert_array_equal(legacy, ldm.sample(p, jax.random.key(3), cond, steps=1))


def test_samples_are_a_function_of_key_and_condition():
    ldm = model("text")
    cond = ldm.embed(ldm.params, ["a red circle", "a blue star"])
    draw = lambda key, cond, **options: ldm.sample(ldm.params, key, cond, **options)  # noqa: E731
    images = draw(jax.random.key(0), cond)
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.float32
    assert np.abs(images).max() <= 1
    np.testing.assert_array_equal(images, draw(jax.random.key(0), cond))
    assert not np.array_equal(images, draw(jax.random.key(1), cond))
    np.testing.assert_allclose(images, jax.jit(draw)(jax.random.key(0), cond), atol=1e-5)
    first = draw(jax.random.key(0), jax.tree.map(lambda x: x[:1], cond))
    np.testing.assert_allclose(images[:1], first, atol=1e-4)  # neighbours in the batch don't matter


def test_what_it_cannot_draw_is_refused():
    ldm = model("text")
    cond = ldm.embed(ldm.params, ["a red circle"])
    key = jax.random.key(0)
    for attempt, message in (
        (lambda: ldm.embed(ldm.params, ["a crimson circle"]), "'crimson'"),
        (lambda: ldm.embed(ldm.params, [" ".join(["a red circle"] * 20)]), "more than the"),
        (lambda: ldm.sample(ldm.params, key), "takes a prompt"),
        (lambda: ldm.sample(ldm.params, key, cond, sampler="dimm"), "ddim"),
        (lambda: ldm.sample(ldm.params, key, cond, steps=0), "step"),
        (lambda: ldm.sample(ldm.params, key, cond, size=(9, 8)), "multiples of 2"),
        (lambda: ldm.sample(ldm.params, key, cond, guidance_scale=np.ones(3)), "one a picture"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_scale_seed_and_prompt_do_not_recompile():
    ldm = model("text")
    count = []
    for seed, words, scale in ((0, "a red circle", 2.0), (1, "a blue star", 3.0), (2, "a red star", 7.5)):
        ldm.sample(ldm.params, jax.random.key(seed), ldm.embed(ldm.params, [words]), guidance_scale=scale)
        count.append(drawing._sample._cache_size())
    assert len(set(count)) == 1


def test_guidance_scale_may_differ_per_picture_and_one_is_off():
    ldm = model("text")
    cond = ldm.embed(ldm.params, ["a red circle"] * 2)
    key = jax.random.key(3)
    large = 30.0
    both = ldm.sample(ldm.params, key, cond, guidance_scale=np.array([1.0, large]))
    off = ldm.sample(ldm.params, key, cond, guidance_scale=1.0)
    np.testing.assert_allclose(both[0], off[0], atol=1e-4)
    np.testing.assert_allclose(both[1], ldm.sample(ldm.params, key, cond, guidance_scale=large)[1], atol=1e-4)
    assert np.abs(both[1] - off[1]).max() > 1e-3


def test_gradients_flow_through_the_whole_sampler():
    ldm = model("none")
    grads = jax.jit(jax.grad(lambda p: ldm.sample(p, jax.random.key(0), num=1, steps=2).mean()))(ldm.params)
    norms = {name: float(sum((x**2).sum() for x in jax.tree.leaves(grads[name]))) for name in ("network", "first_stage")}
    assert all(np.isfinite(n) and n > 0 for n in norms.values()), norms


def test_encode_decode_and_apply():
    ldm = model("text")
    x = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    z = ldm.encode(ldm.params, x)
    assert z.shape == (2, 4, 4, 4)
    assert not np.array_equal(z, ldm.encode(ldm.params, x, jax.random.key(0)))  # a draw from the posterior
    assert ldm.decode(ldm.params, z).shape == x.shape
    cond = ldm.embed(ldm.params, ["a red circle", ""])
    assert ldm.apply(ldm.params, z, np.zeros(2, np.float32), cond).shape == z.shape
    one = ldm.apply(ldm.params, z, 0.5, cond)
    np.testing.assert_array_equal(one, ldm.apply(ldm.params, z, np.full(2, 0.5, np.float32), cond))
    np.testing.assert_allclose(cond["context"][1], ldm.null(ldm.params, 1)["context"][0], atol=1e-5)
    assert 0.5 < float(ldm.schedule(0.5).alpha) < 0.9
    with pytest.raises(ValueError, match="multiples of 2"):
        ldm.encode(ldm.params, x[:, :7])
