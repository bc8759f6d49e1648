"""Losses, weights, time sampling, likelihood."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ldm_jax.diffusion import (
    PREDICTIONS,
    SCHEDULES,
    TIMES,
    WEIGHTINGS,
    Prediction,
    Problem,
    bits_per_dimension,
    diffuse,
    diffusion_loss,
    grids,
    log_likelihood,
    make_denoiser,
    make_objective,
    make_schedule,
    make_times,
    make_weighting,
    predict,
    schedules,
    target,
    times,
    weightings,
)
from ldm_jax.diffusion.objectives import LOSSES, huber, smooth_l1
from ldm_jax.diffusion.parameterization import edm as edm_kind
from ldm_jax.diffusion.samplers.first_order import posterior_variance
from tests.diffusion.oracles import gaussian

KEY = jax.random.key(2)
X0 = jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
TABLE = schedules.scaled_linear()
CONTINUOUS = [schedules.Cosine(), schedules.VarianceExploding(), schedules.RectifiedFlow(shift=3.0)]


def level_at(schedule, log_snr):
    return jax.tree.map(jnp.float32, schedule.from_log_snr(np.float64(log_snr)))


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [TABLE, *CONTINUOUS], ids=lambda s: type(s).__name__)
def test_a_weighting_is_the_same_objective_in_every_kind(name, schedule):
    """weight(kind) * |error of kind's target|^2 at a fixed x_t does not depend on the kind; only 'simple' does, being
    defined by the network's own target."""
    if name == "simple":
        pytest.skip("means another objective for every kind")
    weighting = make_weighting(name, schedule)
    for log_snr in (-4.0, 0.0, 5.0):
        level = level_at(schedule, log_snr)
        x = diffuse(X0, X0[::-1], level)
        one, other = (predict("x0", x, x0, level) for x0 in (X0, X0 + 0.1))
        values = [
            float(weighting(level, k) * jnp.sum((target(k, one, level) - target(k, other, level)) ** 2)) for k in PREDICTIONS
        ]
        np.testing.assert_allclose(values, values[0], rtol=2e-3)


@pytest.mark.parametrize("log_snr", [-3.0, 0.5, 4.0])
def test_published_weights(log_snr):
    snr = np.exp(log_snr)
    vp, ve = level_at(TABLE, log_snr), level_at(CONTINUOUS[1], log_snr)
    for name, kind, level, wanted in [
        ("min_snr", "x0", vp, min(snr, 5)),
        ("min_snr", "eps", vp, min(snr, 5) / snr),
        ("min_snr", "v", vp, min(snr, 5) / (snr + 1)),
        ("truncated_snr", "x0", vp, max(snr, 1)),
        ("p2", "eps", vp, 1 / (1 + snr)),
        ("edm", "edm", ve, 1.0),
        ("edm", "x0", ve, (1 / snr + 0.25) / (0.25 / snr)),
        ("simple", "v", vp, 1.0),
    ]:
        np.testing.assert_allclose(make_weighting(name, TABLE)(level, kind), wanted, rtol=1e-4, err_msg=name)


def test_edm_target_has_unit_variance():
    """F of data with standard deviation sigma_data has standard deviation 1 at every level: why EDM needs no other weight."""
    for log_snr in (-6.0, 0.0, 6.0):
        c, d = edm_kind(0.5)(level_at(CONTINUOUS[1], log_snr))
        np.testing.assert_allclose((c * 0.5) ** 2 + d**2, 1, rtol=1e-4)


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=lambda s: type(s).__name__)
def test_schedule_free_weightings_integrate_to_the_same(schedule):
    """sum over u of w(log_snr) (-d log_snr / du) is an integral over log_snr, the same for every schedule."""
    u = (np.arange(4000) + 0.5) / 4000
    level = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), schedule.at(u))
    inside = (level.log_snr > -6) & (level.log_snr < 6)
    weight = weightings.sigmoid(schedule, bias=-1.0)(level, "eps")
    wanted = 0.5 * np.trapezoid(1 / (1 + np.exp(1 + np.linspace(-6, 6, 2001))), dx=12 / 2000)
    np.testing.assert_allclose(jnp.sum(jnp.where(inside, weight, 0)) / 4000, wanted, rtol=0.02)


def test_variational_bound_of_a_table_is_the_kl_of_the_posteriors():
    """N times KL(q(x_s | x_t, x0) || p) for x0 wrong by d: |d|^2 (coefficient of x0 in the mean)^2 / (2 variance)."""
    t = np.array([10.0, 500.0, 900.0])
    level = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), TABLE(t))
    before = TABLE(t - 1)
    at = TABLE(t)
    var = posterior_variance(at, before)
    coefficient = before.alpha - np.sqrt(before.sigma**2 - var) * at.alpha / at.sigma  # of x0, with eps tied to x0 through x_t
    wanted = 1000 * coefficient**2 / (2 * var)
    np.testing.assert_allclose(weightings.variational_bound(TABLE)(level, "x0"), wanted, rtol=2e-3)


@pytest.mark.parametrize("name", TIMES)
@pytest.mark.parametrize("schedule", [TABLE, *CONTINUOUS], ids=lambda s: type(s).__name__)
def test_times_are_within_the_schedule(name, schedule):
    level, weight = jax.jit(lambda key: make_times(name)(key, jnp.arange(64), 64, schedule))(KEY)
    assert level.t.shape == level.alpha.shape == weight.shape == (64,)
    assert np.all(np.isfinite(level.alpha)) and np.all(level.sigma >= 0) and np.all(weight == 1)
    if schedule is TABLE and name != "log_normal":
        np.testing.assert_array_equal(level.t, np.round(level.t))


def test_distributions_of_times():
    flow, batch = schedules.RectifiedFlow(), 20000
    u = {name: np.asarray(make_times(name)(KEY, jnp.arange(batch), batch, flow)[0].sigma) for name in TIMES}
    logit = np.log(u["logit_normal"] / (1 - u["logit_normal"]))
    assert abs(logit.mean()) < 0.03 and abs(logit.std() - 1) < 0.03
    ratio = np.log(u["log_normal"] / (1 - u["log_normal"]))
    assert abs(ratio.mean() + 1.2) < 0.03 and abs(ratio.std() - 1.2) < 0.03
    assert abs(u["uniform"].mean() - 0.5) < 0.01
    stratified = np.sort(make_times("low_discrepancy")(KEY, jnp.arange(50), 50, flow)[0].sigma)
    np.testing.assert_allclose(np.diff(stratified), 1 / 50, atol=1e-5)
    s, p = 1.29, np.linspace(0, 1, 9)  # the mode sampler's quantiles are its formula
    np.testing.assert_allclose(np.quantile(u["mode"], p), np.sort(1 - p - s * (np.cos(np.pi / 2 * p) ** 2 - 1 + p)), atol=0.02)
    counts = np.bincount(
        np.asarray(make_times("low_discrepancy")(KEY, jnp.arange(1000), 1000, TABLE)[0].t, int), minlength=1000
    )
    assert counts.max() <= 2  # a batch of the table's size visits (all but) every entry


def test_importance_sampling_is_unbiased_and_prefers_large_losses():
    flow = schedules.RectifiedFlow()
    past = times.loss_history(bins=10, kept=4)
    level, weight = times.importance(past)(KEY, jnp.arange(100), 100, flow)
    np.testing.assert_allclose(weight, 1, rtol=1e-5)
    true = lambda sigma: 0.1 + sigma  # noqa: E731
    for i in range(40):
        level, _ = times.uniform()(jax.random.key(i), jnp.arange(16), 16, flow)
        past = jax.jit(times.record_losses, static_argnums=1)(past, flow, level.log_snr, true(level.sigma))
    assert past.counts.sum() == 640 and past.counts.min() >= 4
    level, weight = times.importance(past)(KEY, jnp.arange(50000), 50000, flow)
    assert level.sigma.mean() > 0.6
    np.testing.assert_allclose(jnp.mean(weight * true(level.sigma)), 0.6, rtol=0.01)


def test_a_perfect_network_has_no_loss_and_a_known_error_has_its_value():
    for name in SCHEDULES:
        schedule = make_schedule(name)
        for kind in PREDICTIONS:
            eps = jax.random.normal(KEY, X0.shape)

            level, _ = times.logit_normal()(jax.random.split(jax.random.key(9), 4)[0], jnp.arange(8), 8, schedule)
            answer = target(kind, Prediction(X0, eps), level) + 0.5
            for error, value in (("l2", 0.25), ("l1", 0.5)):
                options = {"times": times.logit_normal(), "loss": error, "noise": eps}
                loss, metrics = diffusion_loss(lambda x, t, a=answer: a, schedule, kind, X0, jax.random.key(9), **options)
                np.testing.assert_allclose(loss, value, rtol=2e-4)
                assert metrics["loss_per_sample"].shape == metrics["t"].shape == metrics["log_snr"].shape == (8,)


def test_huber_is_between():
    d = jnp.full((2, 3), 0.7)
    np.testing.assert_allclose(huber(1e-6)(d, 0 * d), 0.7, rtol=1e-4)
    np.testing.assert_allclose(2 * 100 * huber(100.0)(d, 0 * d), 0.49, rtol=2e-2)
    np.testing.assert_allclose(smooth_l1(100.0)(d, 0 * d), 0.49, rtol=2e-2)
    assert set(LOSSES) == {"l1", "l2", "huber"}
    with pytest.raises(ValueError, match="Did you mean 'huber'"):
        diffusion_loss(lambda x, t: x, TABLE, "eps", X0, KEY, loss="hubert")


def test_noise_options():
    inputs = []

    def spy(x, t):
        inputs.append(x)
        return x

    zero = jnp.zeros((512, 4, 4, 3))
    top = lambda key, rows, size, schedule: (jax.tree.map(lambda a: jnp.full(size, a), level_at(TABLE, -9.0)), jnp.ones(size))  # noqa: E731
    for options in ({}, {"offset_noise": 0.5}, {"input_perturbation": 0.5}):
        diffusion_loss(spy, TABLE, "eps", zero, KEY, times=top, **options)
    plain, offset, perturbed = inputs
    sigma = level_at(TABLE, -9.0).sigma
    np.testing.assert_allclose(plain.std() / sigma, 1, rtol=0.02)
    np.testing.assert_allclose(perturbed.std() / sigma, np.sqrt(1.25), rtol=0.02)
    np.testing.assert_allclose(offset.mean((1, 2)).std() / sigma, np.sqrt(0.25 + 1 / 16), rtol=0.05)
    _, metrics = diffusion_loss(lambda x, t: 0 * x, TABLE, "eps", zero, KEY, times=top, input_perturbation=0.5)
    np.testing.assert_allclose(metrics["loss_simple"], 1, rtol=0.03)  # the target keeps eps


def test_learned_uncertainty():
    loss, metrics = diffusion_loss(lambda x, t: 0 * x, TABLE, "eps", X0, KEY, log_variance=lambda _, level: jnp.full(8, 0.3))
    np.testing.assert_allclose(loss, metrics["loss_simple"] / np.exp(0.3) + 0.3, rtol=1e-5)


QUICK = ("uniform", "importance")
SAMPLED_TIMES = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in TIMES if name not in QUICK)]


@pytest.mark.parametrize("name", SAMPLED_TIMES)
@pytest.mark.parametrize("schedule", [TABLE, schedules.RectifiedFlow()], ids=["table", "flow"])
def test_the_parts_of_a_batch_have_its_loss(name, schedule):
    """32 rows at once, and the mean over 4 parts of 8, every random option on."""
    x0 = jax.random.normal(KEY, (32, 4, 3))
    past = times.loss_history(bins=5, kept=1)
    past = past._replace(losses=jnp.arange(1.0, 6)[:, None], counts=jnp.ones(5, jnp.int32))
    objective = make_objective(
        schedule, "eps", times=name, offset_noise=0.1, input_perturbation=0.1, elbo_weight=0.01, weighting="min_snr"
    )
    problem = Problem(lambda params, x, t, s: params * jnp.sin(x + t[:, None, None] / 1000), jnp.float32(0.7), history=past)
    grad = jax.jit(jax.value_and_grad(lambda p, *a: objective(problem._replace(params=p), *a, 32)[0]))
    whole = grad(problem.params, x0, KEY, jnp.arange(32))
    parts = [grad(problem.params, x0[i : i + 8], KEY, jnp.arange(i, i + 8)) for i in range(0, 32, 8)]
    np.testing.assert_allclose(np.mean(parts, 0), whole, rtol=1e-6)
    # and no two rows draw the same
    _, metrics = objective(problem, jnp.zeros((32, 4, 3)), KEY, jnp.arange(32), 32)
    assert len(np.unique(metrics["loss_per_sample"])) == 32


def test_learned_variance_is_the_bound_of_nichol_and_dhariwal():
    """Against scipy's normal densities: the KL of two Gaussians by numerical integration, in one dimension a row."""
    t = np.array([1.0, 10.0, 500.0, 999.0])
    given = lambda key, rows, size, schedule: (jax.tree.map(jnp.float32, TABLE(t)), jnp.ones(4))  # noqa: E731
    x0, eps, answer = (np.random.default_rng(i).normal(size=(4, 1, 1)) for i in range(3))
    v = np.array([-1.0, 0.3, 1.0, 0.0])

    def network(x, t):
        return jnp.concatenate([answer, v.reshape(4, 1, 1)], -1).astype(jnp.float32)

    options = {"times": given, "learned_variance": True, "elbo_weight": 2.0, "noise": jnp.float32(eps)}
    loss, metrics = diffusion_loss(network, TABLE, "eps", jnp.float32(x0), KEY, **options)
    wanted = []
    for i in range(4):
        bar, before = TABLE.alpha_bar[int(t[i])], TABLE.alpha_bar[int(t[i]) - 1]
        beta = 1 - bar / before
        posterior = beta * (1 - before) / (1 - bar)
        x = np.sqrt(bar) * x0[i, 0, 0] + np.sqrt(1 - bar) * eps[i, 0, 0]
        mean = lambda x0: np.sqrt(before) * beta / (1 - bar) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - bar) * x  # noqa: B023, E731
        p_var = posterior ** ((1 - v[i]) / 2) * beta ** ((1 + v[i]) / 2)
        p_mean = mean((x - np.sqrt(1 - bar) * answer[i, 0, 0]) / np.sqrt(bar))
        q = stats.norm(mean(x0[i, 0, 0]), np.sqrt(posterior))
        z = np.linspace(*q.ppf([1e-12, 1 - 1e-12]), 20001)
        p = stats.norm(p_mean, np.sqrt(p_var))
        wanted.append(np.trapezoid(q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), z))
    np.testing.assert_allclose(metrics["loss_elbo"], np.mean(wanted), rtol=2e-3)
    np.testing.assert_allclose(loss, metrics["loss_simple"] + 2 * metrics["loss_elbo"], rtol=1e-6)

    def bound(a):
        network = lambda x, t: jnp.concatenate([a, jnp.zeros_like(a)], -1)  # noqa: E731
        return diffusion_loss(network, TABLE, "eps", jnp.float32(x0), KEY, simple_weight=0.0, **options)[0]

    assert np.all(jax.grad(bound)(jnp.float32(answer)) == 0)


def test_learned_variance_of_the_first_step_is_a_density():
    """At t = 0 the term is -log N(x0; predicted x0, variance), the variance that of step 1."""
    given = lambda key, rows, size, schedule: (jax.tree.map(lambda a: jnp.full(1, a), level), jnp.ones(1))  # noqa: E731
    level = jax.tree.map(jnp.float32, TABLE(0.0))
    x0, eps = jnp.full((1, 1, 1), 0.3), jnp.full((1, 1, 1), -0.8)
    wrong = eps - 0.5
    options = {"times": given, "learned_variance": True, "elbo_weight": 1.0, "simple_weight": 0.0, "noise": eps}
    network = lambda x, t: jnp.concatenate([wrong, -jnp.ones_like(wrong)], -1)  # noqa: E731
    loss, _ = diffusion_loss(network, TABLE, "eps", x0, KEY, **options)
    bar = TABLE.alpha_bar
    variance = (1 - bar[1] / bar[0]) * (1 - bar[0]) / (1 - bar[1])
    difference = np.sqrt((1 - bar[0]) / bar[0]) * 0.5
    np.testing.assert_allclose(loss, -stats.norm(0, np.sqrt(variance)).logpdf(difference), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"offset_noise": -0.1}, "offset_noise=-0.1"),
        ({"input_perturbation": float("nan")}, "input_perturbation=nan"),
        ({"times": "unifrom"}, "Did you mean 'uniform'"),
        ({"times": "importance"}, "loss_history"),
        ({"weighting": "minsnr"}, "Did you mean 'min_snr'"),
        ({"learned_variance": True}, "elbo_weight above 0"),
        ({"learned_variance": True, "elbo_weight": 1.0}, "must have 6 channels"),
    ],
)
def test_an_objective_refuses_what_it_cannot_do(options, match):
    with pytest.raises(ValueError, match=match):
        diffusion_loss(lambda x, t: x, TABLE, "eps", X0, KEY, **options)
    with pytest.raises(ValueError, match="is continuous"):
        make_objective(schedules.Cosine(), "v", learned_variance=True, elbo_weight=1.0)


def test_the_network_of_a_variance_exploding_process_sees_scaled_input():
    """Deviation sqrt(1 + s^2) / sqrt(0.25 + s^2) for data of unit variance, at every noise_ratio s, in training."""
    seen = []
    schedule = make_schedule("edm")
    diffusion_loss(lambda x, t: seen.append((x, t)) or x, schedule, "edm", jax.random.normal(KEY, (64, 512, 1)), KEY)
    ((x, t),) = seen
    s = np.exp(4 * np.asarray(t))
    np.testing.assert_allclose(np.asarray(x).std((1, 2)), np.sqrt((1 + s**2) / (0.25 + s**2)), rtol=0.15)


@pytest.mark.parametrize("schedule", [schedules.Cosine(), schedules.RectifiedFlow()], ids=["vp", "flow"])
def test_likelihood_of_gaussian_data_is_its_density(schedule):
    mean, std = 0.4, 0.6
    grid = schedule.from_log_snr(np.linspace(-11, 9, 200))
    x = mean + std * jax.random.normal(KEY, (5, 3, 3, 1))
    found, top = jax.jit(lambda x: log_likelihood(gaussian(mean, std), x, grid, KEY))(x)
    a, s = grid.alpha[-1], grid.sigma[-1]
    spread = np.sqrt((a * std) ** 2 + s**2)
    wanted = jnp.sum(-0.5 * ((x - a * mean) / spread) ** 2 - np.log(spread * np.sqrt(2 * np.pi)), (1, 2, 3))
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert (
        jnp.abs(top - (grid.alpha[0] * mean + (x - a * mean) / spread * np.hypot(grid.alpha[0] * std, grid.sigma[0]))).max()
        < 0.01
    )


def test_likelihood_promotes_no_types():
    x, grid = jax.random.normal(KEY, (2, 4, 1)), grids.make_grid("trailing", "cosine", 4)
    found = log_likelihood(gaussian(0.4, 0.6), x, grid, KEY)
    with jax.numpy_dtype_promotion("strict"):
        again = log_likelihood(gaussian(0.4, 0.6), x, grid, KEY)
        assert bits_per_dimension(again[0], 4).dtype == jnp.float32
    for one, other in zip(found, again):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("schedule", ["scaled_linear", "cosine", "edm", "flow"])
@pytest.mark.parametrize("name", grids.GRIDS)
def test_likelihood_takes_every_grid_made_by_name(name, schedule):
    """From exactly clean up to the noisiest level, pure noise included; the map of Gaussian data is affine, so the answer is
    the prior at its end and the log of its slope."""
    schedule, mean, std, steps = make_schedule(schedule), 0.4, 0.6, 300
    if name == "leading" and not isinstance(schedule, schedules.Discrete):
        return
    grid = grids.make_grid(name, schedule, steps)
    x = mean + std * jax.random.normal(KEY, (5, 4, 1))
    found, top = jax.jit(lambda x: log_likelihood(gaussian(mean, std), x, grid, KEY))(x)
    assert np.all(np.isfinite(found))
    if name == "beta" and grid.noise_ratio[0] > 1000:
        return  # equidistant in noise_ratio, too coarse where the data are
    spread = np.hypot(grid.alpha[0] * std, grid.sigma[0])
    wanted_top = grid.alpha[0] * mean + (x - mean) / std * spread
    np.testing.assert_allclose(top, wanted_top, atol=0.03 * spread)
    prior = stats.norm(0, np.hypot(grid.alpha[0], grid.sigma[0])).logpdf(wanted_top).sum((1, 2))
    np.testing.assert_allclose(found, prior + 4 * np.log(spread / std), atol=0.15)


def test_a_likelihood_with_keys_of_its_own_depends_on_no_neighbour():
    """Of a flow with another slope at every pixel, which one probe only estimates."""
    mix = jax.random.normal(KEY, (3, 3)) / 3
    denoise = lambda x, level: Prediction(jnp.tanh(x @ mix), x)  # noqa: E731
    grid, keys = schedules.Cosine().from_log_snr(np.linspace(-4, 4, 5)), jax.random.split(KEY, 5)
    x = jax.random.normal(KEY, (5, 4, 4, 3))
    whole, part = (log_likelihood(denoise, x[rows], grid, keys[rows])[0] for rows in (np.arange(5), np.array([3, 1])))
    np.testing.assert_allclose(part, whole[np.array([3, 1])], rtol=1e-5)
    assert not np.allclose(whole, log_likelihood(denoise, x, grid, keys[::-1])[0], rtol=1e-4)


def test_likelihood_of_an_eps_network_refuses_pure_noise():
    denoise = make_denoiser(lambda x, t: x, "eps")
    with pytest.raises(ValueError, match="singular"):
        log_likelihood(denoise, X0, grids.trailing(schedules.RectifiedFlow(), 5), KEY)


def test_bits_per_dimension_of_the_uniform_density():
    """A density of 1/2 on [-1, 1] costs 8 bits of 8, and one bit more where it is half as dense."""
    np.testing.assert_allclose(bits_per_dimension(jnp.log(0.5) * 12, 12), 8)
    np.testing.assert_allclose(bits_per_dimension(jnp.log(0.25) * 12, 12), 9)


# Parity with CompVis' p_losses --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(fixtures_dir):
    folder = fixtures_dir / "G3_diffusion_losses"
    if not folder.is_dir():
        pytest.skip(f"no G3_diffusion_losses in {fixtures_dir}")
    args = json.loads((folder / "config.json").read_text())["args"]
    return args, np.load(folder / "io.npz"), compvis_tables(args)[args.get("beta_schedule", "linear")]()


def compvis_tables(args):
    """Its `make_beta_schedule`; "linear" is linear in the square roots."""
    start, end, size = args.get("linear_start", 1e-4), args.get("linear_end", 2e-2), args.get("timesteps", 1000)
    return {
        "linear": lambda: schedules.scaled_linear(start, end, size),
        "cosine": lambda: schedules.squared_cosine(args.get("cosine_s", 8e-3), size=size),
        "sqrt_linear": lambda: schedules.linear(start, end, size),
        "sqrt": lambda: schedules.sqrt(start, end, size),
    }


def compvis_variance(table, v_posterior):
    """Of the reverse step, between the posterior's (v_posterior 0) and beta (1)."""
    before = np.append(1.0, table.alpha_bar[:-1])
    betas = 1 - table.alpha_bar / before
    return (1 - v_posterior) * betas * (1 - before) / (1 - table.alpha_bar) + v_posterior * betas


def nhwc(a):
    return jnp.asarray(np.moveaxis(a, 1, -1))


def compvis_network(x, t):
    t = t.reshape(-1, 1, 1, 1)
    return 0.3 * jnp.sin(1.7 * x + t / 1000) + 0.5 * x / jnp.sqrt(1 + t / 1000)


def compvis_vlb(table, kind, args):
    """For eps the variational bound over N, of a reverse process with its variance. For x0 the reference's formula,
    0.5 sqrt(abar) / (2 * 1 - abar), misses a pair of parentheses and is no bound; it is written here, not in the library."""
    if kind == "eps":
        bound = weightings.variational_bound(table)
        variances = (compvis_variance(table, v)[1:] for v in (0.0, args.get("v_posterior", 0.0)))
        ratio = np.divide(*variances)
        ratio = jnp.asarray(np.append(ratio[0], ratio) / table.size, jnp.float32)
        return lambda level, kind: bound(level, kind) * ratio[level.t.astype(int)]
    weight = 0.5 * np.sqrt(table.alpha_bar) / (2 - table.alpha_bar)
    weight[0] = weight[1]
    return lambda level, kind: jnp.asarray(weight, jnp.float32)[level.t.astype(int)]


@pytest.mark.parity
def test_losses_of_the_reference(reference):
    args, arrays, table = reference
    x0, eps, t = nhwc(arrays["x0"]), nhwc(arrays["noise"]), jnp.asarray(arrays["t"], jnp.float32)
    given = lambda key, rows, batch_size, schedule: (schedule(t), jnp.ones(batch_size))  # noqa: E731
    cases = {tuple(key.split(".")[:3]) for key in arrays.files if key.endswith(".loss")}
    cases = {case for case in cases if case[0] in ("DDPM", "LatentDiffusion")}
    assert cases
    seen = set()
    for owner, kind, error in cases:
        options = {"times": given, "loss": error, "noise": eps}
        variance = args["logvar_init_LatentDiffusion"] if owner == "LatentDiffusion" else 0.0
        log_variance = (lambda _, level, v=variance: jnp.full(len(t), v)) if owner == "LatentDiffusion" else None
        loss, metrics = diffusion_loss(compvis_network, table, kind, x0, KEY, log_variance=log_variance, **options)
        bound, _ = diffusion_loss(
            compvis_network, table, kind, x0, KEY, weighting=compvis_vlb(table, kind, args), **options
        )
        total = args["l_simple_weight"] * loss + args["original_elbo_weight"] * bound
        found = {"loss": total, "log.loss": total, "log.loss_simple": metrics["loss_simple"], "log.loss_vlb": bound}
        found |= {"log.loss_gamma": loss, "log.logvar": variance}
        prefix = f"{owner}.{kind}.{error}."
        for key in [key for key in arrays.files if key.startswith(prefix)]:
            np.testing.assert_allclose(found[key[len(prefix) :]], arrays[key][0], rtol=1e-5, err_msg=key)
            seen.add(key)
    assert seen == {key for key in arrays.files if key.split(".")[0] in ("DDPM", "LatentDiffusion")}


@pytest.mark.parity
def test_process_of_the_reference(reference):
    args, arrays, table = reference
    x0, eps, t = nhwc(arrays["x0"]), nhwc(arrays["noise"]), arrays["t"]
    level = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), table(t.astype(float)))

    def close(name, value, atol=1e-6):
        np.testing.assert_allclose(value, nhwc(arrays[name]), rtol=2e-5, atol=atol, err_msg=name)

    close("q_sample", diffuse(x0, eps, level))
    close("q_mean", diffuse(x0, 0 * eps, level))
    close("q_var", level.sigma.reshape(-1, 1, 1, 1) ** 2)
    close("q_logvar", jnp.log(level.sigma.reshape(-1, 1, 1, 1) ** 2))
    close("predict_start_from_noise", predict("eps", diffuse(x0, eps, level), eps, level).x0, atol=5e-5)  # 1 / alpha is 84
    # before t = 0 comes exactly clean
    index = np.arange(table.size)
    previous = np.append(1.0, table.alpha_bar[:-1])
    ats, befores = table(index * 1.0), table(np.maximum(index - 1, 0) * 1.0)
    before_alpha, before_sigma = np.sqrt(previous), np.where(index == 0, 0.0, befores.sigma)
    befores = type(befores)(befores.t, before_alpha, before_sigma)
    var = posterior_variance(ats, befores)
    kept = np.sqrt(np.maximum(befores.sigma**2 - var, 0))
    coef2 = kept / ats.sigma  # of x_t: eps = (x_t - alpha x0) / sigma
    coef1 = befores.alpha - coef2 * ats.alpha
    np.testing.assert_allclose(var, compvis_variance(table, 0.0), rtol=1e-6, atol=1e-12)
    var = compvis_variance(table, args.get("v_posterior", 0.0))
    log_var = np.log(np.maximum(var, 1e-20))
    pick = lambda a: jnp.asarray(a[t], jnp.float32).reshape(-1, 1, 1, 1)  # noqa: E731
    close("posterior_mean", pick(coef1) * x0 + pick(coef2) * diffuse(x0, eps, level))
    close("posterior_var", pick(var))
    close("posterior_logvar_clipped", pick(log_var))
    bar = table.alpha_bar
    buffers = {
        "betas": 1 - bar / previous,
        "alphas_cumprod": bar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": ats.alpha,
        "sqrt_one_minus_alphas_cumprod": ats.sigma,
        "log_one_minus_alphas_cumprod": 2 * np.log(ats.sigma),
        "sqrt_recip_alphas_cumprod": 1 / ats.alpha,
        "sqrt_recipm1_alphas_cumprod": ats.noise_ratio,
        "posterior_variance": var,
        "posterior_log_variance_clipped": log_var,
        "posterior_mean_coef1": coef1,
        "posterior_mean_coef2": coef2,
    }
    every = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), ats)
    weights = {kind: compvis_vlb(table, kind, args)(every, kind) for kind in ("eps", "x0")}
    for kind, weight in weights.items():
        np.testing.assert_allclose(weight, arrays[f"{kind}.lvlb_weights"], rtol=2e-5)
    buffers["lvlb_weights"] = weights["eps"]
    names = [key[len("buffer.") :] for key in arrays.files if key.startswith("buffer.")]
    assert set(names) <= set(buffers)
    for name in names:
        np.testing.assert_allclose(buffers[name], arrays[f"buffer.{name}"], rtol=2e-5, atol=1e-7, err_msg=name)


@pytest.mark.parity
def test_tables_and_snr_weights_of_the_references(reference):
    _, arrays, table = reference
    ours = compvis_tables({})
    for key in [key for key in arrays.files if key.startswith("beta_schedule.")]:
        betas = arrays[key]
        bar = ours[key.split(".")[1]]().alpha_bar
        np.testing.assert_allclose(bar, np.cumprod(1 - betas), rtol=1e-9, atol=1e-300, err_msg=key)
    tables = {"sl": table, "li": schedules.linear(), "co": schedules.squared_cosine()}
    checked = 0
    for key in arrays.files:
        head, *middle = key.split(".")
        name = middle.pop() if middle else ""
        if (head == "snr" or head.startswith("min_snr")) and name in tables:
            level = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tables[name](arrays["snr.t"].astype(float)))
            if head == "snr":
                found = weightings.snr(level)
            else:
                found = weightings.min_snr(float(head[len("min_snr") :]))(level, middle[0])
            # the reference subtracts alpha_bar from 1 in float32, which costs it digits where the SNR is large
            rounding = 5e-5 + 1.2e-7 * (1 + arrays[f"snr.{name}"])
            assert np.all(np.abs(found / arrays[key] - 1) < rounding), key
            checked += 1
    assert checked
