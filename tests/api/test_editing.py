"""Editing with a model: what must come back, what must not compile again, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.api.sampling import Plan
from ldm_jax.diffusion import editing
from ldm_jax.training.metrics import to_uint8
from ldm_jax.weights import schedulers
from tests.tiny import model

KEY = jax.random.key(3)
rng = np.random.default_rng(0)
BYTES = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
IMAGE = BYTES.astype(np.float32) / np.float32(127.5) - 1
MASK = np.zeros((2, 8, 8), np.float32)
MASK[:, 2:5, 3:] = 1


@pytest.fixture(scope="module")
def ldm():
    return model("text")


@pytest.fixture(scope="module")
def cond(ldm):
    return ldm.embed(ldm.params, ["a red circle", "a blue star"])


@pytest.fixture
def compilations():
    """How many programs have been compiled, of any function, since the test began."""
    count = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            count.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield count
    jax.monitoring.unregister_event_duration_listener(listen)


def close(a, b, atol=2e-4):
    np.testing.assert_allclose(a, b, atol=atol)


def decoded(ldm, image):
    """What the first stage makes of an image."""
    return jnp.clip(ldm.decode(ldm.params, ldm.encode(ldm.params, image)), -1, 1)


AGAIN = ("sample", "image_to_image", "inpaint", "edit")
SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("variation", "interpolate", "panorama")]


@pytest.mark.parametrize("name", [*AGAIN, *SLOWER])
def test_nothing_compiles_again(ldm, compilations, name):
    """Another prompt, picture, mask, key, scale, amount, or a strength that means as many steps."""
    p = ldm.params
    jax.clear_caches()  # tests that ran before may have compiled the same
    calls = {
        "sample": lambda key, cond, image, mask, x: ldm.sample(p, key, cond, guidance_scale=1 + x),
        "image_to_image": lambda key, cond, image, mask, x: ldm.image_to_image(p, key, image, cond, strength=0.6 + x / 100),
        "inpaint": lambda key, cond, image, mask, x: ldm.inpaint(p, key, image, mask, cond, guidance_scale=1 + x),
        "edit": lambda key, cond, image, mask, x: ldm.edit(p, key, image, cond, guidance_scale=1 + x),
        "variation": lambda key, cond, image, mask, x: ldm.variation(p, key, cond, amount=x),
        "interpolate": lambda key, cond, image, mask, x: ldm.interpolate(p, key, cond, 3, guidance_scale=1 + x),
        "panorama": lambda key, cond, image, mask, x: ldm.panorama(p, key, cond, size=(8, 16), guidance_scale=1 + x),
    }
    first = (jax.random.key(0), ["a red circle", "a blue star"], IMAGE, MASK, 0.3)
    second = (jax.random.key(1), ["a (star:1.2)", "blue"], IMAGE[::-1].copy(), 1 - MASK, 0.6)
    ldm.embed(p, second[1])  # weighted prompts are a program of their own
    made = []
    for key, words, *rest in (first, second):
        before = len(compilations)
        made.append(np.asarray(calls[name](key, ldm.embed(p, words), *rest)))
        made.append(len(compilations) - before)
    assert made[1] > 0 and made[3] == 0, made[1::2]
    assert np.isfinite(made[0]).all() and np.abs(made[0] - made[2]).max() > 1e-3


def test_nothing_compiles_again_where_pictures_are_conditions(compilations):
    paint, enlarge = model("inpaint"), model("superres")
    for call in (
        lambda key, image, mask: paint.inpaint(paint.params, key, image, mask),
        lambda key, image, mask: enlarge.upscale(enlarge.params, key, image[:, :3, :5]),
    ):
        call(jax.random.key(0), IMAGE, MASK)
        before = len(compilations)
        call(jax.random.key(1), IMAGE[::-1].copy(), 1 - MASK)
        assert len(compilations) == before > 0


def test_strength(ldm, cond):
    """At the least strength little changes; at 1 hardly anything is left of the image, and it is as if sampled."""
    changed = [
        float(np.abs(ldm.image_to_image(ldm.params, KEY, IMAGE, cond, strength=s) - decoded(ldm, IMAGE)).mean())
        for s in (0.3, 0.7, 1.0)
    ]
    assert changed[0] < changed[1] < changed[2]
    close(ldm.image_to_image(ldm.params, KEY, IMAGE, cond, strength=1.0), ldm.sample(ldm.params, KEY, cond), 5e-2)
    for strength in (0, -0.5, 1.01):
        with pytest.raises(ValueError, match=r"in \(0, 1\]"):
            ldm.image_to_image(ldm.params, KEY, IMAGE, cond, strength=strength)


@pytest.mark.parametrize(
    ("steps", "strength", "times"),
    [(5, 0.6, [400, 200, 0]), (5, 1.0, [800, 600, 400, 200, 0]), (5, 0.2, [200, 0]), (2, 0.5, [500, 0])],
)
def test_strength_counts_a_step_of_no_length(steps, strength, times):
    """The levels of a scheduler that ends at its last time are the last of diffusers' times 800, 600, 400, 200, 0, without
    the step from 0 to 0; where that would be the only one, it is the one before."""
    recipe = schedulers.scheduler("DDIMScheduler", set_alpha_to_one=False)
    plan = Plan((1, 4, 4, 4), recipe, steps, editing.last_steps(strength, steps), None)
    np.testing.assert_array_equal(plan.grid.t, times)


@pytest.mark.parametrize("how", [{}, {"method": "certain"}, {"resample": 2, "sampler": "ddpm"}, {"strength": 0.5}])
def test_known_pixels_are_exactly_those_of_the_image(ldm, cond, how):
    out = ldm.inpaint(ldm.params, KEY, IMAGE, MASK, cond, **how)
    kept = np.broadcast_to(MASK[..., None] == 0, BYTES.shape)
    assert np.array_equal(np.asarray(out)[kept], IMAGE[kept])
    assert np.array_equal(to_uint8(out)[kept], BYTES[kept])
    assert np.abs(np.asarray(out) - IMAGE)[~kept].mean() > 0.05


def test_an_inpainting_model_is_told_the_image_and_the_mask():
    ldm = model("inpaint")
    p = ldm.params
    out = ldm.inpaint(p, KEY, IMAGE, MASK[..., None])
    cond = ldm.embed(p, list(zip(IMAGE, MASK)))
    drawn = np.where(MASK[..., None] > 0, ldm.sample(p, KEY, cond), IMAGE)
    close(out, drawn)
    inputs = ldm.condition.parse(list(zip(IMAGE, MASK)))
    by_hand = ldm.condition.apply({}, ldm.condition.encoded(inputs, lambda x: ldm.encode(p, x)))
    close(cond["concat"], by_hand["concat"], 1e-5)
    # what was in the hole is not looked at
    close(ldm.inpaint(p, KEY, np.where(MASK[..., None] > 0, 0.3, IMAGE).astype(np.float32), MASK), out)
    with pytest.raises(ValueError, match="no other condition"):
        ldm.inpaint(p, KEY, IMAGE, MASK, cond)
    with pytest.raises(ValueError, match="inpaints by concat"):
        ldm.inpaint(p, KEY, IMAGE, MASK, method="imposed")


def test_outpainting_keeps_the_image_in_its_place(ldm, cond):
    out = ldm.outpaint(ldm.params, KEY, IMAGE, cond, left=4, bottom=2, right=2)
    assert out.shape == (2, 10, 14, 3)
    assert np.array_equal(to_uint8(out)[:, :8, 4:12], BYTES)
    for sides, message in (({}, "not all 0"), ({"left": -2, "right": 4}, "0 or more"), ({"top": 3}, "multiples of 2")):
        with pytest.raises(ValueError, match=message):
            ldm.outpaint(ldm.params, KEY, IMAGE, cond, **sides)


def test_refusals(ldm, cond):
    p = ldm.params
    for attempt, message in (
        (lambda: ldm.image_to_image(p, KEY, BYTES, cond), "uint8, for 2 conditions: they must be float"),
        (lambda: ldm.image_to_image(p, KEY, IMAGE[:1], cond), r"\(1, 8, 8, 3\), float32, for 2 conditions"),
        (lambda: ldm.image_to_image(p, KEY, IMAGE[:, :7], cond), "7 x 8: both sides must be multiples of 2"),
        (lambda: ldm.image_to_image(p, KEY, IMAGE), "takes a prompt"),
        (lambda: ldm.inpaint(p, KEY, IMAGE, MASK[:, :4], cond), r"mask of shape \(2, 4, 8\) for images of shape \(2, 8, 8\)"),
        (lambda: ldm.inpaint(p, KEY, IMAGE, MASK, cond, method="concat"), "inpaints by imposed or certain"),
        (lambda: ldm.inpaint(p, KEY, IMAGE, MASK, cond, resample=2), "without memory"),
        (lambda: ldm.inpaint(p, KEY, IMAGE, MASK, cond, resample=0), "at least 1"),
        (lambda: ldm.edit(p, KEY, IMAGE, cond, method="dimd"), "ddim or stochastic"),
        (lambda: ldm.edit(p, KEY, IMAGE, cond, sampler="heun"), "its own sampler"),
        (lambda: ldm.interpolate(p, KEY, ldm.embed(p, ["a star"])), "1 conditions and 1 noises"),
        (lambda: ldm.interpolate(p, KEY, cond, 1), "frames=1"),
        (lambda: ldm.interpolate(p, KEY, cond, noise=ldm.noise(KEY, 3)), "2 conditions and 3 noises"),
        (lambda: ldm.upscale(p, KEY, IMAGE), "super-resolution; this one takes a prompt"),
        (lambda: ldm.sample(p, KEY, cond, negative=cond, guidance_scale=1.0), "without effect"),
        (lambda: ldm.sample(p, KEY, cond, wrap=True), "give their side, tile"),
        (lambda: ldm.sample(p, KEY, cond, tile=3), "multiples of 2"),
        (lambda: ldm.sample(p, KEY, cond, tile=4, overlap=4), "less than the tile"),
        (lambda: ldm.sample(p, KEY, cond, noise=ldm.noise(KEY, 3)), r"for these pictures it is float \(2, 4, 4, 4\)"),
        (lambda: ldm.sample(p, KEY, cond, noise=ldm.noise(KEY, 2), size=(8, 16)), "size"),
        (lambda: ldm.sample(p, KEY, cond, strength=0.5), "strength"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            attempt()


def test_noise_is_what_sample_starts_from(ldm, cond):
    drawn = ldm.sample(ldm.params, KEY, cond)
    close(drawn, ldm.sample(ldm.params, KEY, cond, noise=ldm.noise(KEY, 2)), 1e-5)
    wide = ldm.noise(KEY, 2, (8, 12))
    assert wide.shape == (2, 4, 6, 4)
    assert ldm.sample(ldm.params, KEY, cond, noise=wide).shape == (2, 8, 12, 3)


def test_variations_are_between_the_picture_and_others(ldm):
    cond = ldm.embed(ldm.params, ["a red circle"] * 3)
    first = ldm.sample(ldm.params, KEY, cond)[:1]
    close(ldm.variation(ldm.params, KEY, cond, amount=0.0), jnp.repeat(first, 3, 0), 1e-4)
    out = ldm.variation(ldm.params, KEY, cond, amount=np.float32([0.0, 0.1, 1.0]))
    far = [float(np.abs(picture - first[0]).mean()) for picture in out]
    assert far[0] < 1e-4 < far[1] < far[2]
    close(ldm.variation(ldm.params, KEY, cond, amount=0.0, noise=ldm.noise(jax.random.key(9), 1)),
          jnp.repeat(ldm.sample(ldm.params, jax.random.key(9), cond)[:1], 3, 0), 1e-4)  # fmt: skip


def test_interpolation_ends_at_the_waypoints(ldm):
    p, words = ldm.params, ["a red circle", "a blue star", "blue"]
    cond, noise = ldm.embed(p, words), ldm.noise(KEY, 3)
    both = ldm.interpolate(p, KEY, cond, 5, noise=noise)
    assert both.shape == (5, 8, 8, 3)
    close(both[::2], ldm.sample(p, KEY, cond, noise=noise))
    one_noise = ldm.interpolate(p, KEY, cond, 3)
    close(one_noise, ldm.sample(p, KEY, cond, noise=jnp.repeat(ldm.noise(KEY, 1), 3, 0)))
    one_cond = ldm.interpolate(p, KEY, ldm.embed(p, words[:1]), 3, noise=noise)
    close(one_cond, ldm.sample(p, KEY, ldm.embed(p, words[:1] * 3), noise=noise))


def test_unconditional():
    ldm = model("none")
    p, noise = ldm.params, ldm.noise(KEY, 2)
    drawn = ldm.sample(p, KEY, num=2)
    close(ldm.interpolate(p, KEY, frames=2, noise=noise), drawn)
    close(ldm.variation(p, KEY, num=2, amount=0.0)[1], drawn[0])
    for attempt, message in (
        (lambda: ldm.sample(p, KEY), "say how many"),
        (lambda: ldm.embed(p, ["a star"]), "unconditional"),
        (lambda: ldm.interpolate(p, KEY), "no conditions and 1 noises"),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()


def test_inversion_comes_back(ldm, cond):
    noise = ldm.invert(ldm.params, IMAGE, cond, steps=40, iterations=8)
    back = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=40, sampler="ddim", guidance_scale=1.0)
    close(back, decoded(ldm, IMAGE), 5e-2)
    again = ldm.sample(ldm.params, KEY, cond, noise=ldm.noise(KEY, 2), steps=40, sampler="ddim", guidance_scale=1.0)
    assert np.abs(again - back).mean() > 0.1


@pytest.mark.parametrize("method", ["ddim", pytest.param("stochastic", marks=pytest.mark.slow)])
def test_an_edit_to_the_same_comes_back(ldm, cond, method):
    turned = jax.tree.map(lambda a: a[::-1], cond)
    changed = [
        np.abs(ldm.edit(ldm.params, KEY, IMAGE, to, cond, method=method, guidance_scale=1.0, steps=40) - decoded(ldm, IMAGE))
        for to in (cond, turned)
    ]
    assert changed[0].mean() < 0.1 and changed[1].mean() > 1.2 * changed[0].mean()
