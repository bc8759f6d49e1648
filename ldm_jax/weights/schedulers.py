"""Reading a diffusers `scheduler_config.json`: the schedule, parameterization, grid and sampler that it stands for.

diffusers ties these together in one class per solver; here they are separate values in a `Recipe`. An option without a
counterpart raises ValueError. Two conventions: its sigma-space classes (Euler, Heun, LMS, ..) hold x / alpha where we hold x,
and interpolate noise_ratio linearly at fractional times where our tables interpolate log-SNR.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ldm_jax.diffusion import samplers as s
from ldm_jax.diffusion.denoiser import consistency_boundary
from ldm_jax.diffusion.grids import beta, ending_at, exponential, from_times, karras
from ldm_jax.diffusion.level import CLEAN, Level
from ldm_jax.diffusion.recipe import Recipe
from ldm_jax.diffusion.schedules import (
    Discrete,
    RectifiedFlow,
    Schedule,
    from_betas,
    linear,
    scaled_linear,
    squared_cosine,
    zero_terminal_snr,
)
from ldm_jax.diffusion.schedules import sigmoid as sigmoid_betas
from ldm_jax.primitives.choices import check_choice, choose
from ldm_jax.weights.continuous_schedulers import clipping, edm_multistep, edm_recipe, flow_recipe, solver_type
from ldm_jax.weights.scheduler_settings import PARAMETERS, Settings

_LEAST = 2.0**-24  # the last alpha_bar of a zero-terminal-SNR table in classes that divide by alpha
_WHOLE = 1e-4  # so near to a whole time rounding may have taken it
_LATER_BETAS = (0.00085, 0.012)  # the defaults of the classes that came with Stable Diffusion


def _unit(level: Level) -> float:
    return 1.0


def read(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a config with its `_class_name`.

    Raises:
      ValueError: an unknown class, a setting of the wrong type, or an option of that class that has no counterpart here.
    """
    options = Settings(config)
    try:
        recipe = choose(CLASSES, options.name, "diffusers scheduler class")(options)
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"{options.name}: a setting has a value that it can't have ({error})") from None
    options.finish()
    return recipe


def scheduler(name: str, of: Mapping[str, Any] | None = None, **settings: Any) -> Recipe:
    """The recipe of the diffusers class called `name`, with that class's defaults, as its `from_config(of, **settings)`.

        scheduler("DPMSolverMultistepScheduler", of=config["scheduler"], use_karras_sigmas=True)

    Args:
      of: the settings of the model's own scheduler. What the class takes of them is kept (betas, prediction_type, ...).
      settings: parameters of the class; they come before those in `of`.

    Raises:
      ValueError: an unknown class, a parameter that it doesn't take or that has no counterpart here.
    """
    taken = choose(PARAMETERS, name, "diffusers scheduler class")
    for setting in settings:
        check_choice(setting, sorted(taken), f"{name}'s parameter")
    return read({**(of or {}), **settings, "_class_name": name})


def _table(o: Settings, start: float = 1e-4, end: float = 2e-2, name: str = "linear") -> Discrete:
    """The schedule, with the class's defaults."""
    size, trained = o.take("num_train_timesteps", 1000), o.pop("trained_betas", None)
    start, end, name = o.take("beta_start", start), o.take("beta_end", end), o.take("beta_schedule", name)
    makers: dict[str, Callable[[], Discrete]] = {
        "linear": lambda: linear(start, end, size),
        "scaled_linear": lambda: scaled_linear(start, end, size),
        "squaredcos_cap_v2": lambda: squared_cosine(size=size),
        "sigmoid": lambda: sigmoid_betas(start, end, size),
    }
    table = from_betas(np.asarray(trained)) if trained is not None else choose(makers, name, "diffusers beta_schedule")()
    return zero_terminal_snr(table) if o.take("rescale_betas_zero_snr", False) else table


def _over_alpha(table: Discrete) -> tuple[Discrete, float]:
    """A table for classes that divide by alpha, and their largest noise_ratio. One that ends at pure noise they end at
    alpha_bar 2^-24, even where the last but one is below that; the table's own end is then lower still."""
    bar = table.alpha_bar
    if bar[-1] > 0:
        return table, float(table(table.size - 1.0).noise_ratio)
    return Discrete(np.append(bar[:-1], min(_LEAST, bar[-2] / 2))), float(np.sqrt(1 / _LEAST - 1))


def _starting_at(ratio: float, levels: Callable[[int], Level]) -> Callable[[int], Level]:
    """The levels, the first no noisier than `ratio` if the second is below that."""

    def grid(n: int) -> Level:
        visited = levels(n)
        if visited.noise_ratio[0] <= ratio or (n > 1 and visited.noise_ratio[1] >= ratio):
            return visited
        top, rest = at_ratio(visited.t[0], ratio), visited[1:]
        return Level(np.append(top.t, rest.t), np.append(top.alpha, rest.alpha), np.append(top.sigma, rest.sigma))

    return grid


def _kind(o: Settings, default: str = "epsilon") -> str:
    kinds = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    return choose(kinds, o.take("prediction_type", default), "diffusers prediction_type")


def _spaced(o: Settings, size: int, default: str) -> Callable[[int], np.ndarray]:
    """diffusers' timesteps of the classes that visit N of N."""
    spacing, offset = o.take("timestep_spacing", default), o.take("steps_offset", 0)
    spacings: dict[str, Callable[[int], np.ndarray]] = {
        "leading": lambda n: np.arange(n)[::-1] * (size // n) + offset,
        "trailing": lambda n: np.round(np.arange(size, 0, -size / n))[:n] - 1,
        "linspace": lambda n: np.linspace(size - 1, 0, n),
    }
    return choose(spacings, spacing, "diffusers timestep_spacing")


def _indexed(o: Settings, sampler: s.Sampler, clipped: bool | None, keep_eps: bool, one: bool) -> Recipe:
    """DDPM, DDIM, PNDM: integer times, x itself."""
    table, kind = _table(o), _kind(o)
    times = _spaced(o, table.size, "leading")
    end = CLEAN if o.take("set_alpha_to_one", one) else table(0.0)
    wrap = clipping(o, clipped, keep_eps) if clipped is not None else Recipe.wrap
    return Recipe(table, kind, _stopping(lambda n: table(np.round(times(n))), end), lambda n: sampler, wrap)


def _ddpm(o: Settings) -> Recipe:
    variances = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large"}
    variance = choose(variances, o.take("variance_type", "fixed_small"), "diffusers variance_type")
    return _indexed(o, s.ddpm(variance), True, False, True)


def _pndm(o: Settings) -> Recipe:
    skip = o.take("skip_prk_steps", False)
    recipe = _indexed(o, s.plms(), None, True, False)
    return recipe if skip else replace(recipe, sampler=lambda n: s.pndm(recipe.schedule))


def at_ratio(t: Any, ratio: Any) -> Level:
    """The VP level with this noise_ratio and time input t."""
    alpha = 1 / np.sqrt(1 + np.square(ratio))
    return Level(np.asarray(t, np.float64), alpha, ratio * alpha)


def _cut(t: np.ndarray) -> np.ndarray:
    """Times as diffusers makes integers of them, where rounding has not taken a whole one below itself."""
    return np.floor(t + _WHOLE)


def _respaced(o: Settings, table: Discrete, low: Callable, high: Callable, whole: Callable) -> Callable[[int], Level] | None:
    """The grids that replace the times: Karras, exponential, Lu (the same), beta; between noise_ratios low(n) and high(n).
    `whole`: the name of one -> what makes its times whole, or leaves them."""
    key = next((key for key, on in {key: o.take(key, False) for key in _RESPACINGS}.items() if on), None)
    if key is None:
        return None

    def levels(n: int) -> Level:
        grid = _RESPACINGS[key](table, n, low=low(n), high=high(n))[:-1]
        return replace(grid, t=whole(key)(grid.t))

    return levels


_RESPACINGS = {
    "use_karras_sigmas": karras,
    "use_exponential_sigmas": exponential,
    "use_lu_lambdas": exponential,
    "use_beta_sigmas": beta,
}


def _stopping(levels: Callable[[int], Level], end: Level) -> Callable[[int], Level]:
    """A grid without the step of no length that a final sigma_min makes where the levels end there already."""

    def grid(n: int) -> Level:
        visited = levels(n)
        keep = n - int(np.isclose(visited.noise_ratio[-1], end.noise_ratio, rtol=1e-6))
        if not keep:
            raise ValueError(
                f"A grid of {n} step visits t = {visited.t[0]:g} alone, where it also ends (set_alpha_to_one=False): it draws "
                "nothing. Take more steps, or timestep_spacing='trailing'."
            )
        return ending_at(visited[:keep], end)

    return grid


def _to(levels: Callable[[int], Level], end: Level) -> Callable[[int], Level]:
    """The same for solvers that in their last step correct the one before it: the step of no length has next to none."""

    def grid(n: int) -> Level:
        visited = levels(n)
        ratio = visited.noise_ratio[-1]
        there = np.isclose(ratio, end.noise_ratio, rtol=1e-6)
        return ending_at(visited, at_ratio(end.t, ratio * (1 - 1e-6)) if there else end)

    return grid


def _end(o: Settings, table: Discrete, default: str = "zero") -> Level:
    ends = {"zero": CLEAN, "sigma_min": table(0.0)}
    return choose(ends, o.take("final_sigmas_type", default), "diffusers final_sigmas_type")


def _sigma_space(
    o: Settings, sampler: Callable[[Discrete], s.Sampler], betas: tuple = (), rounded: bool = False, clips: bool = False
) -> Recipe:
    """Euler, Heun, LMS, KDPM2: fractional times (KDPM2 rounds those of Karras & co.), x / alpha. Their init_noise_sigma is the
    noise_ratio r of the first level, where spacing is leading sqrt(r^2 + 1); times alpha, that is sigma, and 1."""
    (table, most), kind = _over_alpha(_table(o, *betas)), _kind(o)
    leading = o.get("timestep_spacing") == "leading"
    times = _spaced(o, table.size, "linspace")
    index = np.arange(table.size)
    ratios = table(index * 1.0).noise_ratio

    def interpolated(n: int) -> Level:
        t = np.asarray(times(n), np.float64)
        return at_ratio(t, np.interp(t, index, ratios))

    plain = _starting_at(most, interpolated)
    low, high = o.take("sigma_min", None), o.take("sigma_max", None)
    levels = _respaced(
        o, table, lambda n: low or plain(n).noise_ratio[-1], lambda n: high or plain(n).noise_ratio[0],
        lambda key: np.round if rounded and key == "use_karras_sigmas" else lambda t: t,
    )  # fmt: skip
    wrap = clipping(o, False, False) if clips else Recipe.wrap
    grid = _stopping(levels or plain, _end(o, table))
    start = Recipe.start_scale if leading else lambda level: level.sigma
    return Recipe(table, kind, grid, lambda n: sampler(table), wrap, start_scale=start)


def _dpm_levels(o: Settings) -> tuple[Schedule, Callable[[int], Level]]:
    """DPM-Solver, UniPC, DEIS: integer times, one fewer than are spaced. Those of Karras's and Lu's levels are rounded, the
    others cut, and with one class and table all."""
    cuts = o.name == "DPMSolverMultistepScheduler" and o.get("beta_schedule") == "squaredcos_cap_v2"
    rounded = () if cuts else ("use_karras_sigmas", "use_lu_lambdas")
    shift, flow = o.take("flow_shift", 1.0), o.take("use_flow_sigmas", False)
    table, most = _over_alpha(_table(o))
    size = table.size
    if flow:
        schedule = RectifiedFlow(shift, size)
        o.pop("timestep_spacing", None), o.pop("steps_offset", None)  # which these levels don't have

        def shifted(n: int) -> Level:
            if o.name != "UniPCMultistepScheduler":
                levels = schedule(1 - np.linspace(1, 1 / size, n + 1)[::-1][:-1])
                return replace(levels, t=np.floor(levels.t))
            sigma = np.minimum(schedule(np.linspace(1, 1 / size, n + 1)[:-1]).sigma, 1 - 1e-6)  # it starts next to pure noise
            return Level(np.floor(sigma * size), 1 - sigma, sigma)

        return schedule, shifted
    spacing, offset = o.take("timestep_spacing", "linspace"), o.take("steps_offset", 0)
    spacings: dict[str, Callable[[int], np.ndarray]] = {
        "linspace": lambda n: np.round(np.linspace(0, size - 1, n + 1))[:0:-1],
        "leading": lambda n: np.arange(n, 0, -1) * (size // (n + 1)) + offset,
        "trailing": lambda n: np.round(np.arange(size, 0, -size / n))[:n] - 1,
    }
    times = choose(spacings, spacing, "diffusers timestep_spacing")
    plain = _starting_at(most, lambda n: table(times(n)))
    low, high = o.take("sigma_min", float(table(0.0).noise_ratio)), o.take("sigma_max", most)
    levels = _respaced(o, table, lambda n: low, lambda n: high, lambda key: np.round if key in rounded else _cut)
    return table, levels or plain


def _multistep(o: Settings) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o), _kind(o)
    algorithms = {"dpmsolver++": ("x0", 0.0), "sde-dpmsolver++": ("x0", 1.0), "dpmsolver": ("eps", 0.0)}
    solves, eta = choose(algorithms, o.take("algorithm_type", "dpmsolver++"), "diffusers algorithm_type")
    order, exact = o.take("solver_order", 2), solver_type(o)
    lower, euler = o.take("lower_order_final", True), o.take("euler_at_final", False)
    end = _final(o, schedule)
    if order == 3 and (euler or exact):
        raise ValueError("solver_order 3 has no counterpart with euler_at_final or solver_type 'heun'.")

    def sampler(n: int) -> s.Sampler:
        return s.dpm_multistep(order, solves, exact, eta, euler or (lower and n < 15))

    return Recipe(schedule, kind, _to(levels, end), sampler, clipping(o, None, False), start_scale=_unit)


def _final(o: Settings, schedule: Schedule) -> Level:
    if isinstance(schedule, Discrete):
        return _end(o, schedule)
    return choose({"zero": CLEAN}, o.take("final_sigmas_type", "zero"), "diffusers final_sigmas_type of a flow")


def _singlestep(o: Settings) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o), _kind(o)
    algorithms = {"dpmsolver++": "x0", "dpmsolver": "eps"}
    solves = choose(algorithms, o.take("algorithm_type", "dpmsolver++"), "diffusers algorithm_type")
    order, exact, lower = o.take("solver_order", 2), solver_type(o), o.take("lower_order_final", False)
    end = _final(o, schedule)

    def sampler(n: int) -> s.Sampler:
        return s.dpm_solver(order, solves, exact, lower or n % order != 0 or end.sigma == 0)

    return Recipe(schedule, kind, _to(levels, end), sampler, clipping(o, None, False), start_scale=_unit)


def _unipc(o: Settings) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o), _kind(o)
    solves = "x0" if o.take("predict_x0", True) else "eps"
    sampler = s.unipc(o.take("solver_order", 2), solves, o.take("solver_type", "bh2"), o.take("lower_order_final", True))
    grid = _to(levels, _final(o, schedule))
    return Recipe(schedule, kind, grid, lambda n: sampler, clipping(o, None, False), start_scale=_unit)


def _deis(o: Settings) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o), _kind(o)
    order, lower = o.take("solver_order", 2), o.take("lower_order_final", True)
    check_choice(o.take("algorithm_type", "deis"), ["deis"], "diffusers algorithm_type")
    check_choice(o.take("solver_type", "logrho"), ["logrho"], "diffusers solver_type")

    def sampler(n: int) -> s.Sampler:
        return s.deis(order, lower and n < 15)

    grid = _to(levels, schedule(0.0))
    return Recipe(schedule, kind, grid, sampler, clipping(o, None, False), start_scale=_unit)


def _distilled(o: Settings, trajectory: bool) -> Recipe:
    """LCM and TCD: every k-th of the `original_inference_steps` that the student was distilled at. TCD takes what clips and
    thresholds, and does neither."""
    table, kind = _table(o, 0.00085, 0.012, "scaled_linear"), _kind(o)
    original, scaling = o.take("original_inference_steps", 50), o.take("timestep_scaling", 10.0)
    o.pop("set_alpha_to_one", None), o.pop("steps_offset", None), o.pop("timestep_spacing", None)
    clipped = clipping(o, False, True)

    def grid(n: int) -> Level:
        trained = (np.arange(original, 0, -1) * (table.size // original) - 1).astype(float)
        return from_times(
            table,
            trained[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)],
            table(0.0) if trajectory else CLEAN,
        )

    if trajectory:
        return Recipe(table, kind, grid, lambda n: s.tcd(table))
    return Recipe(table, kind, grid, lambda n: s.consistency(), lambda f: consistency_boundary(clipped(f), scaling=scaling))


CLASSES: dict[str, Callable[[Settings], Recipe]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": lambda o: _indexed(o, s.ddim(), True, True, True),
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.euler()),
    "EulerAncestralDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.euler_ancestral()),
    "HeunDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.heun(), _LATER_BETAS, clips=True),
    "LMSDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.lms()),
    "KDPM2DiscreteScheduler": lambda o: _sigma_space(o, s.dpm2, _LATER_BETAS, rounded=True),
    "KDPM2AncestralDiscreteScheduler": lambda o: _sigma_space(o, s.dpm2_ancestral, _LATER_BETAS, rounded=True),
    "DPMSolverMultistepScheduler": _multistep,
    "DPMSolverSinglestepScheduler": _singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "LCMScheduler": lambda o: _distilled(o, False),
    "TCDScheduler": lambda o: _distilled(o, True),
    "EDMEulerScheduler": lambda o: edm_recipe(o, lambda o: lambda n: s.euler()),
    "EDMDPMSolverMultistepScheduler": lambda o: edm_recipe(o, edm_multistep),
    "FlowMatchEulerDiscreteScheduler": lambda o: flow_recipe(o, s.euler()),
    "FlowMatchHeunDiscreteScheduler": lambda o: flow_recipe(o, s.heun("flow")),
}
