"""Students of a frozen diffusion model that stay diffusion models: fewer steps, or straighter paths.

Progressive distillation (Salimans & Ho 2022, algorithm 2): one DDIM step of the student, t to t'', is to do what two of the
teacher do, t to t' to t''. The x0 that makes it so is

    x~ = (z_t'' - (sigma_t'' / sigma_t) z_t) / (alpha_t'' - (sigma_t'' / sigma_t) alpha_t)

A student of 2N steps is the teacher of one of N: one training each, from `start_from`. Their weight is
weighting="truncated_snr".

Reflow (Liu et al. 2023, "Flow straight and fast", 2-rectified flow): flow matching between noise and what the teacher's ODE
makes of that same noise, whose paths cross less and so are straighter. Only the shape of the training data is used.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.diffusion.denoiser import from_x0, make_denoiser
from ldm_jax.diffusion.driver import sample
from ldm_jax.diffusion.few_steps import drawing
from ldm_jax.diffusion.few_steps.discrete import guided_teacher
from ldm_jax.diffusion.grids import trailing
from ldm_jax.diffusion.level import Level, Prediction, diffuse, expand
from ldm_jax.diffusion.objectives import Objective, Problem
from ldm_jax.diffusion.parameterization import PredictionType, of_schedule, predict, target
from ldm_jax.diffusion.recipe import starts_at_pure_noise
from ldm_jax.diffusion.samplers import make_sampler
from ldm_jax.diffusion.schedules import RectifiedFlow, Schedule
from ldm_jax.diffusion.times import Times
from ldm_jax.diffusion.weightings import Weighting, make_weighting
from ldm_jax.primitives.arrays import row_keys, row_normal


def progressive(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    student_steps: int = 4,
    weighting: str | Weighting = "truncated_snr",
    guidance_scale: float = 1.0,
) -> Objective:
    """Progressive distillation into so many steps of the "trailing" grid; see above.

    Args:
      student_steps: N; the teacher takes 2N.
      guidance_scale: of the teacher, 1 is off: the student then needs none, nor do its own students.

    Raises:
      ValueError: noise to be predicted from pure noise, numbers out of range.
    """
    drawing.check_guidance(guidance_scale)
    if student_steps < 1:
        raise ValueError(f"student_steps={student_steps}: must be at least 1")
    if prediction == "eps" and starts_at_pure_noise(schedule):
        raise ValueError("progressive: prediction='eps' leaves x0 unknown at pure noise, where this schedule starts")
    prediction = of_schedule(prediction, schedule)
    grid = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), trailing(schedule, 2 * student_steps))
    weight = make_weighting(weighting, schedule) if isinstance(weighting, str) else weighting

    def scaled(x: jax.Array, level: Level) -> jax.Array:
        return x if schedule.input_scale is None else x * expand(schedule.input_scale(level), x)

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_step, of_noise = jax.random.split(key)
        step = jax.vmap(lambda key: jax.random.randint(key, (), 0, student_steps))(row_keys(of_step, rows))
        level, middle, to = (grid[2 * step + i] for i in range(3))
        x, x0, _ = drawing.noised(x0, of_noise, rows, level)

        def ddim(z: jax.Array, level: Level, to: Level) -> jax.Array:
            output = guided_teacher(problem, scaled(z, level), level.t, guidance_scale)
            return diffuse(*predict(prediction, z, output, level), to)

        end = ddim(ddim(x, level, middle), middle, to)
        ratio = to.sigma / level.sigma
        taught = (end - expand(ratio, x) * x) / expand(to.alpha - ratio * level.alpha, x)
        wanted = target(prediction, from_x0(x, taught, level), level)
        output = problem.network(problem.params, scaled(x, level), level.t, None).astype(x.dtype)
        error = drawing.row_mean(jnp.square(output - wanted))
        return drawing.report(weight(level, prediction) * error, error, level)

    return objective


def reflow(
    schedule: Schedule,
    prediction: PredictionType,
    *,
    times: str | Times = "uniform",
    times_options: Mapping[str, Any] | None = None,
    teacher_steps: int = 16,
    teacher_sampler: str = "dpmpp_2m",
    guidance_scale: float = 1.0,
) -> Objective:
    """Reflow; see above. Every row of an update costs `teacher_steps` evaluations of the teacher, with guidance twice as many.

    Raises:
      ValueError: another process than rectified flow with prediction "flow", a sampler that draws noise, numbers out of range.
    """
    if prediction != "flow" or not isinstance(schedule, RectifiedFlow):
        raise ValueError(f"reflow is of schedule='flow' with prediction='flow'; got {prediction!r} with {schedule}")
    drawing.check_guidance(guidance_scale)
    draw, solver = drawing.times_of(times, times_options), make_sampler(teacher_sampler, schedule)
    grid = trailing(schedule, teacher_steps)

    def objective(problem: Problem, x0: jax.Array, key: jax.Array, rows: jax.Array, batch_size: int):
        of_times, of_noise = jax.random.split(key)
        level = drawing.level_of_rows(draw, of_times, rows, batch_size, schedule)
        eps = row_normal(of_noise, rows, x0.shape[1:])
        denoise = make_denoiser(lambda x, t: guided_teacher(problem, x, t, guidance_scale), prediction)
        x0 = jax.lax.stop_gradient(sample(denoise, solver, eps, grid))
        x = diffuse(x0, eps, level)
        output = problem.network(problem.params, x, level.t, None).astype(x.dtype)
        error = drawing.row_mean(jnp.square(output - target(prediction, Prediction(x0, eps), level)))
        return drawing.report(error, error, level)

    return objective
