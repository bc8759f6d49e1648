"""Stable Diffusion XL and its refiner: what diffusers draws from a folder with random weights, we draw.

Needs the extra `parity` (torch, diffusers, transformers).
"""

import jax
import numpy as np
import pytest

import ldm_jax

torch = pytest.importorskip("torch", reason="the extra `parity` has torch")
diffusers = pytest.importorskip("diffusers", reason="the extra `parity` has diffusers")

from tests.api import xl  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow]
KEY = jax.random.key(0)
PROMPTS = ["a red dot", "blue hill"]
LIMIT = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("xl")
    return xl.pipeline(folder), ldm_jax.load(folder)


def nchw(array):
    return torch.from_numpy(np.moveaxis(np.asarray(array), -1, 1).copy())


def theirs(pipe, noise, **options):
    """Pictures in [-1, 1], NHWC."""
    with torch.no_grad():
        images = pipe(PROMPTS, latents=nchw(noise), output_type="np", **options).images
    return 2 * images - 1


def assert_close(ours, other):
    print(float(np.abs(np.asarray(ours) - other).max()))
    np.testing.assert_allclose(ours, other, atol=LIMIT)


def test_the_same_noise_gives_the_same_pictures(base):
    pipe, ldm = base
    noise = ldm.noise(KEY, 2)
    cond = ldm.embed(ldm.params, PROMPTS)
    ours = ldm.sample(ldm.params, KEY, cond, noise=noise, steps=4, guidance_scale=5.0)
    assert np.asarray(ours).std() > 0.05
    assert_close(ours, theirs(pipe, noise, num_inference_steps=4, guidance_scale=5.0))
    assert ldm.config["sampling"]["guidance_scale"] == 5.0 and ldm.specification.image_size == (xl.SIDE, xl.SIDE)
