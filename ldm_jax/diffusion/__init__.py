"""The mathematics of diffusion, as pure functions that compose.

    x_t = alpha x0 + sigma eps                                 Level(t, alpha, sigma); schedule(t) -> Level
    target = c x0 + d eps                                      a parameterization is the pair (c, d)
    denoise(x, level) -> Prediction(x0, eps)                   guidance and editing wrap denoisers
    Sampler(init, step); sample(denoise, sampler, x, grid)     a grid is a Level of arrays, the loop one scan
    objective(problem, x0, key, rows, batch_size)              -> (loss, metrics); `diffusion_loss` for a network of (x, t)
    few_steps.OBJECTIVES                                       objectives whose networks draw in one to four steps
    make_recipe(schedule, prediction, sampler, grid)           how a trained model is sampled, from names
"""

from ldm_jax.diffusion import editing, few_steps, grids, guidance, schedules, times, weightings
from ldm_jax.diffusion.clock import Clock, has_clock, make_clock
from ldm_jax.diffusion.denoiser import clip, dynamic_threshold, edm_input_scale, from_x0, make_denoiser, map_x0
from ldm_jax.diffusion.driver import previews, sample, start, trajectory, unit_variance_scale
from ldm_jax.diffusion.grids import GRIDS, make_grid
from ldm_jax.diffusion.guidance import classifier_free, separately, together
from ldm_jax.diffusion.level import CLEAN, Denoiser, Level, Prediction, diffuse
from ldm_jax.diffusion.likelihood import bits_per_dimension, log_likelihood
from ldm_jax.diffusion.objectives import LOSSES, Objective, Problem, diffusion_loss, make_objective
from ldm_jax.diffusion.parameterization import PREDICTIONS, predict, target
from ldm_jax.diffusion.recipe import REFUSED, Recipe, make_recipe
from ldm_jax.diffusion.samplers import SAMPLERS, Sampler, State, make_sampler
from ldm_jax.diffusion.schedules import SCHEDULES, Schedule, make_schedule
from ldm_jax.diffusion.times import TIMES, make_times
from ldm_jax.diffusion.weightings import WEIGHTINGS, make_weighting

__all__ = [
    "CLEAN", "Clock", "Denoiser", "GRIDS", "LOSSES", "Level", "Objective", "PREDICTIONS", "Prediction", "Problem",
    "REFUSED", "Recipe", "SAMPLERS", "SCHEDULES", "Sampler", "Schedule", "State", "TIMES", "WEIGHTINGS",
    "bits_per_dimension", "classifier_free", "clip", "diffuse", "diffusion_loss", "dynamic_threshold", "editing",
    "edm_input_scale", "few_steps", "from_x0", "grids", "guidance", "has_clock", "log_likelihood", "make_clock",
    "make_denoiser", "make_grid", "make_objective", "make_recipe", "make_sampler", "make_schedule", "make_times",
    "make_weighting", "map_x0", "predict", "previews", "sample", "schedules", "separately", "start", "target", "times",
    "together", "trajectory", "unit_variance_scale", "weightings",
]
