"""The schedulers of diffusers, step by step: same initial state, same noise, every call of the network at the same x and t.

Cases are read from the fixture's config.json; `schedulers.read` says what each stands for. The state at every call is recorded
by a callback of the compiled program; where the reference has a bug, the test names it, shows that the bug is the whole
difference, and that our step does what the paper says.
"""

import inspect
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion import CLEAN, Level, diffuse, editing, make_denoiser, make_sampler, predict, sample, schedules
from ldm_jax.diffusion.grids import check_grid
from ldm_jax.diffusion.level import expand
from ldm_jax.diffusion.samplers import State, churned, euler
from ldm_jax.diffusion.samplers import multistep as ms
from ldm_jax.diffusion.samplers.protocol import Sampler, memoryless, move, noise_to
from ldm_jax.weights import schedulers as sc
from ldm_jax.weights.scheduler_settings import PARAMETERS
from tests.diffusion.oracles import point

pytestmark = pytest.mark.parity
LIMIT = 2e-5
FOLDER = "F1_schedulers"
HOLDS_X_OVER_ALPHA = ("Euler", "Heun", "LMS", "KDPM2")


@pytest.fixture(scope="module")
def fixture(fixtures_dir):
    folder = fixtures_dir / FOLDER
    if not folder.is_dir():
        pytest.skip(f"no {FOLDER} in {fixtures_dir}")
    return json.loads((folder / "config.json").read_text()), np.load(folder / "io.npz")


def network(x, t):
    t = t.reshape(-1, *[1] * (x.ndim - 1))
    return 0.3 * jnp.sin(1.7 * x + t / 1000) + 0.5 * x / jnp.sqrt(1 + t / 1000)


class Run:
    """One case: the reference's arrays, our recipe, and noise by step."""

    def __init__(self, case, arrays):
        self.case, self.steps, self.kwargs = case, case["steps"], case["step_kwargs"]
        self.recipe = sc.read({"_class_name": case["scheduler"], **case["config"]})
        self.grid = self.recipe.grid(self.steps)
        self.x, self.t = (arrays[f"{case['prefix']}.{name}"] for name in ("x", "timesteps"))
        self.x0 = arrays.get(f"{case['prefix']}.pred_x0")
        self.over_alpha = case["scheduler"].startswith(HOLDS_X_OVER_ALPHA)
        self.calls = len(self.t)
        self.noise = None
        if f"{case['prefix']}.noise" in arrays:
            drawn, counts = iter(arrays[f"{case['prefix']}.noise"]), arrays[f"{case['prefix']}.noise_per_step"]
            each = [next(drawn).reshape(self.x[0].shape) if n else np.zeros_like(self.x[0]) for n in counts]
            if self.calls > self.steps:  # two stages a step, and one in the last; noise comes with the second
                each = [sum(each[2 * i : 2 * i + 2]) for i in range(self.steps)]
            self.noise = jnp.asarray(np.stack(each))

    def scale(self, level):
        return level.alpha if self.over_alpha else 1.0

    def sampler(self):
        if self.case["scheduler"] == "DDIMScheduler":
            return make_sampler("ddim", eta=self.kwargs.get("eta", 0.0))
        if self.case["scheduler"] == "TCDScheduler":
            return make_sampler("tcd", self.recipe.schedule, eta=self.kwargs.get("eta", 0.3))
        return self.recipe.sampler(self.steps)

    def denoiser(self, calls):
        denoise = self.recipe.wrap(make_denoiser(network, self.recipe.prediction, self.recipe.input_scale))

        def note(x, t, x0):
            calls.append((np.asarray(x), float(t), np.asarray(x0)))

        def recording(x, level):
            prediction = denoise(x, level)
            jax.debug.callback(note, x / self.scale(level), level.t, prediction.x0, ordered=True)
            return prediction

        return recording

    def start(self):
        return jnp.asarray(self.x[0] * self.scale(self.grid[0]), jnp.float32)

    def ours(self, sampler=None):
        calls, sampler = [], sampler or self.sampler()
        x = jax.jit(lambda x, noise: sample(self.denoiser(calls), sampler, x, self.grid, noise))(self.start(), self.noise)
        jax.effects_barrier()
        return calls, np.asarray(x) / self.scale(self.grid[-1])

    def ours_pairwise(self, levels, tos, sampler):
        """Steps between given pairs of levels, for a reference whose steps do not land where the next one starts."""
        calls = []
        denoise = self.denoiser(calls)

        def step(state, given):
            return sampler.step(state, denoise, *given), None

        pairs = (*(jax.tree.map(jnp.float32, pair) for pair in (levels, tos)), self.noise)
        state, _ = jax.jit(lambda x: jax.lax.scan(step, State(x, x), pairs))(self.start())
        jax.effects_barrier()
        return calls, np.asarray(state.x)

    def compare(self, calls, final):
        """Largest deviation from the reference in units of max |x|, over every call and the end."""
        name = self.case["prefix"]
        skipped = self.calls - len(calls)
        if skipped:  # a step of no length at the end (final sigma_min where the grid is there already): we do not take it
            assert skipped == 1 and np.array_equal(self.x[-1], self.x[-2]) or np.abs(self.x[-1] - self.x[-2]).max() < 1e-6, name
        ts = np.array([t for _, t, _ in calls])
        whole = self.t[: len(ts)] == np.round(self.t[: len(ts)])
        np.testing.assert_array_equal(np.round(ts[whole], 3), self.t[: len(ts)][whole], err_msg=name)
        np.testing.assert_allclose(ts, self.t[: len(ts)], rtol=2e-5, atol=2e-3, err_msg=name)
        xs = np.stack([x for x, _, _ in calls] + [final])
        error = np.abs(xs - self.x[: len(xs)]).max() / np.abs(self.x).max()
        if self.x0 is not None and not has_churn(self):  # with churn the reference reports x0 of another x
            x0 = np.stack([x0 for _, _, x0 in calls])
            scale = max(np.abs(self.x0).max(), np.abs(self.x).max())
            error = max(error, np.abs(x0.reshape(self.x0[: len(x0)].shape) - self.x0[: len(x0)]).max() / scale)
        return error


def cases(fixture, *schedulers):
    config, arrays = fixture
    found = [Run(c, arrays) for c in config["cases"] if c["scheduler"] in schedulers and "skipped" not in c]
    if not found:
        pytest.skip(f"no case of {schedulers} in the fixture")
    return found


def has_churn(run):
    return run.kwargs.get("s_churn", 0) > 0


def is_published_sde_3m(run):
    return run.case["config"].get("algorithm_type") == "sde-dpmsolver++" and run.case["config"].get("solver_order") == 3


def is_plms_of_v(run):
    return run.case["scheduler"] == "PNDMScheduler" and run.recipe.prediction != "eps"


def steps_elsewhere(run):
    """Whether DDIM, which always steps to t - N // n, does not land on the next time of its own list."""
    if run.case["scheduler"] != "DDIMScheduler":
        return False
    stride = run.recipe.schedule.size // run.steps
    return np.any(np.diff(run.t) != -stride) or run.t[-1] - stride >= 0


@pytest.mark.parametrize("scheduler", sorted(sc.CLASSES))
def test_every_step_is_the_reference_s(fixture, scheduler):
    for run in cases(fixture, scheduler):
        if has_churn(run) or is_published_sde_3m(run) or is_plms_of_v(run) or steps_elsewhere(run):
            continue  # the tests below
        assert run.compare(*run.ours()) < LIMIT, run.case["prefix"]


def test_no_scheduler_of_the_fixture_is_left_out(fixture):
    ours = {*sc.CLASSES, "DDIMInverseScheduler"}
    assert {c["scheduler"] for c in fixture[0]["cases"]} <= ours


def test_ddim_steps_to_a_fixed_stride_in_the_reference(fixture):
    """Bug: with linspace spacing (and where n does not divide N) DDIM's step goes to t - N // n, but the next one starts, and
    asks the network, at another t. Our grid is one list; fed the reference's pairs of levels, our step gives its numbers."""
    found = [run for run in cases(fixture, "DDIMScheduler") if steps_elsewhere(run)]
    for run in found:
        table = run.recipe.schedule
        end = run.grid[-1]
        to = run.t - table.size // run.steps
        reached = table(np.maximum(to, 0.0))
        tos = Level(*(np.where(to >= 0, a, b) for a, b in zip(jax.tree.leaves(reached), jax.tree.leaves(end))))
        assert run.compare(*run.ours_pairwise(table(run.t), tos, run.sampler())) < LIMIT, run.case["prefix"]


def test_plms_of_a_v_network(fixture):
    """Bug: PNDM averages the raw answers of a v network over past steps and solves for eps afterwards, though v of the same
    (x0, eps) turns with the level: it misses even data that is a single point. We average eps, as the paper and CompVis do."""

    def of_v(steps, average):
        return ms.multistep("v", ms.adams(4, ms.step_number, ms.uniform), warm_up=(steps, average))

    def average(x, y, f, level, to):
        return (y + f(move("v", x, y, level, to), to)) / 2

    for run in [run for run in cases(fixture, "PNDMScheduler") if is_plms_of_v(run)]:
        assert run.compare(*run.ours(of_v(1, average))) < LIMIT, run.case["prefix"]
        assert run.compare(*run.ours()) > 100 * LIMIT
    grid = sc.read({"_class_name": "PNDMScheduler", "skip_prk_steps": True}).grid(10)
    x0, eps = jnp.float32(0.5), jax.random.normal(jax.random.key(0), (1, 2, 2, 1))
    x = diffuse(x0, eps, grid[0])
    right, wrong = (sample(point(x0), s, x, grid) for s in (make_sampler("plms"), of_v(1, average)))
    wanted = diffuse(x0, eps, grid[-1])
    assert np.abs(right - wanted).max() < 1e-5 < 1e-3 < np.abs(wrong - wanted).max()


def test_third_order_sde_in_the_reference_has_a_wrong_sign(fixture):
    """Bug: its weight of the second divided difference is (1 - e^-2h - 2h) / (2h)^2 - 1/2 where the integral (halved, as in
    all published code) is + 1/2. That misses by one whole second difference, however small the step."""

    def reference_moments(h, order):
        m = ms.published(2.0)(h, order)
        if order == 3:
            m = np.concatenate([m[:, :2], m[:, 2:] + 1 / np.expm1(-2 * h)[:, None]], 1)
        return m

    for run in cases(fixture, "DPMSolverMultistepScheduler"):
        if is_published_sde_3m(run):
            table = ms.adams(3, ms.half_log_snr, reference_moments, run.steps < 15)
            assert run.compare(*run.ours(ms.multistep("x0", table, eta=1.0))) < LIMIT, run.case["prefix"]
            assert run.compare(*run.ours()) > 100 * LIMIT


def test_churn_in_the_reference_asks_the_network_too_early(fixture):
    """Bug: Euler with churn adds noise after the network was asked, so its answer belongs to another x and level than the
    step it is used for. Karras et al. 2022, algorithm 2, asks at the raised level; so do we."""

    def too_early(run, gamma, low, high):
        def step(state, denoise, level, to, key):
            denoise(state.x, level)  # recorded
            scale = run.recipe.input_scale
            output = network(state.x * (scale(level) if scale else 1), jnp.asarray(level.t)[None])
            within = (level.noise_ratio >= low) & (level.noise_ratio <= high)
            raised = Level(level.t, level.alpha, level.sigma * jnp.where(within, 1 + gamma, 1.0))
            x = noise_to(state.x, level, raised, run.kwargs.get("s_noise", 1.0) * key)
            return State(move("eps", x, predict(run.recipe.prediction, x, output, raised).eps, raised, to), state.x0)

        return Sampler(memoryless, step)

    for run in [r for r in cases(fixture, "EulerDiscreteScheduler", "EDMEulerScheduler") if has_churn(r)]:
        churn, low, high, noise_scale = (
            run.kwargs.get(k, v) for k, v in (("s_churn", 0), ("s_tmin", 0), ("s_tmax", np.inf), ("s_noise", 1.0))
        )
        most = min(churn / run.steps, 2**0.5 - 1)
        bug = too_early(run, most, low, high)
        assert run.compare(*run.ours(bug)) < LIMIT, run.case["prefix"]

        ours = churned(euler(), run.recipe.schedule, churn, low, high, noise_scale)
        denoise = run.denoiser([])
        step = jax.jit(lambda *given, ours=ours, denoise=denoise: ours.step(given[0], denoise, *given[1:]))
        eps_of = jax.jit(lambda x, level, denoise=denoise: denoise(x, level).eps)
        state = ours.init(run.start(), run.grid)
        for i in range(run.steps):
            level, to = jax.tree.map(jnp.float32, run.grid[i]), jax.tree.map(jnp.float32, run.grid[i + 1])
            u, ratio = np.asarray(state.x) / level.alpha, float(level.noise_ratio)
            raised_ratio = ratio * (1 + (most if low <= ratio <= high else 0))
            u = u + np.sqrt(max(raised_ratio**2 - ratio**2, 0)) * noise_scale * np.asarray(run.noise[i])
            raised = run.recipe.schedule.from_log_snr(jnp.float32(-2 * np.log(raised_ratio)))
            raised = raised if raised_ratio > ratio else level
            eps = eps_of(jnp.asarray(u * raised.alpha), raised)
            wanted = (u + eps * (float(to.noise_ratio) - raised_ratio)) * to.alpha
            state = step(state, level, to, run.noise[i])
            np.testing.assert_allclose(state.x, wanted, atol=LIMIT * np.abs(run.x).max())


def test_ddim_inversion(fixture):
    config, arrays = fixture
    found = [c for c in config["cases"] if c["scheduler"] == "DDIMInverseScheduler"]
    if not found:
        pytest.skip("no DDIM inversion in the fixture")
    for case in found:
        recipe = sc.read({**case["config"], "_class_name": "DDIMScheduler"})
        grid = recipe.grid(case["steps"])
        denoise = recipe.wrap(make_denoiser(network, recipe.prediction))
        xs = arrays[f"{case['prefix']}.x"]
        for i in (1, case["steps"] // 2, case["steps"]):
            x = editing.invert(denoise, jnp.asarray(xs[0]), grid[case["steps"] - i :])
            assert np.abs(x - xs[i]).max() / np.abs(xs).max() < LIMIT, case["prefix"]


def test_tables(fixture):
    config, arrays = fixture
    known = {**config["schedules"], "sigmoid": {"beta_schedule": "sigmoid"}}
    for key in arrays.files:
        head, name, *zero = key.split(".")
        if head == "alphas_cumprod" and name in known:
            options = {"_class_name": "DDIMScheduler", **known[name], "rescale_betas_zero_snr": bool(zero)}
            table = sc.read(options).schedule.alpha_bar
            np.testing.assert_allclose(table, arrays[key], rtol=2e-4 if zero else 1e-5, atol=1e-7, err_msg=key)


def test_add_noise_and_velocity(fixture):
    config, arrays = fixture
    if "add_noise.x0" not in arrays:
        pytest.skip("no add_noise in the fixture")
    x0, eps, t = (jnp.asarray(arrays[f"add_noise.{k}"]) for k in ("x0", "noise", "t"))

    def errors(options):
        level = jax.tree.map(jnp.asarray, sc.read({"_class_name": "DDIMScheduler", **options}).schedule(np.asarray(t)))
        v = expand(level.alpha, x0) * eps - expand(level.sigma, x0) * x0
        pairs = (diffuse(x0, eps, level), arrays["add_noise.out"]), (v, arrays["add_noise.velocity"])
        return max(float(np.abs(a - b).max()) for a, b in pairs)

    assert min(errors(options) for options in config["schedules"].values()) < LIMIT  # the set does not say which one


def test_the_start_is_the_reference_s(fixture):
    """`init_noise_sigma`, times alpha where the reference holds x / alpha."""
    checked = 0
    for case in fixture[0]["cases"]:
        name = f"{case.get('prefix')}.init_noise_sigma"
        if name in fixture[1] and case["scheduler"] in sc.CLASSES:
            run = Run(case, fixture[1])
            wanted = fixture[1][name].item() * run.scale(run.grid[0])
            np.testing.assert_allclose(float(run.recipe.start_scale(run.grid[0])), wanted, rtol=1e-5, err_msg=case["prefix"])
            checked += 1
    if not checked:
        pytest.skip("the fixture does not say where the reference starts")


TAKES_ZERO_SNR = [name for name, taken in PARAMETERS.items() if "rescale_betas_zero_snr" in taken]


@pytest.mark.parametrize("betas", [{"beta_schedule": name} for name in ("linear", "scaled_linear", "squaredcos_cap_v2")])
@pytest.mark.parametrize("name", TAKES_ZERO_SNR)
@pytest.mark.parametrize("steps", [1, 10, 1000])
def test_zero_terminal_snr_with_any_betas(name, betas, steps):
    """The classes that divide by alpha end the table at alpha_bar 2^-24, also where its last but one is smaller."""
    config = {"_class_name": name, "prediction_type": "v_prediction", "timestep_spacing": "trailing", **betas}
    if name in ("LCMScheduler", "TCDScheduler"):
        steps = min(steps, 50)
    grid = sc.read({**config, "rescale_betas_zero_snr": True}).grid(steps)
    check_grid(grid)
    assert len(grid) == steps + 1 and grid.t[0] == 999
    if not name.startswith(("Euler", "DPMSolver", "UniPC")):
        assert grid.alpha[0] == 0
    elif steps < 1000:
        np.testing.assert_allclose(grid.alpha[0] ** 2, 2.0**-24, rtol=1e-6)


@pytest.mark.parametrize("name, clips", [("TCDScheduler", False), ("LCMScheduler", True), ("DDIMScheduler", True)])
def test_only_schedulers_that_clip_clip(name, clips):
    """TCD's takes the setting, which a folder's DDIM has, and its step never looks at it."""
    recipe = sc.scheduler(name, of={"_class_name": "DDIMScheduler", "clip_sample": True, "prediction_type": "sample"})
    level = recipe.grid(4)[1]
    x0 = recipe.wrap(make_denoiser(lambda x, t: jnp.full_like(x, 3.0), recipe.prediction))(jnp.zeros((1, 2)), level).x0
    assert bool((jnp.abs(x0) > 1.5).all()) != clips


def test_a_scheduler_by_its_name_has_its_own_defaults_over_the_model_s_settings():
    model = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    model |= {"steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False, "prediction_type": "v_prediction"}
    euler_of = sc.scheduler("EulerDiscreteScheduler", of=model)
    assert euler_of.prediction == "v" and len(euler_of.grid(20)) == 21
    assert euler_of.grid(20).t[0] == 999  # linspace, its own default: the model's settings don't say
    np.testing.assert_allclose(euler_of.schedule.alpha_bar, schedules.scaled_linear(0.00085, 0.012).alpha_bar)
    karras = sc.scheduler("DPMSolverMultistepScheduler", of=model, use_karras_sigmas=True).grid(10)
    root = karras.noise_ratio[:-1] ** (1 / 7)
    np.testing.assert_allclose(np.diff(root), np.diff(root)[0], rtol=1e-6)
    # what the class doesn't take, it ignores in the model's settings, and refuses if asked for
    over = {**model, "use_karras_sigmas": True, "solver_type": "heun"}
    plain = sc.scheduler("EulerAncestralDiscreteScheduler", of=over)
    np.testing.assert_array_equal(plain.grid(7).t, sc.scheduler("EulerAncestralDiscreteScheduler", of=model).grid(7).t)
    with pytest.raises(ValueError, match="use_karras_sigmas"):
        sc.scheduler("EulerAncestralDiscreteScheduler", of=model, use_karras_sigmas=True)
    assert sc.scheduler("UniPCMultistepScheduler", of=over).grid(5)[-1] == CLEAN  # solver_type 'heun' is another class's
    with pytest.raises(ValueError, match="Did you mean 'HeunDiscreteScheduler'"):
        sc.scheduler("HeunScheduler")


def test_the_parameters_are_those_of_the_reference():
    diffusers = pytest.importorskip("diffusers")
    for name, taken in PARAMETERS.items():
        theirs = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self", "kwargs"}
        assert theirs == taken, name


def test_wrong_settings_are_refused_in_words():
    for wrong in ({"beta_start": "x"}, {"num_train_timesteps": [3]}, {"trained_betas": {"a": 1}}, {"beta_schedule": [1]}):
        with pytest.raises(ValueError, match="DDIMScheduler|beta_schedule"):
            sc.read({"_class_name": "DDIMScheduler", **wrong}).grid(5)


def test_options_without_counterpart_are_refused():
    with pytest.raises(ValueError, match="without a counterpart"):
        sc.read({"_class_name": "EulerDiscreteScheduler", "interpolation_type": "log_linear"})
    with pytest.raises(ValueError, match="Did you mean 'DDIMScheduler'"):
        sc.read({"_class_name": "DDIMSchedular"})
    with pytest.raises(ValueError, match="diffusers prediction_type"):
        sc.read({"_class_name": "DDIMScheduler", "prediction_type": "score"})
    leftovers = {
        "_class_name": "EulerDiscreteScheduler",
        "skip_prk_steps": True,
        "clip_sample": True,
        "set_alpha_to_one": False,
    }
    assert (
        sc.read({**leftovers, "sample_max_value": 1.0, "interpolation_type": "linear", "sigma_min": None}).prediction == "eps"
    )
    flow = sc.read({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "_diffusers_version": "0.42.1"})
    assert flow.schedule == schedules.RectifiedFlow(3.0, 1000) and flow.prediction == "flow"
    assert replace(flow, prediction="v").grid(3)[-1] == CLEAN
