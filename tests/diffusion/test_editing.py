"""Editing by what must come back: the known region, the image that was inverted, the untiled answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import diffuse, editing, grids, make_denoiser, make_sampler, sample, schedules, start
from ldm_jax.diffusion.samplers import ddpm
from tests.diffusion.oracles import gaussian

TABLE = schedules.scaled_linear()
KEY = jax.random.key(5)
X0 = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
DENOISE = make_denoiser(lambda x, t: 0.5 * jnp.sin(x) + 1e-4 * t[:, None, None, None], "eps")


def test_partial_grids():
    grid = grids.karras(TABLE, 10)
    assert (
        len(editing.partial(grid, 1.0)) == 11 and len(editing.partial(grid, 0.3)) == 4 and len(editing.partial(grid, 0.01)) == 2
    )
    assert editing.partial(grid, 0.3)[-1] == grid[-1]
    assert [editing.last_steps(strength, 10) for strength in (0.01, 0.3, 0.34, 0.39, 1.0)] == [1, 3, 3, 3, 10]
    assert editing.last_steps(0.6, 8) == 4  # the whole ones, as diffusers counts
    with pytest.raises(ValueError, match=r"in \(0, 1\]; got 0"):
        editing.partial(grid, 0)


def test_img2img_at_small_strength_stays_close():
    grid = grids.karras(TABLE, 20)
    eps = jax.random.normal(KEY, X0.shape)
    moved = []
    for strength in (0.1, 0.5, 1.0):
        part = editing.partial(grid, strength)
        out = sample(gaussian(), make_sampler("ddim"), diffuse(X0, eps, part[0]), part)
        moved.append(float(jnp.abs(out - X0).mean()))
    assert moved[0] < 0.2 < moved[1] < moved[2]


@pytest.mark.parametrize("resample", [1, 3])
def test_inpainting_keeps_the_known_region(resample):
    grid = grids.karras(TABLE, 12)
    mask = jnp.zeros((2, 4, 4, 1)).at[:, :2].set(1.0)
    x = start(KEY, X0.shape, grid)
    in_x = sample(gaussian(), editing.imposed(ddpm(), X0, mask, resample), x, grid, KEY)
    np.testing.assert_allclose(in_x[:, :2], X0[:, :2], atol=1e-5)
    assert jnp.abs(in_x[:, 2:] - X0[:, 2:]).max() > 0.1
    in_x0 = sample(editing.known_region(gaussian(), X0, mask), make_sampler("dpmpp_2m"), x, grid)
    np.testing.assert_allclose(in_x0[:, :2], X0[:, :2], atol=1e-4)
    alone = sample(gaussian(), make_sampler("dpmpp_2m"), x, grid)
    np.testing.assert_allclose(in_x0[:, 2:], alone[:, 2:], atol=1e-4)  # this denoiser looks at no neighbours
    with pytest.raises(ValueError, match="at least 1"):
        editing.imposed(ddpm(), X0, mask, 0)
    with pytest.raises(ValueError, match="resampling wraps samplers without memory"):
        sample(gaussian(), editing.imposed(make_sampler("dpmpp_2m"), X0, mask, 2), x, grid, KEY)


def test_repaint_keeps_the_distribution_of_the_rest():
    grid = grids.karras(TABLE, 150)
    known, mask = jnp.zeros((3000, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)).at[:, 0].set(1.0)
    sampler = editing.imposed(ddpm(), known, mask, resample=2)
    out = jax.jit(lambda x: sample(gaussian(), sampler, x, grid, KEY))(start(KEY, known.shape, grid))
    assert abs(out[:, 1].mean() - 0.4) < 0.03 and abs(out[:, 1].std() - 0.6) < 0.04


def test_ddim_inversion_comes_back():
    grid = grids.leading(TABLE, 25, end=TABLE(0.0))
    errors = []
    for iterations in (1, 8):
        x = editing.invert(DENOISE, X0, grid, iterations)
        errors.append(float(jnp.abs(sample(DENOISE, make_sampler("ddim"), x, grid) - X0).max()))
    assert errors[1] < 1e-3 and errors[1] < 0.1 * errors[0], errors


@pytest.mark.parametrize("end", [None, 0.0])
def test_stochastic_inversion_comes_back_exactly(end):
    grid = grids.leading(TABLE, 10) if end is None else grids.leading(TABLE, 10, end=TABLE(end))
    x, noise = editing.invert_stochastic(gaussian(), X0, grid, KEY)
    assert noise.shape == (10, *X0.shape)
    back, xs = sample(gaussian(), ddpm(), x, grid, noise, record=lambda state: state.x)
    if end is not None:
        np.testing.assert_allclose(back, diffuse(X0, 0 * X0, grid[-1]), atol=1e-4)
    else:
        level = jax.tree.map(jnp.float32, grid[9])
        np.testing.assert_allclose(back, gaussian()(xs[-2], level).x0, atol=1e-4)
    eps = (xs[4] - grid.alpha[5] * X0) / grid.sigma[5]  # the replayed path is the independently noised image
    assert abs(eps.std() - 1) < 0.3
    assert noise.std() > 1.0  # and its noise carries more than a path of the model would


def test_interpolation():
    a, b = jax.random.normal(KEY, (2, 3, 32, 32, 4))
    np.testing.assert_allclose(editing.slerp(a, b, 0.0), a, atol=1e-5)
    np.testing.assert_allclose(editing.slerp(a, b, 1.0), b, atol=1e-5)
    np.testing.assert_allclose(editing.slerp(a, a, 0.3), a, atol=1e-5)
    wide = np.random.default_rng(0).standard_normal((2, 128, 128, 8))
    wide[1] += 0.05 * wide[0]  # 131,072 squares add up beyond what half precision holds
    half, other = (jnp.asarray(x[None], jnp.float16) for x in wide)
    one, two = (np.asarray(x, np.float64) for x in (half, other))
    angle = np.arccos((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two))
    between = (np.sin(0.7 * angle) * one + np.sin(0.3 * angle) * two) / np.sin(angle)
    np.testing.assert_allclose(editing.slerp(half, other, 0.3), between, atol=1e-4)
    middle = editing.slerp(a, b, jnp.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(middle.std((1, 2, 3)), 1, rtol=0.05)
    assert editing.lerp(a, b, 0.5).std() < 0.8
    np.testing.assert_allclose(editing.lerp(a, b, jnp.array([0.0, 0.5, 1.0]))[2], b[2])


def test_outpainting():
    known, mask = editing.outpainting_canvas(X0, [(0, 1), (2, 0)])
    assert known.shape == (2, 5, 6, 2) and mask.shape == (2, 5, 6, 1)
    np.testing.assert_array_equal(known[:, :4, 2:], X0)
    assert mask.sum() == 2 * 16
    grid = grids.karras(TABLE, 8)
    out = sample(gaussian(), editing.imposed(ddpm(), known, mask), start(KEY, known.shape, grid), grid, KEY)
    np.testing.assert_allclose(out[:, :4, 2:], X0, atol=1e-5)


@pytest.mark.parametrize("wrap", [None, -1])
def test_tiles_of_a_local_denoiser_are_the_whole(wrap):
    canvas = jax.random.normal(KEY, (2, 7, 13, 2))
    level = jax.tree.map(jnp.float32, TABLE(400.0))
    tiled = editing.tiled(DENOISE, (4, 5), (3, 2), wrap)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tiled(canvas, level), DENOISE(canvas, level))


@pytest.mark.parametrize("wrap", [None, -1])
def test_tiles_come_with_what_lies_on_the_canvas(wrap):
    canvas, map_ = jax.random.normal(KEY, (2, 7, 13, 2)), jax.random.normal(jax.random.key(2), (2, 7, 13, 1))
    level = jax.tree.map(jnp.float32, TABLE(400.0))

    def denoise(x, level, along):
        return DENOISE(x + along["map"], level)

    tiled = editing.tiled(denoise, (4, 5), (3, 2), wrap, {"map": map_})
    whole = denoise(canvas, level, {"map": map_})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tiled(canvas, level), whole)


def test_wrapped_tiles_know_no_seam():
    """A denoiser that looks at its window's position gives, wrapped, an answer that turns with the canvas."""

    def windowed(x, level):
        return DENOISE(x + jnp.linspace(0, 1, x.shape[2])[:, None], level)

    canvas = jax.random.normal(KEY, (1, 4, 8, 1))
    level = jax.tree.map(jnp.float32, TABLE(400.0))
    tiled = editing.tiled(windowed, (4, 4), (4, 2), wrap=-1)
    rolled = tiled(jnp.roll(canvas, 2, 2), level).x0
    np.testing.assert_allclose(jnp.roll(tiled(canvas, level).x0, 2, 2), rolled, atol=1e-5)
    with pytest.raises(ValueError, match="overlap or touch"):
        editing.tiled(windowed, (4, 4), (5, 1))
    with pytest.raises(ValueError, match="smaller than the window"):
        tiled(canvas[:, :2], level)


@pytest.mark.parametrize("sides", [(16,), (6, 8), (3, 4, 4)])
def test_everything_works_on_one_two_and_three_axes(sides):
    """Tiles, canvases, masks, mixtures, inversion and guided sampling of sequences, pictures and volumes."""
    denoise = make_denoiser(lambda x, t: 0.5 * jnp.sin(x) + 1e-4 * jnp.reshape(t, (-1, *(1,) * (x.ndim - 1))), "eps")
    x0 = jax.random.normal(KEY, (2, *sides, 3))
    grid = grids.karras(TABLE, 6)
    level = jax.tree.map(jnp.float32, TABLE(400.0))
    window, stride = tuple(side // 2 + 1 for side in sides), tuple(max(1, side // 3) for side in sides)
    tiled = editing.tiled(denoise, window, stride, wrap=-1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tiled(x0, level), denoise(x0, level))

    known, mask = editing.outpainting_canvas(x0, [(1, 2)] * len(sides))
    assert known.shape == (2, *(side + 3 for side in sides), 3) and mask.shape == (*known.shape[:-1], 1)
    inner = (slice(None), *(slice(1, 1 + side) for side in sides))
    x = start(KEY, known.shape, grid)
    for painted in (
        sample(denoise, editing.imposed(ddpm(), known, mask), x, grid, KEY),
        sample(editing.known_region(denoise, known, mask), make_sampler("dpmpp_2m"), x, grid),
    ):
        np.testing.assert_allclose(painted[inner], x0, atol=1e-4)
    a, b = jax.random.normal(KEY, (2, *x0.shape))
    np.testing.assert_allclose(editing.slerp(a, b, jnp.array([0.0, 1.0])), jnp.stack([a[0], b[1]]), atol=1e-5)
    x = editing.invert(denoise, x0, grids.leading(TABLE, 25, end=TABLE(0.0)), 8)
    back = sample(denoise, make_sampler("ddim"), x, grids.leading(TABLE, 25, end=TABLE(0.0)))
    np.testing.assert_allclose(back, x0, atol=2e-3)
    with pytest.raises(ValueError, match="spatial axes"):
        editing.outpainting_canvas(x0, [(1, 2)] * 4)
