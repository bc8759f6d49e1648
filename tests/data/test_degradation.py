"""Degradations: resizing against Pillow's, kernels by their moments, noise levels against the process they are taken from."""

import numpy as np
import pytest
from PIL import Image

from ldm_jax import diffusion
from ldm_jax.data import degradation

RNG = np.random.default_rng(0)
PHOTO = (0.5 * np.sin(np.linspace(0, 9, 48))[:, None, None] + RNG.uniform(-0.4, 0.4, (48, 40, 3))).astype(np.float32)
PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "area": Image.Resampling.BOX}


@pytest.mark.parametrize("kind", PILLOW)
@pytest.mark.parametrize("size", [(12, 10), (24, 40), (17, 11), (96, 80)])
def test_resizing_is_pillows(kind, size):
    if kind == "area" and size == (17, 11):
        pytest.skip("Pillow's box takes whole pixels, ours parts of them")
    found = degradation.resize(PHOTO, *size, kind)
    for channel in range(3):
        expected = np.asarray(Image.fromarray(PHOTO[..., channel]).resize(size[::-1], PILLOW[kind]))
        np.testing.assert_allclose(found[..., channel], expected, atol=2e-6)


def test_resizing_without_antialiasing_takes_neighbours_only():
    spike = np.zeros((16, 16, 1), np.float32)
    spike[0, 0] = 1
    assert degradation.resize(spike, 4, 4, "bilinear", antialias=False).max() == 0  # pixels 1 and 2 alone count
    assert degradation.resize(spike, 4, 4, "bilinear").max() > 0
    assert degradation.resize(PHOTO, 12, 10, "nearest").tolist() == PHOTO[2::4, 2::4].tolist()
    assert degradation.resize(PHOTO, 7, 5, "area").mean() == pytest.approx(PHOTO.mean(), abs=1e-6)


@pytest.mark.parametrize("kind", degradation.RESIZINGS)
def test_resizing_keeps_what_is_constant(kind):
    grey = np.full((20, 12, 3), 0.3, np.float32)
    for antialias in (True, False):
        np.testing.assert_allclose(degradation.resize(grey, 7, 31, kind, antialias), 0.3, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.0])
def test_kernels_have_the_moments_that_are_asked_for(angle):
    kernel = degradation.gaussian_kernel(41, 4.0, 1.5, angle).astype(np.float64)
    assert kernel.sum() == pytest.approx(1, abs=1e-5)
    y, x = np.mgrid[-20:21, -20:21]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    assert (kernel * along**2).sum() == pytest.approx(16, rel=1e-3)
    assert (kernel * across**2).sum() == pytest.approx(2.25, rel=1e-3)
    assert (kernel * along * across).sum() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 14, 25])
@pytest.mark.parametrize("deviations", [(2.4, 2.4, 0), (0.3, 0.3, 0), (1.4, 0.5, 0.7), (1.4, 0.05, 0.0), (3.0, 1.0, 2.0)])
def test_blur_is_the_sum_over_taps(size, deviations):
    kernel = degradation.gaussian_kernel(size, *deviations[:2], angle=deviations[2])
    before, after = (size - 1) // 2, size // 2
    padded = np.pad(PHOTO.astype(np.float64), ((before, after), (before, after), (0, 0)), "symmetric")
    taps = np.ndenumerate(kernel.astype(np.float64))
    expected = sum(w * padded[i : i + PHOTO.shape[0], j : j + PHOTO.shape[1]] for (i, j), w in taps)
    found = degradation.blur(PHOTO, kernel)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_blur_of_no_symmetry():
    kernel = np.float32([[0, 0, 0], [0, 0, 0.25], [0, 0.75, 0]])
    found = degradation.blur(PHOTO, kernel)
    np.testing.assert_allclose(found[:-1, :-1], 0.25 * PHOTO[:-1, 1:] + 0.75 * PHOTO[1:, :-1], atol=1e-6)


def test_blur():
    nothing = np.zeros((5, 5), np.float32)
    nothing[2, 2] = 1
    np.testing.assert_array_equal(degradation.blur(PHOTO, nothing), PHOTO)
    kernel = RNG.uniform(0, 1, (4, 4)).astype(np.float32)
    found = degradation.blur(PHOTO, kernel)
    expected = np.einsum("ij,ijc->c", kernel, PHOTO[9:13, 19:23])  # an even kernel's middle is its second pixel
    np.testing.assert_allclose(found[10, 20], expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("kind", degradation.KINDS)
def test_low_resolution_pictures(scale, kind):
    image = PHOTO[:48, :40]
    found = [degradation.degrade(image, scale, kind, np.random.default_rng(seed)) for seed in (0, 0, *range(1, 12))]
    for low in found:
        assert low.shape == (48 // scale, 40 // scale, 3) and low.dtype == np.float32
        assert np.abs(low).max() <= 1
    np.testing.assert_array_equal(found[0], found[1])
    if kind == "bicubic":
        np.testing.assert_array_equal(found[0], found[2])
    else:
        assert not np.array_equal(found[0], found[2])
        # degraded anew every time, but still pictures of the same thing
        means = np.mean(found, 0)
        clean = degradation.degrade(image, scale)
        assert np.corrcoef(means.ravel(), clean.ravel())[0, 1] > 0.8


def test_order_is_shuffled_but_the_size_is_settled_last(monkeypatch):
    orders, calls = set(), []
    monkeypatch.setattr(degradation, "blur", lambda x, kernel: calls.append("blur") or x)
    monkeypatch.setattr(degradation, "noise", lambda shape, rng: calls.append("noise") or 0.0)
    monkeypatch.setattr(degradation, "jpeg", lambda x, quality: calls.append("jpeg") or x)
    for seed in range(30):
        calls.clear()
        assert degradation.degrade(PHOTO, 2, "bsrgan_light", np.random.default_rng(seed)).shape == (24, 20, 3)
        assert calls[-1] == "jpeg"
        orders.add(tuple(calls))
    assert len(orders) > 5


def test_jpeg_gets_worse_with_less_quality():
    errors = [np.abs(degradation.jpeg(PHOTO, quality) - PHOTO).mean() for quality in (95, 80, 20)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.5


def test_noise_levels_are_those_of_the_process():
    schedule = diffusion.make_schedule("scaled_linear", start=1e-4, end=0.02, size=1000)
    low = np.full((64, 64, 3), 0.7, np.float32)
    for level in (0, 20, 350, 999):
        noised = degradation.add_noise(low, level, np.random.default_rng(1))
        kept = schedule(float(level))
        assert noised.mean() == pytest.approx(0.7 * float(kept.alpha), abs=0.03)
        assert noised.std() == pytest.approx(float(kept.sigma), rel=0.02)
    with pytest.raises(ValueError, match="0 to 999"):
        degradation.add_noise(low, 1000, np.random.default_rng(0))


def test_training_examples():
    example = {"image": PHOTO[:40]}
    plain = degradation.low_resolution(example, np.random.default_rng(0), scale=4, kind="bicubic")
    assert plain.keys() == {"low"} and plain["low"].shape == (10, 10, 3)
    drawn = [
        degradation.low_resolution(example, np.random.default_rng(s), scale=4, kind="bicubic", noise_levels=100)
        for s in range(40)
    ]
    levels = [int(d["level"]) for d in drawn]
    assert min(levels) < 20 and max(levels) > 80 and max(levels) < 100
    errors = [np.abs(d["low"] - plain["low"]).mean() for d in drawn]
    assert np.corrcoef(levels, errors)[0, 1] > 0.9  # the level that is told is the one that was added


@pytest.mark.parametrize(
    "image, scale, kind, message",
    [
        (PHOTO[:47], 4, "bicubic", "47 x 40 to shrink 4 times"),
        (PHOTO[:2, :2], 4, "bicubic", "multiples of 4"),
        (PHOTO, 4, "bicubik", "Did you mean 'bicubic'"),
    ],
)
def test_refused(image, scale, kind, message):
    with pytest.raises(ValueError, match=message):
        degradation.degrade(image, scale, kind, np.random.default_rng(0))
