"""FID's network in its published layout, of seeded weights, through the whole way from pictures to a distance."""

import jax
import numpy as np
import pytest

from ldm_jax import evaluation, models, scoring
from ldm_jax.models import InceptionV3
from ldm_jax.training import sharding
from ldm_jax.weights import torch_files

pytestmark = pytest.mark.slow  # the network takes most of a minute to compile
COUNT, SIDE = 24, 76
ONE = sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Weights that keep the size of what goes through, as pytorch-fid's file spells them."""
    rng, tensors = np.random.default_rng(0), {}
    shapes = models.shapes(InceptionV3(), jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *scopes, name = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        shape = leaf.shape
        if name == "kernel":
            shape = (shape[1], shape[0]) if scopes == ["fc"] else (shape[-1], shape[-2], *(shape[:-2] or (1, 1)))
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            values = rng.uniform(0.8, 1.2, shape) if name in ("scale", "running_var") else rng.normal(0, 0.1, shape)
        name = {"kernel": "weight", "scale": "weight"}.get(name, name)
        tensors[".".join((*scopes, name))] = values.astype(np.float32)
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch_files.write(path, tensors)
    return scoring.load(f"inception:{path}", resize="none")


@pytest.fixture(scope="module")
def real():
    """Smooth pictures, uint8."""
    rng = np.random.default_rng(5)
    waves = np.fft.fft2(rng.normal(size=(COUNT, SIDE, SIDE, 3)), axes=(1, 2))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE), np.fft.fftfreq(SIDE)))[..., None]
    smooth = np.fft.ifft2(waves / (0.05 + frequency), axes=(1, 2)).real
    return evaluation.as_uint8(np.clip(smooth / np.abs(smooth).max() * 1.5, -1, 1))


def test_fid_is_nothing_for_the_same_pictures_and_grows_with_blur_noise_and_crops(network, real):
    run = network.on(ONE)

    def look(images):
        return run(images)["features"]

    features = look(real).astype(np.float64)
    there = evaluation.moments(features)
    distance = evaluation.frechet_to(there.mean, there.covariance)
    scale = np.trace(there.covariance)
    assert abs(distance(features)) < 1e-6 * scale
    images, noise = real.astype(np.float32), np.random.default_rng(6).normal(size=real.shape)

    def blurred(times):
        soft = images
        for _ in range(times):
            soft = (soft + np.roll(soft, 1, 1) + np.roll(soft, 1, 2) + np.roll(soft, (1, 1), (1, 2))) / 4
        return soft

    def cropped(side):
        rows = np.arange(SIDE) * side // SIDE
        return images[:, rows][:, :, rows]

    for name, made in {
        "blur": [blurred(times) for times in (1, 4, 16)],
        "noise": [images + s * noise for s in (4, 16, 64)],
        "crop": [cropped(side) for side in (60, 38, 19)],
    }.items():
        found = [distance(look(np.round(np.clip(each, 0, 255)).astype(np.uint8))) for each in made]
        assert found[0] > 1e-4 * scale and np.all(np.diff(found) > 0), (name, found)


def test_eight_devices_add_the_rounding_of_the_network_and_nothing_else(network, real):
    """Convolutions of batches of another shape round differently in float32; moments merged from equal features don't."""
    one, eight = (network.on(mesh)(real)["features"].astype(np.float64) for mesh in (ONE, sharding.make_mesh()))
    np.testing.assert_allclose(eight, one, atol=1e-5 * np.abs(one).max())
    one, eight = one[:, ::100], eight[:, ::100]  # fewer features than pictures
    there = evaluation.moments(one + np.random.default_rng(7).normal(size=one.shape))
    whole = evaluation.moments(eight)
    expected = evaluation.frechet_of_gaussians(whole.mean, whole.covariance, there.mean, there.covariance)
    for parts in (np.split(eight, 8), [eight[1::2], eight[::2]]):  # as eight devices have them, as two processes interleave
        merged = evaluation.moments(parts[0])
        for part in parts[1:]:
            merged = evaluation.merge(merged, evaluation.moments(part))
        found = evaluation.frechet_of_gaussians(merged.mean, merged.covariance, there.mean, there.covariance)
        assert found == pytest.approx(expected, rel=1e-9)
    single = evaluation.moments(one)
    of_one = evaluation.frechet_of_gaussians(single.mean, single.covariance, there.mean, there.covariance)
    assert expected == pytest.approx(of_one, rel=1e-5)
