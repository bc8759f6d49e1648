"""Canvases larger than the training size, and pictures as conditions: windows must agree with the whole where nothing looks
further than a window, and cut conditions with the canvas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.api.sampling import Guidance, Plan, Windows, decode, denoiser, encode
from tests.tiny import model

KEY = jax.random.key(4)
rng = np.random.default_rng(1)


@pytest.mark.parametrize("kind", ["superres", "text"])
def test_windows_without_overlap_are_pictures_on_their_own(kind):
    """The canvas of two windows that touch is denoised as its halves are, each with its part of the condition."""
    ldm = model(kind)
    z = jax.random.normal(KEY, (1, 4, 8, 4))
    values = {"text": ["a red circle"], "superres": list(rng.uniform(-1, 1, (1, 2, 4, 3)).astype(np.float32))}[kind]
    cond = ldm.embed(ldm.params, values)
    halves = [{n: a[:, :, i : i + 4] if n == "concat" else a for n, a in cond.items()} for i in (0, 4)]

    def denoised(z, cond, windows):
        spec = ldm.specification
        plan = Plan(z.shape, spec.recipe(), 3, 3, windows)
        scale, null = (jnp.float32(3.0), ldm.null(ldm.params, 1)) if kind == "text" else (None, None)
        denoise = denoiser(spec, plan, ldm.params, Guidance(cond, null, scale))
        return denoise(z, jax.tree.map(jnp.float32, plan.grid[1])).x0

    whole = denoised(z, cond, Windows((4, 4), (4, 4), False))
    parts = [denoised(z[:, :, i : i + 4], half, None) for i, half in zip((0, 4), halves)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts, 2), atol=1e-5)
    overlapping = denoised(z, cond, Windows((4, 4), (2, 2), False))
    np.testing.assert_allclose(overlapping[:, :, :2], whole[:, :, :2], atol=1e-5)
    assert np.abs(overlapping[:, :, 2:6] - whole[:, :, 2:6]).max() > 1e-3


def test_panorama_closes_at_its_ends():
    """Turned noise makes a turned panorama, up to the norms of the decoder: no place in it is special. Not so where it ends."""
    ldm = model("none")
    noise, changed = ldm.noise(KEY, 1, (8, 16)), []
    for wrap in (True, False):
        first, second = (
            ldm.panorama(ldm.params, KEY, num=1, size=(8, 16), noise=jnp.roll(noise, turn, 2), wrap=wrap) for turn in (0, 2)
        )  # windows are 2 latents apart, 4 pixels
        assert first.shape == (1, 8, 16, 3)
        changed.append(np.abs(jnp.roll(first, 4, 2) - second).mean())
    assert changed[0] < 0.05 and changed[1] > 3 * changed[0], changed


def test_tiles_of_the_first_stage():
    """Larger than its tiles, a first stage answers in tiles: what it makes of the middle of one is what it makes of the whole,
    but for its norms."""
    ldm = model("none")
    image = np.tile(rng.uniform(-1, 1, (1, 1, 8, 3)).astype(np.float32), (1, 4, 40, 1))  # every tile is like the whole
    spec = ldm.specification
    plan = Plan((1, 2, 160, 4), spec.recipe(), 3, 3, Windows((4, 4), (2, 2), False))
    z = encode(spec, plan, ldm.params, image)
    whole = ldm.encode(ldm.params, image)
    assert z.shape == whole.shape == (1, 2, 160, 4)
    np.testing.assert_allclose(z[:, :, 16:30], whole[:, :, 16:30], atol=0.1)
    assert decode(spec, plan, ldm.params, z).shape == image.shape


def test_upscaling_takes_any_size():
    ldm = model("superres")
    p = ldm.params
    low = rng.uniform(-1, 1, (2, 2, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(
        ldm.upscale(p, KEY, low), ldm.sample(p, KEY, ldm.embed(p, list(low))), atol=1e-4
    )  # the training size, in one piece
    tall = rng.uniform(-1, 1, (1, 3, 2, 3)).astype(np.float32)
    assert ldm.upscale(p, KEY, tall).shape == (1, 12, 8, 3)
    other = tall.copy()
    other[:, -1] *= -1
    assert np.abs(ldm.upscale(p, KEY, other) - ldm.upscale(p, KEY, tall))[:, :4].max() > 0  # windows overlap
    with pytest.raises(ValueError, match="without noise levels"):
        ldm.upscale(p, KEY, low, level=3)


def test_a_condition_of_another_size_is_refused():
    ldm = model("semantic")
    cond = ldm.embed(ldm.params, [rng.integers(0, 3, (8, 12))])
    assert ldm.sample(ldm.params, KEY, cond, steps=1).shape == (1, 8, 12, 3)  # with guidance: the empty one grows with it
    with pytest.raises(ValueError, match="the condition lies on 4 x 6 latent pixels, the picture on 4 x 4"):
        ldm.sample(ldm.params, KEY, cond, size=(8, 8))
