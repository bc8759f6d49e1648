"""A recipe says how a trained model is sampled: process, what the network predicts, grid, sampler, input and start scale.

    recipe = make_recipe("scaled_linear", "eps", "dpmpp_2m", "karras")
    levels = recipe.grid(20)
    denoise = recipe.denoiser(network)
    x = sample(denoise, recipe.sampler(20), start(key, shape, levels, recipe.start_scale), levels, key)
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ldm_jax.diffusion.clock import has_clock
from ldm_jax.diffusion.denoiser import Network, make_denoiser
from ldm_jax.diffusion.driver import unit_variance_scale
from ldm_jax.diffusion.grids import GRIDS, GridLike, make_grid
from ldm_jax.diffusion.level import CLEAN, PURE_NOISE, Denoiser, Level
from ldm_jax.diffusion.parameterization import PREDICTIONS, PredictionType, of_schedule
from ldm_jax.diffusion.samplers import SAMPLERS, Sampler, make_sampler
from ldm_jax.diffusion.schedules import Discrete, Schedule, make_schedule
from ldm_jax.primitives.choices import check_choice, choose

# Samplers that integrate eps, from which no step leaves pure noise (alpha < PURE_NOISE).
EPS_SOLVERS = ("deis", "dpm2", "dpm2_ancestral", "ipndm", "lms", "plms", "pndm")
# Samplers that take a mean of eps over a step. The first step from next to no signal is long: from 1808 times as much noise as
# signal to 13 times, on the cosine schedule in 20 steps. It multiplies what eps errs by the quotient of the two.
AVERAGING = ("dpm2", "dpm2_ancestral", "edm", "heun", "plms", "pndm")
LEAST_SIGNAL = 1e-3  # of the noise, from which these can start
# Grids whose first level is the noisiest of the schedule, or near it; karras and its like stop short of pure noise.
FULL_GRIDS = ("leading", "linspace", "trailing")
# What can't be combined: (a test of schedule, prediction, sampler and grid, why). `make_recipe` refuses these, and only these.
REFUSED: tuple[tuple[Callable[[Schedule, Any, Any, Any], bool], str], ...] = (
    (
        lambda schedule, prediction, sampler, grid: grid == "leading" and not isinstance(schedule, Discrete),
        "grid='leading' counts the entries of a table and this schedule is continuous: use grid='trailing' or 'linspace'.",
    ),
    (
        lambda schedule, prediction, sampler, grid: (
            prediction == "eps" and grid in FULL_GRIDS and starts_at_pure_noise(schedule, grid)
        ),
        "prediction='eps' leaves x0 unknown at pure noise, where this schedule and grid start: use grid='karras' or 'log_snr'.",
    ),
    (
        lambda schedule, prediction, sampler, grid: (
            sampler in EPS_SOLVERS and grid in FULL_GRIDS and starts_at_pure_noise(schedule, grid)
        ),
        "this sampler integrates eps and can't leave pure noise, where this schedule and grid start: use grid='karras' or "
        "'log_snr', or a sampler that integrates x0 (dpmpp_2m, unipc, ddim).",
    ),
    (
        lambda schedule, prediction, sampler, grid: (
            sampler in AVERAGING and grid in FULL_GRIDS and PURE_NOISE <= least_signal(schedule, grid) < LEAST_SIGNAL
        ),
        "this sampler takes a mean over a step, and the first step is too long for that where this schedule and grid start, at "
        "next to no signal: use grid='karras' or 'log_snr', or a sampler that integrates x0 (dpmpp_2m, unipc, ddim).",
    ),
    (
        lambda schedule, prediction, sampler, grid: sampler == "flow_map" and not has_clock(schedule, prediction),
        "this sampler takes averages of the velocity, which this prediction is not: it is for networks trained by mean_flow or "
        "shortcut, in prediction='flow' with schedule='flow' or prediction='v' with a variance-preserving schedule.",
    ),
)


@dataclass(frozen=True)
class Recipe:
    """How to sample.

    Attributes:
      schedule: the noise schedule.
      prediction: what the network predicts, a name in `PREDICTIONS` or a function from Level to the pair (c, d).
      grid: steps -> Level [steps + 1].
      sampler: steps -> Sampler; some solvers lower their order when there are few steps.
      wrap: changes the (guided) denoiser: clips or thresholds x0, or imposes a boundary condition.
      input_scale: level -> what the network's input is multiplied by (EDM's c_in); None for 1.
      start_scale: level -> what unit noise is multiplied by at the grid's first level.
    """

    schedule: Schedule
    prediction: PredictionType
    grid: Callable[[int], Level]
    sampler: Callable[[int], Sampler]
    wrap: Callable[[Denoiser], Denoiser] = lambda denoise: denoise
    input_scale: Callable[[Level], Any] | None = None
    start_scale: Callable[[Level], Any] = unit_variance_scale

    def denoiser(self, network: Network) -> Denoiser:
        """The denoiser, without guidance, of `network(x, t[B]) -> output`."""
        return self.wrap(make_denoiser(network, self.prediction, self.input_scale))

    def with_sampler(self, sampler: str | Sampler, **options: Any) -> "Recipe":
        """The same recipe with another sampler, by name (with its options) or ready made."""
        made = make_sampler(sampler, self.schedule, **options)
        return dataclasses.replace(self, sampler=lambda steps: made)

    def with_grid(self, grid: GridLike, end: str | Level = "clean", **options: Any) -> "Recipe":
        """The same recipe with another grid: by name, with `end` and `options` as for `make_recipe`, or one of your own, which
        has its end."""
        if not isinstance(grid, str):
            return dataclasses.replace(self, grid=partial(make_grid, grid, self.schedule, **options))
        check_choice(grid, GRIDS, "grid")
        end = end_level(self.schedule, end)
        return dataclasses.replace(self, grid=partial(make_grid, grid, self.schedule, end=end, **options))


def make_recipe(
    schedule: str | Schedule = "scaled_linear",
    prediction: PredictionType = "eps",
    sampler: str | Sampler = "ddim",
    grid: GridLike = "trailing",
    *,
    end: str | Level = "clean",
    sampler_options: Mapping[str, Any] | None = None,
    grid_options: Mapping[str, Any] | None = None,
    start_scale: Callable[[Level], Any] = unit_variance_scale,
) -> Recipe:
    """A recipe from names in `SCHEDULES`, `PREDICTIONS`, `SAMPLERS` and `GRIDS`, or from such objects: a Schedule, a function
    from Level to the pair (c, d), a Sampler, a Level or a function from the number of steps to one.

    Args:
      schedule: a name, or a schedule with options of its own, from which the network's input scale comes too.
      end: where the last step goes: "clean" (alpha 1, sigma 0), "first" (the schedule's least noisy level, as in CompVis's
        samplers) or a Level.
      sampler_options, grid_options: keyword arguments of the sampler's and the grid's factory.

    Raises:
      ValueError: an unknown name, or a combination that `REFUSED` lists.
    """
    schedule = make_schedule(schedule)
    check_combination(schedule, prediction, sampler, grid)
    made = make_sampler(sampler, schedule, **(sampler_options or {}))
    ending = {"end": end_level(schedule, end)} if isinstance(grid, str) else {}
    return Recipe(
        schedule,
        of_schedule(prediction, schedule),
        partial(make_grid, grid, schedule, **ending, **(grid_options or {})),
        lambda steps: made,
        input_scale=schedule.input_scale,
        start_scale=start_scale,
    )


def check_combination(schedule: Schedule, prediction: PredictionType, sampler: str | Sampler, grid: GridLike) -> None:
    """ValueError for an unknown name or a combination in `REFUSED`. What is given as a function is not looked into."""
    if isinstance(prediction, str):
        check_choice(prediction, PREDICTIONS, "prediction")
    if isinstance(sampler, str):
        check_choice(sampler, SAMPLERS, "sampler")
    if isinstance(grid, str):
        check_choice(grid, GRIDS, "grid")
    for impossible, why in REFUSED:
        if impossible(schedule, prediction, sampler, grid):
            raise ValueError(f"sampler={sampler!r}, grid={grid!r}, prediction={prediction!r} with {schedule}: {why}")


def end_level(schedule: Schedule, end: str | Level) -> Level:
    """The level that `end` names: "clean", "first", or a Level, which stays as it is."""
    if not isinstance(end, str):
        return end
    return choose({"clean": CLEAN, "first": schedule(np.float64(schedule.span[0]))}, end, "end")


def least_signal(schedule: Schedule, grid: str = "trailing") -> float:
    """alpha / sigma of the schedule's noisiest level; for the grid "leading" of the least noisy one where it starts, with two
    steps."""
    t = schedule.size // 2 if grid == "leading" and isinstance(schedule, Discrete) else schedule.span[1]
    return 1 / float(schedule(np.float64(t)).noise_ratio)


def starts_at_pure_noise(schedule: Schedule, grid: str = "trailing") -> bool:
    """Whether the level of `least_signal` holds no signal: alpha is 0, or too small to be divided by."""
    return least_signal(schedule, grid) < PURE_NOISE
