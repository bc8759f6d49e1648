"""Levels, parameterizations, schedules, grids, and the errors at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import (
    GRIDS,
    PREDICTIONS,
    SCHEDULES,
    Level,
    Prediction,
    diffuse,
    grids,
    make_denoiser,
    make_grid,
    make_sampler,
    make_schedule,
    predict,
    sample,
    schedules,
    target,
)

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_kind_round_trips_on_every_schedule(name):
    schedule = make_schedule(name)
    level = schedule.from_log_snr(np.linspace(6.0, -6.0, 7))
    x0, eps = jax.random.normal(KEY, (2, 7, 2, 2, 3))
    truth, x = Prediction(x0, eps), diffuse(x0, eps, level)
    for kind in PREDICTIONS:
        solved = predict(kind, x, target(kind, truth, level), level)
        scale = np.abs(np.asarray(x)).max() * (1 + np.maximum(level.noise_ratio, 1 / level.noise_ratio).max())
        np.testing.assert_allclose(solved.x0, x0, atol=3e-7 * scale)
        np.testing.assert_allclose(solved.eps, eps, atol=3e-7 * scale)
        again = target(kind, solved, level)
        np.testing.assert_allclose(again, target(kind, truth, level), atol=1e-6 * scale)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_grows_with_time_and_the_inverse_inverts(name):
    schedule = make_schedule(name)
    low, high = schedule.span
    t = np.linspace(low + 0.01 * (high - low), high - 0.01 * (high - low), 50)
    level = schedule(t)
    assert np.all(np.diff(level.log_snr) < 0)
    back = schedule.from_log_snr(level.log_snr)
    for a, b in zip(jax.tree.leaves(level), jax.tree.leaves(back)):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    traced = jax.jit(schedule)(jnp.asarray(t, jnp.float32))
    np.testing.assert_allclose(traced.alpha, level.alpha, atol=2e-5)
    np.testing.assert_allclose(traced.sigma, level.sigma, rtol=3e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squared_cosine", "sigmoid", "sqrt", "cosine"])
def test_vp_schedules_preserve_variance(name):
    level = make_schedule(name).at(np.linspace(0, 1, 101))
    np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1, rtol=1e-12)


def test_zero_terminal_snr_is_pure_noise_at_the_end_and_unchanged_at_the_start():
    before = schedules.scaled_linear()
    after = schedules.zero_terminal_snr(before)
    assert after(999.0).alpha == 0 and after(999.0).sigma == 1
    np.testing.assert_allclose(after(0.0).alpha, before(0.0).alpha, rtol=1e-12)
    assert jax.jit(after)(jnp.float32(999)).alpha == 0


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squared_cosine", "sigmoid", "sqrt"])
@pytest.mark.parametrize("size", [10, 1000])
def test_a_terminal_level_that_is_almost_pure_noise(name, size):
    """2^-24 for the last alpha_bar, with any betas: the other entries stay, but for those that were smaller yet."""
    table = schedules.zero_terminal_snr(make_schedule(name, size=size), last=2.0**-24)
    plain = schedules.zero_terminal_snr(make_schedule(name, size=size))
    assert table.alpha_bar[-1] == 2.0**-24 and np.all(np.diff(table.alpha_bar) < 0)
    larger = plain.alpha_bar > 1.01 * 2.0**-24
    np.testing.assert_array_equal(table.alpha_bar[larger], plain.alpha_bar[larger])
    assert larger.sum() >= size - 5 or name in ("squared_cosine", "sqrt")


def test_shifts():
    base, shifted = schedules.Cosine(), schedules.Cosine(scale=64 / 256)
    t = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(shifted(t).log_snr - base(t).log_snr, 2 * np.log(64 / 256), rtol=1e-9)
    flow = schedules.RectifiedFlow(shift=3.0)
    np.testing.assert_allclose(flow(0.5).sigma, 0.75)
    np.testing.assert_allclose(flow(t).log_snr - schedules.RectifiedFlow()(t).log_snr, -2 * np.log(3), rtol=1e-9)
    np.testing.assert_allclose(schedules.mu_shift(4096), np.exp(1.15))
    assert schedules.resolution_shift(4096, 1024) == 2


@pytest.mark.parametrize("steps", [1, 7, 300, 334, 1000])
def test_a_grid_has_the_steps_asked_for(steps):
    schedule = schedules.scaled_linear()
    for name in GRIDS:
        if name == "leading" and steps == 1000:
            continue
        grid = make_grid(name, schedule, steps)
        assert len(grid) == steps + 1
        if name == "beta" and steps > 300:
            continue  # its quantiles crowd at the ends, below the spacing of the table
        grids.check_grid(grid)


def test_compvis_grid():
    schedule = schedules.scaled_linear()
    grid = grids.leading(schedule, 10, offset=1, end=schedule(0.0))
    np.testing.assert_array_equal(grid.t[:-1], np.arange(901, 0, -100))
    np.testing.assert_allclose(grid.alpha[-1] ** 2, schedule.alpha_bar[0])


def test_karras_and_log_snr_spacing():
    schedule = schedules.VarianceExploding(0.002, 80)
    ratio = grids.karras(schedule, 18).noise_ratio[:-1]
    i = np.arange(18)
    np.testing.assert_allclose(ratio, (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-9)
    lam = grids.exponential(schedules.scaled_linear(), 20).log_snr[:-1]
    np.testing.assert_allclose(np.diff(lam), np.diff(lam)[0], rtol=1e-9)


def test_beta_spacing():
    """Beta(1, 1) is uniform, Beta(1/2, 1/2) the arcsine law: quantile sin^2(pi p / 2)."""
    schedule, p = schedules.VarianceExploding(0.01, 50), 1 - np.linspace(0, 1, 9)
    for a, quantile in ((1.0, p), (0.5, np.sin(np.pi * p / 2) ** 2)):
        grid = grids.beta(schedule, 9, a, a)
        np.testing.assert_allclose(grid.noise_ratio[:-1], 0.01 + (50 - 0.01) * quantile, rtol=1e-9)


def network(x, t):
    return 0.1 * x


def run(kind="eps", grid=None, sampler="ddim", x=None, **options):
    x = jnp.ones((2, 2, 2, 1)) if x is None else x
    return sample(make_denoiser(network, kind), make_sampler(sampler), x, grid, **options)


def test_errors_before_tracing():
    schedule = schedules.scaled_linear()
    good = grids.trailing(schedule, 4)
    with pytest.raises(ValueError, match="did you mean 'dpmpp_2m'|Did you mean 'dpmpp_2m"):
        make_sampler("dpmpp2m")
    with pytest.raises(ValueError, match="steps must be an integer of at least 1; got 0"):
        make_grid("karras", schedule, 0)
    with pytest.raises(ValueError, match="noise of a grid must fall"):
        run(grid=Level(good.t[::-1], good.alpha[::-1], good.sigma[::-1]))
    with pytest.raises(ValueError, match="at least 1 step"):
        run(grid=good[:1])
    with pytest.raises(ValueError, match="singular"):
        run(grid=grids.trailing(schedules.zero_terminal_snr(schedule), 4))
    assert np.all(np.isfinite(run("v", grid=grids.trailing(schedules.zero_terminal_snr(schedule), 4))))
    with pytest.raises(ValueError, match="draws noise"):
        run(grid=good, sampler="ddpm")
    with pytest.raises(ValueError, match="table"):
        make_grid("leading", schedules.RectifiedFlow(), 4)
    with pytest.raises(ValueError, match="0 < low < high"):
        make_grid("karras", schedules.RectifiedFlow(), 4, low=0.0)
    with pytest.raises(ValueError, match="decrease strictly"):
        schedules.Discrete(np.linspace(1e-4, 0.02, 1000))
    with pytest.raises(ValueError, match="table ends at 999"):
        grids.leading(schedule, 1000, offset=1)


def test_state_stays_float32_under_a_bfloat16_network():
    grid = grids.trailing(schedules.scaled_linear(), 4)
    out = sample(
        make_denoiser(lambda x, t: x.astype(jnp.bfloat16), "v"),
        make_sampler("dpmpp_2m"),
        jnp.ones((1, 2, 2, 1), jnp.bfloat16),
        grid,
    )
    assert out.dtype == jnp.float32
