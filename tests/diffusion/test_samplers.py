"""What holds for all samplers: exact on one point, right moments, identities, evaluations, and the driver's promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import (
    SAMPLERS,
    Level,
    State,
    diffuse,
    grids,
    make_denoiser,
    make_sampler,
    previews,
    sample,
    schedules,
    start,
    trajectory,
)
from ldm_jax.diffusion.samplers import churned, ddim, ddpm, dpm_multistep, heun, lms, restart, sample_adaptive, tcd, unipc
from ldm_jax.diffusion.samplers.first_order import posterior_variance
from tests.diffusion.oracles import flow_map, gaussian, point

TABLE = schedules.scaled_linear()
KEY = jax.random.key(7)
STOCHASTIC = {"consistency", "ddpm", "dpm2_ancestral", "dpmpp_2m_sde", "dpmpp_2s_ancestral", "dpmpp_3m_sde", "edm"}
STOCHASTIC |= {"euler_ancestral", "tcd"}
EVALUATIONS = dict.fromkeys(SAMPLERS, 1) | dict.fromkeys(
    ("heun", "dpm2", "dpm2_ancestral", "dpmpp_2s", "dpmpp_2s_ancestral", "edm"), 2
)
EXTRA = {"plms": 1, "pndm": 9}


def noise_like(x, steps):
    return jax.random.normal(jax.random.key(3), (steps, *x.shape))


# flow_map is exact where the network knows average velocities: tests/diffusion/test_few_steps.py
@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "flow_map"])
def test_one_point_is_hit_exactly_and_evaluations_are_as_documented(name):
    """If the network always knows x0, no solver has an error to make, whatever the grid; and each calls it as often as its
    docstring says: a step to exactly clean takes one."""
    grid = grids.karras(TABLE, 7)
    x0 = jnp.linspace(-1, 1, 4).reshape(1, 2, 2, 1)
    x = start(KEY, (3, 2, 2, 1), grid)
    calls = []

    def denoise(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return point(x0)(x, level)

    out = jax.jit(lambda x: sample(denoise, make_sampler(name, TABLE), x, grid, KEY))(x)
    jax.effects_barrier()
    np.testing.assert_allclose(out, jnp.broadcast_to(x0, out.shape), atol=3e-5)
    per_step = EVALUATIONS[name]
    assert len(calls) == per_step * 7 - (per_step - 1) + EXTRA.get(name, 0)


@pytest.mark.parametrize("name", sorted(STOCHASTIC - {"consistency", "tcd"}))
@pytest.mark.parametrize(
    "schedule", [TABLE, schedules.VarianceExploding(), schedules.RectifiedFlow()], ids=["vp", "ve", "flow"]
)
def test_stochastic_samplers_have_the_right_moments(name, schedule):
    """On Gaussian data every step is linear in x and in the noise, so mean and variance of the samples follow exactly from the
    derivatives, without drawing any: variance = (dx/dx_T)^2 Var(x_T) + sum over steps of (dx/dz)^2."""
    mean, std, steps = 0.4, 0.6, 200
    grid = grids.karras(schedule, steps, low=0.005, high=50.0)
    sampler = make_sampler(name, schedule)
    first = grid[0]

    def final(x, noise):
        return sample(gaussian(mean, std), sampler, x.reshape(1, 1), grid, noise.reshape(steps, 1, 1))[0, 0]

    x = jnp.float32(first.alpha * mean)
    value, (by_x, by_noise) = jax.jit(jax.value_and_grad(final, argnums=(0, 1)))(x, jnp.zeros(steps))
    variance = by_x**2 * ((first.alpha * std) ** 2 + first.sigma**2) + jnp.sum(by_noise**2)
    assert abs(value - mean) < 0.01
    first_order = name in ("ddpm", "euler_ancestral")
    assert abs(np.sqrt(variance) / std - 1) < (0.04 if first_order else 0.01)
    assert jnp.sum(by_noise**2) > 0.02 * std**2  # noise matters


def test_ddim_eta_1_is_the_posterior_of_ddpm():
    """One step from t to s: mean and variance of q(x_s | x_t, x0), Ho et al. 2020, equations 6 and 7, with their betas."""
    bar = TABLE.alpha_bar
    t, s = 600, 599
    beta, bar_t, bar_s = 1 - bar[t] / bar[s], bar[t], bar[s]
    grid = Level(*(np.array([getattr(TABLE(float(i)), f) for i in (t, s)]) for f in ("t", "alpha", "sigma")))
    x0, eps, z = jax.random.normal(KEY, (3, 2, 4, 4, 1))
    x = diffuse(x0, eps, grid[0])
    mean = np.sqrt(bar_s) * beta / (1 - bar_t) * x0 + np.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x
    variance = (1 - bar_s) / (1 - bar_t) * beta
    np.testing.assert_allclose(posterior_variance(grid[0], grid[1]), variance, rtol=1e-6)
    for sampler in (ddim(eta=1.0), ddpm(), make_sampler("euler_ancestral")):
        out = sample(point(x0), sampler, x, grid, z[None])
        np.testing.assert_allclose(out, mean + np.sqrt(variance) * z, atol=3e-5)
    large = sample(point(x0), ddpm("large"), x, grid, z[None])
    np.testing.assert_allclose(large, mean + np.sqrt(beta) * z, atol=3e-5)


def test_euler_in_noise_ratio_is_ddim():
    """k-diffusion's Euler, written as there: u + d (s' - s), u = x / alpha, d = (u - x0) / s; and its ancestral form."""
    grid = grids.karras(TABLE, 6)
    x = start(KEY, (2, 2, 2, 1), grid)
    noise = noise_like(x, 6)
    u, v = x / grid.alpha[0], x / grid.alpha[0]
    for i in range(6):
        s, to = grid.noise_ratio[i], grid.noise_ratio[i + 1]
        level = jax.tree.map(jnp.float32, grid[i])
        u = u + (u - gaussian()(u * level.alpha, level).x0) / s * (to - s)
        up = np.sqrt(to**2 * (s**2 - to**2) / s**2)
        v = v + (v - gaussian()(v * level.alpha, level).x0) / s * (np.sqrt(to**2 - up**2) - s) + up * noise[i]
    np.testing.assert_allclose(sample(gaussian(), make_sampler("euler"), x, grid), u, atol=1e-4)
    np.testing.assert_allclose(sample(gaussian(), make_sampler("euler_ancestral"), x, grid, noise), v, atol=1e-4)


def test_every_first_order_solver_is_ddim():
    grid = grids.karras(TABLE, 9)
    x = start(KEY, (2, 2, 2, 1), grid)
    wanted = sample(gaussian(), ddim(), x, grid)
    one = [dpm_multistep(1), dpm_multistep(1, "eps"), lms(1), make_sampler("ipndm", order=1), make_sampler("deis", order=1)]
    one += [unipc(1, correct=False), make_sampler("dpm_solver", order=1), tcd(TABLE, eta=0.0)]
    one += [make_sampler("dpmpp_2m_sde", eta=0.0)]
    for sampler in one[:-1]:
        np.testing.assert_allclose(sample(gaussian(), sampler, x, grid, KEY), wanted, atol=1e-4)
    single = grids.karras(TABLE, 1)
    for name in ("dpmpp_2m", "dpmpp_3m", "unipc", "lms", "deis", "dpm_solver", "heun", "dpmpp_2s", "ipndm"):
        got = sample(gaussian(), make_sampler(name, TABLE), x, single)
        np.testing.assert_allclose(got, sample(gaussian(), ddim(), x, single), atol=1e-4, err_msg=name)
    np.testing.assert_allclose(
        sample(gaussian(), one[-1], x, grid), sample(gaussian(), make_sampler("dpmpp_2m"), x, grid), atol=1e-5
    )


def test_ipndm_on_a_uniform_grid_is_lms():
    ratio = np.linspace(10, 1, 9)
    grid = TABLE.from_log_snr(-2 * np.log(ratio))
    x = start(KEY, (2, 2, 2, 1), grid)
    np.testing.assert_allclose(*(sample(gaussian(), make_sampler(n), x, grid) for n in ("lms", "ipndm")), atol=2e-5)


def test_published_2m_coefficients():
    """Lu et al. 2022b, algorithm 2: D = (1 + 1/(2r)) x0_n - 1/(2r) x0_{n-1}, x' = sigma'/sigma x - alpha' (e^-h - 1) D."""
    grid = grids.karras(TABLE, 6)
    x = y = start(KEY, (2, 2, 2, 1), grid)
    lam = 0.5 * grid.log_snr
    before = None
    for i in range(6):
        level = jax.tree.map(jnp.float32, grid[i])
        x0, h = gaussian()(y, level).x0, lam[i + 1] - lam[i]
        d = x0
        if before is not None and np.isfinite(h):
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        y = grid.sigma[i + 1] / grid.sigma[i] * y - grid.alpha[i + 1] * np.expm1(-h) * d
        before = x0
    np.testing.assert_allclose(sample(gaussian(), make_sampler("dpmpp_2m"), x, grid), y, atol=2e-5)


def test_start_at_pure_noise():
    """Zero terminal SNR: solvers in x0 start from alpha = 0; those that need a noise direction refuse before tracing."""
    schedule = schedules.zero_terminal_snr(TABLE)
    grid = grids.trailing(schedule, 8)
    x = start(KEY, (2, 2, 2, 1), grid)
    denoise = gaussian()
    for name in ("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "dpmpp_2m_sde", "ddpm", "dpm_solver", "dpmpp_2s"):
        assert np.all(np.isfinite(sample(denoise, make_sampler(name, schedule), x, grid, KEY))), name
    assert np.all(np.isfinite(sample(denoise, heun("flow"), x, grid)))
    for name in ("heun", "lms", "deis", "plms"):
        with pytest.raises(ValueError, match="cannot leave alpha = 0"):
            sample(denoise, make_sampler(name), x, grid)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m_sde", "edm", "dpm2_ancestral"])
def test_samples_do_not_depend_on_their_neighbours(name):
    grid = grids.karras(TABLE, 5)
    keys = jax.random.split(KEY, 4)
    sampler = make_sampler(name, TABLE)
    run = jax.jit(lambda keys: sample(gaussian(), sampler, start(keys, (len(keys), 2, 2, 1), grid), grid, keys))
    np.testing.assert_allclose(run(keys)[1:3], run(keys[1:3]), atol=1e-6)


def test_churn_raises_the_variance_it_says():
    grid = grids.karras(TABLE, 10)
    sampler = churned(make_sampler("euler"), TABLE, churn=2.0, low=0.1, high=20.0)
    x = jnp.zeros((1, 1, 1, 1)) + 3.0
    noise = jnp.ones((1, *x.shape))
    level, to = (jax.tree.map(jnp.float32, grid[i]) for i in (4, 5))
    seen = []

    def denoise(x, level):
        seen.append((float(x[0, 0, 0, 0]), float(level.noise_ratio)))
        return gaussian()(x, level)

    sampler.step(State(x, x, jnp.float32(0.2)), denoise, level, to, noise[0])
    (got, ratio), s = seen[0], float(level.noise_ratio)
    np.testing.assert_allclose(ratio, 1.2 * s, rtol=1e-4)
    raised = TABLE.from_log_snr(-2 * np.log(1.2 * s))
    np.testing.assert_allclose(got, raised.alpha * (3.0 / grid.alpha[4] + np.sqrt(1.44 - 1) * s), rtol=1e-4)


def test_restart_and_adaptive_reach_the_distribution():
    """Restarts leave a right distribution right; the adaptive solver follows the flow as closely as its tolerance asks."""
    grid = grids.karras(TABLE, 30)
    x = start(KEY, (4000, 2, 2, 1), grid)
    again = restart(heun(), TABLE, low=0.3, high=2.0, steps=5, repeats=2)
    out = jax.jit(lambda x: sample(gaussian(), again, x, grid, KEY))(x)
    assert abs(out.mean() - 0.4) < 0.02 and abs(out.std() - 0.6) < 0.02
    first, stop = TABLE(999.0), TABLE(20.0)
    errors, calls = [], []
    for rtol in (0.05, 0.005):
        end, counts = jax.jit(lambda x, r=rtol: sample_adaptive(gaussian(), TABLE, x, first, stop, rtol=r, atol=0.1 * r))(x[:8])
        errors.append(float(jnp.abs(end - flow_map(x[:8], first, stop)).max()))
        calls.append(int(counts["evaluations"]))
    assert errors[0] < 0.1 and errors[1] < 0.2 * errors[0] and calls[1] > calls[0]


def test_samplers_with_memory_are_not_wrapped():
    grid = grids.karras(TABLE, 5)
    x = start(KEY, (1, 2, 2, 1), grid)
    for wrapped in (churned(make_sampler("dpmpp_2m"), TABLE, 1.0), restart(lms(), TABLE, 0.1, 1.0)):
        with pytest.raises(ValueError, match="without memory"):
            sample(gaussian(), wrapped, x, grid, KEY)


def test_consistency_steps_forget_x():
    """x_s = alpha x0 + sigma z exactly, for LCM and stochastic flow."""
    grid = grids.trailing(schedules.RectifiedFlow(), 4)
    x0 = jnp.full((2, 2, 2, 1), 0.3)
    noise = noise_like(x0, 4)
    _, xs = sample(point(x0), make_sampler("consistency"), x0 + 0.1, grid, noise, record=trajectory)
    for i in range(4):
        np.testing.assert_allclose(xs[i], grid.alpha[i + 1] * x0 + grid.sigma[i + 1] * noise[i], atol=1e-6)


def test_driver_records_calls_back_and_is_differentiable():
    grid = grids.karras(TABLE, 6)
    x = start(KEY, (2, 2, 2, 1), grid)
    out, xs = sample(gaussian(), make_sampler("dpmpp_2m"), x, grid, record=trajectory)
    assert xs.shape == (6, *x.shape)
    np.testing.assert_array_equal(out, xs[-1])
    _, seen = sample(gaussian(), ddim(), x, grid, record=previews(lambda x0: x0.mean((1, 2, 3))))
    assert seen.shape == (6, 2)
    steps = []
    jax.jit(lambda x: sample(gaussian(), ddim(), x, grid, callback=lambda i, x0: steps.append((int(i), x0.shape))))(x)
    jax.effects_barrier()
    assert sorted(steps) == [(i, x.shape) for i in range(6)]

    def loss(mean, remat):
        return jnp.sum(sample(gaussian(mean), make_sampler("heun"), x, grid, remat=remat))

    plain, saved = (jax.jit(jax.grad(loss), static_argnums=1)(0.4, r) for r in (False, True))
    step = 1e-2
    numeric = (loss(0.4 + step, False) - loss(0.4 - step, False)) / (2 * step)
    np.testing.assert_allclose(plain, numeric, rtol=1e-3)
    np.testing.assert_allclose(plain, saved, rtol=1e-5)


def test_grids_may_be_traced_and_then_compile_once():
    x = start(KEY, (2, 2, 2, 1), grids.karras(TABLE, 8))
    traces = []

    @jax.jit
    def run(x, grid):
        traces.append(1)
        return sample(gaussian(), make_sampler("dpmpp_2m"), x, grid)

    for grid in (grids.karras(TABLE, 8), grids.exponential(TABLE, 8)):
        known = sample(gaussian(), make_sampler("dpmpp_2m"), x, grid)
        np.testing.assert_allclose(run(x, jax.tree.map(jnp.float32, grid)), known, atol=2e-5)
    assert len(traces) == 1


def test_sampling_a_batch_sharded_over_devices():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("one device only")
    grid = grids.karras(TABLE, 4)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = start(KEY, (2 * len(devices), 2, 2, 1), grid)
    run = jax.jit(lambda x: sample(make_denoiser(lambda x, t: 0.2 * x, "v"), make_sampler("unipc"), x, grid))
    out = run(jax.device_put(x, where))
    assert out.sharding.is_equivalent_to(where, out.ndim)
    np.testing.assert_allclose(out, run(x), atol=1e-6)


@pytest.mark.parametrize("name", ["pndm", "tcd"])
def test_levels_between_those_of_the_grid_have_x_s_type_where_numbers_are_of_64_bits(name):
    schedule = schedules.Cosine()
    grid, x = grids.karras(schedule, 4), jnp.linspace(-2, 2, 8).reshape(2, 4)
    plain = sample(gaussian(), make_sampler(name, schedule), x, grid, jax.random.key(0))
    with jax.enable_x64(True):
        wide = sample(gaussian(), make_sampler(name, schedule), x, grid, jax.random.key(0))
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, plain, rtol=1e-4, atol=1e-5)
