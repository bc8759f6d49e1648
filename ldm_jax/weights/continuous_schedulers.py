"""diffusers' schedulers that have no table of betas: EDM's, and those of flow matching; and what they share with the others."""

from collections.abc import Callable

import numpy as np

from ldm_jax.diffusion import samplers as s
from ldm_jax.diffusion.denoiser import clip, dynamic_threshold, edm_input_scale, map_x0
from ldm_jax.diffusion.grids import (
    beta_spaced,
    ending_at,
    exponential,
    exponentially_spaced,
    from_times,
    karras,
    karras_spaced,
)
from ldm_jax.diffusion.level import CLEAN, Denoiser, Level
from ldm_jax.diffusion.parameterization import Pair, edm
from ldm_jax.diffusion.recipe import Recipe
from ldm_jax.diffusion.schedules import RectifiedFlow, VarianceExploding
from ldm_jax.primitives.choices import choose
from ldm_jax.weights.scheduler_settings import Settings


def clipping(o: Settings, clipped: bool | None, keep_eps: bool) -> Callable[[Denoiser], Denoiser]:
    """What a config does to predictions of x0. `clipped`: the class's default for clip_sample; None if it only thresholds."""
    limit, ratio, top = (
        o.take(key, default)
        for key, default in (("clip_sample_range", 1.0), ("dynamic_thresholding_ratio", 0.995), ("sample_max_value", 1.0))
    )
    clips = clipped is not None and o.take("clip_sample", clipped)
    if o.take("thresholding", False):  # which comes before clipping
        return lambda denoise: map_x0(denoise, dynamic_threshold(ratio, top), keep_eps)
    if clips:
        return lambda denoise: map_x0(denoise, clip(limit), keep_eps)
    return lambda denoise: denoise


def solver_type(o: Settings) -> bool:
    """Whether second-order steps weigh the derivative as Heun does, exactly, and not as the midpoint."""
    return choose({"midpoint": False, "heun": True}, o.take("solver_type", "midpoint"), "diffusers solver_type")


def edm_recipe(o: Settings, sampler: Callable[[Settings], Callable[[int], s.Sampler]]) -> Recipe:
    """Karras et al. (2022), with their preconditioning."""
    low, high, data, rho = (
        o.take(k, v) for k, v in (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5), ("rho", 7.0))
    )
    o.pop("num_train_timesteps", None)
    schedule = VarianceExploding(low, high)
    grids = {"karras": lambda n: karras(schedule, n, rho), "exponential": lambda n: exponential(schedule, n)}
    grid = choose(grids, o.take("sigma_schedule", "karras"), "diffusers sigma_schedule")
    choose({"zero": None}, o.take("final_sigmas_type", "zero"), "diffusers final_sigmas_type of EDM")
    kinds = {"epsilon": edm(data), "v_prediction": _negated(edm(data))}
    kind = choose(kinds, o.take("prediction_type", "epsilon"), "diffusers prediction_type of EDM")
    return Recipe(schedule, kind, grid, sampler(o), clipping(o, None, False), edm_input_scale(data))


def _negated(pair: Pair) -> Pair:
    return lambda level: tuple(-a for a in pair(level))


def edm_multistep(o: Settings) -> Callable[[int], s.Sampler]:
    """DPM-Solver++ on EDM's levels. The last step, to exactly clean, is of order 1 with `euler_at_final` or without."""
    order, exact, lower = o.take("solver_order", 2), solver_type(o), o.take("lower_order_final", True)
    o.pop("euler_at_final", None)
    if order == 3 and exact:
        raise ValueError("solver_order 3 has no counterpart with solver_type 'heun'.")
    algorithms = {"dpmsolver++": 0.0, "sde-dpmsolver++": 1.0}
    eta = choose(algorithms, o.take("algorithm_type", "dpmsolver++"), "diffusers algorithm_type")
    return lambda n: s.dpm_multistep(order, "x0", exact, eta, lower and n < 15)


_SPACINGS = {
    "use_karras_sigmas": karras_spaced,
    "use_exponential_sigmas": exponentially_spaced,
    "use_beta_sigmas": beta_spaced,
}


def flow_recipe(o: Settings, sampler: s.Sampler) -> Recipe:
    """Flow matching. The times are spaced down to the shifted 1/N, and shifted again: so does the reference. Karras's spacing
    and its like are then of sigma itself, between the two ends of that."""
    size, shift = o.take("num_train_timesteps", 1000), o.take("shift", 1.0)
    if o.take("stochastic_sampling", False):
        sampler = s.consistency()
    for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        o.pop(key, None)  # these only count with use_dynamic_shifting, which `finish` refuses: use mu_shift
    schedule = RectifiedFlow(shift, size)
    low = float(schedule(1 / size).sigma)
    chosen = {key: o.take(key, False) for key in _SPACINGS}
    spaced = next((_SPACINGS[key] for key, on in chosen.items() if on), None)

    def grid(n: int) -> Level:
        levels = from_times(schedule, np.linspace(1, low, n))
        if spaced is None:
            return levels
        sigmas = spaced(levels.sigma[n - 1], levels.sigma[0], n)
        return ending_at(Level(sigmas * size, 1 - sigmas, sigmas), CLEAN)

    return Recipe(schedule, "flow", grid, lambda n: sampler, start_scale=lambda level: 1.0)
