"""Reading a diffusers `scheduler_config.json`: the schedule, parameterization, grid and sampler that it stands for.

diffusers ties these together in one class per solver; here they are separate values in a `Recipe`. An option without a
counterpart raises ValueError. Two conventions: its sigma-space classes (Euler, Heun, LMS, ..) hold x / alpha where we hold x,
and interpolate noise_ratio linearly at fractional times where our tables interpolate log-SNR.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ldm_jax.diffusion import samplers as s
from ldm_jax.diffusion.denoiser import clip, consistency_boundary, dynamic_threshold, edm_input_scale, map_x0
from ldm_jax.diffusion.grids import beta, ending_at, exponential, from_times, karras
from ldm_jax.diffusion.level import CLEAN, Denoiser, Level
from ldm_jax.diffusion.parameterization import Pair, edm
from ldm_jax.diffusion.recipe import Recipe
from ldm_jax.diffusion.schedules import (
    Discrete,
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    from_betas,
    linear,
    scaled_linear,
    squared_cosine,
    zero_terminal_snr,
)
from ldm_jax.diffusion.schedules import sigmoid as sigmoid_betas
from ldm_jax.primitives.choices import choose as lookup


def read(config: dict[str, Any]) -> Recipe:
    """The recipe of a config with its `_class_name`. ValueError for a class or an option that has no counterpart."""
    options = _Options(config)
    recipe = lookup(CLASSES, config.get("_class_name"), "diffusers scheduler class")(options)
    options.finish()
    return recipe


class _Options(dict):
    """A config that knows which of its options have been read."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__({k: v for k, v in config.items() if not k.startswith("_")})
        self.name = config.get("_class_name")

    def take(self, key: str, default: Any) -> Any:
        value = self.pop(key, default)
        return default if value is None else value

    def finish(self) -> None:
        left = {k: v for k, v in self.items() if k not in _FOREIGN and v not in (None, False, [], _NEUTRAL.get(k))}
        if left:
            raise ValueError(
                f"{self.name} has options without a counterpart here: {left}. Compose schedule, grid and sampler by hand."
            )


# Whoever has these options reads them; in other configs they are left over from a conversion, and diffusers ignores them.
_FOREIGN = set(
    "clip_sample clip_sample_range dynamic_thresholding_ratio sample_max_value set_alpha_to_one skip_prk_steps thresholding "
    "solver_order solver_type algorithm_type lower_order_final steps_offset timestep_spacing".split()
)
_NEUTRAL = {
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "lambda_min_clipped": -np.inf,
    "time_shift_type": "exponential",
    "variance_type": "fixed_small",
}


def _table(o: _Options, last: float | None = None) -> Discrete:
    """The schedule. `last`: what sigma-space classes put for the last alpha_bar of a zero-terminal-SNR table."""
    size, trained = o.take("num_train_timesteps", 1000), o.pop("trained_betas", None)
    start, end, name = o.take("beta_start", 1e-4), o.take("beta_end", 2e-2), o.take("beta_schedule", "linear")
    makers: dict[str, Callable[[], Discrete]] = {
        "linear": lambda: linear(start, end, size),
        "scaled_linear": lambda: scaled_linear(start, end, size),
        "squaredcos_cap_v2": lambda: squared_cosine(size=size),
        "sigmoid": lambda: sigmoid_betas(start, end, size),
    }
    table = from_betas(np.asarray(trained)) if trained is not None else lookup(makers, name, "diffusers beta_schedule")()
    if o.take("rescale_betas_zero_snr", False):
        table = zero_terminal_snr(table, last or 0.0)
    return table


def _kind(o: _Options, default: str = "epsilon") -> str:
    kinds = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    return lookup(kinds, o.take("prediction_type", default), "diffusers prediction_type")


def _clipping(o: _Options, clipped: bool | None, keep_eps: bool) -> Callable[[Denoiser], Denoiser]:
    """`clipped`: the class's default for clip_sample; None if it can only threshold."""
    limit, ratio, top = (
        o.take(key, default)
        for key, default in (("clip_sample_range", 1.0), ("dynamic_thresholding_ratio", 0.995), ("sample_max_value", 1.0))
    )
    if o.take("thresholding", False):
        return lambda denoise: map_x0(denoise, dynamic_threshold(ratio, top), keep_eps)
    if clipped is not None and o.take("clip_sample", clipped):
        return lambda denoise: map_x0(denoise, clip(limit), keep_eps)
    return lambda denoise: denoise


def _spaced(o: _Options, size: int, default: str) -> Callable[[int], np.ndarray]:
    """diffusers' timesteps of the classes that visit N of N."""
    spacing, offset = o.take("timestep_spacing", default), o.take("steps_offset", 0)
    spacings: dict[str, Callable[[int], np.ndarray]] = {
        "leading": lambda n: np.arange(n)[::-1] * (size // n) + offset,
        "trailing": lambda n: np.round(np.arange(size, 0, -size / n))[:n] - 1,
        "linspace": lambda n: np.linspace(size - 1, 0, n),
    }
    return lookup(spacings, spacing, "diffusers timestep_spacing")


def _indexed(o: _Options, sampler: s.Sampler, clipped: bool | None, keep_eps: bool, one: bool) -> Recipe:
    """DDPM, DDIM, PNDM: integer times, x itself."""
    table, kind = _table(o), _kind(o)
    times = _spaced(o, table.size, "leading")
    end = CLEAN if o.take("set_alpha_to_one", one) else table(0.0)
    wrap = _clipping(o, clipped, keep_eps) if clipped is not None else Recipe.wrap
    return Recipe(table, kind, _stopping(lambda n: table(np.round(times(n))), end), lambda n: sampler, wrap)


def _ddpm(o: _Options) -> Recipe:
    variances = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large", "fixed_large_log": "large"}
    variance = lookup(variances, o.take("variance_type", "fixed_small"), "diffusers variance_type")
    return _indexed(o, s.ddpm(variance), True, False, True)


def _pndm(o: _Options) -> Recipe:
    skip = o.take("skip_prk_steps", False)
    recipe = _indexed(o, s.plms(), None, True, False)
    return recipe if skip else replace(recipe, sampler=lambda n: s.pndm(recipe.schedule))


def at_ratio(t: Any, ratio: Any) -> Level:
    """The VP level with this noise_ratio and time input t."""
    alpha = 1 / np.sqrt(1 + np.square(ratio))
    return Level(np.asarray(t, np.float64), alpha, ratio * alpha)


def _respaced(o: _Options, table: Discrete, low: Callable, high: Callable, rounded: bool) -> Callable[[int], Level] | None:
    """The grids that replace the times: Karras, exponential, Lu (the same), beta; between noise_ratios low(n) and high(n)."""
    chosen = {key: o.take(key, False) for key in _RESPACINGS}
    maker = next((_RESPACINGS[key] for key, on in chosen.items() if on), None)
    if maker is None:
        return None

    def levels(n: int) -> Level:
        grid = maker(table, n, low=low(n), high=high(n))[:-1]
        return replace(grid, t=np.round(grid.t)) if rounded else grid

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
        return ending_at(visited[:keep], end)

    return grid


def _end(o: _Options, table: Discrete, default: str = "zero") -> Level:
    ends = {"zero": CLEAN, "sigma_min": table(0.0)}
    return lookup(ends, o.take("final_sigmas_type", default), "diffusers final_sigmas_type")


def _sigma_space(o: _Options, sampler: Callable[[Discrete], s.Sampler], rounded: bool = False, clips: bool = False) -> Recipe:
    """Euler, Heun, LMS, KDPM2: fractional times (KDPM2 rounds those of Karras & co.), x / alpha."""
    table, kind = _table(o, last=2.0**-24), _kind(o)
    leading = o.get("timestep_spacing") == "leading"
    times = _spaced(o, table.size, "linspace")
    index = np.arange(table.size)
    ratios = table(index * 1.0).noise_ratio

    def plain(n: int) -> Level:
        t = np.asarray(times(n), np.float64)
        return at_ratio(t, np.interp(t, index, ratios))

    low, high = o.take("sigma_min", None), o.take("sigma_max", None)
    levels = _respaced(
        o, table, lambda n: low or plain(n).noise_ratio[-1], lambda n: high or plain(n).noise_ratio[0], rounded=rounded
    )
    wrap = _clipping(o, False, False) if clips else Recipe.wrap
    grid = _stopping(levels or plain, _end(o, table))
    # init_noise_sigma of these classes is sigma_max, and sqrt(sigma_max^2 + 1) for leading times; over alpha, as x is theirs
    start_scale = Recipe.start_scale if leading else lambda level: level.sigma
    return Recipe(table, kind, grid, lambda n: sampler(table), wrap, start_scale=start_scale)


def _dpm_levels(o: _Options, last: float | None, spaced: bool = True) -> tuple[Schedule, Callable[[int], Level]]:
    """DPM-Solver, UniPC, DEIS: integer times, one fewer than are spaced."""
    shift, flow = o.take("flow_shift", 1.0), o.take("use_flow_sigmas", False)
    table = _table(o, last)
    size = table.size
    if flow:
        schedule = RectifiedFlow(shift, size)

        def shifted(n: int) -> Level:
            levels = schedule(1 - np.linspace(1, 1 / size, n + 1)[::-1][:-1])
            return replace(levels, t=np.floor(levels.t))

        return schedule, shifted
    spacing, offset = o.take("timestep_spacing", "linspace"), o.take("steps_offset", 0)
    spacings: dict[str, Callable[[int], np.ndarray]] = {
        "linspace": lambda n: np.round(np.linspace(0, size - 1, n + 1))[:0:-1],
        "leading": lambda n: np.arange(n, 0, -1) * (size // (n + 1)) + offset,
        "trailing": lambda n: np.round(np.arange(size, 0, -size / n))[:n] - 1,
    }
    times = lookup(spacings, spacing, "diffusers timestep_spacing")
    low, high = (float(table(t).noise_ratio) for t in table.span)
    levels = _respaced(o, table, lambda n: low, lambda n: high, rounded=True)
    return table, levels or (lambda n: table(times(n)))


def _unit(level: Level) -> float:
    """init_noise_sigma 1, also where these classes sample a flow below pure noise."""
    return 1.0


def _multistep(o: _Options) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o, 2.0**-24), _kind(o)
    algorithms = {"dpmsolver++": ("x0", 0.0), "sde-dpmsolver++": ("x0", 1.0), "dpmsolver": ("eps", 0.0)}
    solves, eta = lookup(algorithms, o.take("algorithm_type", "dpmsolver++"), "diffusers algorithm_type")
    order, exact = o.take("solver_order", 2), _solver_type(o)
    lower, euler = o.take("lower_order_final", True), o.take("euler_at_final", False)
    end = _final(o, schedule)
    if order == 3 and (euler or exact):
        raise ValueError("solver_order 3 has no counterpart with euler_at_final or solver_type 'heun'.")

    def sampler(n: int) -> s.Sampler:
        return s.dpm_multistep(order, solves, exact, eta, euler or (lower and n < 15))

    return Recipe(schedule, kind, _stopping(levels, end), sampler, _clipping(o, None, False), start_scale=_unit)


def _solver_type(o: _Options) -> bool:
    return lookup({"midpoint": False, "heun": True}, o.take("solver_type", "midpoint"), "diffusers solver_type")


def _final(o: _Options, schedule: Schedule) -> Level:
    if isinstance(schedule, Discrete):
        return _end(o, schedule)
    return lookup({"zero": CLEAN}, o.take("final_sigmas_type", "zero"), "diffusers final_sigmas_type of a flow")


def _singlestep(o: _Options) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o, None), _kind(o)
    solves = lookup(
        {"dpmsolver++": "x0", "dpmsolver": "eps"}, o.take("algorithm_type", "dpmsolver++"), "diffusers algorithm_type"
    )
    order, exact, lower = o.take("solver_order", 2), _solver_type(o), o.take("lower_order_final", False)
    end = _final(o, schedule)

    def sampler(n: int) -> s.Sampler:
        return s.dpm_solver(order, solves, exact, lower or n % order != 0 or end.sigma == 0)

    return Recipe(schedule, kind, _stopping(levels, end), sampler, _clipping(o, None, False), start_scale=_unit)


def _unipc(o: _Options) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o, 2.0**-24), _kind(o)
    solves = "x0" if o.take("predict_x0", True) else "eps"
    sampler = s.unipc(o.take("solver_order", 2), solves, o.take("solver_type", "bh2"), o.take("lower_order_final", True))
    grid, wrap = _stopping(levels, _final(o, schedule)), _clipping(o, None, False)
    return Recipe(schedule, kind, grid, lambda n: sampler, wrap, start_scale=_unit)


def _deis(o: _Options) -> Recipe:
    (schedule, levels), kind = _dpm_levels(o, None), _kind(o)
    order, lower = o.take("solver_order", 2), o.take("lower_order_final", True)
    lookup({"deis": None}, o.take("algorithm_type", "deis"), "diffusers algorithm_type")
    lookup({"logrho": None}, o.take("solver_type", "logrho"), "diffusers solver_type")
    grid, wrap = _stopping(levels, schedule(0.0)), _clipping(o, None, False)
    return Recipe(schedule, kind, grid, lambda n: s.deis(order, lower and n < 15), wrap, start_scale=_unit)


def _distilled(o: _Options, trajectory: bool) -> Recipe:
    """LCM and TCD: every k-th of the `original_inference_steps` that the student was distilled at."""
    table, kind = _table(o), _kind(o)
    original, scaling = o.take("original_inference_steps", 50), o.take("timestep_scaling", 10.0)
    o.pop("set_alpha_to_one", None), o.pop("steps_offset", None), o.pop("timestep_spacing", None)
    clipped = _clipping(o, False, True)

    def grid(n: int) -> Level:
        trained = (np.arange(original, 0, -1) * (table.size // original) - 1).astype(float)
        return from_times(
            table,
            trained[np.floor(np.linspace(0, original, n, endpoint=False)).astype(int)],
            table(0.0) if trajectory else CLEAN,
        )

    if trajectory:
        return Recipe(table, kind, grid, lambda n: s.tcd(table), clipped)
    return Recipe(table, kind, grid, lambda n: s.consistency(), lambda f: consistency_boundary(clipped(f), scaling=scaling))


def _edm(o: _Options, sampler: Callable[[_Options], Callable[[int], s.Sampler]]) -> Recipe:
    low, high, data, rho = (
        o.take(k, v) for k, v in (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5), ("rho", 7.0))
    )
    o.pop("num_train_timesteps", None)
    schedule = VarianceExploding(low, high)
    grids = {"karras": lambda n: karras(schedule, n, rho), "exponential": lambda n: exponential(schedule, n)}
    grid = lookup(grids, o.take("sigma_schedule", "karras"), "diffusers sigma_schedule")
    lookup({"zero": None}, o.take("final_sigmas_type", "zero"), "diffusers final_sigmas_type of EDM")
    kinds = {"epsilon": edm(data), "v_prediction": _negated(edm(data))}
    kind = lookup(kinds, o.take("prediction_type", "epsilon"), "diffusers prediction_type of EDM")
    return Recipe(schedule, kind, grid, sampler(o), _clipping(o, None, False), edm_input_scale(data))


def _negated(pair: Pair) -> Pair:
    return lambda level: tuple(-a for a in pair(level))


def _edm_multistep(o: _Options) -> Callable[[int], s.Sampler]:
    order, exact, lower, euler = (
        o.take("solver_order", 2),
        _solver_type(o),
        o.take("lower_order_final", True),
        o.take("euler_at_final", False),
    )
    eta = lookup(
        {"dpmsolver++": 0.0, "sde-dpmsolver++": 1.0}, o.take("algorithm_type", "dpmsolver++"), "diffusers algorithm_type"
    )
    return lambda n: s.dpm_multistep(order, "x0", exact, eta, euler or (lower and n < 15))


def _flow(o: _Options, sampler: s.Sampler) -> Recipe:
    """Flow matching. The times are spaced down to the shifted 1/N, and shifted again: so does the reference."""
    size, shift = o.take("num_train_timesteps", 1000), o.take("shift", 1.0)
    if o.take("stochastic_sampling", False):
        sampler = s.consistency()
    for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        o.pop(key, None)  # these only count with use_dynamic_shifting, which `finish` refuses: use mu_shift
    schedule = RectifiedFlow(shift, size)
    low = float(schedule(1 / size).sigma)
    return Recipe(schedule, "flow", lambda n: from_times(schedule, np.linspace(1, low, n)), lambda n: sampler)


CLASSES: dict[str, Callable[[_Options], Recipe]] = {
    "DDPMScheduler": _ddpm,
    "DDIMScheduler": lambda o: _indexed(o, s.ddim(), True, True, True),
    "PNDMScheduler": _pndm,
    "EulerDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.euler()),
    "EulerAncestralDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.euler_ancestral()),
    "HeunDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.heun(), clips=True),
    "LMSDiscreteScheduler": lambda o: _sigma_space(o, lambda table: s.lms()),
    "KDPM2DiscreteScheduler": lambda o: _sigma_space(o, s.dpm2, rounded=True),
    "KDPM2AncestralDiscreteScheduler": lambda o: _sigma_space(o, s.dpm2_ancestral, rounded=True),
    "DPMSolverMultistepScheduler": _multistep,
    "DPMSolverSinglestepScheduler": _singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "LCMScheduler": lambda o: _distilled(o, False),
    "TCDScheduler": lambda o: _distilled(o, True),
    "EDMEulerScheduler": lambda o: _edm(o, lambda o: lambda n: s.euler()),
    "EDMDPMSolverMultistepScheduler": lambda o: _edm(o, _edm_multistep),
    "FlowMatchEulerDiscreteScheduler": lambda o: _flow(o, s.euler()),
    "FlowMatchHeunDiscreteScheduler": lambda o: _flow(o, s.heun("flow")),
}
