"""Objectives of one to four steps: their identities, and that what they teach is the flow map, on data where it is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from ldm_jax.diffusion import (
    CLEAN,
    Level,
    Prediction,
    Problem,
    diffuse,
    few_steps,
    grids,
    has_clock,
    make_clock,
    make_denoiser,
    make_recipe,
    make_sampler,
    sample,
    schedules,
    target,
)
from ldm_jax.diffusion.few_steps import continuous, discrete
from ldm_jax.diffusion.level import expand
from ldm_jax.diffusion.samplers.protocol import move
from tests.diffusion.oracles import flow_map, gaussian, mixture

KEY = jax.random.key(3)
MEAN, STD = 0.4, 0.6
X0 = MEAN + STD * jax.random.normal(jax.random.key(0), (8, 4, 3))
ROWS = jnp.arange(8)
PROCESSES = {
    "flow": (schedules.RectifiedFlow(), "flow"),
    "shifted": (schedules.RectifiedFlow(shift=3.0), "flow"),
    "cosine": (schedules.Cosine(), "v"),
    "wide": (schedules.Cosine(scale=0.5), "v"),
}
process = pytest.mark.parametrize("process", PROCESSES)
two_processes = pytest.mark.parametrize("process", ["shifted", "cosine"])


def level_of(schedule, t):
    """The level whose time input is t."""
    if isinstance(schedule, schedules.RectifiedFlow):
        return Level(t, 1 - t / 1000, t / 1000)
    angle = jnp.arctan(jnp.tan(t / 1000 * jnp.pi / 2) / schedule.scale)
    return Level(t, jnp.cos(angle), jnp.sin(angle))


def exact(schedule, prediction):
    """The network that knows the average velocity of the Gaussian's flow between t and t - s, at s = 0 the velocity."""
    clock, denoise = make_clock(schedule, prediction, "a test"), gaussian(MEAN, STD)

    def network(params, x, t, s=None):
        s = jnp.zeros_like(t) if s is None else s
        level, to = level_of(schedule, t), level_of(schedule, t - s)
        whole = jax.tree.map(lambda a: expand(a, x), (level, to))
        reached = flow_map(x, *whole, MEAN, STD)
        gap = expand(clock.of(level) - clock.of(to), x)
        now = target(prediction, denoise(x, level), level)
        return jnp.where(gap == 0, now, (x - reached) / jnp.where(gap == 0, 1.0, gap)) * params

    return network


def spied(network):
    """The network, and what it was last called with."""
    seen = {}

    def spy(params, x, t, s=None):
        seen.update(x=x, t=t, s=s)
        return network(params, x, t, s)

    return spy, seen


def pair_of(schedule, prediction, seen):
    """The velocity of (x0, eps) at what the network saw."""
    level = level_of(schedule, seen["t"])
    eps = (seen["x"] - expand(level.alpha, X0) * X0) / expand(level.sigma, X0)
    return target(prediction, Prediction(X0, eps), level), level


@process
def test_a_clock_ticks_with_the_velocity(process):
    schedule, prediction = PROCESSES[process]
    clock = make_clock(schedule, prediction, "a test")
    tau = jnp.linspace(0.05, 0.95, 7) * clock.end
    level = clock.at(tau)
    np.testing.assert_allclose(clock.of(level), tau, rtol=1e-5)
    np.testing.assert_allclose(level_of(schedule, level.t).sigma, level.sigma, rtol=1e-4)
    x0, eps = jnp.full((7, 2), 0.3), jnp.full((7, 2), -1.1)
    _, slope = jax.jvp(lambda tau: diffuse(x0, eps, clock.at(tau)), (tau,), (jnp.ones(7),))
    np.testing.assert_allclose(slope, target(prediction, Prediction(x0, eps), level), rtol=1e-4)
    np.testing.assert_allclose(clock.at(jnp.zeros(1)).t, 0, atol=1e-3)


def test_other_processes_have_no_clock():
    assert not has_clock(schedules.Cosine(), "eps") and not has_clock(schedules.VarianceExploding(), "eps")
    with pytest.raises(ValueError, match="mean_flow averages the velocity"):
        few_steps.mean_flow(schedules.Cosine(), "flow")
    with pytest.raises(ValueError, match="averages of the velocity"):
        make_recipe("cosine", "eps", "flow_map", "karras")


@process
@pytest.mark.parametrize("count", [1, 3])
def test_the_sampler_follows_average_velocities_exactly(process, count):
    schedule, prediction = PROCESSES[process]
    grid = grids.trailing(schedule, count)
    x = jax.random.normal(KEY, (5, 3))
    network = functools.partial(exact(schedule, prediction), 1.0)
    found = sample(make_denoiser(network, prediction), make_sampler("flow_map", schedule), x, grid)
    np.testing.assert_allclose(found, flow_map(x, grid[0], CLEAN, MEAN, STD), atol=2e-4)


@two_processes
@pytest.mark.parametrize("name", ["mean_flow", "shortcut"])
def test_equal_times_are_flow_matching(process, name):
    schedule, prediction = PROCESSES[process]
    network, seen = spied(lambda params, x, t, s: params * x + expand(t + s, x) / 1000)
    options = {"power": 0.0} if name == "mean_flow" else {}
    objective = few_steps.OBJECTIVES[name].make(schedule, prediction, times="uniform", share=0.0, **options)
    loss, metrics = objective(Problem(network, 0.7), X0, KEY, ROWS, 8)
    pair, level = pair_of(schedule, prediction, seen)
    assert np.all(seen["s"] == 0)
    wanted = jnp.square(0.7 * seen["x"] + expand(seen["t"], X0) / 1000 - pair).mean((1, 2))
    np.testing.assert_allclose(metrics["loss_per_sample"], wanted, rtol=1e-3)
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-3)


@two_processes
def test_the_average_velocity_solves_the_mean_flow_identity(process):
    """u + (t - r) du/dt is the velocity: what is left of the loss is what flow matching leaves, at every row."""
    schedule, prediction = PROCESSES[process]
    network, seen = spied(exact(schedule, prediction))
    objective = few_steps.mean_flow(schedule, prediction, times="uniform", share=1.0, power=0.0, improved=True)
    _, metrics = objective(Problem(network, 1.0), X0, KEY, ROWS, 8)
    pair, level = pair_of(schedule, prediction, seen)
    assert np.all(seen["s"] >= 0) and np.ptp(seen["s"]) > 100
    now = target(prediction, gaussian(MEAN, STD)(seen["x"], level), level)
    np.testing.assert_allclose(metrics["loss_per_sample"], jnp.square(now - pair).mean((1, 2)), rtol=2e-2, atol=1e-3)


@two_processes
def test_mean_flow_learns_nothing_new_from_the_average_velocity(process):
    """With the pair's velocity in the derivative too, the expected gradient is zero there, and not elsewhere."""
    schedule, prediction = PROCESSES[process]
    objective = few_steps.mean_flow(schedule, prediction, times="uniform", share=1.0, power=0.0)
    x0 = MEAN + STD * jax.random.normal(KEY, (20000, 1))

    def slope(params):
        loss = lambda params: objective(Problem(exact(schedule, prediction), params), x0, KEY, jnp.arange(20000), 20000)[0]  # noqa: E731
        return jax.grad(loss)(params)

    assert abs(slope(1.0)) < abs(slope(0.8)) / 5


@two_processes
def test_shortcuts_of_the_average_velocity_agree_with_its_halves(process):
    schedule, prediction = PROCESSES[process]
    network, seen = spied(exact(schedule, prediction))
    objective = few_steps.shortcut(schedule, prediction, share=1.0, finest=256)
    x0 = MEAN + STD * jax.random.normal(KEY, (64, 3))
    problem = Problem(network, jnp.float32(1.0), ema=jnp.float32(1.0))
    _, metrics = objective(problem, x0, KEY, jnp.arange(64), 64)
    assert metrics["loss_per_sample"].max() < 1e-4
    sizes = np.unique(np.round(np.asarray(1000 / seen["s"]), 1))
    assert len(sizes) >= 5  # 1, 2, 4, ... to the whole way
    wrong = objective(problem._replace(ema=jnp.float32(0.5)), x0, KEY, jnp.arange(64), 64)[1]
    assert wrong["loss_per_sample"].min() > 1e-3  # the targets are the average's


def test_guidance_inside_training():
    """The minimiser at equal times is guided: null + scale (conditional - null), whatever the mix; of dropped rows, plain."""
    schedule, dropped = schedules.RectifiedFlow(), jnp.arange(8) % 2 == 0
    conditional, null = (lambda params, x, t, s, a=a: a * x for a in (0.9, 0.4))
    for mix in (0.0, 0.5):
        calls = []

        def answer(params, x, t, s=None, without=False, calls=calls):
            calls.append(without)
            return (null if without else conditional)(params, x, t, s)

        objective = few_steps.mean_flow(
            schedule, "flow", times="uniform", share=0.0, power=0.0, guidance_scale=3.0, guidance_mix=mix
        )
        last = {}

        def spy(params, x, t, s=None, without=False, answer=answer, last=last):
            last.update(x=x, t=t, s=s)
            return answer(params, x, t, s, without)

        _, metrics = objective(Problem(spy, None, dropped=dropped), X0, KEY, ROWS, 8)
        assert calls.count(True) == 1 and len(calls) == (3 if mix else 2)
        pair, _ = pair_of(schedule, "flow", last)
        omega = 3 * (1 - mix)
        led = omega * pair + mix * 0.9 * last["x"] + (1 - omega - mix) * 0.4 * last["x"]
        wanted = jnp.square(0.9 * last["x"] - jnp.where(dropped[:, None, None], pair, led)).mean((1, 2))
        np.testing.assert_allclose(metrics["loss_per_sample"], wanted, rtol=1e-3)


@pytest.mark.parametrize("count", [4, 16, 32])  # 2 leading rows a part; one in half of the parts; one in a quarter
@pytest.mark.parametrize("name", ["mean_flow", "shortcut"])
def test_the_parts_of_a_batch_have_its_loss(name, count):
    x0 = jax.random.normal(KEY, (32, 4, 3))
    options = {"power": 0.0} if name == "mean_flow" else {}
    objective = few_steps.OBJECTIVES[name].make(schedules.Cosine(), "v", times="low_discrepancy", share=0.25, **options)
    network = lambda params, x, t, s: params * jnp.sin(x + expand(t - s, x) / 1000)  # noqa: E731
    problem = Problem(network, jnp.float32(0.7), ema=jnp.float32(0.7))
    whole = objective(problem, x0, KEY, jnp.arange(32), 32)[0]
    rows = [jnp.arange(i, 32, count) for i in range(count)]
    parts = [objective(problem, x0[r], KEY, r, 32)[0] for r in rows]
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-4)


# Consistency ---------------------------------------------------------------------------------------------------------------


def ending(schedule, prediction):
    """The network whose x0 is where the Gaussian's trajectory ends."""

    def network(params, x, t, s=None):
        level = level_of(schedule, t)
        x0 = flow_map(x, jax.tree.map(lambda a: expand(a, x), level), CLEAN, MEAN, STD)
        sigma = expand(level.sigma, x)
        eps = (x - expand(level.alpha, x) * x0) / jnp.where(sigma == 0, 1.0, sigma)
        return params * target(prediction, Prediction(x0, eps), level)

    return network


def teacher_of(schedule, prediction):
    def teacher(x, t, without=False):
        level = level_of(schedule, t)
        return target(prediction, gaussian(MEAN, STD)(x, level), level)

    return teacher


def test_the_curriculum_doubles_up_to_its_end():
    grid = discrete._Grid(schedules.Cosine(), 800, 10, 1280, 0.004, 160.0)
    found = [int(grid.intervals(k)) for k in range(0, 800, 100)]
    assert found == [10, 20, 40, 80, 160, 320, 640, 1280]
    assert int(grid.intervals(799)) == 1280


def test_pairs_of_times_are_the_discretised_log_normal():
    """Song & Dhariwal 2023, table 1: p(i) ~ erf((log s_{i+1} - m) / (sqrt 2 d)) - erf((log s_i - m) / (sqrt 2 d)), within the
    ends; and EDM's grid."""
    schedule, mean, std, count = schedules.Cosine(), -0.4, 2.0, 10
    seen = []
    network = lambda params, x, t, s: seen.append(t) or x  # noqa: E731
    objective = few_steps.consistency(
        schedule, "v", steps=1, fewest=count, most=count, times_options={"mean": mean, "std": std}
    )
    objective(Problem(network, None), jnp.zeros((20000, 1)), KEY, jnp.arange(20000), 20000)
    below, above = (np.asarray(level_of(schedule, t).sigma / level_of(schedule, t).alpha) for t in seen)
    edges = (0.004 ** (1 / 7) + np.arange(count + 1) / count * (160 ** (1 / 7) - 0.004 ** (1 / 7))) ** 7
    place = np.argmin(np.abs(np.log(above[:, None] / edges[None, 1:])), axis=1)
    np.testing.assert_allclose(above, edges[1:][place], rtol=1e-2)
    np.testing.assert_allclose(below, np.where(place == 0, 0, edges[place]), rtol=1e-2, atol=1e-6)
    cut = stats.norm(mean, std).cdf(np.log(edges))
    cut[0], cut[-1] = 0, 1  # what lies beyond the ends belongs to the last intervals
    np.testing.assert_allclose(np.bincount(place, minlength=count) / 20000, np.diff(cut), atol=0.012)


@pytest.mark.parametrize("process", ["flow", "cosine"])
def test_consistency_has_its_boundary(process):
    """In the lowest interval the target is x0 itself, whatever the network says."""
    schedule, prediction = PROCESSES[process]
    times = lambda key, rows, size, schedule: (schedule.from_log_snr(jnp.full(8, 2 * 7.0)), jnp.ones(8))  # noqa: E731
    objective = few_steps.consistency(schedule, prediction, steps=1, fewest=10, most=10, times=times)
    x0 = {}
    network = lambda params, x, t, s: x0.setdefault(len(x0), 5.0 * x)  # noqa: E731
    _, metrics = objective(Problem(network, None), X0, KEY, ROWS, 8)
    level = level_of(schedule, metrics["t"])
    ratio = level.sigma / level.alpha
    np.testing.assert_allclose(ratio, ratio[0])
    above = x0[max(x0)] / 5.0
    c, d = {"flow": (1.0, ratio[0] / (1 + ratio[0])), "cosine": (level.alpha[0], level.sigma[0])}[process]
    np.testing.assert_allclose(
        metrics["loss_per_sample"], jnp.square(c * above - d * 5 * above - X0).mean((1, 2)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("process", ["flow", "cosine"])
def test_an_exact_teacher_teaches_the_exact_map(process):
    """Of a student that knows it, what is left is the error of one DDIM step, which falls with the number of intervals."""
    schedule, prediction = PROCESSES[process]
    problem = Problem(ending(schedule, prediction), 1.0, ema=1.0, teacher=teacher_of(schedule, prediction))
    losses = []
    for intervals in (10, 20, 40):
        objective = few_steps.consistency_distillation(schedule, prediction, intervals=intervals)
        x0 = MEAN + STD * jax.random.normal(KEY, (256, 3))
        losses.append(float(objective(problem, x0, KEY, jnp.arange(256), 256)[1]["loss_simple"]))
    assert losses[0] < 0.02 and losses[1] < losses[0] / 6 and losses[2] < losses[1] / 6  # squares of order 2


def test_the_tangent_is_the_derivative_along_the_trajectory():
    """g = cos(t) df/dt, against differences of f = cos(t) x - sin(t) F along x + h v."""
    schedule = schedules.Cosine()
    clock = make_clock(schedule, "v", "a test")
    network = lambda params, x, t, s: params * jnp.sin(2 * x + expand(t, x) / 500)  # noqa: E731
    x, v = jax.random.normal(KEY, (6, 3)), jax.random.normal(jax.random.key(9), (6, 3))
    tau = jnp.linspace(0.1, 1.45, 6)

    def f(h):
        at = tau + h
        level = clock.at(at)
        return expand(jnp.cos(at), x) * (x + h * v) - expand(jnp.sin(at), x) * network(0.8, x + h * v, level.t, None)

    output, g = continuous.tangent(Problem(network, 0.8), clock, x, tau, v, 1.0)
    np.testing.assert_allclose(g, expand(jnp.cos(tau), x) * (f(1e-2) - f(-1e-2)) / 2e-2, atol=3e-3)
    np.testing.assert_allclose(output, network(0.8, x, clock.at(tau).t, None), rtol=1e-6)


def test_the_gradient_of_scm_moves_f_against_its_tangent():
    """Finite differences of |F_theta - F - g / (|g| + c)|^2 at theta: -2 g / (|g| + c) dF/dtheta, over all numbers."""
    schedule = schedules.Cosine()
    network, seen = spied(lambda params, x, t, s: params * jnp.sin(2 * x + expand(t, x) / 500))
    objective = few_steps.scm(schedule, "v", times="logit_normal", times_options={"std": 0.5}, warmup=0, constant=0.1)
    problem = lambda theta: Problem(network, theta)  # noqa: E731
    slope = jax.grad(lambda theta: objective(problem(theta), X0, KEY, ROWS, 8)[0])(0.8)
    objective(problem(0.8), X0, KEY, ROWS, 8)
    (pair, level), x = pair_of(schedule, "v", seen), seen["x"]
    clock = make_clock(schedule, "v", "a test")
    tau = clock.of(level)

    def f(h):
        at, near = tau + h, x + h * pair
        return expand(jnp.cos(at), x) * near - expand(jnp.sin(at), x) * network(0.8, near, clock.at(at).t, None)

    g = expand(jnp.cos(tau), X0) * (f(1e-2) - f(-1e-2)) / 2e-2
    norm = jnp.sqrt(jnp.square(g).mean((1, 2), keepdims=True))
    by_theta = (network(0.81, x, level.t, None) - network(0.79, x, level.t, None)) / 0.02
    np.testing.assert_allclose(slope, jnp.mean(-2 * g / (norm + 0.1) * by_theta), rtol=2e-2)


def test_scm_has_no_tangent_where_the_map_is_exact():
    schedule = schedules.Cosine()
    problem = Problem(ending(schedule, "v"), 1.0, teacher=teacher_of(schedule, "v"))
    objective = few_steps.scm_distillation(schedule, "v", times="uniform", warmup=0)
    _, metrics = objective(problem, X0, KEY, ROWS, 8)
    wrong = objective(problem._replace(params=0.8), X0, KEY, ROWS, 8)[1]
    assert metrics["loss_simple"] < wrong["loss_simple"] / 100


# Students that stay diffusion models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["flow", "cosine"])
def test_one_step_of_a_progressive_student_is_two_of_its_teacher(process):
    schedule, prediction = PROCESSES[process]
    teacher = teacher_of(schedule, prediction)
    grid = grids.trailing(schedule, 8)
    denoise = make_denoiser(teacher, prediction)

    def student(params, x, t, s=None):
        """What a DDIM step to the end must be told to end there, by its two values at 0 and 1."""
        rows = []
        for one, time in zip(x, t):
            i = int(np.argmin(np.abs(grid.t[:-1:2] - float(time)))) * 2
            end = sample(denoise, make_sampler("ddim"), one[None], grid[i : i + 3])
            at = lambda y, i=i, one=one: move(prediction, one[None], jnp.full_like(one[None], y), grid[i], grid[i + 2])  # noqa: E731
            rows.append(((end - at(0.0)) / (at(1.0) - at(0.0)))[0])
        return jnp.stack(rows)

    objective = few_steps.progressive(schedule, prediction, student_steps=4)
    _, metrics = objective(Problem(student, None, teacher=teacher), X0, KEY, ROWS, 8)
    assert metrics["loss_per_sample"].max() < 1e-4
    zero = objective(Problem(lambda params, x, t, s: 0 * x, None, teacher=teacher), X0, KEY, ROWS, 8)[1]
    assert zero["loss_per_sample"].min() > 1e-2


@pytest.mark.parametrize("process", ["flow", "cosine"])
def test_latent_consistency_of_the_exact_map_is_left_with_a_solver_step(process):
    """A student whose bounded x0 is where trajectories end: what is left falls with the intervals. It is told each row's scale,
    which lies in its range. (Under both conditions the teacher says the same.)"""
    schedule, prediction = PROCESSES[process]
    scales = []

    def student(params, x, t, s=None, guidance=None):
        scales.append(guidance)
        level = jax.tree.map(lambda a: expand(a, x), level_of(schedule, t))
        s = 10.0 * level.t
        skip, out = 0.25 / (s**2 + 0.25), s / jnp.sqrt(s**2 + 0.25)
        ends = flow_map(x, level, CLEAN, MEAN, STD)
        x0 = (ends - skip * x) / jnp.where(out == 0, 1.0, out)
        eps = (x - level.alpha * x0) / jnp.where(level.sigma == 0, 1.0, level.sigma)
        return target(prediction, Prediction(x0, eps), level)

    x0 = MEAN + STD * jax.random.normal(KEY, (256, 3))
    losses = []
    for intervals in (10, 20, 40):
        make = few_steps.OBJECTIVES["latent_consistency"].make
        objective = make(schedule, prediction, intervals=intervals, least_scale=1.5, most_scale=6.0)
        problem = Problem(student, 1.0, ema=1.0, teacher=teacher_of(schedule, prediction))
        losses.append(float(objective(problem, x0, KEY, jnp.arange(256), 256)[1]["loss_simple"]))
    assert losses[1] < losses[0] / 6 and losses[2] < losses[1] / 6
    w = np.asarray(scales[0])
    assert w.min() >= 1.5 and w.max() <= 6.0 and w.std() > 1 and all(np.array_equal(w, other) for other in scales[:2])


def test_latent_consistency_follows_the_guided_teacher():
    """The target point is one DDIM step of null + w (conditional - null): seen in where the target network looks."""
    schedule, prediction = PROCESSES["cosine"]
    seen = []

    def student(params, x, t, s=None, guidance=None):
        seen.append((x, t, guidance))
        return 0 * x

    conditional, null = 0.7, -0.2  # constant velocities
    teacher = lambda x, t, without=False: jnp.full_like(x, null if without else conditional)  # noqa: E731
    objective = few_steps.latent_consistency(schedule, prediction, intervals=10, least_scale=2.0, most_scale=9.0)
    objective(Problem(student, 1.0, ema=1.0, teacher=teacher), X0, KEY, ROWS, 8)
    looked, now = sorted(seen, key=lambda call: float(call[1].sum()))
    assert np.all(looked[1] < now[1])
    w = expand(now[2], X0)
    level, to = (jax.tree.map(lambda a: expand(a, X0), level_of(schedule, call[1])) for call in (now, looked))
    to = jax.tree.map(lambda a, b: jnp.where(to.t == 0, b, a), to, CLEAN)
    wanted = move(prediction, now[0], null + w * (conditional - null), level, to)
    np.testing.assert_allclose(looked[0], wanted, atol=2e-3)


def test_reflow_joins_noise_with_where_it_leads():
    """Of a Gaussian the pairs lie on a line: x0 = mean + std eps, and a network can know both from x_t."""
    schedule, prediction = PROCESSES["flow"]

    def student(params, x, t, s=None):
        level = level_of(schedule, t)
        a, sigma = expand(level.alpha, x), expand(level.sigma, x)
        eps = (x - a * MEAN) / (a * STD + sigma)
        return eps - (MEAN + STD * eps)

    objective = few_steps.reflow(schedule, prediction, teacher_steps=64)
    _, metrics = objective(Problem(student, None, teacher=teacher_of(schedule, prediction)), X0, KEY, ROWS, 8)
    assert metrics["loss_per_sample"].max() < 1e-3
    with pytest.raises(ValueError, match="reflow is of schedule='flow'"):
        few_steps.reflow(schedules.Cosine(), "v")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("mean_flow", {"share": 1.5}, "share=1.5"),
        ("mean_flow", {"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ("mean_flow", {"guidance_mix": 1.0}, "guidance_mix=1.0"),
        ("mean_flow", {"times": "importance"}, "follows the losses of the diffusion objective"),
        ("shortcut", {"finest": 100}, "finest=100: must be a power of two"),
        ("consistency", {"steps": 10, "fewest": 20, "most": 10}, "from 20 to 10"),
        ("consistency", {"steps": 10, "lowest": 5.0, "highest": 1.0}, "lowest=5.0"),
        ("consistency", {"steps": 10, "target": "teacher"}, "target='teacher'"),
        ("scm", {"warmup": -1}, "warmup=-1"),
        ("progressive", {"student_steps": 0}, "student_steps=0"),
    ],
)
def test_an_objective_refuses_what_it_cannot_do(name, options, match):
    with pytest.raises(ValueError, match=match):
        few_steps.OBJECTIVES[name].make(schedules.Cosine(), "v", **options)


def test_predictions_that_are_no_consistency_function_are_refused():
    for make in (functools.partial(few_steps.consistency, steps=1), few_steps.consistency_distillation):
        with pytest.raises(ValueError, match="prediction='eps' is not"):
            make(schedules.Cosine(), "eps")
    with pytest.raises(ValueError, match="scm is of angles"):
        few_steps.scm(schedules.RectifiedFlow(), "flow")
    with pytest.raises(ValueError, match="give Problem"):
        few_steps.scm_distillation(schedules.Cosine(), "v")(Problem(lambda *a: a[1], None), X0, KEY, ROWS, 8)


# Trained ---------------------------------------------------------------------------------------------------------------------

MEANS = ((1.5, 0.0), (-1.0, 1.2), (-0.5, -1.4))


def perceptron(key, width=96):
    keys = jax.random.split(key, 3)
    sizes = ((10, width), (width, width), (width, 2))
    return [(jax.random.normal(k, s) / np.sqrt(s[0]), jnp.zeros(s[1])) for k, s in zip(keys, sizes)]


def answer(params, x, t, s=None):
    s = jnp.zeros_like(t) if s is None else s
    t, s = t[:, None] / 1000, s[:, None] / 1000
    waves = [wave(np.pi * k * a) for a in (t, s) for k, wave in ((1, jnp.cos), (1, jnp.sin), (2, jnp.cos))]
    h = jnp.concatenate([x, t, s, *waves], 1)
    for i, (kernel, bias) in enumerate(params):
        h = h @ kernel + bias
        h = jax.nn.silu(h) if i < len(params) - 1 else h
    return h


def trained(name, schedule, prediction, updates, **options):
    """A perceptron's average after so many updates of 256 points of the mixture."""
    denoise = mixture(MEANS)
    make = few_steps.OBJECTIVES[name]
    objective = make.make(schedule, prediction, **options)
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, updates))
    teacher = lambda x, t, without=False: target(prediction, denoise(x, level_of(schedule, t)), level_of(schedule, t))  # noqa: E731

    def update(state, step):
        params, average, moments = state
        of_mean, of_x, of_loss = jax.random.split(jax.random.fold_in(KEY, step), 3)
        x0 = jnp.asarray(MEANS)[jax.random.randint(of_mean, (256,), 0, 3)] + 0.3 * jax.random.normal(of_x, (256, 2))

        def loss(params):
            problem = Problem(answer, params, ema=average, step=step, teacher=teacher if make.teacher else None)
            return objective(problem, x0, of_loss, jnp.arange(256), 256)[0]

        updates, moments = optimizer.update(jax.grad(loss)(params), moments)
        params = optax.apply_updates(params, updates)
        return (params, jax.tree.map(lambda a, p: 0.99 * a + 0.01 * p, average, params), moments), None

    params = perceptron(KEY)
    state = params, params, optimizer.init(params)
    return jax.jit(lambda state: jax.lax.scan(update, state, jnp.arange(updates))[0])(state)[1]


def errors(name, schedule, prediction, params, counts=(1, 2)):
    """Root mean square distance to the exact flow map after so many steps, and of one Euler step of the exact velocity."""
    x = jax.random.normal(jax.random.key(17), (1000, 2))
    denoise = mixture(MEANS)

    def run(sampler, denoise, grid):
        return jax.jit(lambda x: sample(denoise, make_sampler(sampler, schedule), x, grid, KEY))(x)

    wanted = run("heun", denoise, grids.trailing(schedule, 200))
    off = lambda found: float(jnp.sqrt(jnp.square(found - wanted).sum(-1).mean()))  # noqa: E731
    own = make_denoiser(functools.partial(answer, params), prediction)
    found = [off(run(few_steps.OBJECTIVES[name].sampler, own, grids.trailing(schedule, n))) for n in counts]
    return found, off(run("ddim", denoise, grids.trailing(schedule, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "process", "most", "options"),
    [
        ("mean_flow", "flow", 0.3, {"times": "uniform", "share": 0.75, "power": 0.0}),
        ("mean_flow", "cosine", 0.3, {"times": "uniform", "share": 0.75, "power": 0.0, "improved": True}),
        ("shortcut", "flow", 0.3, {"share": 0.5}),
        ("shortcut", "cosine", 0.3, {"share": 0.5}),
        ("consistency", "cosine", 0.35, {"steps": 3000, "most": 160}),
        ("consistency_distillation", "cosine", 0.3, {}),
        ("scm", "cosine", 0.35, {"times": "uniform", "warmup": 1000}),
        ("scm_distillation", "cosine", 0.2, {"times": "uniform", "warmup": 1000}),
    ],
)
def test_the_trained_map_is_the_flow_map(name, process, most, options):
    schedule, prediction = PROCESSES[process]
    params = trained(name, schedule, prediction, 3000, **options)
    (one, two), euler = errors(name, schedule, prediction, params)
    print(f"{name} {process}: {one:.3f} after one step, {two:.3f} after two; one Euler step of the exact velocity {euler:.3f}")
    assert one < most * euler
